//! Checks of one side: the VM, the host that runs it, the host that is to take it.

use godwit_types::check::{Check, Finding};

use super::Case;
use crate::fit;
use crate::store::{HostRow, Power, VmRow};
use crate::tasks::busy;

/// What the destination's agent looks at itself, better than its last report tells.
const ADMITTED: [Check; 4] = [Check::Virtualisation, Check::Memory, Check::Networks, Check::Datastores];

/// What a VM's CPU profile says of a guest that does not run yet.
const PROFILED: [Check; 2] = [Check::Cpu, Check::FeatureMsrs];

/// Whether it runs for certain, and nobody is busy with it.
pub(super) fn vm(case: &Case<'_>) -> Vec<Finding> {
    let name = &case.vm.name;
    let mut found = Vec::new();
    if let Some(task) = case.busy {
        let (reason, remedy) = busy(task);
        found.push(Finding::blocked(Check::Vm, reason, remedy));
    } else if case.vm.power != Power::Running {
        let remedy = format!("start it: godwit vm start {name} --host {}", case.destination.name);
        found.push(Finding::blocked(Check::Vm, format!("{name} is not running"), remedy));
    } else if !case.owned.is_some_and(|owned| owned.claimed) {
        found.push(unconfirmed(case.vm));
    }
    found
}

/// It may run, or not.
pub(crate) fn unconfirmed(vm: &VmRow) -> Finding {
    let reason = format!("the host that owns {} has not confirmed that it runs it", vm.name);
    Finding::blocked(Check::Vm, reason, "wait until the VM's state is certain: godwit vm show")
}

/// The host that has the VM is not heard from.
pub(crate) fn down(source: &HostRow, has: &str) -> Finding {
    let host = &source.name;
    let reason = format!("{host}, which {has} it, is down: the manager does not hear from it");
    let remedy = format!("check the network to {host} and that 'godwit host run' is alive there");
    Finding::blocked(Check::Source, reason, remedy)
}

/// Whether the host that runs it is there, and what the VM's process says against a move.
pub(super) fn source(case: &Case<'_>) -> Vec<Finding> {
    let name = &case.vm.name;
    let mut found = Vec::new();
    if let Some(source) = case.source.filter(|source| !source.up) {
        found.push(down(source, "runs"));
    }
    match &case.answers.guest {
        Some(Ok(guest)) => found.extend(guest.blockers.iter().map(|blocker| {
            let remedy = "take away what is named, or stop the VM and start it on the other host";
            Finding::blocked(Check::Blockers, format!("{name} cannot move now: {blocker}"), remedy)
        })),
        Some(Err(error)) => {
            let reason = format!("the process of {name} does not say what it needs: {}", error.message);
            let remedy = "look at the VM's log on its host; a process of an older release must be restarted";
            found.push(Finding::blocked(Check::Source, reason, error.remedy.as_deref().unwrap_or(remedy)));
        }
        None => {}
    }
    found
}

/// What the destination lacks: as its agent says now, or else as it last reported.
pub(super) fn destination(case: &Case<'_>) -> Vec<Finding> {
    let (host, spec) = (case.destination, &case.moving.spec);
    let mut found = fit::obstacles(spec, host);
    if case.guest().is_some() {
        // It has its CPU, and says better than its profile what that is.
        found.retain(|finding| !PROFILED.contains(&finding.check));
    }
    match &case.answers.admission {
        Some(Ok(admission)) => {
            found.retain(|finding| !ADMITTED.contains(&finding.check));
            found.extend(admission.iter().cloned());
        }
        Some(Err(error)) => {
            let reason = format!("the agent of {} does not answer: {}", host.name, error.message);
            let remedy = format!("check that 'godwit host run' is alive on {}, of this release", host.name);
            found.push(Finding::blocked(Check::Host, reason, remedy));
        }
        None => {}
    }
    let cpus = host.facts.cpus;
    if u32::from(spec.vcpus) > cpus {
        let reason = format!("the VM has {} vCPUs and {} has {cpus} CPUs", spec.vcpus, host.name);
        let remedy = "name a larger host: vCPUs that cannot run at once wait for each other";
        found.push(Finding::warning(Check::Vcpus, reason, remedy));
    }
    found
}
