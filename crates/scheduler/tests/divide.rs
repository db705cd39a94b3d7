//! What dividing one resource promises, for any claims.

use std::num::NonZeroU64;

use godwit_scheduler::entitlement::{Claim, divide};
use proptest::prelude::*;

fn claim(floor: u64, ceiling: u64, shares: u64) -> Claim {
    Claim { floor, ceiling, shares: NonZeroU64::new(shares).expect("shares of a test") }
}

/// Small enough to be divided unit by unit, with floors above ceilings among them.
fn small() -> impl Strategy<Value = (u64, Vec<Claim>)> {
    let one =
        (0..30u64, 0..60u64, 1..12u64).prop_map(|(floor, ceiling, shares)| claim(floor, ceiling, shares));
    (0..800u64, prop::collection::vec(one, 0..14))
}

fn any_size() -> impl Strategy<Value = (u64, Vec<Claim>)> {
    let one = (any::<u64>(), any::<u64>(), 1..=u64::MAX)
        .prop_map(|(floor, ceiling, shares)| claim(floor, ceiling, shares));
    (any::<u64>(), prop::collection::vec(one, 0..6))
}

fn floor(claim: &Claim) -> u64 {
    claim.floor.min(claim.ceiling)
}

fn wide_sum(amounts: impl Iterator<Item = u64>) -> u128 {
    amounts.map(u128::from).sum()
}

/// Hands out one unit after the other to whom it costs the least level.
fn unit_by_unit(capacity: u64, claims: &[Claim]) -> Vec<u64> {
    let floors: Vec<u64> = claims.iter().map(floor).collect();
    let broken = floors.iter().sum::<u64>() > capacity;
    let ceiling = |at: usize| if broken { floors[at] } else { claims[at].ceiling };
    let shares = |at: usize| if broken { floors[at].max(1) } else { claims[at].shares.get() };
    let start = |at: usize| if broken { 0 } else { floors[at] };
    let mut given: Vec<u64> = (0..claims.len()).map(start).collect();
    for _ in given.iter().sum::<u64>()..capacity {
        let open = (0..claims.len()).filter(|at| given[*at] < ceiling(*at));
        let cheapest = open.min_by(|a, b| {
            let level = |a: usize, b: usize| (given[a] + 1) * shares(b);
            level(*a, *b)
                .cmp(&level(*b, *a))
                .then(shares(*b).cmp(&shares(*a)))
                .then(ceiling(*b).cmp(&ceiling(*a)))
                .then(start(*b).cmp(&start(*a)))
                .then(a.cmp(b))
        });
        let Some(cheapest) = cheapest else { break };
        given[cheapest] += 1;
    }
    given
}

proptest! {
    #[test]
    fn it_is_what_units_handed_out_one_by_one_come_to((capacity, claims) in small()) {
        prop_assert_eq!(divide(capacity, &claims), unit_by_unit(capacity, &claims));
    }

    #[test]
    fn all_of_the_capacity_is_given_and_nobody_gets_more_than_it_can_use((capacity, claims) in any_size()) {
        let given = divide(capacity, &claims);
        let wanted = wide_sum(claims.iter().map(|claim| claim.ceiling));
        prop_assert_eq!(wide_sum(given.iter().copied()), wanted.min(capacity.into()));
        for (claim, given) in claims.iter().zip(given) {
            prop_assert!(given <= claim.ceiling);
        }
    }

    #[test]
    fn floors_that_fit_are_kept_and_others_are_cut_alike((capacity, claims) in any_size()) {
        let given = divide(capacity, &claims);
        let floors = wide_sum(claims.iter().map(floor));
        for (claim, given) in claims.iter().zip(given) {
            if floors <= capacity.into() {
                prop_assert!(given >= floor(claim));
            } else {
                // Within a unit of each of the claims: floor * capacity / floors.
                let part = (floor(claim) as f64 / floors as f64) * capacity as f64;
                let margin = claims.len() as f64 + part * 1e-9;
                prop_assert!((given as f64 - part).abs() <= margin, "{} of {part}", given);
            }
        }
    }

    #[test]
    fn more_capacity_takes_nothing_from_anybody((capacity, claims) in small(), more in 1..40u64) {
        let (less, more) = (divide(capacity, &claims), divide(capacity + more, &claims));
        prop_assert!(less.iter().zip(&more).all(|(less, more)| less <= more), "{less:?} {more:?}");
    }

    #[test]
    fn nobody_could_have_a_unit_more_but_from_one_that_has_less_for_its_shares((capacity, claims) in any_size()) {
        let given = divide(capacity, &claims);
        prop_assume!(wide_sum(claims.iter().map(floor)) <= capacity.into());
        for (poor, has) in claims.iter().zip(&given).filter(|(claim, given)| **given < claim.ceiling) {
            for (rich, too) in claims.iter().zip(&given).filter(|(claim, given)| **given > floor(claim)) {
                let after = (u128::from(*has) + 1) * u128::from(rich.shares.get());
                prop_assert!(u128::from(*too) * u128::from(poor.shares.get()) <= after);
            }
        }
    }

    #[test]
    fn nobody_is_a_whole_unit_below_an_exact_division((capacity, claims) in small()) {
        prop_assume!(claims.iter().map(floor).sum::<u64>() <= capacity);
        let exact = |level: f64, claim: &Claim| {
            (level * claim.shares.get() as f64).clamp(floor(claim) as f64, claim.ceiling as f64)
        };
        let (mut below, mut above) = (0.0, 1000.0);
        for _ in 0..100 {
            let level = f64::midpoint(below, above);
            let all: f64 = claims.iter().map(|claim| exact(level, claim)).sum();
            if all < capacity as f64 { below = level } else { above = level }
        }
        for (claim, given) in claims.iter().zip(divide(capacity, &claims)) {
            prop_assert!(given as f64 > exact(below, claim) - 1.0 - 1e-6, "{given} of {claim:?}");
        }
    }

    #[test]
    fn equal_shares_are_equal_to_the_unit(
        ceilings in prop::collection::vec(any::<u32>(), 1..9),
        shares in 1..=u64::MAX,
        capacity: u32,
    ) {
        let claims: Vec<Claim> = ceilings.iter().map(|ceiling| claim(0, u64::from(*ceiling), shares)).collect();
        let given = divide(capacity.into(), &claims);
        let held_back: Vec<u64> =
            given.iter().zip(&claims).filter(|(given, claim)| **given < claim.ceiling).map(|(given, _)| *given).collect();
        if let (Some(least), Some(most)) = (held_back.iter().min(), held_back.iter().max()) {
            prop_assert!(most - least <= 1 && given.iter().all(|given| given <= most), "{given:?}");
        }
    }

    #[test]
    fn the_order_of_the_claims_changes_nothing(
        (capacity, claims) in small(),
        order in prop::collection::vec(any::<u32>(), 14),
    ) {
        let mut shuffled: Vec<(u32, Claim)> = order.into_iter().zip(claims.clone()).collect();
        shuffled.sort_by_key(|(key, _)| *key);
        let shuffled: Vec<Claim> = shuffled.into_iter().map(|(_, claim)| claim).collect();
        prop_assert_eq!(settled(capacity, &claims), settled(capacity, &shuffled));
    }
}

/// What claims got, sorted: those that are alike in everything that counts share what they get.
fn settled(capacity: u64, claims: &[Claim]) -> Vec<(u64, u64, u64, u64)> {
    let broken = claims.iter().map(floor).sum::<u64>() > capacity;
    let counts = |claim: &Claim| if broken { (0, 0) } else { (claim.ceiling, claim.shares.get()) };
    let given = divide(capacity, claims);
    let settled = claims.iter().zip(given).map(|(claim, given)| {
        let (ceiling, shares) = counts(claim);
        (floor(claim), ceiling, shares, given)
    });
    let mut settled: Vec<_> = settled.collect();
    settled.sort_unstable();
    settled
}

#[test]
fn shares_divide_what_floors_and_ceilings_leave() {
    let claims = [claim(0, 1000, 2), claim(0, 1000, 1), claim(0, 50, 10), claim(400, 1000, 1)];
    assert_eq!(divide(1050, &claims), [400, 200, 50, 400], "600 are left for shares of 2 to 1");
    assert_eq!(divide(10_000, &claims), [1000, 1000, 50, 1000]);
    assert_eq!(divide(200, &claims), [0, 0, 0, 200], "not even the floor is there");
    assert_eq!(divide(7, &[]), [] as [u64; 0]);
}
