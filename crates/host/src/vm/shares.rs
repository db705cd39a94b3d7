//! How the migrations away from a host share what it may send: a pure function.

/// A rate in bytes per second; none is no limit.
pub(crate) type Cap = Option<u64>;

/// What a migration may send while another one's guest stands: next to nothing, and enough that its peer sees it live.
const HELD_BYTES_PER_S: u64 = 1 << 20;
/// However many share, each gets so much: a peer that acknowledges nothing for long is given up.
const SHARE_BYTES_PER_S_MIN: u64 = 64 << 10;

/// A migration away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lane {
    /// What was asked of it and what its destination has for it.
    pub(crate) bound: Cap,
    /// Its guest stands for the switchover.
    pub(crate) stands: bool,
}

/// What each may send, in the same order. Nobody gets more than its bound, together no more than `cap`, and what one does not
/// take the others share evenly. As long as a guest stands, all others are held back, with a cap or without; what its own
/// migration may send then counts only once it runs again.
pub(crate) fn shares(cap: Cap, lanes: &[Lane]) -> Vec<Cap> {
    let fair = fair(cap, lanes);
    let someone_stands = lanes.iter().any(|lane| lane.stands);
    let held = |(lane, share): (&Lane, Cap)| {
        if someone_stands && !lane.stands { least(share, Some(HELD_BYTES_PER_S)) } else { share }
    };
    lanes.iter().zip(fair).map(held).collect()
}

/// Max-min fair: from the smallest bound on, each takes its bound or an even part of what is left.
fn fair(cap: Cap, lanes: &[Lane]) -> Vec<Cap> {
    let Some(cap) = cap else { return lanes.iter().map(|lane| lane.bound).collect() };
    let mut by_bound: Vec<usize> = (0..lanes.len()).collect();
    by_bound.sort_by_key(|index| lanes[*index].bound.unwrap_or(u64::MAX));
    let mut shares = vec![None; lanes.len()];
    let mut left = cap;
    for (taken, index) in by_bound.into_iter().enumerate() {
        let even = left / (lanes.len() - taken) as u64;
        let share = even.min(lanes[index].bound.unwrap_or(u64::MAX));
        left -= share;
        shares[index] = Some(share.max(SHARE_BYTES_PER_S_MIN));
    }
    shares
}

fn least(one: Cap, other: Cap) -> Cap {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn lanes(bounds: &[Cap]) -> Vec<Lane> {
        bounds.iter().map(|bound| Lane { bound: *bound, stands: false }).collect()
    }

    #[test]
    fn what_one_does_not_take_the_others_share_evenly() {
        let of = |bounds: &[Cap]| shares(Some(100 * MIB), &lanes(bounds));
        assert_eq!(of(&[None, None]), [Some(50 * MIB); 2]);
        assert_eq!(of(&[None, Some(20 * MIB), None]), [Some(40 * MIB), Some(20 * MIB), Some(40 * MIB)]);
        assert_eq!(of(&[Some(300 * MIB)]), [Some(100 * MIB)]);
        assert_eq!(shares(None, &lanes(&[None, Some(MIB)])), [None, Some(MIB)]);
    }

    #[test]
    fn while_a_guest_stands_the_others_wait_whether_there_is_a_cap_or_not() {
        for cap in [None, Some(100 * MIB)] {
            let mut lanes = lanes(&[None, None, Some(10)]);
            lanes[0].stands = true;
            let shares = shares(cap, &lanes);
            assert_eq!(shares[1], Some(HELD_BYTES_PER_S));
            assert!(
                shares[0] == fair(cap, &lanes)[0] && shares[2] <= Some(SHARE_BYTES_PER_S_MIN),
                "{shares:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn together_they_keep_to_the_cap_use_all_of_it_that_they_want_and_none_is_favoured(
            cap in 10 * MIB..1 << 40,
            bounds in prop::collection::vec(prop::option::of(MIB..1 << 40), 1..10),
        ) {
            let lanes = lanes(&bounds);
            let shares: Vec<u64> = shares(Some(cap), &lanes).into_iter().map(Option::unwrap).collect();
            let sum: u64 = shares.iter().sum();
            let wanted = bounds.iter().map(|bound| bound.unwrap_or(cap)).fold(0, u64::saturating_add);
            prop_assert!(sum <= cap && cap.min(wanted) - sum <= bounds.len() as u64, "{sum} of {cap}");
            let most = shares.iter().max().unwrap();
            for (share, bound) in shares.iter().zip(&bounds) {
                prop_assert!(bound.is_none_or(|bound| *share <= bound));
                let has_all = bound.is_some_and(|bound| *share == bound);
                prop_assert!(has_all || most - share <= bounds.len() as u64, "{shares:?} for {bounds:?}");
            }
        }
    }
}
