//! Settings of VMs and hosts.

use godwit_scheduler::settings::{HostSettings, VmSettings};
use godwit_types::{ApiError, ErrorCode, HostName};
use serde_json::Value;

use super::merge::merged;
use super::{CHANGED, admitted, refuse};
use crate::manager::{unknown_host, unknown_vm};
use crate::store::{NewEvent, Tx};

/// The VM's settings.
pub(crate) fn of_vm(tx: &Tx<'_>, vm: &str) -> Result<VmSettings, ApiError> {
    let row = tx.vm(vm)?.ok_or_else(|| unknown_vm(vm))?;
    Ok(tx.vm_settings(row.id)?)
}

/// Changes what is named of a VM's settings.
pub(crate) fn set_vm(tx: &Tx<'_>, vm: &str, changes: Value) -> Result<VmSettings, ApiError> {
    let row = tx.vm(vm)?.ok_or_else(|| unknown_vm(vm))?;
    let settings = merged(&tx.vm_settings(row.id)?, changes)?;
    admitted(tx, || Ok(tx.put_vm_settings(row.id, &settings)?))?;
    let message = format!("the settings of {} were changed", row.name);
    tx.add_event(NewEvent::new(CHANGED, message).vm(&row.name))?;
    Ok(settings)
}

/// The host's settings.
pub(crate) fn of_host(tx: &Tx<'_>, host: &HostName) -> Result<HostSettings, ApiError> {
    tx.host(host)?.ok_or_else(|| unknown_host(host.as_str()))?;
    Ok(tx.host_settings(host)?)
}

/// Changes what is named of a host's settings.
pub(crate) fn set_host(tx: &Tx<'_>, host: &HostName, changes: Value) -> Result<HostSettings, ApiError> {
    let settings = merged(&of_host(tx, host)?, changes)?;
    let mut found = Vec::new();
    if let Some(fault) = settings.driver.fault() {
        found.push((fault.to_owned(), "correct it, or choose another power driver".to_owned()));
    }
    if settings.power.watts.len() < 2 {
        let reason = "what a host draws has less than two points".to_owned();
        found.push((reason, "name what it draws idle and fully used, such as 90,180".to_owned()));
    }
    refuse(ErrorCode::Invalid, found)?;
    tx.put_host_settings(host, &settings)?;
    tx.add_event(NewEvent::new(CHANGED, format!("the settings of {host} were changed")).host(host))?;
    Ok(settings)
}
