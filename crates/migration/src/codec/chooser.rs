//! Which packing is the fastest now: what each took lately, from the pages to the kernel, decides.
//!
//! A record's time is that of packing and of sending, waiting for the network and for the bandwidth cap included. So the
//! bottleneck need not be known: where the network is slow, whatever makes records short wins; where it is fast, packing
//! only costs. The others are tried now and then, as often as a small share of the time allows, and each only while the
//! one before it on the ladder is near: where LZ4 is far too slow, zstd is slower still.
//!
//! Where the destination is the bottleneck, packing in vain looks free to the clock, and is not to the guests beside it. So
//! what does not get shorter is never packed but to try, and that half as often after each time in vain.

use std::time::Duration;

use super::Packing;

const COUNT: usize = Packing::ALL.len();
/// Trying one of the others may cost this share of the time.
const TRY_SHARE: f64 = 0.015;
/// But none is tried more often than after so many records.
const TRY_RECORDS_MIN: f64 = 8.0;
/// Packed contents that are longer than this part of themselves were packed in vain.
const SHORTER: f64 = 0.97;
/// After so many tries in vain, one more does not make the next one rarer.
const IN_VAIN_MAX: u32 = 4;
/// A packing that takes this many times the best one's time is not near.
const NEAR: f64 = 1.5;
/// Weight of the newest record in what the packing in use takes. Of one that was only tried, the last time counts.
const NEWEST_WEIGHT: f64 = 0.3;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Chooser {
    tried: [Tried; COUNT],
}

#[derive(Debug, Clone, Copy, Default)]
struct Tried {
    /// Seconds for a byte of guest memory; none before the first time.
    cost: Option<f64>,
    /// Records since the last time.
    ago: u32,
    /// Records until the next time, by what it took then against the best of then.
    wait: f64,
    /// Times in a row that it made nothing shorter.
    in_vain: u32,
}

impl Chooser {
    /// What to do with the next record.
    pub fn choose(&self) -> Packing {
        let due = Packing::ALL.into_iter().find(|packing| self.is_due(*packing));
        due.unwrap_or_else(|| self.best())
    }

    /// The best so far: what to do when there is no time to try anything.
    pub fn best(&self) -> Packing {
        let cost = |packing: &Packing| self.cost(*packing).unwrap_or(f64::INFINITY);
        let by_cost = |one: &Packing, other: &Packing| cost(one).total_cmp(&cost(other));
        let worth = Packing::ALL.into_iter().filter(|packing| self.tried[*packing as usize].in_vain == 0);
        worth.min_by(by_cost).unwrap_or(Packing::None)
    }

    /// A record of `bytes` of guest memory became `packed` bytes with that packing, and took so long.
    pub fn learn(&mut self, packing: Packing, bytes: u64, packed: u64, took: Duration) {
        if bytes == 0 {
            return;
        }
        let newest = took.as_secs_f64() / bytes as f64;
        self.tried.iter_mut().for_each(|tried| tried.ago = tried.ago.saturating_add(1));
        let tried = &mut self.tried[packing as usize];
        let in_use = tried.ago == 1;
        let known = tried.cost.filter(|_| in_use);
        tried.cost = Some(known.map_or(newest, |known| known + NEWEST_WEIGHT * (newest - known)));
        tried.ago = 0;
        let in_vain = packing != Packing::None && packed as f64 > bytes as f64 * SHORTER;
        tried.in_vain = if in_vain { (tried.in_vain + 1).min(IN_VAIN_MAX) } else { 0 };
        let rarest = TRY_RECORDS_MIN * f64::from(1u32 << tried.in_vain);
        let behind = self.times_best(packing) - 1.0;
        self.tried[packing as usize].wait = (behind / TRY_SHARE).max(rarest);
    }

    fn is_due(&self, packing: Packing) -> bool {
        let Tried { ago, wait, .. } = self.tried[packing as usize];
        let below = Packing::ALL.into_iter().take_while(|below| *below != packing).last();
        packing != self.best()
            && f64::from(ago) >= wait.max(TRY_RECORDS_MIN)
            && below.is_none_or(|below| self.cost(below).is_some() && self.times_best(below) <= NEAR)
    }

    /// What it took, as a multiple of what the best one takes.
    fn times_best(&self, packing: Packing) -> f64 {
        self.cost(packing).zip(self.cost(self.best())).map_or(1.0, |(cost, best)| cost / best)
    }

    fn cost(&self, packing: Packing) -> Option<f64> {
        self.tried[packing as usize].cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: u64 = 1 << 20;
    /// Seconds for a byte to be packed, of each packing, and to what part it shrinks text.
    const PACK_S: [f64; COUNT] = [0.0, 1.2e-9, 2.5e-9, 5e-9];
    const TEXT: [f64; COUNT] = [1.0, 0.55, 0.42, 0.38];
    const RANDOM: [f64; COUNT] = [1.0; COUNT];

    /// A network, and what goes over it. The kernel's buffer is empty or full: what is packed meanwhile drains from it.
    #[derive(Clone, Copy)]
    struct World {
        bytes_per_s: f64,
        shrinks: [f64; COUNT],
    }

    impl World {
        fn took(&self, packing: Packing, jitter: f64) -> f64 {
            let (pack, wire) = (PACK_S[packing as usize], self.shrinks[packing as usize] / self.bytes_per_s);
            // A fast network is limited by the thread's own work, a slow one by its rate.
            let drains = if self.bytes_per_s < 500e6 { pack.max(wire) } else { pack + wire };
            drains * RECORD as f64 * jitter
        }

        /// Seconds for so many records, by the chooser's choice.
        fn send(&self, chooser: &mut Chooser, records: u32) -> f64 {
            let mut state = 7u32;
            let mut total = 0.0;
            for _ in 0..records {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let jitter = 0.8 + f64::from(state >> 16) / f64::from(1 << 16) * 0.4;
                let packing = chooser.choose();
                let took = self.took(packing, jitter);
                let packed = (self.shrinks[packing as usize] * RECORD as f64) as u64;
                chooser.learn(packing, RECORD, packed, Duration::from_secs_f64(took));
                total += took;
            }
            total
        }

        fn fixed(&self, packing: Packing, records: u32) -> f64 {
            self.took(packing, 1.0) * f64::from(records)
        }

        fn best_fixed(&self, records: u32) -> f64 {
            Packing::ALL.map(|packing| self.fixed(packing, records)).into_iter().fold(f64::INFINITY, f64::min)
        }
    }

    const FAST: World = World { bytes_per_s: 2.5e9, shrinks: TEXT };
    const GIGABIT: World = World { bytes_per_s: 118e6, shrinks: TEXT };

    #[test]
    fn on_a_fast_network_it_costs_next_to_nothing() {
        for shrinks in [TEXT, RANDOM] {
            let world = World { shrinks, ..FAST };
            let (chosen, none) =
                (world.send(&mut Chooser::default(), 2048), world.fixed(Packing::None, 2048));
            assert!(chosen < none * 1.05, "{chosen} s against {none} s");
        }
    }

    #[test]
    fn on_a_slow_network_it_is_nearly_as_good_as_the_best() {
        for bytes_per_s in [12e6, 60e6, 118e6, 300e6] {
            let world = World { bytes_per_s, ..GIGABIT };
            let (chosen, best) = (world.send(&mut Chooser::default(), 1024), world.best_fixed(1024));
            assert!(chosen < best * 1.1, "{chosen} s against {best} s at {bytes_per_s}");
            assert!(chosen < world.fixed(Packing::None, 1024) * 0.65, "{chosen} s at {bytes_per_s}");
        }
    }

    #[test]
    fn where_packing_seems_free_and_is_in_vain_it_is_hardly_ever_tried() {
        let mut chooser = Chooser::default();
        let mut packed = 0;
        for _ in 0..2048 {
            let packing = chooser.choose();
            packed += u32::from(packing != Packing::None);
            chooser.learn(packing, RECORD, RECORD, Duration::from_millis(1));
        }
        assert!((3..60).contains(&packed), "{packed} of 2048 records");
    }

    #[test]
    fn it_changes_its_mind_when_the_network_or_the_memory_does() {
        let random = World { shrinks: RANDOM, ..GIGABIT };
        for path in [[FAST, GIGABIT, FAST], [GIGABIT, random, GIGABIT], [random, FAST, random]] {
            let mut chooser = Chooser::default();
            for world in path {
                world.send(&mut chooser, 200);
                let (chosen, best) = (world.send(&mut chooser, 1024), world.best_fixed(1024));
                assert!(chosen < best * 1.1, "{chosen} s against {best} s");
            }
        }
    }

    #[test]
    fn the_best_is_what_was_best_and_nothing_at_first() {
        let mut chooser = Chooser::default();
        assert_eq!(chooser.best(), Packing::None);
        GIGABIT.send(&mut chooser, 200);
        assert!(matches!(chooser.best(), Packing::ZstdFast | Packing::Zstd), "{:?}", chooser.best());
        FAST.send(&mut chooser, 200);
        assert_eq!(chooser.best(), Packing::None);
    }
}
