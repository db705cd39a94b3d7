//! What can be wrong with pools and VMs as they were set up.

use std::fmt;

use godwit_types::{Name, VmName};

use crate::resource::Resource;

/// Who has controls.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    Pool(Name),
    Vm(VmName),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(name) => write!(f, "pool '{name}'"),
            Self::Vm(name) => write!(f, "VM '{name}'"),
        }
    }
}

/// One thing that keeps pools and VMs from being a tree whose capacity can be divided.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Finding {
    #[error("{0} is there twice")]
    Twice(Owner),
    #[error("{owner} is in the pool '{parent}', which does not exist")]
    UnknownParent { owner: Owner, parent: Name },
    #[error("pool '{0}' lies within itself")]
    Cycle(Name),
    #[error("{owner} has no shares of {resource}")]
    NoShares { owner: Owner, resource: Resource },
    #[error(
        "{owner} reserves {} of {resource} and is limited to {}",
        resource.show(*reservation),
        resource.show(*limit)
    )]
    ReservationAboveLimit { owner: Owner, resource: Resource, reservation: u64, limit: u64 },
}

impl Finding {
    /// What the person who set it up can do.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Twice(_) => "remove one of the two",
            Self::UnknownParent { .. } => "name a pool that exists, or none",
            Self::Cycle(_) => "move one of the pools on the way round directly below the cluster",
            Self::NoShares { .. } => "give it at least 1 share",
            Self::ReservationAboveLimit { .. } => "raise the limit, or lower the reservation",
        }
    }
}
