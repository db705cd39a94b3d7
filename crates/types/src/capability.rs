//! What a host's `godwit-vmm` can run, and what a running VM needs of the one that takes it over.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cpu::CpuFacts;
use crate::units::Bytes;

/// What `godwit-vmm` on a host can run: `godwit-vmm --offer` prints it, the agent reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmmOffer {
    /// Of Godwit.
    pub release: String,
    pub protocol: ProtocolRange,
    /// Machine types by name; those of a newer release are not known here.
    pub machines: Vec<String>,
    /// The version of each kind of device state that it writes. It reads that version and the one before.
    pub sections: BTreeMap<String, u16>,
    /// Most vCPUs of one VM that KVM runs.
    pub vcpus_max: u32,
    /// The most that a guest that migrates can be given.
    pub cpu: CpuFacts,
    /// Why memory cannot follow a guest to here by post-copy; null if it can.
    #[serde(default = "no_post_copy")]
    pub no_post_copy: Option<String>,
}

/// What a release says that says nothing of it.
fn no_post_copy() -> Option<String> {
    Some("its release does not know post-copy".to_owned())
}

/// Versions of the migration protocol that are spoken, from the lowest to the highest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProtocolRange {
    pub min: u16,
    pub max: u16,
}

/// What a running VM's process says of itself: what it would send, and what it would need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GuestFacts {
    /// Of the process, which may be older than the agent that started it.
    pub release: String,
    pub protocol: ProtocolRange,
    /// The version of each kind of device state that it would send.
    pub sections: BTreeMap<String, u16>,
    /// The CPU that the guest sees.
    pub cpu: CpuFacts,
    /// What of the VM cannot move now, in plain words.
    #[serde(default)]
    pub blockers: Vec<String>,
    /// Whether the process can send its disks along.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moves_disks: bool,
    /// Whether it can move its disks to other places on its host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moves_storage: bool,
    /// Its disks, in their order, as its host's agent finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskFacts>,
}

/// A disk of a running VM, as it lies in its datastore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DiskFacts {
    /// What the guest sees.
    pub size: Bytes,
    /// What its image takes in the datastore.
    pub allocated: Bytes,
    /// Whether there are backing files below it.
    pub layered: bool,
}

impl ProtocolRange {
    /// Whether both speak a version in common.
    pub const fn meets(self, other: Self) -> bool {
        self.min <= other.max && other.min <= self.max
    }
}

/// Whether a build that writes version `ours` of a kind of device state reads version `theirs`: N reads N and N - 1.
pub fn reads_section(ours: u16, theirs: u16) -> bool {
    theirs == ours || theirs.checked_add(1).is_some_and(|next| next == ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_reads_its_own_version_of_a_section_and_the_one_before() {
        assert!(reads_section(2, 2) && reads_section(2, 1));
        assert!(!reads_section(2, 3) && !reads_section(3, 1) && !reads_section(0, u16::MAX));
    }

    #[test]
    fn protocols_meet_where_their_ranges_overlap() {
        let range = |min, max| ProtocolRange { min, max };
        assert!(range(1, 2).meets(range(2, 3)) && range(2, 3).meets(range(1, 2)));
        assert!(!range(1, 1).meets(range(2, 2)) && !range(2, 2).meets(range(1, 1)));
    }
}
