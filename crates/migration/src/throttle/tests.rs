//! Guests whose vCPUs write new pages all the time, each at its own rate and as far as it is let, over a link.

use proptest::prelude::*;

use super::*;

const MIB: f64 = 1_048_576.0;
const PAGES_PER_MIB: f64 = 256.0;
const MEMORY_MIB: f64 = 4096.0;

/// A guest, and how much of it is slowed.
struct Simulated {
    throttle: Throttle,
    /// In MiB/s, of each vCPU and of the link.
    writes: Vec<f64>,
    link: f64,
    now: Duration,
    left_mib: f64,
    pages: Vec<f64>,
    held: Vec<Duration>,
    /// What the last reading told of each vCPU's writes at full speed: in whole pages, and so not exactly.
    told: Vec<f64>,
}

impl Simulated {
    /// After a first round of 512 MiB.
    fn new(percent_max: u8, writes: &[f64], link: f64) -> Self {
        let (throttle, told) = (Throttle::new(percent_max), vec![0.0; writes.len()]);
        let (pages, held) = (vec![0.0; writes.len()], vec![Duration::ZERO; writes.len()]);
        let mut it = Self {
            throttle,
            writes: writes.to_vec(),
            link,
            now: Duration::ZERO,
            left_mib: 512.0,
            pages,
            held,
            told,
        };
        it.round();
        it
    }

    /// Sends what is left, and reads the log.
    fn round(&mut self) {
        let time = Duration::from_secs_f64(self.left_mib / self.link).max(TELLING);
        self.now += time;
        self.left_mib = 0.0;
        for (index, rate) in self.writes.iter().enumerate() {
            let share = self.throttle.shares().get(index).copied().unwrap_or(0);
            let runs = 1.0 - f64::from(share) / WHOLE;
            let wrote = rate * runs * time.as_secs_f64();
            self.left_mib = (self.left_mib + wrote).min(MEMORY_MIB);
            let before = self.pages[index] as u64;
            self.pages[index] += wrote * PAGES_PER_MIB;
            self.told[index] = (self.pages[index] as u64 - before) as f64 / runs;
            self.held[index] += time.mul_f64(1.0 - runs);
        }
        let vcpus = self.pages.iter().zip(&self.held);
        let vcpus: Vec<_> =
            vcpus.map(|(pages, held)| VcpuActivity { written_pages: *pages as u64, held: *held }).collect();
        self.throttle.observe(self.now, &vcpus);
        let left = (self.left_mib * MIB) as u64;
        self.throttle.adjust(Round { now: self.now, left, rate: Some(self.link * MIB) }, time);
    }

    /// Whether so much is left at most after some rounds.
    fn comes_down_to(&mut self, mib: f64, rounds: u32) -> bool {
        (0..rounds).any(|_| {
            self.round();
            self.left_mib <= mib
        })
    }

    fn highest(&self) -> f64 {
        self.throttle.report().iter().map(|vcpu| vcpu.highest_percent).fold(0.0, f64::max)
    }
}

#[test]
fn a_guest_that_outruns_its_link_comes_down_and_loses_no_more_than_that_takes() {
    let mut guest = Simulated::new(90, &[120.0], 100.0);
    assert!(guest.comes_down_to(5.0, 30), "{} MiB are left", guest.left_mib);
    assert!((30.0..75.0).contains(&guest.highest()), "{:?}", guest.throttle.report());
    let report = guest.throttle.report();
    assert!(report[0].mean_percent <= report[0].highest_percent + 0.1, "{report:?}");
}

#[test]
fn the_heaviest_writer_pays_first_and_all_alike_only_if_it_has_to_be() {
    let mut guest = Simulated::new(80, &[300.0, 60.0, 0.5], 300.0);
    assert!(guest.comes_down_to(5.0, 30));
    let slowed: Vec<u32> = guest.throttle.report().iter().map(|vcpu| vcpu.vcpu).collect();
    assert_eq!(slowed, [0], "what vCPU 1 writes is less than what is left to vCPU 0");
    let mut guest = Simulated::new(80, &[300.0, 200.0, 0.5], 300.0);
    guest.round();
    let shares = guest.throttle.shares();
    assert!(shares[0] > shares[1] && shares[1] > 0 && shares[2] == 0, "{shares:?}");
}

#[test]
fn what_cannot_help_is_given_up_and_tried_again_later() {
    let mut guest = Simulated::new(50, &[1000.0], 100.0);
    guest.left_mib = 100.0;
    // Its whole working set is written in each round, however it is slowed.
    let mut rounds = |count: u32| {
        (0..count)
            .map(|_| {
                guest.round();
                guest.left_mib = 100.0;
                guest.throttle.percent()
            })
            .collect::<Vec<_>>()
    };
    let told = rounds(100);
    assert_eq!(told.iter().copied().fold(0.0, f64::max), 50.0);
    let slowed = told.iter().filter(|percent| **percent > 0.0).count();
    assert!((2..30).contains(&slowed), "it is slowed in {slowed} of 100 rounds: {told:?}");
    let first = told.iter().position(|percent| *percent == 0.0).unwrap();
    assert!(told[first..].iter().any(|percent| *percent > 0.0), "it is tried again: {told:?}");
}

#[test]
fn a_guest_that_has_become_calm_gets_its_speed_back() {
    let mut guest = Simulated::new(80, &[300.0], 100.0);
    for _ in 0..4 {
        guest.round();
    }
    assert!(guest.throttle.percent() > 50.0);
    guest.writes = vec![1.0];
    let lifted = (0..30).any(|_| {
        guest.round();
        guest.left_mib = guest.left_mib.max(1e-3);
        guest.throttle.shares().is_empty()
    });
    assert!(lifted, "{:?}", guest.throttle);
}

#[test]
fn nobody_is_slowed_once_it_is_lifted_or_where_nothing_is_allowed() {
    let mut guest = Simulated::new(80, &[300.0], 100.0);
    guest.round();
    assert!(guest.throttle.lift() && guest.throttle.shares().is_empty() && !guest.throttle.lift());
    let mut guest = Simulated::new(0, &[300.0], 100.0);
    assert!(!guest.throttle.may_help());
    (0..20).for_each(|_| guest.round());
    assert!(guest.throttle.shares().is_empty() && guest.throttle.report().is_empty());
}

proptest! {
    #[test]
    fn nobody_loses_more_than_the_bound_and_a_reader_nothing(
        percent in 0u8..=120,
        writes in prop::collection::vec(0.0f64..500.0, 1..6),
        link in 5.0f64..500.0,
        changes in prop::collection::vec((0usize..6, 0.0f64..500.0), 40),
    ) {
        let bound = u16::from(percent.min(99)) * 10;
        let mut guest = Simulated::new(percent, &writes, link);
        for (index, rate) in changes {
            let heaviest = guest.told.iter().copied().fold(0.0, f64::max);
            let shares = guest.throttle.shares().to_vec();
            for (share, rate) in shares.iter().zip(&guest.told) {
                prop_assert!(*share <= bound, "{shares:?} of at most {bound}");
                prop_assert!(*share == 0 || *rate > heaviest * READER * 0.999, "{shares:?} of {:?}", guest.told);
            }
            let index = index % guest.writes.len();
            guest.writes[index] = rate;
            guest.round();
        }
        for vcpu in guest.throttle.report() {
            prop_assert!(vcpu.mean_percent <= f64::from(percent) + 0.1 && vcpu.highest_percent <= f64::from(percent));
        }
    }

    #[test]
    fn it_converges_wherever_the_bound_allows_it(
        percent in 30u8..=99,
        parts in prop::collection::vec(0.1f64..1.0, 1..5),
        link in 20.0f64..500.0,
        fill in 0.1f64..0.6,
    ) {
        // At the bound, all of them together write `fill` of what the link carries.
        let all = link * fill / (1.0 - f64::from(percent) / 100.0);
        let sum: f64 = parts.iter().sum();
        let writes: Vec<f64> = parts.iter().map(|part| part / sum * all).collect();
        let mut guest = Simulated::new(percent, &writes, link);
        let enough = link * TELLING.as_secs_f64();
        prop_assert!(guest.comes_down_to(enough, 100), "{} MiB are left: {:?}", guest.left_mib, guest.throttle);
    }

    #[test]
    fn a_guest_whose_rounds_shrink_by_themselves_is_left_alone(
        parts in prop::collection::vec(0.0f64..1.0, 1..5),
        link in 20.0f64..500.0,
    ) {
        let sum: f64 = parts.iter().sum::<f64>().max(0.1);
        let writes: Vec<f64> = parts.iter().map(|part| part / sum * link * 0.7).collect();
        let mut guest = Simulated::new(80, &writes, link);
        for _ in 0..30 {
            prop_assert!(guest.throttle.shares().is_empty(), "{:?}", guest.throttle);
            if guest.left_mib <= link * TELLING.as_secs_f64() {
                break;
            }
            guest.round();
        }
    }
}
