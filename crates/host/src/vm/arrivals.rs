//! Images that disks are to come to: of VMs that arrive with theirs, and of VMs here whose disks move to another datastore.
//! They are made before anybody fills them, and removed if the disks do not come.
//!
//! ```text
//!  begin: noted, then made --the VM runs here with them, or is started here--> settle: the VM's own, no longer noted
//!                     '------the migration, or the move, is aborted----------> discard: removed
//! ```
//!
//! Only the manager's word that it is aborted leads to the removal: a process that has died may have had everything, and the
//! VM's record may name them already. So the notes outlive the agent, and the manager is told of those whose VM has no
//! process here, and of all disks that move to another datastore.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use godwit_provision::lock_of;
use godwit_types::agent::{Leftover, MovedDisk};
use godwit_types::control::DiskBacking;
use godwit_types::vm::{DatastorePath, DiskSpec};
use godwit_types::{ApiError, Bytes, ErrorCode, MigrationId, VmId};
use serde::{Deserialize, Serialize};

use super::dir::absent_is_fine;
use super::places;

/// See the module.
#[derive(Debug)]
pub(crate) struct Arrivals {
    dir: PathBuf,
    noted: Mutex<BTreeMap<VmId, Note>>,
}

/// What was made for one arrival.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    migration: MigrationId,
    images: Vec<PathBuf>,
    /// From the outermost inwards.
    directories: Vec<PathBuf>,
    /// Of disks that move to another datastore: where each goes. Empty if they arrive with the VM.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    storage: Vec<NewImage>,
}

/// The place to which a disk of a VM here moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewImage {
    pub(crate) index: u32,
    pub(crate) image: DatastorePath,
    pub(crate) backing: DiskBacking,
}

impl Arrivals {
    /// With what an earlier agent has noted.
    pub(crate) fn load(state_dir: &Path) -> Self {
        let dir = state_dir.join("arrivals");
        let mut noted = BTreeMap::new();
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let id = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            let note = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            match id.zip(note) {
                Some((id, note)) => drop(noted.insert(VmId(id), note)),
                None => tracing::warn!("{} notes no arrival, and is left alone", path.display()),
            }
        }
        Self { dir, noted: Mutex::new(noted) }
    }

    /// Makes the images of a VM that arrives, and the directories that they lie in. What an earlier stay of the VM has left
    /// is replaced.
    pub(crate) fn begin(
        &self,
        vm: VmId,
        migration: MigrationId,
        disks: &[(DiskBacking, MovedDisk)],
    ) -> Result<(), ApiError> {
        self.make(vm, migration, disks, Vec::new())
    }

    /// The same for disks of a VM here, each with its size.
    pub(crate) fn begin_storage(
        &self,
        vm: VmId,
        migration: MigrationId,
        disks: Vec<(NewImage, Bytes)>,
    ) -> Result<(), ApiError> {
        let made = |(new, size): &(NewImage, Bytes)| {
            (new.backing.clone(), MovedDisk { index: new.index, size: *size })
        };
        let made: Vec<_> = disks.iter().map(made).collect();
        self.make(vm, migration, &made, disks.into_iter().map(|(new, _)| new).collect())
    }

    fn make(
        &self,
        vm: VmId,
        migration: MigrationId,
        disks: &[(DiskBacking, MovedDisk)],
        storage: Vec<NewImage>,
    ) -> Result<(), ApiError> {
        let earlier = self.noted().get(&vm).cloned();
        if let Some(earlier) = earlier {
            if !earlier.storage.is_empty() {
                let message = format!(
                    "it is not known here yet what became of the VM's disks, which were to move: {}",
                    earlier.migration
                );
                return Err(ApiError::new(ErrorCode::Conflict, message).remedy("try again in a few seconds"));
            }
            // The VM is elsewhere, and nobody's any more what came for an earlier attempt.
            self.discard(vm, earlier.migration);
        }
        let images: Vec<PathBuf> = disks.iter().map(|(disk, _)| disk.path.clone()).collect();
        let directories = images.iter().flat_map(|image| missing_directories(image)).collect();
        let note = Note { migration, images, directories, storage };
        let made = self.write(vm, &note).and_then(|()| {
            self.noted().insert(vm, note.clone());
            note.directories.iter().try_for_each(|directory| match fs::create_dir(directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                created => created,
            })?;
            disks.iter().try_for_each(|(disk, moved)| {
                absent_is_fine(fs::remove_file(&disk.path))?;
                godwit_provision::create_image(&disk.path, disk.format, moved.size)
            })
        });
        made.map_err(|error| {
            self.discard(vm, migration);
            let message = format!("the images that the disks are to come to cannot be made: {error}");
            ApiError::new(ErrorCode::Failed, message)
                .remedy("make room in the datastore and let root write to it, or name another")
        })
    }

    /// By this migration, or move, the disks have come: the images are the VM's own.
    pub(crate) fn settle(&self, vm: VmId, migration: MigrationId) {
        if self.noted().get(&vm).is_some_and(|note| note.migration == migration) {
            self.forget(vm);
        }
    }

    /// The VM is started here with `disks`: whatever became of what was noted, those images are its own, and others of a
    /// move to another datastore are nobody's.
    pub(crate) fn settle_started(&self, vm: VmId, disks: &[DiskSpec]) {
        let Some(Note { migration, storage, .. }) = self.noted().get(&vm).cloned() else { return };
        let used = |new: &NewImage| disks.iter().any(|disk| disk.image == new.image);
        if storage.is_empty() || storage.iter().any(used) {
            self.forget(vm);
        } else {
            self.discard(vm, migration);
        }
    }

    /// Where disks of the VM go by this move, if they are on their way.
    pub(crate) fn storage(&self, vm: VmId, migration: MigrationId) -> Option<Vec<NewImage>> {
        let noted = self.noted();
        let note = noted.get(&vm).filter(|note| note.migration == migration && !note.storage.is_empty())?;
        Some(note.storage.clone())
    }

    fn forget(&self, vm: VmId) {
        if self.noted().remove(&vm).is_some()
            && let Err(error) = absent_is_fine(fs::remove_file(self.path(vm)))
        {
            tracing::warn!("the note of an arrival stays: {error}");
        }
    }

    /// By this migration, or move, no disk comes: what was made for it is removed.
    pub(crate) fn discard(&self, vm: VmId, migration: MigrationId) {
        let Some(note) = self.noted().get(&vm).filter(|note| note.migration == migration).cloned() else {
            return;
        };
        let remove = |image: &PathBuf| {
            if places::record(&lock_of(image)).is_some_and(|record| record.vm != vm) {
                tracing::warn!("{} has become another VM's, and stays", image.display());
                return Ok(());
            }
            absent_is_fine(fs::remove_file(image))
                .and_then(|()| absent_is_fine(fs::remove_file(lock_of(image))))
        };
        if let Err(error) = note.images.iter().try_for_each(remove) {
            // It is told of again, and so tried again.
            return tracing::warn!("an image to which no disk has come was not removed: {error}");
        }
        // One in which somebody else has put something stays.
        note.directories.iter().rev().for_each(|directory| drop(fs::remove_dir(directory)));
        tracing::info!(
            "no disk of VM {vm} has come by migration {migration}: the images made for it are removed"
        );
        self.forget(vm);
    }

    /// Whether images were made for the VM, and it is not known yet whether its disks come.
    pub(crate) fn is_noted(&self, vm: VmId) -> bool {
        self.noted().contains_key(&vm)
    }

    /// The images that were made for an arrival of the VM. Until the manager has said that it came to nothing, they stay; the
    /// next arrival replaces them.
    pub(crate) fn made(&self, vm: VmId) -> Vec<PathBuf> {
        let noted = self.noted();
        noted
            .get(&vm)
            .filter(|note| note.storage.is_empty())
            .map_or_else(Vec::new, |note| note.images.clone())
    }

    /// What was made for VMs that are not among those `here`, and for disks that move to another datastore.
    pub(crate) fn leftovers(&self, here: impl Fn(VmId) -> bool) -> Vec<Leftover> {
        let noted = self.noted();
        let gone = noted.iter().filter(|(vm, note)| !note.storage.is_empty() || !here(**vm));
        gone.map(|(vm, note)| Leftover { vm: *vm, migration: note.migration }).collect()
    }

    /// Makes the note durable: before the images, so that no crash leaves one that nobody knows of.
    fn write(&self, vm: VmId, note: &Note) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let draft = self.dir.join("draft");
        let mut file = fs::File::create(&draft)?;
        file.write_all(&serde_json::to_vec(note)?)?;
        file.sync_all()?;
        fs::rename(draft, self.path(vm))?;
        fs::File::open(&self.dir)?.sync_all()
    }

    fn path(&self, vm: VmId) -> PathBuf {
        self.dir.join(format!("{vm}.json"))
    }

    fn noted(&self) -> MutexGuard<'_, BTreeMap<VmId, Note>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The directories above an image that are not there, from the outermost inwards.
fn missing_directories(image: &Path) -> Vec<PathBuf> {
    let above = image.ancestors().skip(1).take_while(|directory| !directory.exists());
    let mut missing: Vec<PathBuf> = above.map(Path::to_owned).collect();
    missing.reverse();
    missing
}

#[cfg(test)]
mod tests {
    use godwit_types::vm::DiskFormat;
    use uuid::Uuid;

    use super::*;

    const VM: VmId = VmId(Uuid::from_u128(1));
    const FIRST: MigrationId = MigrationId(Uuid::from_u128(7));
    const SECOND: MigrationId = MigrationId(Uuid::from_u128(8));

    fn disk(path: PathBuf) -> (DiskBacking, MovedDisk) {
        let (lock, format) = (lock_of(&path), DiskFormat::Raw);
        let backing = DiskBacking { path, lock, format, read_only: false };
        (backing, MovedDisk { index: 0, size: Bytes::mib(1) })
    }

    #[test]
    fn what_was_made_for_a_vm_that_does_not_come_is_removed_also_by_the_next_agent() {
        let root = tempfile::tempdir().unwrap();
        let image = root.path().join("store/vms/web1.raw");
        fs::create_dir(root.path().join("store")).unwrap();
        let arrivals = Arrivals::load(root.path());
        arrivals.begin(VM, FIRST, &[disk(image.clone())]).unwrap();
        fs::write(lock_of(&image), "").unwrap();
        assert_eq!(arrivals.leftovers(|_| true), []);
        let next = Arrivals::load(root.path());
        next.discard(VM, SECOND);
        assert!(image.exists(), "another migration's");
        assert_eq!(next.leftovers(|_| false), [Leftover { vm: VM, migration: FIRST }]);
        assert_eq!(next.made(VM), std::slice::from_ref(&image), "the next arrival may have it");
        next.discard(VM, FIRST);
        assert_eq!(fs::read_dir(root.path().join("store")).unwrap().count(), 0);
        assert_eq!(Arrivals::load(root.path()).leftovers(|_| false), []);
    }

    #[test]
    fn the_images_of_a_vm_that_came_are_its_own_and_a_later_arrival_replaces_them() {
        let root = tempfile::tempdir().unwrap();
        let image = root.path().join("web1.raw");
        let arrivals = Arrivals::load(root.path());
        arrivals.begin(VM, FIRST, &[disk(image.clone())]).unwrap();
        arrivals.settle(VM, SECOND);
        assert!(arrivals.is_noted(VM), "another migration's");
        arrivals.settle(VM, FIRST);
        arrivals.discard(VM, FIRST);
        assert!(image.exists());
        fs::write(&image, "old").unwrap();
        arrivals.begin(VM, SECOND, &[disk(image.clone())]).unwrap();
        assert_eq!(fs::metadata(&image).unwrap().len(), 1 << 20);
    }

    fn new_image(path: PathBuf) -> (NewImage, Bytes) {
        let (backing, moved) = disk(path);
        (NewImage { index: 0, image: "fast/web1.raw".parse().unwrap(), backing }, moved.size)
    }

    fn spec(image: &str) -> Vec<DiskSpec> {
        vec![DiskSpec { image: image.parse().unwrap(), format: DiskFormat::Raw, read_only: false }]
    }

    #[test]
    fn what_was_made_for_a_disk_that_moves_is_told_of_until_somebody_says_what_became_of_it() {
        let root = tempfile::tempdir().unwrap();
        let image = root.path().join("web1.raw");
        let arrivals = Arrivals::load(root.path());
        arrivals.begin_storage(VM, FIRST, vec![new_image(image.clone())]).unwrap();
        let next = Arrivals::load(root.path());
        assert_eq!(next.leftovers(|_| true), [Leftover { vm: VM, migration: FIRST }]);
        assert_eq!(next.storage(VM, FIRST).unwrap()[0].backing.path, image);
        assert!(next.made(VM).is_empty(), "no arrival's");
        assert_eq!(next.storage(VM, SECOND), None);
        let other = root.path().join("other.raw");
        let refused = next.begin_storage(VM, SECOND, vec![new_image(other.clone())]).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Conflict);
        assert!(next.begin(VM, SECOND, &[disk(other)]).is_err());
        assert!(image.exists(), "it may be the VM's already");
        next.settle(VM, FIRST);
        assert!(image.exists() && next.leftovers(|_| false).is_empty());
    }

    #[test]
    fn a_vm_that_starts_says_which_images_are_its_own() {
        for (started_with, stays) in [("fast/web1.raw", true), ("slow/web1.raw", false)] {
            let root = tempfile::tempdir().unwrap();
            let image = root.path().join("web1.raw");
            let arrivals = Arrivals::load(root.path());
            arrivals.begin_storage(VM, FIRST, vec![new_image(image.clone())]).unwrap();
            arrivals.settle_started(VM, &spec(started_with));
            assert_eq!(image.exists(), stays, "{started_with}");
            assert!(!arrivals.is_noted(VM));
        }
    }

    #[test]
    fn an_image_that_has_become_another_vms_stays() {
        let root = tempfile::tempdir().unwrap();
        let image = root.path().join("web1.raw");
        let arrivals = Arrivals::load(root.path());
        arrivals.begin_storage(VM, FIRST, vec![new_image(image.clone())]).unwrap();
        let record = format!(r#"{{"vm":"{}","host":"b","epoch":1}}"#, Uuid::from_u128(2));
        fs::write(lock_of(&image), record).unwrap();
        arrivals.discard(VM, FIRST);
        assert!(image.exists() && !arrivals.is_noted(VM));
    }

    #[test]
    fn images_that_cannot_all_be_made_are_none() {
        let root = tempfile::tempdir().unwrap();
        let (one, other) = (root.path().join("one.raw"), root.path().join("other.raw"));
        fs::create_dir(&other).unwrap();
        let arrivals = Arrivals::load(root.path());
        let error = arrivals.begin(VM, FIRST, &[disk(one.clone()), disk(other)]).unwrap_err();
        assert!(error.remedy.is_some() && !one.exists(), "{error}");
    }
}
