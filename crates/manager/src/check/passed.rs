//! What is said of a check against which nothing was found: what fits, or that nobody could look.

use std::fmt::Display;

use godwit_types::check::{Check, Finding};

use super::Case;
use super::pair::flavour;
use crate::fit;

pub(super) fn finding(check: Check, case: &Case<'_>) -> Finding {
    match unknown(check, case) {
        Some(unknown) => unknown,
        None => Finding::ok(check, well(check, case)),
    }
}

/// A check that needed somebody's word who did not give it. A migration makes it all the same, when it begins.
fn unknown(check: Check, case: &Case<'_>) -> Option<Finding> {
    let (name, host) = (&case.vm.name, &case.destination.name);
    let needs_guest =
        [Check::Blockers, Check::Release, Check::Cpu, Check::FeatureMsrs, Check::Tsc, Check::Devices];
    let needs_offer = [
        Check::Release,
        Check::Cpu,
        Check::FeatureMsrs,
        Check::Tsc,
        Check::Machine,
        Check::Devices,
        Check::PostCopy,
    ];
    if needs_guest.contains(&check) && case.guest().is_none() {
        let reason = format!("not known: there is no process of {name} that could be asked");
        return Some(Finding::warning(check, reason, "check again once the VM runs and its host answers"));
    }
    if needs_offer.contains(&check) && case.offer().is_none() {
        let reason = format!("not known: {host} has not reported what its godwit-vmm can run");
        let remedy = format!("check again in a moment, and look at the log of the agent on {host}");
        return Some(Finding::warning(check, reason, remedy));
    }
    if check == Check::Disks && !matches!(case.answers.admission, Some(Ok(_))) {
        let reason = format!("not known: nobody on {host} has looked for the VM's files");
        return Some(Finding::warning(check, reason, format!("check again once {host} answers")));
    }
    None
}

fn well(check: Check, case: &Case<'_>) -> String {
    let (spec, name, host) = (&case.moving.spec, &case.vm.name, &case.destination.name);
    let (facts, guest, offer) = (&case.destination.facts, case.guest(), case.offer());
    let source = || case.source.map_or_else(|| "its host".to_owned(), |source| source.name.to_string());
    match check {
        Check::Vm => format!("{name} runs, and nobody is busy with it"),
        Check::Source => format!("{} answers", source()),
        Check::Blockers => "no device keeps it from moving".to_owned(),
        Check::Host => format!("{host} answers"),
        Check::Release => {
            let release = offer.map_or("", |offer| offer.release.as_str());
            format!("both sides are Godwit {release}, and speak the same migration protocol")
        }
        Check::Virtualisation => format!("{host} virtualises with {}", flavour(facts.kvm.flavour)),
        Check::Cpu => {
            let seen = guest.map_or(0, |guest| guest.cpu.features.len());
            format!("{host} offers all {seen} CPU features that the guest sees ({})", spec.cpu)
        }
        Check::FeatureMsrs => {
            let seen = guest.map_or(0, |guest| guest.cpu.msr_features.len());
            format!("{host} offers all {seen} features that the guest sees in MSRs")
        }
        Check::Tsc => {
            let khz = guest.and_then(|guest| guest.cpu.tsc).map_or(0, |tsc| tsc.khz);
            format!("{host} runs a TSC at {khz} kHz")
        }
        Check::Machine => format!("{host} runs a {}", spec.machine.name()),
        Check::Devices => {
            format!(
                "{host} reads all {} kinds of device state",
                guest.map_or(0, |guest| guest.sections.len())
            )
        }
        Check::Vcpus => format!("the VM has {} vCPUs and {host} has {} CPUs", spec.vcpus, facts.cpus),
        Check::Memory => {
            format!("the VM needs {} and {host} has {}", fit::needed_memory(spec), facts.memory_available)
        }
        Check::Networks => format!("{host} offers {}", listed(fit::needed_networks(spec))),
        Check::Datastores => format!("{host} reaches {}", listed(fit::needed_datastores(spec))),
        Check::Disks if !case.moving.disks.is_empty() => {
            let images = listed(&case.moving.images);
            format!("{images} can move along, and {host} opens all other files of the VM")
        }
        Check::Disks => format!("{host} opens all files of the VM, and no lock is in the way"),
        Check::PostCopy => format!("memory can follow the guest to {host}"),
        Check::Clock => {
            let skew = case.answers.skew;
            format!(
                "the clocks are {} ms apart (measured within {} ms)",
                skew.ms.unsigned_abs(),
                skew.error_ms
            )
        }
    }
}

fn listed<T: Display>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    if names.is_empty() { "nothing, and nothing is needed".to_owned() } else { names.join(", ") }
}
