//! Disks that move to another datastore of their host: which, and where they lie by the record.

use godwit_types::task::TaskState;
use godwit_types::{Epoch, HostName, MigrationId, TaskId, VmId};
use rusqlite::{OptionalExtension, Row, ToSql, params};
use serde::{Deserialize, Serialize};

use super::codec::{Doc, Text, Word};
use super::{StoreError, Tx};
use crate::moving::Moving;

/// Whether the VM's record names the new images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StorageState {
    /// Not yet.
    Copying,
    /// It does, and the host has been told or will be.
    Switched,
    /// It does not, and never will.
    Aborted,
}

/// One move of a VM's disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StorageMove {
    pub id: MigrationId,
    pub task: TaskId,
    pub vm: VmId,
    pub host: HostName,
    /// At which the VM is the host's.
    pub epoch: Epoch,
    pub moving: Moving,
    pub state: StorageState,
    /// Whether the VM does not run: once the copies are whole nothing can be missing from them.
    pub at_rest: bool,
}

const COLUMNS: &str = "id, task, vm, host, epoch, moving, state, at_rest";

impl Tx<'_> {
    pub(crate) fn add_storage_move(&self, m: &StorageMove) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(&format!(
                "INSERT INTO storage_moves ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            ))?
            .execute(params![
                Text(&m.id),
                Text(&m.task),
                Text(&m.vm),
                Text(&m.host),
                m.epoch.0,
                Doc(&m.moving),
                Word(&m.state),
                m.at_rest
            ])?;
        Ok(())
    }

    pub(crate) fn storage_move(&self, id: MigrationId) -> Result<Option<StorageMove>, StoreError> {
        self.storage_move_where("id = ?", &Text(&id))
    }

    pub(crate) fn storage_move_of(&self, task: TaskId) -> Result<Option<StorageMove>, StoreError> {
        self.storage_move_where("task = ?", &Text(&task))
    }

    fn storage_move_where(
        &self,
        condition: &str,
        value: &dyn ToSql,
    ) -> Result<Option<StorageMove>, StoreError> {
        let mut query =
            self.sql.prepare_cached(&format!("SELECT {COLUMNS} FROM storage_moves WHERE {condition}"))?;
        Ok(query.query_row([value], storage_move).optional()?)
    }

    /// From now on the VM's disks lie where they have come, and what they were copied from is left behind; `false` if that is
    /// not so: the move is aborted or being cancelled, or the VM is not where it was.
    pub(crate) fn switch_storage(&self, id: MigrationId) -> Result<bool, StoreError> {
        let Some(m) = self.storage_move(id)? else { return Ok(false) };
        if m.state != StorageState::Copying {
            return Ok(m.state == StorageState::Switched);
        }
        let is_there =
            self.ownership(m.vm)?.is_some_and(|(owned, _)| owned.owner == m.host && owned.epoch == m.epoch);
        let is_wanted = self.task(m.task)?.is_some_and(|task| task.state == TaskState::Running);
        if !is_there || !is_wanted {
            return Ok(false);
        }
        self.set_storage_state(id, StorageState::Switched)?;
        self.set_spec(m.vm, &m.moving.spec)?;
        self.replace_left(m.vm, &m.host, &m.moving.spec)?;
        self.set_left(id, Some(&m.moving.images))?;
        Ok(true)
    }

    /// The disks stay where they are; `false` if they have moved already.
    pub(crate) fn abort_storage(&self, id: MigrationId) -> Result<bool, StoreError> {
        let Some(m) = self.storage_move(id)? else { return Ok(true) };
        if m.state == StorageState::Copying {
            self.set_storage_state(id, StorageState::Aborted)?;
        }
        Ok(m.state != StorageState::Switched)
    }

    fn set_storage_state(&self, id: MigrationId, state: StorageState) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("UPDATE storage_moves SET state = ? WHERE id = ?")?
            .execute(params![Word(&state), Text(&id)])?;
        Ok(())
    }
}

fn storage_move(row: &Row<'_>) -> rusqlite::Result<StorageMove> {
    Ok(StorageMove {
        id: row.get::<_, Text<_>>(0)?.0,
        task: row.get::<_, Text<_>>(1)?.0,
        vm: row.get::<_, Text<_>>(2)?.0,
        host: row.get::<_, Text<_>>(3)?.0,
        epoch: Epoch(row.get(4)?),
        moving: row.get::<_, Doc<_>>(5)?.0,
        state: row.get::<_, Word<_>>(6)?.0,
        at_rest: row.get(7)?,
    })
}
