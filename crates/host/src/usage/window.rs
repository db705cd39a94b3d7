//! Counters that only grow, as they were in the last minute.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What means are of.
const SPAN: Duration = Duration::from_secs(60);
/// Over less than this, nothing is said.
const SPAN_MIN: Duration = Duration::from_secs(4);

/// Looks at counters, the oldest first.
#[derive(Debug)]
pub(super) struct Window<C>(VecDeque<(Instant, C)>);

impl<C> Default for Window<C> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<C> Window<C> {
    /// One more, and forgets those that are too old, but for the newest of them: the means are of at least [`SPAN`] then.
    pub(super) fn add(&mut self, now: Instant, counters: C) {
        self.0.push_back((now, counters));
        while self.0.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= SPAN) {
            self.0.pop_front();
        }
    }

    pub(super) fn newest(&self) -> Option<&C> {
        self.0.back().map(|(_, counters)| counters)
    }

    /// The first and the last, and the time between; none while that is too short to say anything.
    pub(super) fn ends(&self) -> Option<(Duration, &C, &C)> {
        let ((began, first), (ended, last)) = (self.0.front()?, self.0.back()?);
        let over = ended.duration_since(*began);
        (over >= SPAN_MIN).then_some((over, first, last))
    }
}

/// How many times `each` it was in a second.
pub(super) fn rate(amount: u64, each: u64, over: Duration) -> u64 {
    let whole = u128::from(amount) * 1_000_000_000;
    let parts = (over.as_nanos() * u128::from(each)).max(1);
    u64::try_from(whole / parts).unwrap_or(u64::MAX)
}

pub(super) fn milliseconds(over: Duration) -> u32 {
    u32::try_from(over.as_millis()).unwrap_or(u32::MAX)
}

pub(super) fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_of_the_last_minute_or_less_at_the_beginning_and_of_nothing_before() {
        let began = Instant::now();
        let at = |second: u64| began + Duration::from_secs(second);
        let mut window = Window::default();
        window.add(at(0), 0);
        window.add(at(2), 20);
        assert_eq!(window.ends(), None);
        window.add(at(4), 40);
        assert_eq!(window.ends(), Some((Duration::from_secs(4), &0, &40)));
        (3..60).for_each(|look| window.add(at(look * 2), look * 20));
        assert_eq!(window.ends(), Some((Duration::from_secs(60), &580, &1180)));
        assert_eq!(window.newest(), Some(&1180));
    }

    #[test]
    fn a_rate_is_by_the_second() {
        assert_eq!(rate(3_000_000_000, 1_000_000, Duration::from_secs(2)), 1_500);
        assert_eq!(rate(10, 1, Duration::from_millis(2_500)), 4);
        assert_eq!(rate(u64::MAX, 1, Duration::from_nanos(1)), u64::MAX);
    }
}
