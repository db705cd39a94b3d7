//! Whether a VM can move to a host: every reason against it at once, before anything is touched.

use godwit_types::ApiError;
use godwit_types::host::KvmFlavour;
use godwit_types::ownership::Ownership;

use crate::fit::{self, Obstacle};
use crate::store::{HostRow, Power, VmRow};

/// Clocks that differ by more are warned of: logs of the two hosts cannot be read side by side, in milliseconds.
const CLOCK_SKEW_MS_MAX: u64 = 1_000;

/// What a migration is judged by.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub vm: &'a VmRow,
    pub owned: Option<&'a Ownership>,
    /// The host that owns the VM.
    pub source: Option<&'a HostRow>,
    pub destination: &'a HostRow,
}

/// Refuses with all reasons, or returns what to warn of.
pub(crate) fn check(plan: &Plan<'_>) -> Result<Vec<String>, ApiError> {
    let Plan { vm, destination, .. } = plan;
    let mut obstacles = vm_obstacles(plan);
    if let Some(source) = plan.source {
        if source.name == destination.name {
            let reason = format!("{} is on {} already", vm.name, source.name);
            obstacles.push(Obstacle::new(reason, "name another host"));
        } else {
            obstacles.extend(fit::obstacles(&vm.spec, destination));
            obstacles.extend(pair_obstacles(source, destination));
        }
    }
    fit::refuse(&format!("{} cannot move to {}", vm.name, destination.name), &obstacles)?;
    Ok([plan.source, Some(destination)].into_iter().flatten().filter_map(skew_warning).collect())
}

fn vm_obstacles(plan: &Plan<'_>) -> Vec<Obstacle> {
    let name = &plan.vm.name;
    let mut found = Vec::new();
    if plan.vm.power != Power::Running {
        let remedy = format!("start it: godwit vm start {name} --host {}", plan.destination.name);
        found.push(Obstacle::new(format!("{name} is not running"), remedy));
    } else if !plan.owned.is_some_and(|owned| owned.claimed) {
        let reason = format!("the host that owns {name} has not confirmed that it runs it");
        found.push(Obstacle::new(reason, "wait until the VM's state is certain: godwit vm show"));
    }
    if let Some(source) = plan.source.filter(|source| !source.up) {
        let reason = format!("{}, which runs it, is down: the manager does not hear from it", source.name);
        let remedy =
            format!("check the network to {} and that 'godwit host run' is alive there", source.name);
        found.push(Obstacle::new(reason, remedy));
    }
    found
}

fn pair_obstacles(source: &HostRow, destination: &HostRow) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let (from, to) = (&source.facts, &destination.facts);
    if to.kvm.flavour != KvmFlavour::None && from.kvm.flavour != to.kvm.flavour {
        let (ours, theirs) = (flavour(from.kvm.flavour), flavour(to.kvm.flavour));
        let reason =
            format!("{} virtualises with {ours} and {} with {theirs}", source.name, destination.name);
        found.push(Obstacle::new(reason, format!("name a host that virtualises with {ours}")));
    }
    if from.version != to.version {
        let (ours, theirs) = (&from.version, &to.version);
        let reason = format!("{} runs Godwit {ours} and {} runs {theirs}", source.name, destination.name);
        found.push(Obstacle::new(reason, "install the same version of Godwit on both hosts"));
    }
    found
}

const fn flavour(flavour: KvmFlavour) -> &'static str {
    match flavour {
        KvmFlavour::Vmx => "Intel VT-x",
        KvmFlavour::Svm => "AMD-V",
        KvmFlavour::Pvm => "PVM",
        KvmFlavour::None => "nothing",
    }
}

fn skew_warning(host: &HostRow) -> Option<String> {
    let skew_ms = host.clock_skew_ms;
    (skew_ms.unsigned_abs() > CLOCK_SKEW_MS_MAX).then(|| {
        format!(
            "the clock of {} differs from the manager's by {skew_ms} ms; check its time synchronisation",
            host.name
        )
    })
}

#[cfg(test)]
mod tests {
    use godwit_types::{Bytes, Epoch, ErrorCode};

    use super::*;
    use crate::fixtures::{host, vm};

    fn owned(vm: &VmRow, owner: &HostRow) -> Ownership {
        Ownership { vm: vm.id, owner: owner.name.clone(), epoch: Epoch(1), claimed: true }
    }

    fn judge(vm: &VmRow, source: &HostRow, destination: &HostRow) -> Result<Vec<String>, ApiError> {
        let owned = owned(vm, source);
        check(&Plan { vm, owned: Some(&owned), source: Some(source), destination })
    }

    #[test]
    fn a_running_vm_moves_between_equal_hosts_without_a_word() {
        assert_eq!(judge(&vm("web1"), &host("a"), &host("b")), Ok(vec![]));
    }

    #[test]
    fn every_reason_is_named_at_once_each_with_a_remedy() {
        let (mut vm, mut source, mut destination) = (vm("web1"), host("a"), host("b"));
        vm.power = Power::Stopped;
        source.up = false;
        destination.up = false;
        destination.facts.networks.clear();
        destination.facts.datastores.clear();
        destination.facts.memory_available = Bytes(0);
        destination.facts.kvm.flavour = KvmFlavour::Vmx;
        destination.facts.version = "0.0.9".into();
        let error = judge(&vm, &source, &destination).unwrap_err();
        assert_eq!(error.code, ErrorCode::Refused);
        for word in
            ["not running", "a, which runs it, is down", "b is down", "lan", "shared", "0B", "Intel", "0.0.9"]
        {
            assert!(error.message.contains(word), "{word} is missing from: {}", error.message);
        }
        assert_eq!(error.remedy.unwrap().matches("; ").count(), 7);
    }

    #[test]
    fn a_move_to_where_it_is_is_refused() {
        let error = judge(&vm("web1"), &host("a"), &host("a")).unwrap_err();
        assert!(error.message.contains("is on a already"), "{}", error.message);
    }

    #[test]
    fn a_vm_whose_owner_has_not_confirmed_it_stays() {
        let (vm, source) = (vm("web1"), host("a"));
        let owned = Ownership { claimed: false, ..owned(&vm, &source) };
        let plan = Plan { vm: &vm, owned: Some(&owned), source: Some(&source), destination: &host("b") };
        assert!(check(&plan).unwrap_err().message.contains("has not confirmed"));
    }

    #[test]
    fn a_wrong_clock_is_warned_of_and_refuses_nothing() {
        let mut destination = host("b");
        destination.clock_skew_ms = -5_000;
        let warnings = judge(&vm("web1"), &host("a"), &destination).unwrap();
        assert!(warnings[0].contains("clock of b") && warnings[0].contains("-5000 ms"), "{warnings:?}");
    }
}
