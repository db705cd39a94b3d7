//! The resources that are divided, and their units.

use std::fmt;
use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

/// Something that VMs compete for, with the unit of its amounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// MHz: millions of cycles a second, so that cores of different speed compare.
    Cpu,
    /// Bytes.
    Memory,
    /// Bytes per second, both ways together.
    Network,
    /// Reads and writes of disks per second.
    Storage,
}

impl Resource {
    /// All of them, in the order of [`PerResource`].
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Memory, Self::Network, Self::Storage];

    /// An amount as people read it.
    pub fn show(self, amount: u64) -> String {
        match self {
            Self::Cpu => format!("{amount} MHz"),
            Self::Memory => godwit_types::Bytes(amount).to_string(),
            Self::Network => format!("{}/s", godwit_types::Bytes(amount)),
            Self::Storage => format!("{amount} operations/s"),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cpu => "CPU",
            Self::Memory => "memory",
            Self::Network => "network",
            Self::Storage => "storage I/O",
        })
    }
}

/// One value for each resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PerResource<T> {
    pub cpu: T,
    pub memory: T,
    pub network: T,
    pub storage: T,
}

impl<T> PerResource<T> {
    /// Asks `value` once for each resource, in order.
    pub fn from_fn(mut value: impl FnMut(Resource) -> T) -> Self {
        Self {
            cpu: value(Resource::Cpu),
            memory: value(Resource::Memory),
            network: value(Resource::Network),
            storage: value(Resource::Storage),
        }
    }
}

impl<T> Index<Resource> for PerResource<T> {
    type Output = T;

    fn index(&self, resource: Resource) -> &T {
        match resource {
            Resource::Cpu => &self.cpu,
            Resource::Memory => &self.memory,
            Resource::Network => &self.network,
            Resource::Storage => &self.storage,
        }
    }
}

impl<T> IndexMut<Resource> for PerResource<T> {
    fn index_mut(&mut self, resource: Resource) -> &mut T {
        match resource {
            Resource::Cpu => &mut self.cpu,
            Resource::Memory => &mut self.memory,
            Resource::Network => &mut self.network,
            Resource::Storage => &mut self.storage,
        }
    }
}
