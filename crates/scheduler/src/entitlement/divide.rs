//! Dividing one resource among those who claim it: water-filling, exact to the unit.
//!
//! ```text
//!   given                        Every claim has its floor. Then the level rises, and each claim has level * shares, but
//!     |      ___ ceiling         no less than its floor and no more than its ceiling, until the capacity is used up.
//!     |     /
//!     |    /  level * shares     Units are whole: a claim's n-th unit costs level n / shares, and the cheapest units are
//!     |___/                      given. So more capacity takes nothing from anybody, and nobody is a whole unit below
//!     |  floor                   what an exact division would give.
//!     +-----------------> level
//! ```
//!
//! Where even the floors are too much, every claim has the same part of its floor.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::num::NonZeroU64;

/// What one claimant wants, in the units of the resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// What it has before anybody has more. One above the ceiling counts as the ceiling.
    pub floor: u64,
    /// The most that it can use.
    pub ceiling: u64,
    /// Its weight against the others.
    pub shares: NonZeroU64,
}

/// Gives each claim its part of the capacity, in the order of the claims.
///
/// The sum is the capacity, or all ceilings where that is less. Units that cost the same go to more shares first, then to the
/// higher ceiling, the higher floor, and the claim that is listed first. O(n log n).
pub fn divide(capacity: u64, claims: &[Claim]) -> Vec<u64> {
    let claims: Vec<Claim> =
        claims.iter().map(|claim| Claim { floor: claim.floor.min(claim.ceiling), ..*claim }).collect();
    if sum(claims.iter().map(|claim| claim.ceiling)) <= u128::from(capacity) {
        return claims.iter().map(|claim| claim.ceiling).collect();
    }
    if sum(claims.iter().map(|claim| claim.floor)) <= u128::from(capacity) {
        return fill(capacity, &claims);
    }
    let broken = |claim: &Claim| Claim {
        floor: 0,
        ceiling: claim.floor,
        shares: NonZeroU64::new(claim.floor).unwrap_or(NonZeroU64::MIN),
    };
    fill(capacity, &claims.iter().map(broken).collect::<Vec<_>>())
}

/// All floors fit, and not all ceilings.
fn fill(capacity: u64, claims: &[Claim]) -> Vec<u64> {
    let level = level(capacity, claims);
    let mut given: Vec<u64> = claims.iter().map(|claim| level.units(claim)).collect();
    let mut left = u128::from(capacity) - sum(given.iter().copied());
    let next = |index: usize, given: u64| {
        let claim = claims[index];
        (given < claim.ceiling).then(|| Reverse(Unit { number: given + 1, claim, index }))
    };
    // Rounding down has left less than a unit of each claim.
    let mut cheapest: BinaryHeap<_> =
        given.iter().enumerate().filter_map(|(index, given)| next(index, *given)).collect();
    while left > 0
        && let Some(Reverse(unit)) = cheapest.pop()
    {
        given[unit.index] += 1;
        left -= 1;
        cheapest.extend(next(unit.index, given[unit.index]));
    }
    given
}

/// Amount per share, as a fraction.
#[derive(Debug, Clone, Copy)]
struct Level {
    amount: u64,
    shares: u128,
}

impl Level {
    /// What the claim has at this level, rounded down.
    fn units(self, claim: &Claim) -> u64 {
        let units = u128::from(self.amount) * u128::from(claim.shares.get()) / self.shares;
        u64::try_from(units).unwrap_or(u64::MAX).clamp(claim.floor, claim.ceiling)
    }
}

/// A level at which a claim begins to rise from its floor, or ends at its ceiling.
struct Breakpoint<'a> {
    amount: u64,
    claim: &'a Claim,
    begins: bool,
}

/// The level at which an exact division uses up the capacity.
fn level(capacity: u64, claims: &[Claim]) -> Level {
    let mut breakpoints: Vec<Breakpoint<'_>> = claims
        .iter()
        .filter(|claim| claim.floor < claim.ceiling)
        .flat_map(|claim| {
            [(claim.floor, true), (claim.ceiling, false)].map(|(amount, begins)| Breakpoint {
                amount,
                claim,
                begins,
            })
        })
        .collect();
    breakpoints.sort_by(|a, b| compare((a.amount, a.claim.shares), (b.amount, b.claim.shares)));
    // Given to those who do not rise at this level, and the shares of those who do.
    let mut still = sum(claims.iter().map(|claim| claim.floor));
    let mut rising = 0u128;
    for breakpoint in &breakpoints {
        let shares = u128::from(breakpoint.claim.shares.get());
        // Less than the capacity is given at every level that was passed, so `still` is not above it either.
        let left = u128::from(capacity) - still;
        if rising > 0 && rising.saturating_mul(breakpoint.amount.into()) >= left * shares {
            break;
        }
        if breakpoint.begins {
            still -= u128::from(breakpoint.amount);
            rising += shares;
        } else {
            still += u128::from(breakpoint.amount);
            rising -= shares;
        }
    }
    // No more than the capacity, which is a u64; without shares that rise the floors are all of it.
    Level { amount: (u128::from(capacity) - still) as u64, shares: rising.max(1) }
}

/// One unit that a claim could have next; the cheapest is the least.
#[derive(PartialEq, Eq)]
struct Unit {
    number: u64,
    claim: Claim,
    index: usize,
}

impl Ord for Unit {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank =
            |unit: &Self| (Reverse((unit.claim.shares, unit.claim.ceiling, unit.claim.floor)), unit.index);
        compare((self.number, self.claim.shares), (other.number, other.claim.shares))
            .then_with(|| rank(self).cmp(&rank(other)))
    }
}

impl PartialOrd for Unit {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Compares two fractions, amount / shares.
fn compare(a: (u64, NonZeroU64), b: (u64, NonZeroU64)) -> Ordering {
    let product = |amount: u64, shares: NonZeroU64| u128::from(amount) * u128::from(shares.get());
    product(a.0, b.1).cmp(&product(b.0, a.1))
}

fn sum(amounts: impl Iterator<Item = u64>) -> u128 {
    amounts.map(u128::from).sum()
}
