//! Rules: added and removed as a whole.

use std::collections::BTreeSet;

use godwit_scheduler::rules::{Conflict, Rule};
use godwit_types::{ApiError, ErrorCode, Name, VmName};

use super::{changed, refuse};
use crate::manager::{unknown_host, unknown_vm};
use crate::scheduling::contradictions;
use crate::store::Tx;

/// Adds a rule about VMs and hosts that exist.
pub(crate) fn add(tx: &Tx<'_>, rule: Rule) -> Result<Rule, ApiError> {
    let name = &rule.name;
    if tx.rule(name)?.is_some() {
        let error = ApiError::new(ErrorCode::Conflict, format!("there is a rule '{name}' already"));
        return Err(error.remedy(format!("choose another name, or remove it: godwit rule rm {name}")));
    }
    let found = rule.findings().into_iter();
    let found = found.map(|finding| (finding.to_string(), finding.remedy().to_owned()));
    refuse(ErrorCode::Invalid, found.collect())?;
    for vm in rule.vms() {
        // By name alone: an id is no VM's name.
        tx.vm(vm.as_str())?.filter(|row| row.name == *vm).ok_or_else(|| unknown_vm(vm.as_str()))?;
    }
    require_hosts(tx, &rule)?;
    tx.put_rule(&rule)?;
    let found = contradictions(tx, name)?.into_iter();
    let found = found.map(|conflict| (conflict.to_string(), remedy(&conflict, name)));
    refuse(ErrorCode::Conflict, found.collect())?;
    changed(tx, format!("the rule {name} was added"))?;
    Ok(rule)
}

/// What to do about a contradiction into which the rule comes.
fn remedy(conflict: &Conflict, rule: &Name) -> String {
    let other = conflict.rules.iter().find(|name| *name != rule);
    let softer = "let the rule be one that should be kept, and need not: --should";
    other.map_or_else(|| softer.to_owned(), |other| format!("{softer}, or remove: godwit rule rm {other}"))
}

pub(crate) fn remove(tx: &Tx<'_>, name: &Name) -> Result<(), ApiError> {
    tx.rule(name)?.ok_or_else(|| unknown(name))?;
    tx.remove_rule(name)?;
    Ok(changed(tx, format!("the rule {name} was removed"))?)
}

/// Takes a VM that is being forgotten out of all rules. One that is about no other goes with it.
pub(crate) fn leave(tx: &Tx<'_>, vm: &VmName) -> Result<(), ApiError> {
    for rule in tx.rules()?.into_iter().filter(|rule| rule.vms().contains(vm)) {
        let name = rule.name.clone();
        match rule.without(vm) {
            Some(rest) => {
                tx.put_rule(&rest)?;
                changed(tx, format!("the rule {name} is not about {vm} any more, which was forgotten"))?;
            }
            None => {
                tx.remove_rule(&name)?;
                changed(tx, format!("the rule {name} was removed with its last VM, {vm}"))?;
            }
        }
    }
    Ok(())
}

pub(crate) fn unknown(name: &Name) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no rule '{name}'"))
        .remedy("list them: godwit rule ls")
}

fn require_hosts(tx: &Tx<'_>, rule: &Rule) -> Result<(), ApiError> {
    let Some(named) = rule.hosts() else { return Ok(()) };
    let mut labels = BTreeSet::new();
    for host in tx.hosts()? {
        labels.extend(tx.host_settings(&host.name)?.labels);
    }
    for host in &named.names {
        tx.host(host)?.ok_or_else(|| unknown_host(host.as_str()))?;
    }
    if let Some(label) = named.labels.difference(&labels).next() {
        let error = ApiError::new(ErrorCode::NotFound, format!("no host has the label '{label}'"));
        return Err(error.remedy(format!("give it to one first: godwit host set HOST --label {label}")));
    }
    Ok(())
}
