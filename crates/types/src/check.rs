//! Whether a VM can move: the list of what was looked at, each with its verdict.

use serde::{Deserialize, Serialize};

use crate::error::{ApiError, ErrorCode};
use crate::ids::{HostName, Name, VmName};

/// What is looked at before a VM moves, in the order in which it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// It runs, nobody is busy with it, and it is not there already.
    Vm,
    /// The host that runs it is heard from, and its VM's process answers.
    Source,
    /// The VM itself: a device that cannot move now.
    Blockers,
    /// The destination is heard from, and its agent answers.
    Host,
    /// Both sides' releases of Godwit, and the migration protocol that they speak.
    Release,
    /// The kind of virtualisation of both sides.
    Virtualisation,
    /// CPUID: the maker, feature bits, widths.
    Cpu,
    /// Features that the guest sees in MSRs.
    FeatureMsrs,
    /// The frequency of the time stamp counter.
    Tsc,
    /// The machine type.
    Machine,
    /// The sections of device state, and their versions.
    Devices,
    Vcpus,
    Memory,
    Networks,
    Datastores,
    /// The files of the VM in its datastores, and the locks of its disks.
    Disks,
    /// How far the clocks of the two hosts are apart.
    Clock,
    /// Whether memory can follow the guest; looked at only if post-copy is allowed.
    PostCopy,
}

impl Check {
    /// All checks, in order.
    pub const ALL: [Self; 18] = [
        Self::Vm,
        Self::Source,
        Self::Blockers,
        Self::Host,
        Self::Release,
        Self::Virtualisation,
        Self::Cpu,
        Self::FeatureMsrs,
        Self::Tsc,
        Self::Machine,
        Self::Devices,
        Self::Vcpus,
        Self::Memory,
        Self::Networks,
        Self::Datastores,
        Self::Disks,
        Self::Clock,
        Self::PostCopy,
    ];
}

/// What a check came to; the worst is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Ok,
    /// It can move, and somebody should know this.
    Warning,
    /// It cannot move.
    Blocked,
}

/// One result of a check. A check that finds several things wrong has several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Finding {
    pub check: Check,
    pub verdict: Verdict,
    /// What was found, naming the thing.
    pub reason: String,
    /// What the person at the keyboard can do; of everything that is not well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Whether a VM can move to one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostCheck {
    pub host: HostName,
    /// The worst of the findings.
    pub verdict: Verdict,
    /// At least one for each check.
    pub findings: Vec<Finding>,
}

/// Whether a VM can move, and where to: `GET /v1/vms/{vm}/migration-check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationCheck {
    pub vm: VmName,
    /// The host that owns it.
    pub from: Option<HostName>,
    /// By name.
    pub hosts: Vec<HostCheck>,
}

impl Finding {
    pub fn ok(check: Check, reason: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, reason: reason.into(), remedy: None }
    }

    pub fn warning(check: Check, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warning, reason: reason.into(), remedy: Some(remedy.into()) }
    }

    pub fn blocked(check: Check, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Blocked, reason: reason.into(), remedy: Some(remedy.into()) }
    }

    /// The host cannot run VMs at all, for the reason that its `/dev/kvm` gives.
    pub fn no_virtualisation(host: &HostName, limits: &str) -> Self {
        let remedy = format!("enable virtualisation on {host}, or name another host");
        Self::blocked(Check::Virtualisation, format!("{host} cannot run VMs: {limits}"), remedy)
    }

    pub fn no_network(host: &HostName, network: &Name) -> Self {
        let reason = format!("{host} does not offer the network '{network}'");
        Self::blocked(Check::Networks, reason, format!("run its agent with --network {network}=BRIDGE"))
    }

    pub fn no_datastore(host: &HostName, datastore: &Name) -> Self {
        let remedy = format!("mount it there and run its agent with --datastore {datastore}=DIR");
        Self::blocked(Check::Datastores, format!("{host} does not reach the datastore '{datastore}'"), remedy)
    }

    /// The host has not the memory, for the reason given.
    pub fn no_memory(host: &HostName, reason: String) -> Self {
        Self::blocked(Check::Memory, reason, format!("free memory on {host}, or name another host"))
    }

    pub fn is_blocked(&self) -> bool {
        self.verdict == Verdict::Blocked
    }
}

impl MigrationCheck {
    /// Whether at least one host can take the VM.
    pub fn can_move(&self) -> bool {
        self.hosts.iter().any(|host| host.verdict < Verdict::Blocked)
    }
}

/// One error that names everything that blocks `deed`, with all remedies; nothing if nothing does.
pub fn refuse(deed: &str, findings: &[Finding]) -> Result<(), ApiError> {
    let blocked = || findings.iter().filter(|finding| finding.is_blocked());
    if blocked().next().is_none() {
        return Ok(());
    }
    let message = format!("{deed}: {}", joined(blocked().map(|finding| finding.reason.as_str())));
    let remedy = joined(blocked().filter_map(|finding| finding.remedy.as_deref()));
    Err(ApiError::new(ErrorCode::Refused, message).remedy(remedy))
}

/// Texts in their order, each once.
fn joined<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut unique: Vec<&str> = Vec::new();
    for text in texts {
        if !unique.contains(&text) {
            unique.push(text);
        }
    }
    unique.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_all_that_blocks_and_nothing_else_and_repeats_no_remedy() {
        let findings = [
            Finding::ok(Check::Vm, "it runs"),
            Finding::blocked(Check::Memory, "no memory", "name another host"),
            Finding::warning(Check::Clock, "a wrong clock", "set it"),
            Finding::blocked(Check::Cpu, "no avx2", "name another host"),
        ];
        let error = refuse("web1 cannot move to b", &findings).unwrap_err();
        assert_eq!(error.message, "web1 cannot move to b: no memory; no avx2");
        assert_eq!(error.remedy.as_deref(), Some("name another host"));
        assert_eq!(error.code, ErrorCode::Refused);
        assert_eq!(refuse("it", &findings[2..3]), Ok(()));
    }

    #[test]
    fn the_checks_are_in_their_order_and_none_is_left_out() {
        assert!(Check::ALL.is_sorted());
        assert_eq!(Check::ALL.last().map(|last| *last as usize + 1), Some(Check::ALL.len()));
    }
}
