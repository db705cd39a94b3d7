//! What is wrong with a snapshot or a policy, in plain words with what to do; and which VMs are left alone for it.

use super::case::Case;
use crate::policy::Policy;

/// How many names a finding lists.
const NAMES_MAX: usize = 5;

/// What is wrong with a policy.
pub(super) fn of_policy(policy: &Policy) -> Vec<String> {
    let mut findings = Vec::new();
    if !(1..=5).contains(&policy.threshold) {
        findings.push(format!(
            "the policy's threshold is {}, and only what must be is done: set it to 1 to 5",
            policy.threshold
        ));
    }
    if policy.stable_ms == 0 {
        findings.push(
            "the policy's stable_ms is 0, so no move is worth anything: say how long demand lasts".into(),
        );
    }
    findings
}

/// Notes what is wrong with hosts and VMs, which VMs cannot be moved, and which are not moved unless they must be.
pub(super) fn note(case: &mut Case<'_>) {
    of_hosts(case);
    let mut unmeasured = Vec::new();
    for at in 0..case.vms.len() {
        let vm = case.vms[at];
        case.stays[at] = stays(case, at);
        if case.home[at].is_none() && vm.host.is_some() {
            case.findings.push(format!(
                "VM '{}' is on host '{}', which does not exist: add the host, or correct the VM's record",
                vm.name,
                vm.host.as_ref().map_or("", |host| host.as_str())
            ));
        }
        if at > 0 && case.vms[at - 1].name == vm.name {
            case.findings.push(format!("VM '{}' is there twice: remove one of the two", vm.name));
        }
        let age_ms = vm.measured_unix_ms.map(|at| case.snapshot.at_unix_ms.saturating_sub(at));
        match age_ms {
            _ if case.home[at].is_none() => {}
            None => case.rests[at] = Some("it was never measured".into()),
            Some(age_ms) if age_ms > case.policy.stale_ms => {
                case.rests[at] = Some(format!("it was not measured for {} s", age_ms / 1000));
            }
            Some(_) => case.rests[at] = cools(case, at),
        }
        if age_ms.is_none_or(|age_ms| age_ms > case.policy.stale_ms) && case.home[at].is_some() {
            unmeasured.push(vm.name.as_str());
        }
    }
    if !unmeasured.is_empty() {
        let finding = format!(
            "{} not measured lately, and moved only if they must be: see whether their hosts' agents report usage",
            listed("VM", &unmeasured)
        );
        case.findings.push(finding);
    }
}

fn of_hosts(case: &mut Case<'_>) {
    for (host, silent) in case.hosts.iter().zip(&case.silent) {
        let wakes =
            matches!(host.state, crate::snapshot::HostState::Standby | crate::snapshot::HostState::Waking);
        if let Some(why) = silent.as_ref().filter(|_| !wakes) {
            case.findings.push(format!(
                "host '{}' neither gives nor gets VMs, since {why}: see whether it and its agent are well",
                host.name
            ));
        }
    }
}

fn stays(case: &Case<'_>, vm: usize) -> Option<String> {
    let twice = |other: Option<usize>| {
        other.and_then(|at| case.vms.get(at)).is_some_and(|other| other.name == case.vms[vm].name)
    };
    if twice(vm.checked_sub(1)) || twice(Some(vm + 1)) {
        return Some("it is there twice".into());
    }
    match (&case.vms[vm].host, case.home[vm]) {
        (None, _) => return None,
        (Some(host), None) => return Some(format!("its host '{host}' does not exist")),
        (Some(host), Some(home)) => {
            if let Some(why) = &case.silent[home] {
                return Some(format!("its host '{host}' can give none away: {why}"));
            }
        }
    }
    case.vms[vm].pinned.clone()
}

/// A VM that has moved rests, twice as long after each further move.
fn cools(case: &Case<'_>, vm: usize) -> Option<String> {
    let moved = &case.vms[vm].moved_unix_ms;
    let last = moved.iter().max()?;
    let doublings = (moved.len() as u32 - 1).min(20);
    let until = last.saturating_add(case.policy.cooldown_ms.saturating_mul(1 << doublings));
    let left_ms = until.checked_sub(case.snapshot.at_unix_ms).filter(|left| *left > 0)?;
    Some(format!("it has moved {} today, and rests for {} s more", times(moved.len()), left_ms / 1000))
}

fn times(count: usize) -> String {
    if count == 1 { "once".into() } else { format!("{count} times") }
}

/// "VM 'a' was", "3 VMs ('a', 'b', 'c') were".
fn listed(what: &str, names: &[&str]) -> String {
    let more = if names.len() > NAMES_MAX { ", ..." } else { "" };
    let first: Vec<String> = names.iter().take(NAMES_MAX).map(|name| format!("'{name}'")).collect();
    match names {
        [name] => format!("{what} '{name}' was"),
        _ => format!("{} {what}s ({}{more}) were", names.len(), first.join(", ")),
    }
}
