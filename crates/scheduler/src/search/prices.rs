//! What it costs to break rules, while a search goes to and fro across the border of what is allowed (strategic oscillation).
//!
//! ```text
//!            broken: dearer                    broken: dearer
//!   price  <---------------->  temperature  ------------------>  nothing is broken
//!            kept: cheaper       falls         kept: as dear
//!                                              as it is
//! ```
//!
//! Where VMs fit so badly that hardly any move is allowed, the way to better places leads through what is not allowed. A price that is
//! too high is a wall, and one that is too low lets the search settle where nobody may stay; so each is moved until its rule is broken
//! about half of the time.

/// A price rises and falls by this, each time that it is looked at.
const RISES: f64 = 1.1;
const FALLS: f64 = 0.93;
/// It is no lower than this part of the temperature, and no higher than so many times the temperature at first.
const LEAST: f64 = 0.3;
const MOST: f64 = 1000.0;

/// At a place, a rule costs so many times more each time that it is found broken there, and so many times less when it is kept; and
/// never more than this many times what it costs elsewhere.
const PRESSES: f64 = 1.3;
const RELAXES: f64 = 0.97;
const PRESSURE_MAX: f64 = 1e6;

/// One price for each of some rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Prices {
    heat: f64,
    prices: Vec<f64>,
}

impl Prices {
    /// For so many rules, at a temperature.
    pub fn new(rules: usize, heat: f64) -> Self {
        Self { heat, prices: vec![heat / 2.0; rules] }
    }

    pub fn of_rules(&self) -> &[f64] {
        &self.prices
    }

    /// By how often each rule is broken now. While it is `settling` no price falls, so that at last no rule is broken.
    pub fn adjust(&mut self, broken: &[usize], temperature: f64, settling: bool) {
        for (price, broken) in self.prices.iter_mut().zip(broken) {
            let factor = match (*broken > 0, settling) {
                (true, _) => RISES,
                (false, false) => FALLS,
                (false, true) => 1.0,
            };
            let least = LEAST * temperature;
            *price = (*price * factor).clamp(least, (MOST * self.heat).max(least));
        }
    }
}

/// How much dearer it is to break a rule at each place where it may be broken: one that stays broken must not raise the price
/// everywhere, since then nothing moves any more, and what could mend it does not either.
#[derive(Debug, Clone, PartialEq)]
pub struct Pressure {
    factors: Vec<f64>,
}

impl Pressure {
    /// The same at so many places.
    pub fn new(places: usize) -> Self {
        Self { factors: vec![1.0; places] }
    }

    /// At least 1.
    pub fn of_places(&self) -> &[f64] {
        &self.factors
    }

    /// By whether the rule is broken at each place now.
    pub fn adjust(&mut self, broken: impl IntoIterator<Item = bool>) {
        for (factor, is_broken) in self.factors.iter_mut().zip(broken) {
            *factor = (*factor * if is_broken { PRESSES } else { RELAXES }).clamp(1.0, PRESSURE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_rises_while_its_rule_is_broken_and_falls_while_it_is_kept_until_all_settles() {
        let mut prices = Prices::new(2, 10.0);
        prices.adjust(&[3, 0], 1.0, false);
        assert_eq!(prices.of_rules(), [5.0 * RISES, 5.0 * FALLS]);
        let before = prices.clone();
        prices.adjust(&[0, 0], 1.0, true);
        assert_eq!(prices, before);
        prices.adjust(&[0, 1], 1.0, true);
        assert!(prices.of_rules()[1] > before.of_rules()[1]);
    }

    #[test]
    fn a_price_is_neither_forgotten_nor_beyond_all_measure() {
        let mut prices = Prices::new(2, 10.0);
        (0..1000).for_each(|_| prices.adjust(&[1, 0], 8.0, false));
        assert_eq!(prices.of_rules(), [MOST * 10.0, LEAST * 8.0]);
    }

    #[test]
    fn pressure_rises_where_a_rule_stays_broken_and_goes_once_it_is_kept() {
        let mut pressure = Pressure::new(2);
        pressure.adjust([true, false]);
        assert_eq!(pressure.of_places(), [PRESSES, 1.0]);
        (0..1000).for_each(|_| pressure.adjust([true, false]));
        assert_eq!(pressure.of_places(), [PRESSURE_MAX, 1.0]);
        (0..1000).for_each(|_| pressure.adjust([false, false]));
        assert_eq!(pressure.of_places(), [1.0, 1.0]);
    }
}
