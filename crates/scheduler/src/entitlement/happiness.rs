//! How content VMs are: what they get of what they are entitled to.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::resource::{PerResource, Resource};

/// A part of what somebody is entitled to, in millionths; never more than all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct Happiness(pub u32);

impl Happiness {
    /// All that one is entitled to.
    pub const FULL: Self = Self(1_000_000);

    /// Of the resource with which it is served worst, rounded down. Who is entitled to nothing of a resource misses nothing.
    pub fn of(received: &PerResource<u64>, entitled: &PerResource<u64>) -> Self {
        let part = |resource| {
            let (received, entitled): (u64, u64) = (received[resource], entitled[resource]);
            if received >= entitled {
                return Self::FULL;
            }
            let whole = u128::from(Self::FULL.0);
            // Less than the whole, since less was received than entitled.
            Self((u128::from(received) * whole / u128::from(entitled)) as u32)
        };
        Resource::ALL.into_iter().map(part).min().unwrap_or(Self::FULL)
    }
}

impl fmt::Display for Happiness {
    /// In per cent, rounded down: only all of it is 100 %.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} %", self.0 / 10_000, self.0 / 1000 % 10)
    }
}

/// A VM among those whose mean is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    pub happiness: Happiness,
    pub shares: PerResource<u32>,
}

/// The mean of a pool's VMs or the cluster's, rounded down; full if there are none. A VM weighs as much as its part of the members'
/// shares, all resources together, so resources count alike whatever the scale of their shares.
pub fn mean(members: &[Member]) -> Happiness {
    // Parts in billionths of a thousandth: small enough for members with few shares among many.
    const WHOLE: u128 = 1_000_000_000_000;
    let total = PerResource::from_fn(|resource| {
        members.iter().map(|member| u128::from(member.shares[resource])).sum::<u128>().max(1)
    });
    let weight = |member: &Member| -> u128 {
        Resource::ALL
            .into_iter()
            .map(|resource| u128::from(member.shares[resource]) * WHOLE / total[resource])
            .sum()
    };
    let weights: u128 = members.iter().map(weight).sum();
    let happy: u128 = members.iter().map(|member| weight(member) * u128::from(member.happiness.0)).sum();
    // A mean of u32.
    happy.checked_div(weights).map_or(Happiness::FULL, |mean| Happiness(mean as u32))
}
