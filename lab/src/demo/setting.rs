//! What this machine can do.

use crate::cluster::Setting;
use crate::guest::Guest;
use crate::{LabError, Result, fabric};

/// What the hosts will be made of, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub setting: Setting,
    pub why: String,
}

/// What stands behind `/dev/kvm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kvm {
    /// VMX or SVM: any guest runs.
    Hardware,
    /// No hardware virtualisation: only guests that are made for it run.
    Pvm,
    Missing,
}

/// Chooses for a guest, unless the user has chosen already.
pub fn choose(guest: Guest, wanted: Option<Setting>) -> Result<Choice> {
    let usable = fabric::require_root_and_kvm();
    let kvm = if usable.is_ok() { probe() } else { Kvm::Missing };
    let choice = decide(guest, wanted, kvm)?;
    if choice.setting == Setting::Kvm {
        usable?;
    }
    Ok(choice)
}

impl Choice {
    /// The setting for people.
    pub fn setting_in_words(&self) -> &'static str {
        match self.setting {
            Setting::Kvm => "hosts are processes in network namespaces of this machine",
            Setting::Lab => "hosts are emulated machines with nested KVM",
        }
    }
}

fn decide(guest: Guest, wanted: Option<Setting>, kvm: Kvm) -> Result<Choice> {
    let choice = |setting, why: &str| Ok(Choice { setting, why: why.to_owned() });
    match (wanted, guest, kvm) {
        (Some(Setting::Kvm), Guest::Linux, Kvm::Pvm) => Err(LabError::Unsupported(
            "this machine's KVM is PVM, on which stock Linux does not boot: use --guest reference or --setting lab".into(),
        )),
        (Some(Setting::Lab), Guest::Reference, _) => Err(LabError::Unsupported(
            "the lab runs the Linux guest: use --guest linux, or --setting kvm for the reference guest".into(),
        )),
        (Some(setting), ..) => choice(setting, "as asked for"),
        (None, Guest::Reference, _) => choice(Setting::Kvm, "the reference guest runs on any /dev/kvm"),
        (None, Guest::Linux, Kvm::Hardware) => choice(Setting::Kvm, "this machine has KVM in hardware"),
        (None, Guest::Linux, Kvm::Pvm) => {
            choice(Setting::Lab, "this machine's KVM is PVM, on which stock Linux does not boot")
        }
        (None, Guest::Linux, Kvm::Missing) => choice(Setting::Lab, "this machine has no usable /dev/kvm"),
    }
}

fn probe() -> Kvm {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let in_hardware = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    let is_pvm = std::path::Path::new("/sys/module/kvm_pvm").exists();
    if in_hardware && !is_pvm { Kvm::Hardware } else { Kvm::Pvm }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_goes_where_it_boots_and_the_reference_guest_stays_here() {
        let chosen = |guest, kvm| decide(guest, None, kvm).unwrap().setting;
        assert_eq!(chosen(Guest::Linux, Kvm::Hardware), Setting::Kvm);
        assert_eq!(chosen(Guest::Linux, Kvm::Pvm), Setting::Lab);
        assert_eq!(chosen(Guest::Linux, Kvm::Missing), Setting::Lab);
        assert_eq!(chosen(Guest::Reference, Kvm::Pvm), Setting::Kvm);
    }

    #[test]
    fn an_impossible_wish_is_refused_with_a_possible_one() {
        let refusal = decide(Guest::Linux, Some(Setting::Kvm), Kvm::Pvm).unwrap_err().to_string();
        assert!(refusal.contains("--setting lab"), "{refusal}");
        let refusal = decide(Guest::Reference, Some(Setting::Lab), Kvm::Hardware).unwrap_err().to_string();
        assert!(refusal.contains("--guest linux"), "{refusal}");
    }
}
