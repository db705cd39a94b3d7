//! VMs on this host: one `godwit-vmm` process each, which outlives the agent.
//!
//! `launch` starts a process, `adopt` finds those of an earlier agent; `supervise` follows each to its end; `orders`
//! is what can be asked in between. `registry` knows them all.

mod admission;
pub(crate) mod adopt;
mod arrivals;
mod cgroup;
pub(crate) mod control;
mod copies;
mod dir;
pub(crate) mod examine;
mod keep;
pub(crate) mod launch;
mod machine;
pub(crate) mod orders;
mod places;
mod process;
mod question;
mod registry;
mod shares;
mod state;
pub(crate) mod storage;
mod supervise;
mod targets;
pub(crate) mod traffic;
mod user;

pub(crate) use arrivals::Arrivals;
pub(crate) use cgroup::Cgroups;
pub(crate) use copies::Copies;
pub(crate) use keep::Keep;
pub(crate) use machine::{Machine, blocking};
pub(crate) use registry::Registry;

/// Waits while a test holds the step; see [`godwit_faults`].
async fn reached(step: godwit_faults::Step) {
    while godwit_faults::is_held(step) {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}
