//! What a migration is expected to cost: the model of mVM (Kherbache, Madelaine, Hermenier, "Scheduling Live Migration of Virtual
//! Machines", IEEE Transactions on Cloud Computing, 2017), as BtrPlace has it.
//!
//! Memory M goes at bandwidth B. Cold memory that is written meanwhile, CDR a second, is sent again; hot memory HDS, which is
//! written over within HDD seconds, is sent again until what is left is sent in the last pause.
//!
//! ```text
//!   T = M / B  +  (HDS + (M / B - HDD) * CDR) / (B - CDR)  +  HDS / B * (HDS / HDD) / (B - HDS / HDD)
//! ```

use crate::planner::Cost;
use crate::snapshot::Writes;

/// Hot memory that even an idle guest has, in bytes.
const HOT_LEAST: u64 = 5 << 20;
/// How long it takes to write hot memory over, in seconds, if nothing says otherwise.
const HOT_S: f64 = 2.0;
/// Memory that is written faster is taken to be slowed down to this part of the bandwidth.
const RATE_MAX: f64 = 0.9;
/// What a switchover takes beside the last pages, in microseconds.
const SWITCH_US: f64 = 10_000.0;
/// Of a core at each end for each byte sent, in seconds.
const CORE_S_PER_BYTE: f64 = 1.0 / 1.5e9;
/// Nothing takes longer, in seconds.
const LONGEST_S: f64 = 1e6;

/// For memory written so, at so many bytes per second. Without bandwidth it takes for ever, which is counted as 11 days.
pub(crate) fn of(writes: &Writes, bytes_per_s: u64) -> Cost {
    let bandwidth = (bytes_per_s as f64).max(1.0);
    let used = writes.used as f64;
    let hot = writes.hot.max(HOT_LEAST).min(writes.used.max(HOT_LEAST)) as f64;
    let first_s = used / bandwidth;
    let hot_rate = (hot / HOT_S).min(bandwidth * RATE_MAX);
    let cold_rate = (writes.bytes_per_s as f64 - hot).clamp(0.0, bandwidth * RATE_MAX);
    let cold_s = (hot + (first_s - HOT_S).max(0.0) * cold_rate) / (bandwidth - cold_rate);
    let hot_s = hot / bandwidth * hot_rate / (bandwidth - hot_rate);
    let seconds = (first_s + cold_s + hot_s).min(LONGEST_S);
    let bytes = seconds * bandwidth;
    // The last pages are those that are written while the ones before are sent.
    let last = (hot * hot_rate / bandwidth).min(hot);
    Cost {
        duration_ms: (seconds * 1000.0).ceil() as u64,
        bytes: bytes.min(u64::MAX as f64) as u64,
        blackout_us: (SWITCH_US + (last / bandwidth).min(LONGEST_S) * 1e6) as u64,
        cpu_ms: (2.0 * bytes * CORE_S_PER_BYTE * 1000.0) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn an_idle_guest_costs_its_memory_once_and_a_busy_one_more() {
        let idle = of(&Writes { used: 8 * GIB, hot: 0, bytes_per_s: 0 }, GIB);
        assert!((8_000..8_100).contains(&idle.duration_ms), "{idle:?}");
        assert!((8 * GIB..8 * GIB + GIB / 10).contains(&idle.bytes), "{idle:?}");
        let busy = of(&Writes { used: 8 * GIB, hot: GIB, bytes_per_s: 3 * GIB / 4 }, GIB);
        assert!(
            busy.duration_ms > idle.duration_ms + 1000 && busy.blackout_us > idle.blackout_us,
            "{busy:?}"
        );
    }

    #[test]
    fn more_writes_never_make_a_migration_shorter_and_nothing_makes_it_endless() {
        let with = |rate| of(&Writes { used: 8 * GIB, hot: GIB / 2, bytes_per_s: rate }, GIB).duration_ms;
        let durations: Vec<u64> = (0..40).map(|step| with(step * GIB / 10)).collect();
        assert!(durations.is_sorted(), "{durations:?}");
        let endless = of(&Writes { used: u64::MAX, hot: u64::MAX, bytes_per_s: u64::MAX }, 0);
        assert_eq!(endless.duration_ms, 1_000_000_000);
    }
}
