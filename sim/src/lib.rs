//! The whole handoff as one value that takes steps: the real state machines of both sides, the real arbiter and the
//! real judges of the manager, in a world of models that can go wrong in every way that the protocol must survive.
//!
//! ```text
//!   random.rs   a seed draws the steps          explore.rs   every order of steps, within a budget of faults
//!         \                                      /
//!          `--> world: choices() -> apply(choice) -> what must hold, after every step and in the end
//!                 source, destination     godwit-migration's engines, driven as its driver drives them
//!                 manager                 godwit-manager's arbiter, settle and news around rows that are durable, or not
//!                 agent, network, guest   models
//!          .--> shrink.rs: fewest steps that still break the promise, in the protocol's words
//! ```
//!
//! No threads, no clock, no I/O: the same steps lead to the same world.

pub mod explore;
pub mod random;
pub mod rules;
pub mod shrink;
pub mod world;
