//! The last events, in order.

use godwit_types::event::Event;
use godwit_types::{HostName, TaskId, VmName};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::codec::Text;
use super::{StoreError, Tx};
use crate::clock::now_unix_ms;

/// Events kept; older ones go.
const EVENTS_MAX: u64 = 10_000;

/// An event that is about to happen.
#[derive(Debug)]
pub(crate) struct NewEvent {
    kind: &'static str,
    message: String,
    vm: Option<VmName>,
    host: Option<HostName>,
    task: Option<TaskId>,
}

impl NewEvent {
    pub(crate) fn new(kind: &'static str, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), vm: None, host: None, task: None }
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn vm(self, vm: &VmName) -> Self {
        Self { vm: Some(vm.clone()), ..self }
    }

    pub(crate) fn host(self, host: &HostName) -> Self {
        Self { host: Some(host.clone()), ..self }
    }

    pub(crate) fn task(self, task: TaskId) -> Self {
        Self { task: Some(task), ..self }
    }
}

impl Tx<'_> {
    /// Adds `event`, also as the last that happened to its VM.
    pub(crate) fn add_event(&self, event: NewEvent) -> Result<(), StoreError> {
        tracing::info!(kind = event.kind, "{}", event.message);
        let NewEvent { kind, message, vm, host, task } = event;
        let (vm, host) = (vm.as_ref().map(Text), host.as_ref().map(Text));
        self.sql
            .prepare_cached(
                "INSERT INTO events (unix_ms, kind, message, vm, host, task) VALUES (?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![now_unix_ms(), kind, message, vm, host, task.as_ref().map(Text)])?;
        let sequence = self.sql.last_insert_rowid();
        self.sql
            .prepare_cached("DELETE FROM events WHERE sequence <= ?")?
            .execute([sequence - EVENTS_MAX as i64])?;
        self.sql
            .prepare_cached("UPDATE vms SET last_event = ? WHERE name = ?")?
            .execute(params![message, vm])?;
        self.last_event.set(u64::try_from(sequence).ok());
        Ok(())
    }

    /// At most `count` events after `after`, oldest first.
    pub(crate) fn events_after(&self, after: u64, count: u64) -> Result<Vec<Event>, StoreError> {
        let mut query = self.sql.prepare_cached(
            "SELECT sequence, unix_ms, kind, message, vm, host, task FROM events WHERE sequence > ? ORDER BY sequence LIMIT ?",
        )?;
        let events = query.query_map([after.min(i64::MAX as u64), count], event)?;
        Ok(events.collect::<Result<_, _>>()?)
    }
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        sequence: row.get(0)?,
        unix_ms: row.get(1)?,
        kind: row.get(2)?,
        message: row.get(3)?,
        vm: row.get::<_, Option<Text<_>>>(4)?.map(|t| t.0),
        host: row.get::<_, Option<Text<_>>>(5)?.map(|t| t.0),
        task: row.get::<_, Option<Text<_>>>(6)?.map(|t| t.0),
    })
}

/// The sequence number of the last event ever added, 0 before the first.
pub(super) fn last_sequence(sql: &mut Connection) -> Result<u64, StoreError> {
    let query = "SELECT seq FROM sqlite_sequence WHERE name = 'events'";
    Ok(sql.query_row(query, [], |row| row.get(0)).optional()?.unwrap_or(0))
}
