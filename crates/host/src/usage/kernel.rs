//! What the kernel counts.

use std::collections::BTreeMap;
use std::fs;

use crate::facts::read;

/// Jiffies as `/proc` shows them: `USER_HZ` is 100 on x86-64.
const JIFFY_US: u64 = 10_000;

/// Of everything that runs here, since the host began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct HostCounters {
    /// Processor time, of all CPUs, in microseconds.
    pub(super) busy_us: u64,
    /// For how long some task waited for a CPU, and for memory. 0 where the kernel does not measure pressure.
    pub(super) cpu_stalled_us: u64,
    pub(super) memory_stalled_us: u64,
}

impl HostCounters {
    pub(super) fn read() -> Self {
        Self {
            busy_us: busy_us(&read("/proc/stat")),
            cpu_stalled_us: stalled_us(&read("/proc/pressure/cpu")),
            memory_stalled_us: stalled_us(&read("/proc/pressure/memory")),
        }
    }
}

/// Processor time of a process's threads. A thread that has ended keeps what was last seen of it.
#[derive(Debug, Default)]
pub(super) struct Threads {
    seen: BTreeMap<u32, (u64, u64)>,
    run_ns: u64,
    wait_ns: u64,
}

impl Threads {
    /// For how long threads of the process `pid` have run, and have waited for a CPU, since the first look, in nanoseconds.
    pub(super) fn look(&mut self, pid: u32) -> (u64, u64) {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let now = tasks.filter_map(|task| {
            let thread = task.file_name().to_str()?.parse().ok()?;
            Some((thread, schedstat(&read(task.path().join("schedstat")))?))
        });
        self.take(now.collect());
        (self.run_ns, self.wait_ns)
    }

    fn take(&mut self, now: BTreeMap<u32, (u64, u64)>) {
        for (thread, (run, wait)) in &now {
            // One that is new has begun since the last look. A number that is taken again counts from where the last had come.
            let (run_before, wait_before) = self.seen.get(thread).copied().unwrap_or_default();
            self.run_ns += run.saturating_sub(run_before);
            self.wait_ns += wait.saturating_sub(wait_before);
        }
        self.seen = now;
    }
}

/// Bytes that each interface has carried, both ways together.
pub(super) fn network_bytes() -> BTreeMap<String, u64> {
    // The namespace's own, unlike what is mounted at /sys.
    carried(&read("/proc/self/net/dev"))
}

/// How fast a CPU is, in MHz: the fastest of them as the kernel last saw them; 0 if it does not say.
pub(super) fn cpu_mhz() -> u32 {
    megahertz(&read("/proc/cpuinfo"))
}

fn megahertz(cpuinfo: &str) -> u32 {
    let values = cpuinfo.lines().filter(|line| line.starts_with("cpu MHz"));
    let values = values.filter_map(|line| line.split_once(':')?.1.trim().parse::<f64>().ok());
    values.fold(0.0, f64::max) as u32
}

/// `cpu  user nice system idle iowait irq softirq steal guest guest_nice`: guests are in user and nice already.
fn busy_us(stat: &str) -> u64 {
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let jiffies: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
    let busy = [0, 1, 2, 5, 6].into_iter().filter_map(|field: usize| jiffies.get(field)).sum::<u64>();
    busy * JIFFY_US
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=1234`
fn stalled_us(pressure: &str) -> u64 {
    let some = pressure.lines().find(|line| line.starts_with("some "));
    some.and_then(|line| line.rsplit_once("total=")?.1.trim().parse().ok()).unwrap_or(0)
}

/// `run wait slices`
fn schedstat(text: &str) -> Option<(u64, u64)> {
    let mut fields = text.split_whitespace().map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

/// `  tap0: received packets errs drop fifo frame compressed multicast sent ...`
fn carried(dev: &str) -> BTreeMap<String, u64> {
    let lines = dev.lines().filter_map(|line| line.split_once(':'));
    lines
        .filter_map(|(name, counters)| {
            let counters: Vec<u64> =
                counters.split_whitespace().filter_map(|field| field.parse().ok()).collect();
            Some((name.trim().to_owned(), counters.first()?.saturating_add(*counters.get(8)?)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        assert_eq!(busy_us("cpu  100 10 50 9999 7 3 2 8 90 5\ncpu0 1 2 3"), 165 * JIFFY_US);
        assert_eq!(
            stalled_us("some avg10=1.00 avg60=2.00 avg300=3.00 total=4321\nfull avg10=0 total=9"),
            4321
        );
        assert_eq!(stalled_us(""), 0);
        assert_eq!(schedstat("104234 3110495 1\n"), Some((104_234, 3_110_495)));
        let dev = "Inter-|   Receive\n face |bytes\n  tap0: 100 1 0 0 0 0 0 0 50 1 0 0 0 0 0 0\n";
        assert_eq!(carried(dev), BTreeMap::from([("tap0".to_owned(), 150)]));
        assert_eq!(megahertz("cpu MHz\t\t: 2400.5\ncpu MHz : 3000.9\n"), 3000);
    }

    #[test]
    fn a_thread_that_ends_takes_nothing_back_and_one_that_begins_counts_from_its_beginning() {
        let mut threads = Threads::default();
        threads.take(BTreeMap::from([(1, (100, 10)), (2, (50, 5))]));
        assert_eq!((threads.run_ns, threads.wait_ns), (150, 15));
        threads.take(BTreeMap::from([(1, (160, 10)), (3, (7, 1))]));
        assert_eq!((threads.run_ns, threads.wait_ns), (217, 16));
    }

    #[test]
    fn the_time_of_this_process_is_seen() {
        let mut threads = Threads::default();
        let (before, _) = threads.look(std::process::id());
        let mut sum = 0u64;
        (0..20_000_000u64).for_each(|n| sum = sum.wrapping_mul(31).wrapping_add(std::hint::black_box(n)));
        std::hint::black_box(sum);
        assert!(threads.look(std::process::id()).0 > before);
        assert!(HostCounters::read().busy_us > 0);
        assert!(network_bytes().contains_key("lo"));
    }
}
