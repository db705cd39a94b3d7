//! Orders about disks that move to other places on this host.

use std::os::fd::OwnedFd;
use std::sync::{Arc, MutexGuard, PoisonError};

use godwit_types::control::{DiskDescriptors, NewPlace, Reply, StorageOrder};
use godwit_types::{ApiError, ErrorCode, MigrationId};

use super::desk::Desk;
use crate::machine::{StorageMove, Target};

impl Desk {
    /// Serves an order, and tells how the move stands after it.
    pub(super) fn storage(
        &self,
        migration: MigrationId,
        order: StorageOrder,
        descriptors: Vec<OwnedFd>,
    ) -> Reply {
        let done = match order {
            StorageOrder::Begin { disks, bytes_per_s_max } => {
                self.begin_storage(migration, disks, descriptors, bytes_per_s_max)
            }
            StorageOrder::Look => self.storage_move(migration),
            StorageOrder::Hold => self.order_storage(migration, StorageMove::hold),
            StorageOrder::Switch => self.order_storage(migration, StorageMove::switch),
            StorageOrder::Cancel => self.order_storage(migration, StorageMove::cancel),
        };
        match done {
            Ok(moving) => Reply::Storage(Box::new(moving.status())),
            Err(error) => Reply::Error { error },
        }
    }

    /// Why nothing else can happen to the VM's disks now.
    pub(super) fn require_storage_still(&self) -> Result<(), ApiError> {
        match &*self.moving_storage() {
            Some(moving) if moving.is_open() => {
                let migration = moving.migration();
                let message =
                    format!("disks of the VM are on their way to another datastore, by move {migration}");
                Err(ApiError::conflict(message).remedy("wait for it to end, or cancel it: godwit task ls"))
            }
            _ => Ok(()),
        }
    }

    fn begin_storage(
        &self,
        migration: MigrationId,
        disks: Vec<NewPlace>,
        descriptors: Vec<OwnedFd>,
        bytes_per_s_max: Option<u64>,
    ) -> Result<Arc<StorageMove>, ApiError> {
        self.running()?;
        // Locked until it has begun: no migration begins meanwhile.
        let outgoing = self.current();
        if let Some((other, _)) = &*outgoing {
            return Err(ApiError::conflict(format!("the VM is being migrated away, by migration {other}")));
        }
        self.require_storage_still()?;
        let targets = targets(disks, descriptors)?;
        let machine = Arc::clone(&self.machine);
        let begun = self.starter.run(move || machine.move_storage(migration, targets, bytes_per_s_max))??;
        *self.moving_storage() = Some(Arc::clone(&begun));
        Ok(begun)
    }

    fn order_storage(
        &self,
        migration: MigrationId,
        order: fn(&StorageMove) -> Result<(), ApiError>,
    ) -> Result<Arc<StorageMove>, ApiError> {
        let moving = self.storage_move(migration)?;
        let ordered = Arc::clone(&moving);
        // Images are closed by it, which this thread may not do.
        self.starter.run(move || order(&ordered))??;
        Ok(moving)
    }

    fn storage_move(&self, migration: MigrationId) -> Result<Arc<StorageMove>, ApiError> {
        let moving = self.moving_storage();
        let found = moving.as_ref().filter(|moving| moving.migration() == migration);
        found.cloned().ok_or_else(|| {
            let message = format!("no disks move here by move {migration}");
            ApiError::new(ErrorCode::NotFound, message)
        })
    }

    fn moving_storage(&self) -> MutexGuard<'_, Option<Arc<StorageMove>>> {
        self.storage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each disk's new place with its image and its lock file.
fn targets(disks: Vec<NewPlace>, descriptors: Vec<OwnedFd>) -> Result<Vec<Target>, ApiError> {
    let mut descriptors = descriptors.into_iter();
    let target = |NewPlace { index, image: name, backing }| {
        let (image, lock) = (descriptors.next()?, descriptors.next()?);
        let files = DiskDescriptors { images: vec![(backing.path.clone(), image)], lock: Some(lock) };
        Some(Target { index, image: name, backing, files })
    };
    let targets: Option<Vec<Target>> = disks.into_iter().map(target).collect();
    let missing =
        || ApiError::new(ErrorCode::Invalid, "the request has not brought its images and lock files");
    targets.filter(|targets| !targets.is_empty()).ok_or_else(missing)
}
