//! What each VM is entitled to.
//!
//! ```text
//!   Tree::new     pools and VMs as somebody has set them up -> a tree, or what is wrong with them
//!   Tree::entitle demand goes up the tree, capacity comes down: each pool divides among its children (divide)
//!   Tree::refusals  reservations that the pools, the cluster, or what is left of it, cannot honour
//!   happiness     what a VM gets of what it is entitled to, and the mean of many
//! ```
//!
//! The model is that of vSphere 7: a *reservation* is guaranteed, a *limit* is never exceeded, and what is left is
//! divided in proportion to *shares*, but nobody gets more than its demand.

mod admission;
mod divide;
mod finding;
mod flow;
mod happiness;
mod tree;

pub(crate) use admission::Reserved;
pub use admission::{Capacity, Refusal};
pub use divide::{Claim, divide};
pub use finding::{Finding, Owner};
pub use flow::Entitlements;
pub use happiness::{Happiness, Member, mean};
pub use tree::{Controls, Pool, Tree, Vm};
