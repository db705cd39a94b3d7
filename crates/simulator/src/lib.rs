//! What the scheduler would do with a cluster over days: a trace of what VMs want goes in, and what they get comes out.
//!
//! ```text
//!   trace   hosts and VMs, and what each VM wants at each step; format reads it
//!   run     step by step: plan under a policy, carry out what is planned, account for it
//!   cluster who is where at each millisecond: migrations under way, hosts that wake
//!   gauge   what hosts give and draw, how content VMs are
//!   account what hosts do during a step
//!   report  of each step, and of all of them
//! ```
//!
//! No clock and no I/O: time is the trace's, and whoever drives a [`Simulation`] has the files. The same trace, policy and seed
//! give the same bytes.
//!
//! What is simplified: demand holds for a whole step; migrations take the time that the plan says, and what they cost the hosts'
//! processors is counted but not added to their load; no migration fails; the scheduler knows the present and its own past moves, and
//! is given no forecast.

mod account;
mod cluster;
pub mod format;
mod gauge;
mod report;
mod run;
pub mod trace;

pub use report::{Report, Spread, StepReport, Summary};
pub use run::{SetupError, Simulation};
pub use trace::Trace;
