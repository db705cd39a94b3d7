//! Hosts, as they last reported themselves.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use godwit_types::agent::LocalVm;
use godwit_types::host::{Host, HostFacts, HostState, Maintenance, Standby};
use godwit_types::{HostName, TaskId, VmId, VmName};
use rusqlite::{OptionalExtension, Row, params};

use super::codec::{Doc, Text};
use super::{StoreError, Tx};

/// A host's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostRow {
    pub name: HostName,
    pub agent: SocketAddr,
    pub facts: HostFacts,
    /// The VMs in its last report.
    pub vms: Vec<LocalVm>,
    /// In how many consecutive reports it ran a VM that it does not own.
    pub strays: BTreeMap<VmId, u32>,
    pub up: bool,
    /// Its clock minus the manager's, in milliseconds, with the report's time on the way.
    pub clock_skew_ms: i64,
    pub last_seen_unix_ms: u64,
    /// Kept by [`Tx::enter_maintenance`] and [`Tx::leave_maintenance`] alone.
    pub maintenance: Option<InMaintenance>,
    /// Kept by [`Tx::set_standby`] and [`Tx::end_standby`] alone.
    pub standby: Option<Standby>,
}

/// Since when a host is to be empty, and the task that empties it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InMaintenance {
    pub since_unix_ms: u64,
    pub task: TaskId,
    /// Whether VMs take disks along that other hosts do not reach.
    pub move_disks: bool,
}

const COLUMNS: &str = "name, agent, facts, vms, strays, up, clock_skew_ms, last_seen_unix_ms";
const SELECT: &str =
    "SELECT name, agent, facts, vms, strays, up, clock_skew_ms, last_seen_unix_ms, since_unix_ms, task, move_disks, standby
    FROM hosts LEFT JOIN maintenance ON maintenance.host = name LEFT JOIN standby ON standby.host = name";

impl Tx<'_> {
    pub(crate) fn host(&self, name: &HostName) -> Result<Option<HostRow>, StoreError> {
        let mut query = self.sql.prepare_cached(&format!("{SELECT} WHERE name = ?"))?;
        Ok(query.query_row([Text(name)], host).optional()?)
    }

    /// All hosts, by name.
    pub(crate) fn hosts(&self) -> Result<Vec<HostRow>, StoreError> {
        let mut query = self.sql.prepare_cached(&format!("{SELECT} ORDER BY name"))?;
        let hosts = query.query_map([], host)?;
        Ok(hosts.collect::<Result<_, _>>()?)
    }

    pub(crate) fn put_host(&self, host: &HostRow) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(&format!(
                "INSERT INTO hosts ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (name) DO UPDATE SET agent = ?2, facts = ?3, vms = ?4, strays = ?5, up = ?6,
                     clock_skew_ms = ?7, last_seen_unix_ms = ?8"
            ))?
            .execute(params![
                Text(&host.name),
                Text(&host.agent),
                Doc(&host.facts),
                Doc(&host.vms),
                Doc(&host.strays),
                host.up,
                host.clock_skew_ms,
                host.last_seen_unix_ms
            ])?;
        Ok(())
    }

    /// From now on no VM is to run on the host.
    pub(crate) fn enter_maintenance(
        &self,
        host: &HostName,
        entered: InMaintenance,
    ) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "INSERT INTO maintenance (host, since_unix_ms, task, move_disks) VALUES (?, ?, ?, ?)",
            )?
            .execute(params![Text(host), entered.since_unix_ms, Text(&entered.task), entered.move_disks])?;
        Ok(())
    }

    pub(crate) fn leave_maintenance(&self, host: &HostName) -> Result<(), StoreError> {
        self.sql.prepare_cached("DELETE FROM maintenance WHERE host = ?")?.execute([Text(host)])?;
        Ok(())
    }

    /// The host is on its way to standby, in it, or on its way back. From now on no VM is to run on it.
    pub(crate) fn set_standby(&self, host: &HostName, standby: &Standby) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("INSERT OR REPLACE INTO standby (host, standby) VALUES (?, ?)")?
            .execute(params![Text(host), Doc(standby)])?;
        Ok(())
    }

    pub(crate) fn end_standby(&self, host: &HostName) -> Result<(), StoreError> {
        self.sql.prepare_cached("DELETE FROM standby WHERE host = ?")?.execute([Text(host)])?;
        Ok(())
    }

    /// The VMs that run on the host as far as is known, by name.
    pub(crate) fn running_on(&self, host: &HostName) -> Result<Vec<VmName>, StoreError> {
        let mut query = self.sql.prepare_cached(
            "SELECT name FROM vms JOIN ownership ON vm = id WHERE owner = ? AND power = 'running' ORDER BY name",
        )?;
        let names = query.query_map([Text(host)], |row| Ok(row.get::<_, Text<_>>(0)?.0))?;
        Ok(names.collect::<Result<_, _>>()?)
    }

    /// The hosts as the API shows them at the time `now_unix_ms`.
    pub(crate) fn shown_hosts(&self, now_unix_ms: u64) -> Result<Vec<Host>, StoreError> {
        let mut query = self.sql.prepare_cached("SELECT count(*) FROM ownership WHERE owner = ?")?;
        let show = |row: HostRow| {
            let vms = query.query_row([Text(&row.name)], |row| row.get(0))?;
            let maintenance = match row.maintenance {
                Some(InMaintenance { since_unix_ms, task, move_disks }) => {
                    let empty = self.running_on(&row.name)?.is_empty();
                    Some(Maintenance { since_unix_ms, task, empty, move_disks })
                }
                None => None,
            };
            let state = if row.up { HostState::Up } else { HostState::Down };
            let last_seen_ms = now_unix_ms.saturating_sub(row.last_seen_unix_ms);
            let HostRow { name, agent, facts, standby, .. } = row;
            Ok(Host { name, state, agent, facts, last_seen_ms, vms, maintenance, standby })
        };
        self.hosts()?.into_iter().map(show).collect()
    }
}

fn host(row: &Row<'_>) -> rusqlite::Result<HostRow> {
    Ok(HostRow {
        name: row.get::<_, Text<_>>(0)?.0,
        agent: row.get::<_, Text<_>>(1)?.0,
        facts: row.get::<_, Doc<_>>(2)?.0,
        vms: row.get::<_, Doc<_>>(3)?.0,
        strays: row.get::<_, Doc<_>>(4)?.0,
        up: row.get(5)?,
        clock_skew_ms: row.get(6)?,
        last_seen_unix_ms: row.get(7)?,
        maintenance: in_maintenance(row)?,
        standby: row.get::<_, Option<Doc<_>>>(11)?.map(|standby| standby.0),
    })
}

fn in_maintenance(row: &Row<'_>) -> rusqlite::Result<Option<InMaintenance>> {
    let (since_unix_ms, task): (Option<u64>, Option<Text<TaskId>>) = (row.get(8)?, row.get(9)?);
    let move_disks = row.get::<_, Option<bool>>(10)?.unwrap_or_default();
    let entered = |(since_unix_ms, task): (u64, Text<TaskId>)| InMaintenance {
        since_unix_ms,
        task: task.0,
        move_disks,
    };
    Ok(since_unix_ms.zip(task).map(entered))
}
