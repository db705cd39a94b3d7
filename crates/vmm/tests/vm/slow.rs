//! Who writes is known and can be slowed: the log is exact in each of its forms, and holds meet the writer alone.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use godwit_migration::bitmap::PageBitmap;
use godwit_migration::{PageRange, Source, VcpuActivity};
use godwit_types::control::{Role, VmmConfig, WriteLog};
use godwit_types::migration::{Budget, Comparison, MigrationOutcome, OnDeadline};
use godwit_types::{Bytes, Gfn, PAGE_SIZE_BYTES};
use godwit_vmm::kvm::dirty_log::ENTRIES_MIN;
use godwit_vmm::machine::Machine;

use crate::reference::{Fixture, reference_guest};
use crate::support::{PATIENCE, Vmm, grant_everything, kvm_is_there, migration_id, spec};
use crate::survey::started;

const RINGS: WriteLog = WriteLog::Rings { entries: 1 << 16 };
/// Overflows many times in each round.
const SMALL_RINGS: WriteLog = WriteLog::Rings { entries: ENTRIES_MIN };
const LOGS: [WriteLog; 3] = [WriteLog::Bitmap, RINGS, SMALL_RINGS];
/// 6144 pages, half of which are written over and over again, as fast as can be.
const LOAD: &str = "godwit.ws=24MiB godwit.hot=12MiB godwit.rate=0 godwit.content=random godwit.disk=off";
const PAGE: usize = PAGE_SIZE_BYTES as usize;
const HOT_PAGES: u64 = 12 * 256;
/// The guest's stacks, page tables and counters.
const OWN_PAGES_MAX: u64 = 256;
/// Long enough for every hot page to be written again and again.
const HARVESTS_MIN: u32 = 30;
/// A page that is only read may be named, too, whenever KVM maps it anew: of the rest of the working set, a part.
const READ_PAGES_MAX: u64 = 1024;

/// The reference guest in this process; ended when it is dropped.
struct Guest(Arc<Machine>);

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Guest {
    /// Once it has written all of its working set; its log is on.
    fn boot(folder: &Path, vcpus: u8, load: &str, write_log: WriteLog) -> Option<Self> {
        let kernel = reference_guest()?;
        let config = Vmm::config(folder, 0, &kernel, spec(vcpus, Bytes::mib(64), load), 1, Role::Boot);
        let config = VmmConfig { write_log: Some(write_log), ..config };
        let machine = started(config);
        let guest = Self(machine);
        guest.wait("the guest fills its memory", || guest.non_zero_pages() >= 24 * 256);
        guest.0.start_dirty_log().unwrap();
        // A page that is read for the first time since then may count as written, too, as KVM maps it.
        let mut calm = 0;
        guest.wait("the guest writes its hot pages alone", || {
            thread::sleep(Duration::from_millis(200));
            let fits = (1..=HOT_PAGES + OWN_PAGES_MAX).contains(&guest.harvest().len());
            calm = if fits { calm + 1 } else { 0 };
            calm == 5
        });
        Some(guest)
    }

    fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < deadline, "{what}: never");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn non_zero_pages(&self) -> usize {
        let Copy(memory) = Copy::of(&self.0);
        let pages = memory.iter().flat_map(|(_, bytes)| bytes.chunks(PAGE));
        pages.filter(|page| page.iter().any(|byte| *byte != 0)).count()
    }

    fn harvest(&self) -> PageBitmap {
        let mut dirty = PageBitmap::covering(self.0.memory().ranges());
        self.0.harvest_dirty(&mut dirty).unwrap();
        dirty
    }

    /// What each vCPU has done between two moments.
    fn did(before: &[VcpuActivity], after: &[VcpuActivity]) -> Vec<VcpuActivity> {
        let since = |(before, after): (&VcpuActivity, &VcpuActivity)| VcpuActivity {
            written_pages: after.written_pages - before.written_pages,
            held: after.held - before.held,
        };
        before.iter().zip(after).map(since).collect()
    }
}

/// What a destination would have.
struct Copy(Vec<(PageRange, Vec<u8>)>);

impl Copy {
    fn of(machine: &Machine) -> Self {
        let memory = machine.memory();
        Self(memory.ranges().iter().map(|range| (*range, memory.bytes(*range).unwrap().to_vec())).collect())
    }

    /// Copies these pages once more, and adds them to those that were `named`.
    fn update(&mut self, machine: &Machine, dirty: &PageBitmap, named: &mut PageBitmap) {
        for (range, bytes) in &mut self.0 {
            for run in dirty.runs(*range) {
                let at = (run.start.0 - range.start.0) as usize * PAGE;
                let contents = machine.memory().bytes(run).unwrap();
                bytes[at..at + contents.len()].copy_from_slice(contents);
                named.insert_range(run);
            }
        }
    }

    fn differs(&self, machine: &Machine) -> Vec<Gfn> {
        let Self(now) = Self::of(machine);
        let pages =
            self.0.iter().zip(&now).flat_map(|((range, old), (_, new))| {
                range.gfns().zip(old.chunks(PAGE).zip(new.chunks(PAGE)))
            });
        pages.filter(|(_, (old, new))| old != new).map(|(gfn, _)| gfn).collect()
    }
}

#[test]
fn a_copy_that_is_kept_up_by_the_log_alone_is_what_memory_is_in_each_of_its_forms() {
    if !kvm_is_there() {
        return;
    }
    for log in LOGS {
        // A vCPU that is held takes a signal every few milliseconds, wherever it is.
        for (vcpus, held) in [(1, 0), (1, 700), (2, 500)] {
            let folder = tempfile::tempdir().unwrap();
            let Some(guest) = Guest::boot(folder.path(), vcpus, LOAD, log) else { return };
            let what = format!("{log:?}, {vcpus} vCPUs, {held} of 1000 held");
            let machine = &guest.0;
            let mut copy = Copy::of(machine);
            let mut named = PageBitmap::covering(machine.memory().ranges());
            machine.slow(&vec![held; vcpus.into()]);
            let mut harvests = 0;
            guest.wait("the hot pages are written", || {
                copy.update(machine, &guest.harvest(), &mut named);
                harvests += 1;
                named.len() >= HOT_PAGES && harvests >= HARVESTS_MIN
            });
            Source::pause(&**machine).unwrap();
            copy.update(machine, &guest.harvest(), &mut named);
            let missed = copy.differs(machine);
            assert!(missed.is_empty(), "{what}: {missed:?} of {} pages", named.len());
            let named_max = HOT_PAGES + OWN_PAGES_MAX + READ_PAGES_MAX;
            assert!(named.len() <= named_max, "{what}: {}", named.len());
            // And nothing is named twice.
            assert!(guest.harvest().is_empty(), "{what}: pages that nobody has written");
            machine.stop_dirty_log();
            Source::resume(&**machine).unwrap();
        }
    }
}

#[test]
fn writes_are_told_by_vcpu_from_rings_and_evenly_from_a_bitmap() {
    if !kvm_is_there() {
        return;
    }
    for log in LOGS {
        let folder = tempfile::tempdir().unwrap();
        let load = format!("{LOAD} godwit.writers=1");
        let Some(guest) = Guest::boot(folder.path(), 2, &load, log) else { return };
        let machine = &guest.0;
        let before = machine.vcpus();
        let mut did = Vec::new();
        guest.wait("the guest writes", || {
            guest.harvest();
            did = Guest::did(&before, &machine.vcpus());
            did.iter().map(|vcpu| vcpu.written_pages).sum::<u64>() >= 4 * HOT_PAGES
        });
        let [writer, reader] = did[..] else { panic!("two vCPUs") };
        match log {
            WriteLog::Bitmap => assert_eq!(writer.written_pages, reader.written_pages),
            WriteLog::Rings { .. } => {
                assert!(reader.written_pages * 20 < writer.written_pages, "{reader:?} {writer:?}");
            }
        }
        machine.stop_dirty_log();
    }
}

#[test]
fn a_vcpu_is_held_for_no_more_than_its_share_and_the_other_one_not_at_all() {
    if !kvm_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let Some(guest) = Guest::boot(folder.path(), 2, LOAD, RINGS) else { return };
    let machine = &guest.0;
    machine.start_dirty_log().unwrap();
    let (began, before) = (Instant::now(), machine.vcpus());
    machine.slow(&[700]);
    guest.wait("a vCPU is held", || machine.vcpus()[0].held - before[0].held > Duration::from_millis(300));
    let held = Guest::did(&before, &machine.vcpus());
    let time = began.elapsed();
    assert!(held[0].held <= time * 7 / 10, "{held:?} within {time:?}");
    assert_eq!(held[1].held, Duration::ZERO);
    // It lets go at once, and stays so.
    machine.slow(&[]);
    Source::pause(&**machine).unwrap();
    let before = machine.vcpus();
    Source::resume(&**machine).unwrap();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(Guest::did(&before, &machine.vcpus())[0].held, Duration::ZERO);
    // So it does with a stop, and with the end of the log.
    machine.slow(&[900, 900]);
    Source::pause(&**machine).unwrap();
    Source::resume(&**machine).unwrap();
    let before = machine.vcpus();
    thread::sleep(Duration::from_millis(100));
    assert!(Guest::did(&before, &machine.vcpus()).iter().all(|did| did.held.is_zero()));
    machine.stop_dirty_log();
}

#[test]
fn a_guest_that_outruns_its_link_moves_by_slowing_its_writer_alone() {
    let Some(mut fixture) = Fixture::new() else { return };
    for log in [RINGS, WriteLog::Bitmap] {
        // 20 MiB/s of its share, a half of 40 MiB. What it is kept from it does not make up for: it is slowed, however
        // fast the machine is. On a slow one it comes to half of that, which is still more than the link carries.
        let load =
            "godwit.ws=40MiB godwit.rate=10240 godwit.burst=1000 godwit.writers=1 godwit.content=random";
        let mut config = fixture.config(2, load);
        config.write_log = Some(log);
        let mut here = Vmm::start(config);
        let before = fixture.report();
        let mut there = fixture.destination(&here, 1);
        let budget = Budget {
            blackout_ms_max: 200,
            bandwidth_bytes_per_s_max: Some(8 << 20),
            deadline_ms: 120_000,
            on_deadline: OnDeadline::Cancel,
            slowdown_percent_max: 80,
            verify: true,
            ..Budget::default()
        };
        here.migrate_to(&there, migration_id(1), budget);
        let outcome = grant_everything(&mut here, &mut there);
        let MigrationOutcome::Completed { report } = outcome else {
            panic!("{outcome:?}; {}", here.errors())
        };
        eprintln!("{log:?}: {report:?}");
        assert_eq!(report.verified.as_ref().map(|found| found.memory), Some(Comparison::Same));
        let slowed: Vec<u32> = report.slowed.iter().map(|vcpu| vcpu.vcpu).collect();
        match log {
            WriteLog::Rings { .. } => assert_eq!(slowed, [0], "the other one only reads"),
            WriteLog::Bitmap => assert_eq!(slowed, [0, 1], "nobody knows who writes"),
        }
        for vcpu in &report.slowed {
            assert!(vcpu.highest_percent <= 80.0 && vcpu.mean_percent <= vcpu.highest_percent, "{vcpu:?}");
            assert!(vcpu.mean_percent > 0.0, "{vcpu:?}");
        }
        assert!(here.wait().success(), "{}", here.errors());
        fixture.progress(&before);
        let Some(next) = Fixture::new() else { return };
        fixture = next;
    }
}
