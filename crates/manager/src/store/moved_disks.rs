//! Disks that move with their VMs: what follows from the commit, and what stays behind at the source.

use godwit_types::agent::RemoveLeft;
use godwit_types::vm::{DatastorePath, VmSpec};
use godwit_types::{Epoch, HostName, MigrationId, VmId};
use rusqlite::{OptionalExtension, params};

use super::codec::{Doc, Text};
use super::{StoreError, Tx};
use crate::arbiter::Migration;
use crate::moving::Moving;

/// What a VM has left at a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Left {
    pub vm: VmId,
    pub migration: MigrationId,
    pub order: RemoveLeft,
    /// Whether it can go before the VM was seen running without it.
    pub at_rest: bool,
}

impl Tx<'_> {
    pub(crate) fn add_moving(&self, migration: MigrationId, moving: &Moving) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("INSERT INTO moved_disks (migration, moving) VALUES (?, ?)")?
            .execute(params![Text(&migration), Doc(moving)])?;
        Ok(())
    }

    /// What moves with the VM by this migration, if anything does.
    pub(crate) fn moving(&self, migration: MigrationId) -> Result<Option<Moving>, StoreError> {
        let mut query = self.sql.prepare_cached("SELECT moving FROM moved_disks WHERE migration = ?")?;
        Ok(query.query_row([Text(&migration)], |row| Ok(row.get::<_, Doc<Moving>>(0)?.0)).optional()?)
    }

    /// The VM is the destination's from now on, with its disks: they lie where they have come, and what they were copied
    /// from is left behind. What the VM had left at the destination itself is replaced, where the disks have come to it.
    pub(super) fn commit_moving(&self, m: &Migration) -> Result<(), StoreError> {
        let Some(moving) = self.moving(m.id)? else { return Ok(()) };
        self.set_spec(m.vm, &moving.spec)?;
        self.set_left(m.id, Some(&moving.images))?;
        self.replace_left(m.vm, &m.destination, &moving.spec)
    }

    /// Of what the VM has left at a host, nothing is left where it has disks now.
    pub(super) fn replace_left(&self, vm: VmId, host: &HostName, spec: &VmSpec) -> Result<(), StoreError> {
        for left in self.left(vm, host)? {
            let replaced = |image: &DatastorePath| spec.disks.iter().any(|disk| disk.image == *image);
            let images: Vec<_> = left.order.images.into_iter().filter(|image| !replaced(image)).collect();
            self.set_left(left.migration, Some(&images).filter(|images| !images.is_empty()))?;
        }
        Ok(())
    }

    /// What the VM has left at a host.
    pub(crate) fn left(&self, vm: VmId, host: &HostName) -> Result<Vec<Left>, StoreError> {
        Ok(self.left_at(host)?.into_iter().filter(|left| left.vm == vm).collect())
    }

    /// What VMs have left at a host: when they moved away with their disks, or when these moved to another datastore.
    pub(crate) fn left_at(&self, host: &HostName) -> Result<Vec<Left>, StoreError> {
        let mut query = self.sql.prepare_cached(
            "SELECT m.vm, m.id, m.epoch, d.left_behind, 0 FROM moved_disks d JOIN migrations m ON m.id = d.migration
             WHERE m.source = ?1 AND d.left_behind IS NOT NULL
             UNION ALL SELECT vm, id, epoch, left_behind, at_rest FROM storage_moves WHERE host = ?1 AND left_behind IS NOT NULL",
        )?;
        let left = query.query_map([Text(host)], |row| {
            let (vm, migration) = (row.get::<_, Text<_>>(0)?.0, row.get::<_, Text<_>>(1)?.0);
            let order = RemoveLeft { epoch: Epoch(row.get(2)?), images: row.get::<_, Doc<_>>(3)?.0 };
            Ok(Left { vm, migration, order, at_rest: row.get(4)? })
        })?;
        Ok(left.collect::<Result<_, _>>()?)
    }

    /// Nothing is left of what this migration, or move of storage, has left behind.
    pub(crate) fn set_nothing_left(&self, migration: MigrationId) -> Result<(), StoreError> {
        self.set_left(migration, None)
    }

    pub(super) fn set_left(
        &self,
        migration: MigrationId,
        images: Option<&Vec<DatastorePath>>,
    ) -> Result<(), StoreError> {
        for (table, id) in [("moved_disks", "migration"), ("storage_moves", "id")] {
            self.sql
                .prepare_cached(&format!("UPDATE {table} SET left_behind = ? WHERE {id} = ?"))?
                .execute(params![images.map(Doc), Text(&migration)])?;
        }
        Ok(())
    }
}
