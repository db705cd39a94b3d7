//! Clusters of hosts to try Godwit on, the load that watches a guest while it moves, and the demo that shows both.
//!
//! ```text
//!   cluster::Cluster      what the demo and the tests need of a cluster; all VM operations go through the `godwit` CLI
//!     fabric::Fabric      hosts as processes in network namespaces of this machine: any /dev/kvm
//!     emulated::...       hosts under QEMU with nested KVM: for stock Linux guests where /dev/kvm is PVM or missing
//!   load::Load            HTTP, UDP and disk checks from a namespace on the guests' network
//!   demo::run             a VM moves there and back under load
//!   setup                 packages and builds
//! ```

pub mod cgroup;
pub mod cleanup;
pub mod cluster;
pub mod demo;
pub mod emulated;
pub mod error;
pub mod exec;
pub mod fabric;
pub mod guest;
pub mod load;
pub mod logs;
pub mod namespace;
pub mod setup;

pub use error::{LabError, Result};
