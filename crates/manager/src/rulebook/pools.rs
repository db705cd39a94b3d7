//! Pools.

use godwit_scheduler::PerResource;
use godwit_scheduler::entitlement::Pool;
use godwit_types::{ApiError, ErrorCode, Name};
use serde_json::Value;

use super::merge::merged;
use super::{admitted, changed};
use crate::store::Tx;

/// Makes the pool, or changes what is named of it. A new one is expandable, and reserves nothing.
pub(crate) fn set(tx: &Tx<'_>, name: Name, changes: Value) -> Result<Pool, ApiError> {
    let known = tx.pool(&name)?;
    let what = if known.is_some() { "changed" } else { "made" };
    let pool = merged(&known.unwrap_or_else(|| new(name.clone())), changes)?;
    if pool.name != name {
        let message = format!("the pool '{name}' cannot be called '{}' from now on", pool.name);
        return Err(ApiError::new(ErrorCode::Invalid, message)
            .remedy("make another one, and move into it what is in this one"));
    }
    admitted(tx, || Ok(tx.put_pool(&pool)?))?;
    changed(tx, format!("the pool {name} was {what}"))?;
    Ok(pool)
}

/// Removes a pool that nothing is in.
pub(crate) fn remove(tx: &Tx<'_>, name: &Name) -> Result<(), ApiError> {
    tx.pool(name)?.ok_or_else(|| unknown(name))?;
    let members = members(tx, name)?;
    if !members.is_empty() {
        let message = format!("the pool '{name}' is not empty: {} in it", list(&members));
        return Err(ApiError::new(ErrorCode::Conflict, message)
            .remedy("take them out first: godwit pool set POOL --no-parent, godwit vm set VM --no-pool"));
    }
    tx.remove_pool(name)?;
    Ok(changed(tx, format!("the pool {name} was removed"))?)
}

pub(crate) fn unknown(name: &Name) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no pool '{name}'"))
        .remedy("list them: godwit pool ls")
}

fn new(name: Name) -> Pool {
    Pool {
        name,
        parent: None,
        controls: PerResource::default(),
        expandable: PerResource::from_fn(|_| true),
        scalable_shares: false,
    }
}

/// The pools and VMs directly in a pool.
fn members(tx: &Tx<'_>, name: &Name) -> Result<Vec<String>, ApiError> {
    let inside = tx.pools()?.into_iter().filter(|pool| pool.parent.as_ref() == Some(name));
    let mut members: Vec<_> = inside.map(|pool| format!("pool {}", pool.name)).collect();
    for vm in tx.vms()? {
        if tx.vm_settings(vm.id)?.pool.as_ref() == Some(name) {
            members.push(format!("VM {}", vm.name));
        }
    }
    Ok(members)
}

/// The first few, and how many more there are.
fn list(members: &[String]) -> String {
    const SHOWN: usize = 5;
    let more = members.len().saturating_sub(SHOWN);
    let mut text = members[..members.len() - more].join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text + if members.len() == 1 { " is" } else { " are" }
}
