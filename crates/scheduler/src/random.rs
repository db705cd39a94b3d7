//! Numbers that look random and follow from a seed: xoshiro256** by Blackman and Vigna, seeded by SplitMix64 as they advise.
//!
//! Written out, so that a recorded seed gives the same numbers in every release. Only whole numbers, sums and products are used,
//! no function of a mathematical library, whose last bits differ between machines.

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Random {
    state: [u64; 4],
}

impl Random {
    /// Any seed will do, 0 too.
    pub(crate) fn new(mut seed: u64) -> Self {
        Self { state: std::array::from_fn(|_| split_mix(&mut seed)) }
    }

    /// 64 even bits.
    pub(crate) fn next(&mut self) -> u64 {
        let result = self.state[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = self.state[1] << 17;
        self.state[2] ^= self.state[0];
        self.state[3] ^= self.state[1];
        self.state[1] ^= self.state[2];
        self.state[0] ^= self.state[3];
        self.state[2] ^= shifted;
        self.state[3] = self.state[3].rotate_left(45);
        result
    }

    /// A number below the bound, which is at least 1 and no more than 2^32: the lean to some of them is below one in 2^32.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// Exponentially distributed with mean 1, to within 6 %: -ln of an even number, with a straight line between powers of two.
    pub(crate) fn exponential(&mut self) -> f64 {
        let bits = self.next() | 1;
        let zeros = bits.leading_zeros();
        // Below the leading one, as a part of the way to the next power of two. A shift by all 64 bits leaves nothing.
        let fraction = bits.checked_shl(zeros + 1).unwrap_or(0) as f64 / (1u128 << 64) as f64;
        (f64::from(zeros) + 1.0 - fraction) * std::f64::consts::LN_2
    }
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): 64 even bits, from a state that goes on with each call.
pub fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first outputs for the state 1, 2, 3, 4, as other implementations give them; and SplitMix64's for seed 1234567.
    #[test]
    fn it_gives_the_published_numbers() {
        let mut random = Random { state: [1, 2, 3, 4] };
        let numbers: [u64; 4] = std::array::from_fn(|_| random.next());
        assert_eq!(numbers, [11520, 0, 1_509_978_240, 1_215_971_899_390_074_240]);
        let mut seed = 1_234_567;
        let numbers: [u64; 3] = std::array::from_fn(|_| split_mix(&mut seed));
        assert_eq!(
            numbers,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn numbers_below_a_bound_are_even_and_exponential_ones_have_their_mean() {
        let mut random = Random::new(0);
        let mut counts = [0u32; 7];
        (0..70_000).for_each(|_| counts[random.below(7)] += 1);
        assert!(counts.iter().all(|count| (9_600..10_400).contains(count)), "{counts:?}");
        let drawn: Vec<f64> = (0..50_000).map(|_| random.exponential()).collect();
        let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
        assert!((0.95..1.1).contains(&mean), "{mean}");
        assert!(drawn.iter().all(|drawn| *drawn >= 0.0));
        // e^-2 of them are beyond 2.
        let beyond = drawn.iter().filter(|drawn| **drawn > 2.0).count();
        assert!((6_000..7_600).contains(&beyond), "{beyond}");
    }
}
