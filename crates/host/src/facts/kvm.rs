//! What `/dev/kvm` is, without creating a VM.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::Path;

use godwit_types::host::{KvmFacts, KvmFlavour};

/// What the kernel shows about its virtualisation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Evidence<'a> {
    /// Opening `/dev/kvm`.
    pub(super) device: Result<(), ErrorKind>,
    /// Loaded modules of KVM, of `kvm_pvm`, `kvm_intel` and `kvm_amd`.
    pub(super) modules: &'a [&'a str],
    /// The contents of `/proc/cpuinfo`.
    pub(super) cpuinfo: &'a str,
}

const MODULES: [&str; 3] = ["kvm_pvm", "kvm_intel", "kvm_amd"];

/// Looks at this machine.
pub(super) fn look(cpuinfo: &str) -> KvmFacts {
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop).map_err(|e| e.kind());
    let loaded = |module: &&str| Path::new("/sys/module").join(module).exists();
    let modules: Vec<&str> = MODULES.into_iter().filter(loaded).collect();
    judge(Evidence { device, modules: &modules, cpuinfo })
}

/// What the evidence amounts to.
pub(super) fn judge(evidence: Evidence<'_>) -> KvmFacts {
    let none = |limits: &str| KvmFacts { flavour: KvmFlavour::None, limits: Some(limits.to_owned()) };
    let cpu_has = |flag: &str| {
        evidence
            .cpuinfo
            .lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| line.split(' ').any(|f| f == flag))
    };
    let module = |name: &str| evidence.modules.contains(&name);
    match evidence.device {
        Err(ErrorKind::NotFound) if cpu_has("vmx") => {
            return none("there is no /dev/kvm, although the CPU has VT-x: modprobe kvm_intel");
        }
        Err(ErrorKind::NotFound) if cpu_has("svm") => {
            return none("there is no /dev/kvm, although the CPU has AMD-V: modprobe kvm_amd");
        }
        Err(ErrorKind::NotFound) => {
            return none(
                "there is no /dev/kvm and the CPU shows neither VT-x nor AMD-V: switch virtualisation on in the firmware, \
                 or nested virtualisation if this is a VM",
            );
        }
        Err(ErrorKind::PermissionDenied) => {
            return none("the agent may not open /dev/kvm: run it as root, or as a member of the group kvm");
        }
        Err(kind) => return none(&format!("/dev/kvm cannot be opened: {kind}")),
        Ok(()) => {}
    }
    let found = |flavour| KvmFacts { flavour, limits: None };
    if module("kvm_pvm") {
        let limits = "PVM: stock kernels do not boot here; guests must do their work in ring 3";
        KvmFacts { flavour: KvmFlavour::Pvm, limits: Some(limits.to_owned()) }
    } else if module("kvm_intel") || cpu_has("vmx") {
        found(KvmFlavour::Vmx)
    } else if module("kvm_amd") || cpu_has("svm") {
        found(KvmFlavour::Svm)
    } else {
        none("/dev/kvm opens, but which virtualisation is behind it is unknown: lsmod | grep kvm")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flavour(device: Result<(), ErrorKind>, modules: &[&str], cpuinfo: &str) -> (KvmFlavour, String) {
        let facts = judge(Evidence { device, modules, cpuinfo });
        (facts.flavour, facts.limits.unwrap_or_default())
    }

    #[test]
    fn the_flavour_follows_from_the_modules_and_the_cpu() {
        assert_eq!(flavour(Ok(()), &["kvm_intel"], "").0, KvmFlavour::Vmx);
        assert_eq!(flavour(Ok(()), &["kvm_amd"], "").0, KvmFlavour::Svm);
        assert_eq!(flavour(Ok(()), &[], "flags\t\t: fpu svm sse").0, KvmFlavour::Svm);
        assert_eq!(flavour(Ok(()), &["kvm_pvm"], "flags\t\t: fpu").0, KvmFlavour::Pvm);
        assert_eq!(flavour(Ok(()), &[], "flags\t\t: fpu svm_lock").0, KvmFlavour::None);
    }

    #[test]
    fn without_a_usable_device_the_reason_and_the_remedy_are_named() {
        let missing = Err(ErrorKind::NotFound);
        let (flavour_found, why) = flavour(missing, &[], "flags\t\t: fpu vmx");
        assert_eq!(flavour_found, KvmFlavour::None);
        assert!(why.contains("modprobe kvm_intel"), "{why}");
        assert!(flavour(missing, &[], "").1.contains("firmware"));
        assert!(flavour(Err(ErrorKind::PermissionDenied), &["kvm_amd"], "").1.contains("root"));
    }
}
