//! VMs, as they were defined and as they were last known to be.

use godwit_types::task::{Task, TaskKind, TaskState};
use godwit_types::vm::{Vm, VmSpec, VmState};
use godwit_types::{Epoch, VmId, VmName};
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::codec::{Doc, Text, Word};
use super::{StoreError, Tx};

/// What a VM was last known to be, apart from what is being done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    Stopped,
    Running,
    Crashed,
}

/// A VM's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VmRow {
    pub id: VmId,
    pub name: VmName,
    pub spec: VmSpec,
    pub power: Power,
    pub last_event: Option<String>,
}

const COLUMNS: &str = "id, name, spec, power, last_event";

impl Tx<'_> {
    /// The VM with this name, or else with this id.
    pub(crate) fn vm(&self, name_or_id: &str) -> Result<Option<VmRow>, StoreError> {
        let mut query = self.sql.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM vms WHERE name = ?1 OR id = ?1 ORDER BY name <> ?1 LIMIT 1"
        ))?;
        Ok(query.query_row([name_or_id], vm).optional()?)
    }

    /// All VMs, by name.
    pub(crate) fn vms(&self) -> Result<Vec<VmRow>, StoreError> {
        let mut query = self.sql.prepare_cached(&format!("SELECT {COLUMNS} FROM vms ORDER BY name"))?;
        let vms = query.query_map([], vm)?;
        Ok(vms.collect::<Result<_, _>>()?)
    }

    pub(crate) fn add_vm(&self, vm: &VmRow) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(&format!("INSERT INTO vms ({COLUMNS}) VALUES (?, ?, ?, ?, ?)"))?
            .execute(params![Text(&vm.id), Text(&vm.name), Doc(&vm.spec), Word(&vm.power), vm.last_event])?;
        Ok(())
    }

    pub(crate) fn remove_vm(&self, id: VmId) -> Result<(), StoreError> {
        self.sql.prepare_cached("DELETE FROM vms WHERE id = ?")?.execute([Text(&id)])?;
        Ok(())
    }

    pub(super) fn set_spec(&self, id: VmId, spec: &VmSpec) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("UPDATE vms SET spec = ? WHERE id = ?")?
            .execute(params![Doc(spec), Text(&id)])?;
        Ok(())
    }

    pub(crate) fn set_power(&self, id: VmId, power: Power) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("UPDATE vms SET power = ? WHERE id = ?")?
            .execute(params![Word(&power), Text(&id)])?;
        Ok(())
    }

    /// The VM as the API shows it.
    pub(crate) fn shown_vm(&self, row: VmRow) -> Result<Vm, StoreError> {
        let owned = self.ownership(row.id)?.map(|(owned, _)| owned);
        let host = owned.as_ref().map(|owned| self.host(&owned.owner)).transpose()?.flatten();
        let host = host.filter(|host| host.up);
        let local = host.as_ref().and_then(|host| host.vms.iter().find(|local| local.id == row.id));
        let usage = local.and_then(|local| local.usage);
        let task = self.open_task(row.id)?;
        let state = shown_state(row.power, task.as_ref(), host.is_some());
        let (owner, epoch) = owned.map_or((None, Epoch(0)), |owned| (Some(owned.owner), owned.epoch));
        let VmRow { id, name, spec, last_event, .. } = row;
        Ok(Vm { id, name, spec, state, owner, epoch, task: task.map(|task| task.id), last_event, usage })
    }
}

fn shown_state(power: Power, task: Option<&Task>, owner_up: bool) -> VmState {
    let doing = task.filter(|task| task.state != TaskState::Waiting);
    match (doing.map(|task| &task.kind), power) {
        (Some(TaskKind::StartVm { .. }), _) => VmState::Starting,
        (Some(TaskKind::StopVm { .. }), _) => VmState::Stopping,
        (Some(TaskKind::MigrateVm { .. }), _) => VmState::Migrating,
        // Its guest goes on as if nothing were done with it.
        (Some(TaskKind::MoveStorage { .. }) | None, power) => match power {
            Power::Stopped => VmState::Stopped,
            Power::Crashed => VmState::Crashed,
            Power::Running if owner_up => VmState::Running,
            Power::Running => VmState::Unknown,
        },
    }
}

fn vm(row: &Row<'_>) -> rusqlite::Result<VmRow> {
    Ok(VmRow {
        id: row.get::<_, Text<_>>(0)?.0,
        name: row.get::<_, Text<_>>(1)?.0,
        spec: row.get::<_, Doc<_>>(2)?.0,
        power: row.get::<_, Word<_>>(3)?.0,
        last_event: row.get(4)?,
    })
}
