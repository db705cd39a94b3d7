//! From a snapshot to a plan.

mod plan;

pub use plan::{Action, Cost, Plan, Reason, Standing, Step, WhyNot};

use godwit_types::{HostName, VmName};
use serde::{Deserialize, Serialize};

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
