//! Tasks.

use std::collections::{BTreeMap, BTreeSet};

use godwit_types::forecast::Forecast;
use godwit_types::migration::{Budget, MigrationProgress, MigrationReport};
use godwit_types::storage::StorageProgress;
use godwit_types::task::{Task, TaskState, Turn};
use godwit_types::{ApiError, HostName, TaskId, VmId};
use rusqlite::{OptionalExtension, Row, ToSql, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{Doc, Text, Word};
use super::{StoreError, Tx};
use crate::clock::now_unix_ms;
use crate::link::Move;

/// Finished tasks kept; older ones go.
const FINISHED_TASKS_MAX: u32 = 1_000;

/// Migrations that are looked back upon.
const PAST_MOVES_MAX: u32 = 200;

const COLUMNS: &str = "id, vm, vm_name, kind, state, message, started_unix_ms, finished_unix_ms, progress, report, error, forecast, turn, storage";

/// How many they are.
const COLUMN_COUNT: usize = 14;

impl Tx<'_> {
    /// The migrations that have ended well, of VMs that are still there, with when that was.
    pub(crate) fn moves_since(&self, unix_ms: u64) -> Result<Vec<(VmId, u64)>, StoreError> {
        let mut query = self.sql.prepare_cached(
            "SELECT vm, finished_unix_ms FROM tasks WHERE state = 'succeeded' AND finished_unix_ms >= ?
             AND json_extract(kind, '$.kind') = 'migrate_vm' ORDER BY finished_unix_ms",
        )?;
        let moves = query.query_map([unix_ms], |row| Ok((row.get::<_, Text<_>>(0)?.0, row.get(1)?)))?;
        Ok(moves.collect::<Result<_, _>>()?)
    }

    /// When each host was last woken.
    pub(crate) fn last_wakes(&self) -> Result<BTreeMap<HostName, u64>, StoreError> {
        let mut query = self.sql.prepare_cached(
            "SELECT json_extract(kind, '$.host'), max(finished_unix_ms) FROM tasks
             WHERE state = 'succeeded' AND json_extract(kind, '$.kind') = 'wake_host' GROUP BY 1",
        )?;
        let wakes = query.query_map([], |row| Ok((row.get::<_, Text<_>>(0)?.0, row.get(1)?)))?;
        Ok(wakes.collect::<Result<_, _>>()?)
    }

    /// Hosts that were to be switched off or on since, and were not.
    pub(crate) fn not_switched_since(&self, unix_ms: u64) -> Result<BTreeSet<HostName>, StoreError> {
        let mut query = self.sql.prepare_cached(
            "SELECT DISTINCT json_extract(kind, '$.host') FROM tasks WHERE state = 'failed' AND finished_unix_ms >= ?
             AND json_extract(kind, '$.kind') IN ('wake_host', 'send_to_standby')",
        )?;
        let hosts = query.query_map([unix_ms], |row| Ok(row.get::<_, Text<_>>(0)?.0))?;
        Ok(hosts.collect::<Result<_, _>>()?)
    }

    /// What each VM was last expected to cost when it moved.
    pub(crate) fn last_forecasts(&self) -> Result<BTreeMap<VmId, Forecast>, StoreError> {
        let mut query = self.sql.prepare_cached(
            "SELECT vm, forecast FROM tasks WHERE forecast IS NOT NULL ORDER BY started_unix_ms",
        )?;
        let told =
            query.query_map([], |row| Ok((row.get::<_, Text<_>>(0)?.0, row.get::<_, Doc<_>>(1)?.0)))?;
        Ok(told.collect::<Result<_, _>>()?)
    }

    /// The tasks that are open.
    pub(crate) fn open_tasks(&self) -> Result<Vec<Task>, StoreError> {
        let mut query = self.sql.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM tasks WHERE finished_unix_ms IS NULL ORDER BY started_unix_ms, rowid"
        ))?;
        let tasks = query.query_map([], task)?;
        Ok(tasks.collect::<Result<_, _>>()?)
    }

    /// Adds a task that begins now, with what more its kind needs to be driven.
    pub(crate) fn add_task<R: Serialize>(&self, task: &Task, request: &R) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "INSERT INTO tasks (id, vm, vm_name, kind, state, message, started_unix_ms, request)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                Text(&task.id),
                task.vm.as_ref().map(Text),
                task.vm_name.as_ref().map(Text),
                Doc(&task.kind),
                Word(&task.state),
                task.message,
                task.started_unix_ms,
                Doc(request)
            ])?;
        self.sql
            .prepare_cached(
                "DELETE FROM tasks WHERE finished_unix_ms IS NOT NULL AND id NOT IN
                 (SELECT id FROM tasks ORDER BY started_unix_ms DESC LIMIT ?)",
            )?
            .execute([FINISHED_TASKS_MAX])?;
        Ok(())
    }

    pub(crate) fn task(&self, id: TaskId) -> Result<Option<Task>, StoreError> {
        self.task_where("id = ?", &Text(&id))
    }

    /// The task that is busy with the VM.
    pub(crate) fn open_task(&self, vm: VmId) -> Result<Option<Task>, StoreError> {
        self.task_where("vm = ? AND finished_unix_ms IS NULL", &Text(&vm))
    }

    fn task_where(&self, condition: &str, value: &dyn ToSql) -> Result<Option<Task>, StoreError> {
        let mut query = self.sql.prepare_cached(&format!("SELECT {COLUMNS} FROM tasks WHERE {condition}"))?;
        Ok(query.query_row([value], task).optional()?)
    }

    /// What was given to [`Tx::add_task`] beside the task.
    pub(crate) fn task_request<R: DeserializeOwned>(&self, id: TaskId) -> Result<R, StoreError> {
        let mut query = self.sql.prepare_cached("SELECT request FROM tasks WHERE id = ?")?;
        Ok(query.query_row([Text(&id)], |row| row.get::<_, Doc<R>>(0))?.0)
    }

    /// All tasks, oldest first.
    pub(crate) fn tasks(&self) -> Result<Vec<Task>, StoreError> {
        let mut query = self
            .sql
            .prepare_cached(&format!("SELECT {COLUMNS} FROM tasks ORDER BY started_unix_ms, rowid"))?;
        let tasks = query.query_map([], task)?;
        Ok(tasks.collect::<Result<_, _>>()?)
    }

    /// The migrations that are open, oldest first, and whether each has begun. One that was cancelled before is none.
    pub(crate) fn open_migrations(&self) -> Result<Vec<(Task, bool)>, StoreError> {
        let mut query = self.sql.prepare_cached(&format!(
            "SELECT {COLUMNS}, EXISTS (SELECT 1 FROM migrations WHERE migrations.task = tasks.id) FROM tasks
             WHERE finished_unix_ms IS NULL ORDER BY started_unix_ms, rowid"
        ))?;
        let open = query.query_map([], |row| Ok((task(row)?, row.get(COLUMN_COUNT)?)))?;
        let open: Vec<(Task, bool)> = open.collect::<Result<_, _>>()?;
        Ok(open.into_iter().filter(|(task, begun)| *begun || task.state == TaskState::Waiting).collect())
    }

    /// Shows what a task waits for, if it still does.
    pub(crate) fn set_task_turn(&self, id: TaskId, message: &str, turn: &Turn) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("UPDATE tasks SET message = ?, turn = ? WHERE id = ? AND state = 'waiting'")?
            .execute(params![message, Doc(turn), Text(&id)])?;
        Ok(())
    }

    /// From waiting to running; `false` when it does not wait any more.
    pub(crate) fn begin_task(&self, id: TaskId, message: &str) -> Result<bool, StoreError> {
        let changed = self
            .sql
            .prepare_cached(
                "UPDATE tasks SET state = 'running', message = ?, turn = NULL WHERE id = ? AND state = 'waiting'",
            )?
            .execute(params![message, Text(&id)])?;
        Ok(changed == 1)
    }

    /// Changes what was given to [`Tx::add_task`] beside the task.
    pub(crate) fn set_task_request<R: Serialize>(&self, id: TaskId, request: &R) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("UPDATE tasks SET request = ? WHERE id = ? AND finished_unix_ms IS NULL")?
            .execute(params![Doc(request), Text(&id)])?;
        Ok(())
    }

    /// From waiting or running to cancelling; `false` when it is neither.
    pub(crate) fn cancel_task(&self, id: TaskId) -> Result<bool, StoreError> {
        let changed = self
            .sql
            .prepare_cached("UPDATE tasks SET state = 'cancelling', turn = NULL WHERE id = ? AND state IN ('waiting', 'running')")?
            .execute([Text(&id)])?;
        Ok(changed == 1)
    }

    pub(crate) fn set_task_message(&self, id: TaskId, message: &str) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("UPDATE tasks SET message = ? WHERE id = ? AND finished_unix_ms IS NULL")?
            .execute(params![message, Text(&id)])?;
        Ok(())
    }

    pub(crate) fn set_task_progress(
        &self,
        id: TaskId,
        progress: &MigrationProgress,
    ) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("UPDATE tasks SET progress = ? WHERE id = ? AND finished_unix_ms IS NULL")?
            .execute(params![Doc(progress), Text(&id)])?;
        Ok(())
    }

    pub(crate) fn set_task_storage(&self, id: TaskId, storage: &StorageProgress) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("UPDATE tasks SET storage = ? WHERE id = ? AND finished_unix_ms IS NULL")?
            .execute(params![Doc(storage), Text(&id)])?;
        Ok(())
    }

    pub(crate) fn set_task_forecast(&self, id: TaskId, forecast: &Forecast) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("UPDATE tasks SET forecast = ? WHERE id = ? AND finished_unix_ms IS NULL")?
            .execute(params![Doc(forecast), Text(&id)])?;
        Ok(())
    }

    /// The migrations that succeeded, each with what was asked of it; newest first.
    pub(crate) fn past_moves(&self) -> Result<Vec<Move>, StoreError> {
        let mut query = self.sql.prepare_cached(
            "SELECT request, report FROM tasks WHERE report IS NOT NULL ORDER BY started_unix_ms DESC LIMIT ?",
        )?;
        let moves = query.query_map([PAST_MOVES_MAX], |row| {
            Ok((row.get::<_, Doc<Budget>>(0)?.0, row.get::<_, Doc<MigrationReport>>(1)?.0))
        })?;
        Ok(moves.collect::<Result<_, _>>()?)
    }

    /// Ends an open task.
    pub(crate) fn finish_task(
        &self,
        id: TaskId,
        state: TaskState,
        message: &str,
        report: Option<&MigrationReport>,
        error: Option<&ApiError>,
    ) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "UPDATE tasks SET state = ?, message = ?, finished_unix_ms = ?, turn = NULL, report = ?, error = ?
                 WHERE id = ? AND finished_unix_ms IS NULL",
            )?
            .execute(params![
                Word(&state),
                message,
                now_unix_ms(),
                report.map(Doc),
                error.map(Doc),
                Text(&id)
            ])?;
        Ok(())
    }
}

fn task(row: &Row<'_>) -> rusqlite::Result<Task> {
    Ok(Task {
        id: row.get::<_, Text<_>>(0)?.0,
        vm: row.get::<_, Option<Text<_>>>(1)?.map(|id| id.0),
        vm_name: row.get::<_, Option<Text<_>>>(2)?.map(|name| name.0),
        kind: row.get::<_, Doc<_>>(3)?.0,
        state: row.get::<_, Word<_>>(4)?.0,
        message: row.get(5)?,
        started_unix_ms: row.get(6)?,
        finished_unix_ms: row.get(7)?,
        progress: row.get::<_, Option<Doc<_>>>(8)?.map(|doc| doc.0),
        report: row.get::<_, Option<Doc<_>>>(9)?.map(|doc| doc.0),
        error: row.get::<_, Option<Doc<_>>>(10)?.map(|doc| doc.0),
        forecast: row.get::<_, Option<Doc<_>>>(11)?.map(|doc| doc.0),
        turn: row.get::<_, Option<Doc<_>>>(12)?.map(|doc| doc.0),
        storage: row.get::<_, Option<Doc<_>>>(13)?.map(|doc| doc.0),
    })
}
