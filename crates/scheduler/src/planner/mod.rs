//! From a snapshot to a plan.
//!
//! ```text
//!   case       the snapshot, sorted; what is wrong with it; who cannot move, who should not; demand and entitlements
//!   mandatory  hosts are emptied, must-rules mended, VMs placed; room makes room where there is none
//!   improve    moves that make the objective less by more than they cost, as far as the policy's threshold goes
//!   power      hosts that are to be woken, or can be spared
//!   sequence   the order in which every step can be done
//!   steps      the plan with its gains, and how the cluster stands before and after it
//! ```

pub(crate) mod brought;
pub(crate) mod case;
mod demand;
mod findings;
mod improve;
mod mandatory;
pub(crate) mod model;
pub(crate) mod objective;
mod plan;
mod power;
mod priority;
mod room;
mod space;
pub(crate) mod standing;
mod steps;
mod unhappy;
mod work;

pub use plan::{Action, Cost, KeptOn, Plan, Reason, Standing, Step, WhyNot};

use godwit_types::{HostName, VmName};
use serde::{Deserialize, Serialize};

use self::case::Case;
use self::work::Work;
use crate::policy::Policy;
use crate::snapshot::Snapshot;

/// What a plan is wanted for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "goal")]
pub enum Goal {
    /// Mend rules that are broken, empty hosts in maintenance, and give VMs more of what they are entitled to. With power
    /// management, hosts are woken and sent to standby, too.
    Balance,
    /// A host for each VM that has none.
    Place,
    /// Empties these hosts, as if they were in maintenance.
    Evacuate { hosts: Vec<HostName> },
    /// Moves others so that this VM, which has no host, fits on one.
    MakeRoom { vm: VmName },
}

/// What to do. The same input gives the same plan, in whatever order hosts, VMs, pools and rules are listed. Whatever is wrong with
/// the input is one of the plan's findings, and what is affected is left alone.
pub fn plan(snapshot: &Snapshot, policy: &Policy, goal: &Goal, seed: u64) -> Plan {
    let case = Case::new(snapshot, policy, goal);
    let mut work = Work::new(&case);
    let above = arrange(&mut work, goal, seed);
    let woken = power::wake(&work, goal, &above);
    if !woken.is_empty() {
        return steps::waking(work, &woken);
    }
    let mut spared = power::Spared::default();
    if matches!(goal, Goal::Balance) {
        spared = power::spare(&mut work);
        unhappy::explain(&mut work);
    }
    steps::sparing(work, spared)
}

/// Who goes where. The hosts that are above the band of power management, and find nobody who takes what is too much.
fn arrange(work: &mut Work<'_>, goal: &Goal, seed: u64) -> Vec<usize> {
    let maintenance = |host| Reason::Maintenance { host };
    match goal {
        Goal::Balance => {
            let emptied = mandatory::in_maintenance(work);
            mandatory::empty(work, &emptied, maintenance, true);
            mandatory::mend(work);
            let above = power::relieve(work);
            improve::improve(work, seed);
            return above;
        }
        Goal::Place => mandatory::place(work, |_| true, false),
        Goal::Evacuate { hosts } => {
            let mut hosts: Vec<usize> = hosts.iter().filter_map(|host| work.case.host(host)).collect();
            hosts.sort_unstable();
            hosts.dedup();
            mandatory::empty(work, &hosts, maintenance, true);
        }
        Goal::MakeRoom { vm } => make_room(work, vm),
    }
    Vec::new()
}

fn make_room(work: &mut Work<'_>, name: &VmName) {
    match work.case.vm(name) {
        None => work
            .findings
            .push(format!("VM '{name}', which is to have room, does not exist: name one that does")),
        Some(vm) if work.case.vms[vm].host.is_some() => {
            work.findings.push(format!("VM '{name}' has a host, and needs no room: name one that has none"));
        }
        Some(vm) => mandatory::place(work, |wanted| wanted == vm, true),
    }
}
