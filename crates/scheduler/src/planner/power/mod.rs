//! Whether hosts are woken, and whether they can be spared, after VMware's DPM.
//!
//! Hosts are to be used for `target` of their CPU and memory, give or take `band`. How much a host is used follows from what its VMs have
//! wanted together, slot by slot ([`Bursts`](super::model::Bursts)), with one deviation to spare for those that it has and with two for
//! whoever comes. While power is managed evenness is no aim: a host is filled, or off.
//!
//! ```text
//!   relief    a host above target + band gives VMs to others that stay within it; in need even those that have moved lately
//!   wake      a VM has no host and would have one; what is reserved, or what is prepared for, needs hosts; or relief finds
//!             nobody: then as many hosts at once as take what is too much
//!   standby   the others take everybody within target + band, and all together are used for no more than the target;
//!             reservations hold and as many losses are prepared for as before; and what is saved while demand stays
//!             as it is, is worth `benefit_ratio` times the work of moving everybody away and back
//! ```
//!
//! A host is woken at once, and none is spared meanwhile. Whatever was woken gets its VMs once it is there.

mod band;
mod measure;
mod relief;
mod spare;
mod wake;

pub(super) use self::band::Band;
pub(super) use self::spare::Spared;
pub(super) use self::wake::{Wake, wake};

use super::work::Work;
use crate::policy::Policy;
use crate::snapshot::HostState;

/// The priority of what is done since hosts are used too much, and of sparing one.
pub(super) const RELIEF: u8 = 2;
pub(super) const SPARE: u8 = 3;

/// Moves VMs away from hosts that are above the band, as far as others that are on take them. Gives those that still are.
pub(super) fn relieve(work: &mut Work<'_>) -> Vec<usize> {
    if !work.case.saves || work.case.policy.threshold < RELIEF {
        return Vec::new();
    }
    relief::relieve(work, &[])
}

/// Empties hosts that can be spared together.
pub(super) fn spare(work: &mut Work<'_>) -> Spared {
    let case = work.case;
    if !case.saves {
        Spared::default()
    } else if case.policy.threshold < SPARE {
        Spared::none(work, "the policy's threshold allows no more than what is more urgent")
    } else if case.hosts.iter().any(|host| host.state == HostState::Waking) {
        Spared::none(work, "a host is being woken, since more are needed")
    } else if !work.unmoved.is_empty() {
        Spared::none(work, "VMs stay where they should not, for want of another host")
    } else {
        spare::spare(work)
    }
}

/// Whether hosts are switched off and on by such a policy.
pub(super) fn is_managed(policy: &Policy) -> bool {
    policy.power.enabled && policy.findings().is_empty()
}
