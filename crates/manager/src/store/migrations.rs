//! Migrations: the arbiter's other half.

use godwit_types::{ApiError, Epoch, HostName, MigrationId, TaskId, VmId};
use rusqlite::{OptionalExtension, Row, ToSql, params};

use super::codec::{Doc, Text, Word};
use super::{StoreError, Tx};
use crate::arbiter::{self, Change, Migration, MigrationState};

/// Aborted migrations that a destination is told of at once.
const ABORTED_TOLD_MAX: u32 = 4;

const COLUMNS: &str = "id, task, vm, source, destination, epoch, state, taken_over";

impl Tx<'_> {
    pub(crate) fn add_migration(&self, m: &Migration) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(&format!("INSERT INTO migrations ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"))?
            .execute(params![
                Text(&m.id),
                Text(&m.task),
                Text(&m.vm),
                Text(&m.source),
                Text(&m.destination),
                m.epoch.0,
                Word(&m.state),
                m.taken_over
            ])?;
        Ok(())
    }

    pub(crate) fn migration(&self, id: MigrationId) -> Result<Option<Migration>, StoreError> {
        self.migration_where("id", &Text(&id))
    }

    pub(crate) fn migration_of(&self, task: TaskId) -> Result<Option<Migration>, StoreError> {
        self.migration_where("task", &Text(&task))
    }

    fn migration_where(&self, column: &str, value: &dyn ToSql) -> Result<Option<Migration>, StoreError> {
        let mut query =
            self.sql.prepare_cached(&format!("SELECT {COLUMNS} FROM migrations WHERE {column} = ?"))?;
        Ok(query.query_row([value], migration).optional()?)
    }

    /// From preparing to running; `false` when it was aborted meanwhile.
    pub(crate) fn begin_migration(&self, id: MigrationId) -> Result<bool, StoreError> {
        let changed = self
            .sql
            .prepare_cached("UPDATE migrations SET state = 'running' WHERE id = ? AND state = 'preparing'")?
            .execute([Text(&id)])?;
        Ok(changed == 1)
    }

    /// Writes what the arbiter decided about migration `id`.
    pub(crate) fn apply_change(&self, id: MigrationId, change: &Change) -> Result<(), StoreError> {
        self.put_ownership(&change.ownership)?;
        // The first change is the commit, or takes its place.
        if let Some(m) = self.migration(id)?
            && matches!(m.state, MigrationState::Preparing | MigrationState::Running)
        {
            self.commit_moving(&m)?;
        }
        self.sql
            .prepare_cached("UPDATE migrations SET state = ?, taken_over = ? WHERE id = ?")?
            .execute(params![Word(&change.state), change.taken_over, Text(&id)])?;
        Ok(())
    }

    /// Aborts the migration unless it was committed first, and returns whether it is aborted now. The first reason
    /// stays.
    pub(crate) fn abort_migration(&self, id: MigrationId, reason: &ApiError) -> Result<bool, StoreError> {
        let Some(m) = self.migration(id)? else { return Ok(true) };
        let aborted = arbiter::abort(m.state);
        if aborted && m.state != MigrationState::Aborted {
            self.sql
                .prepare_cached("UPDATE migrations SET state = 'aborted', reason = ? WHERE id = ?")?
                .execute(params![Doc(reason), Text(&id)])?;
        }
        Ok(aborted)
    }

    /// Migrations of `vm` to `destination` that were aborted and would have made it run there at `epoch`, unless one
    /// like that is open; newest first.
    pub(crate) fn aborted_migrations(
        &self,
        vm: VmId,
        destination: &HostName,
        epoch: Epoch,
    ) -> Result<Vec<MigrationId>, StoreError> {
        let mut query = self.sql.prepare_cached(
            "SELECT id FROM migrations WHERE vm = ?1 AND destination = ?2 AND epoch = ?3 AND state = 'aborted'
             AND NOT EXISTS (SELECT 1 FROM migrations WHERE vm = ?1 AND destination = ?2 AND state <> 'aborted' AND epoch >= ?3)
             ORDER BY rowid DESC LIMIT ?4",
        )?;
        let source_epoch = epoch.0.saturating_sub(1);
        let ids = query
            .query_map(params![Text(&vm), Text(destination), source_epoch, ABORTED_TOLD_MAX], |row| {
                Ok(row.get::<_, Text<_>>(0)?.0)
            })?;
        Ok(ids.collect::<Result<_, _>>()?)
    }

    /// Why the migration was aborted.
    pub(crate) fn abort_reason(&self, id: MigrationId) -> Result<Option<ApiError>, StoreError> {
        let mut query = self.sql.prepare_cached("SELECT reason FROM migrations WHERE id = ?")?;
        let reason = query.query_row([Text(&id)], |row| row.get::<_, Option<Doc<_>>>(0)).optional()?;
        Ok(reason.flatten().map(|doc| doc.0))
    }
}

fn migration(row: &Row<'_>) -> rusqlite::Result<Migration> {
    Ok(Migration {
        id: row.get::<_, Text<_>>(0)?.0,
        task: row.get::<_, Text<_>>(1)?.0,
        vm: row.get::<_, Text<_>>(2)?.0,
        source: row.get::<_, Text<_>>(3)?.0,
        destination: row.get::<_, Text<_>>(4)?.0,
        epoch: Epoch(row.get(5)?),
        state: row.get::<_, Word<_>>(6)?.0,
        taken_over: row.get(7)?,
    })
}
