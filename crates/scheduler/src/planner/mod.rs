//! From a snapshot to a plan.
//!
//! ```text
//!   case       the snapshot, sorted; what is wrong with it; who cannot move, who should not; demand and entitlements
//!   mandatory  hosts are emptied, must-rules mended, VMs placed; room makes room where there is none
//!   improve    moves that make the objective less by more than they cost, as far as the policy's threshold goes
//!   sequence   the order in which every step can be done
//!   steps      the plan with its gains, and how the cluster stands before and after it
//! ```

pub(crate) mod case;
mod demand;
mod findings;
mod improve;
mod mandatory;
pub(crate) mod model;
pub(crate) mod objective;
mod plan;
mod priority;
mod room;
mod space;
pub(crate) mod standing;
mod steps;
mod work;

pub use plan::{Action, Cost, Plan, Reason, Standing, Step, WhyNot};

use godwit_types::{HostName, VmName};
use serde::{Deserialize, Serialize};

use self::case::Case;
use self::work::Work;
use crate::policy::Policy;
use crate::snapshot::Snapshot;

/// What a plan is wanted for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    match goal {
        Goal::Balance => {
            let emptied = mandatory::in_maintenance(&work);
            mandatory::empty(&mut work, &emptied);
            mandatory::mend(&mut work);
            improve::improve(&mut work, seed);
        }
        Goal::Place => mandatory::place(&mut work, |_| true, false),
        Goal::Evacuate { hosts } => {
            let mut hosts: Vec<usize> = hosts.iter().filter_map(|host| case.host(host)).collect();
            hosts.sort_unstable();
            hosts.dedup();
            mandatory::empty(&mut work, &hosts);
        }
        Goal::MakeRoom { vm } => make_room(&mut work, vm),
    }
    steps::plan(work)
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
