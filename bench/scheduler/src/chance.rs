//! Numbers that look random, for generated instances.

use godwit_scheduler::random::split_mix;

/// Follows from the seed in it.
#[derive(Debug, Clone)]
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    /// A number below the limit, which is small beside 2^64.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        split_mix(&mut self.0) % limit
    }
}
