//! What is wrong with a snapshot or a policy, in plain words with what to do; and which VMs are left alone for it.

use super::case::Case;
use crate::policy::Policy;
use crate::resource::Resource;
use crate::rules::conflict;
use crate::snapshot::Host;

/// How many names a finding lists.
const NAMES_MAX: usize = 5;

/// What is wrong with a policy. Then only what must be is done.
pub(super) fn of_policy(policy: &Policy) -> Vec<String> {
    let findings = policy.findings();
    findings.iter().map(|finding| format!("the policy: {finding}: {}", finding.remedy())).collect()
}

/// Must-rules that contradict each other are left as they are, and so are their VMs.
fn of_rules(case: &mut Case<'_>) {
    for rules in conflict::in_table(&case.table, &case.hosts, &case.vms) {
        let conflict = conflict::conflict(&case.table, &case.vms, &rules);
        for rule in rules {
            case.contradicts[rule as usize] = true;
            for vm in &case.table.entries[rule as usize].vms {
                case.rests[*vm as usize] = Some(conflict.to_string());
                case.cools[*vm as usize] = false;
            }
        }
        case.findings.push(format!("{conflict}: change or remove one of them"));
    }
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
            Some(_) => {
                case.rests[at] = cools(case, at);
                case.cools[at] = case.rests[at].is_some();
            }
        }
        if age_ms.is_none_or(|age_ms| age_ms > case.policy.stale_ms) && case.home[at].is_some() {
            unmeasured.push(vm.name.as_str());
        }
    }
    of_rules(case);
    if !unmeasured.is_empty() {
        let finding = format!(
            "{} {} not measured lately, and moved only if they must be: see whether their hosts' agents report usage",
            listed("VM", &unmeasured),
            if unmeasured.len() == 1 { "was" } else { "were" }
        );
        case.findings.push(finding);
    }
}

/// Resources of which some hosts tell what they have, and others do not.
fn of_capacities(case: &mut Case<'_>) {
    for (resource, option) in [(Resource::Network, "--network"), (Resource::Storage, "--storage-iops")] {
        let heard = || (0..case.hosts.len()).filter(|host| case.gives(*host)).map(|host| case.hosts[host]);
        let (told, untold): (Vec<&Host>, Vec<&Host>) = heard().partition(|host| host.capacity[resource] > 0);
        if told.is_empty() || untold.is_empty() {
            continue;
        }
        let names: Vec<&str> = untold.iter().map(|host| host.name.as_str()).collect();
        let finding = format!(
            "{resource} is weighed nowhere, since nobody knows how much {} can do: name it with godwit host set {} {option}",
            listed("host", &names),
            names[0]
        );
        case.findings.push(finding);
    }
}

fn of_hosts(case: &mut Case<'_>) {
    of_capacities(case);
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

/// "VM 'a'", "3 VMs ('a', 'b', 'c')".
pub(super) fn listed(what: &str, names: &[&str]) -> String {
    let more = if names.len() > NAMES_MAX { ", ..." } else { "" };
    let first: Vec<String> = names.iter().take(NAMES_MAX).map(|name| format!("'{name}'")).collect();
    match names {
        [name] => format!("{what} '{name}'"),
        _ => format!("{} {what}s ({}{more})", names.len(), first.join(", ")),
    }
}
