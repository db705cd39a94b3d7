//! Checks of what the guest has against what the destination offers.

use godwit_types::capability::{GuestFacts, VmmOffer, reads_section};
use godwit_types::check::{Check, Finding};
use godwit_types::host::KvmFlavour;

use super::Case;

pub(super) fn findings(case: &Case<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(virtualisation(case));
    found.extend(machine(case));
    found.extend(post_copy(case));
    match (case.guest(), case.offer()) {
        (Some(guest), Some(offer)) => {
            found.extend(release(case, guest, offer));
            found.extend(devices(case, guest, offer));
            found.extend(guest.cpu.missing_on(&offer.cpu, case.destination.name.as_str()));
        }
        _ => found.extend(unverified_release(case)),
    }
    found
}

fn virtualisation(case: &Case<'_>) -> Option<Finding> {
    let (source, destination) = (case.source?, case.destination);
    let (from, to) = (source.facts.kvm.flavour, destination.facts.kvm.flavour);
    (to != KvmFlavour::None && from != to).then(|| {
        let (ours, theirs) = (flavour(from), flavour(to));
        let reason =
            format!("{} virtualises with {ours} and {} with {theirs}", source.name, destination.name);
        Finding::blocked(Check::Virtualisation, reason, format!("name a host that virtualises with {ours}"))
    })
}

pub(super) const fn flavour(flavour: KvmFlavour) -> &'static str {
    match flavour {
        KvmFlavour::Vmx => "Intel VT-x",
        KvmFlavour::Svm => "AMD-V",
        KvmFlavour::Pvm => "PVM",
        KvmFlavour::None => "nothing",
    }
}

fn machine(case: &Case<'_>) -> Option<Finding> {
    let (wanted, host) = (case.vm.spec.machine.name(), &case.destination.name);
    let known = &case.offer()?.machines;
    (!known.iter().any(|machine| machine == wanted)).then(|| {
        let reason = format!("the VM is a {wanted} and {host} runs {}", known.join(", "));
        Finding::blocked(Check::Machine, reason, format!("install a newer release of Godwit on {host}"))
    })
}

fn post_copy(case: &Case<'_>) -> Option<Finding> {
    let why = case.offer()?.no_post_copy.as_ref().filter(|_| case.wish.budget.post_copy)?;
    let reason = format!("memory cannot follow the guest to {}: {why}", case.destination.name);
    Some(Finding::blocked(Check::PostCopy, reason, "migrate without --post-copy, or name another host"))
}

/// The releases may differ as long as both speak one protocol and each other's device state.
fn release(case: &Case<'_>, guest: &GuestFacts, offer: &VmmOffer) -> Option<Finding> {
    let (name, host) = (&case.vm.name, &case.destination.name);
    let (ours, theirs) = (&guest.release, &offer.release);
    if !guest.protocol.meets(offer.protocol) {
        let (from, to) = (guest.protocol, offer.protocol);
        let reason = format!(
            "the process of {name}, of Godwit {ours}, speaks the migration protocol {}-{}, and {host}, of {theirs}, {}-{}",
            from.min, from.max, to.min, to.max
        );
        let remedy = format!("install a release on {host} that is at most one away from {ours}");
        return Some(Finding::blocked(Check::Release, reason, remedy));
    }
    (ours != theirs).then(|| {
        let reason = format!("the process of {name} is of Godwit {ours} and {host} runs {theirs}");
        Finding::warning(Check::Release, reason, "install the same release on all hosts")
    })
}

/// Without both sides' own word, unlike releases are not trusted.
fn unverified_release(case: &Case<'_>) -> Option<Finding> {
    let (source, destination) = (case.source?, case.destination);
    let (ours, theirs) = (&source.facts.version, &destination.facts.version);
    (ours != theirs).then(|| {
        let reason = format!("{} runs Godwit {ours} and {} runs {theirs}", source.name, destination.name);
        Finding::blocked(Check::Release, reason, "install the same version of Godwit on both hosts")
    })
}

fn devices(case: &Case<'_>, guest: &GuestFacts, offer: &VmmOffer) -> Vec<Finding> {
    let host = &case.destination.name;
    let read = |kind: &String, theirs: u16| match offer.sections.get(kind) {
        Some(ours) if reads_section(*ours, theirs) => None,
        Some(ours) => Some(format!(
            "the state of {kind} comes in version {theirs}, and {host} reads version {ours} and the one before"
        )),
        None => Some(format!("{host} knows no device state of the kind {kind}")),
    };
    let refused = guest.sections.iter().filter_map(|(kind, version)| read(kind, *version));
    let remedy = format!("install a release on {host} that is at most one away from {}", guest.release);
    refused.map(|reason| Finding::blocked(Check::Devices, reason, remedy.clone())).collect()
}
