//! A VM whose RAM is a vector and whose vCPU is a thread that stamps pages.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, Weak, atomic};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use godwit_migration::bitmap::PageBitmap;
use godwit_migration::{
    Absent, ArrivingDisks, Destination, GuestMemory, Kept, LeavingDisks, Loaded, MachineError, Manifest,
    PageRange, Reclaimed, Section, Source,
};
use godwit_types::ownership::Witness;
use godwit_types::{Epoch, Gfn, MigrationId, PAGE_SIZE_BYTES, VmId};

use super::absent::{ModelAbsent, Shared};
use super::disk::ModelDisks;
use super::kept::ModelKept;

/// The first of 64 pages whose writes a faulty dirty log forgets.
const FORGOTTEN_PAGES: u64 = 320;
const WORDS_PER_PAGE: usize = PAGE_SIZE_BYTES as usize / 8;
/// The page that saving dirties, to see that it is sent afterwards.
const SAVE_PAGE: u64 = 3;

/// How many VMs run at once; more than one is the worst that can happen.
#[derive(Default)]
pub struct Runners {
    now: AtomicI32,
    pub twice: AtomicBool,
}

impl Runners {
    fn start(&self) {
        if self.now.fetch_add(1, SeqCst) != 0 {
            self.twice.store(true, SeqCst);
        }
    }

    fn stop(&self) {
        self.now.fetch_sub(1, SeqCst);
    }

    pub fn count(&self) -> i32 {
        self.now.load(SeqCst)
    }
}

/// What a vCPU does.
#[derive(Clone, Copy)]
pub struct Load {
    pub pages_per_ms: u64,
    pub working_set: u64,
    /// What is written cannot be packed.
    pub noise: bool,
}

struct State {
    running: bool,
    may_run: bool,
    epoch: Epoch,
}

pub struct ModelVm {
    ranges: Vec<PageRange>,
    /// By frame number, with holes between the ranges unused.
    words: Vec<AtomicU64>,
    dirty: Vec<AtomicU64>,
    logging: AtomicBool,
    state: Mutex<State>,
    runners: Arc<Runners>,
    faults: Mutex<BTreeSet<&'static str>>,
    /// Counts writes; part of the device state.
    stamp: AtomicU64,
    /// How far its host's clock is ahead, in milliseconds, and by how much the guest's went wrong when it came here.
    pub clock_ahead_ms: atomic::AtomicI64,
    pub clock_error_ns: atomic::AtomicI64,
    pub resumes: AtomicU64,
    pub calls: Mutex<Vec<&'static str>>,
    load: Load,
    me: Weak<Self>,
    absent: Shared,
    kept: OnceLock<ModelKept>,
    disks: OnceLock<Arc<ModelDisks>>,
}

impl ModelVm {
    /// 10 MiB with a hole; half of it zero.
    fn new(load: Load, runners: &Arc<Runners>, me: Weak<Self>) -> Self {
        let ranges =
            vec![PageRange { start: Gfn(0), pages: 160 }, PageRange { start: Gfn(256), pages: 2400 }];
        let frames = 256 + 2400;
        Self {
            ranges,
            words: (0..frames * WORDS_PER_PAGE).map(|_| AtomicU64::new(0)).collect(),
            dirty: (0..(frames as u64).div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            logging: AtomicBool::new(false),
            state: Mutex::new(State { running: false, may_run: false, epoch: Epoch(1) }),
            runners: Arc::clone(runners),
            faults: Mutex::default(),
            stamp: AtomicU64::new(1),
            clock_ahead_ms: atomic::AtomicI64::new(0),
            clock_error_ns: atomic::AtomicI64::new(0),
            resumes: AtomicU64::new(0),
            calls: Mutex::default(),
            load,
            me,
            absent: Shared::default(),
            kept: OnceLock::new(),
            disks: OnceLock::new(),
        }
    }

    /// What its host's clock shows at a time, in nanoseconds since 1970.
    fn host_ns(&self, at: Duration) -> i64 {
        at.as_nanos() as i64 + self.clock_ahead_ms.load(Relaxed) * 1_000_000
    }

    /// Reads a page as the guest does: waits for it if it is not here.
    pub fn touch(&self, page: u64) {
        let absent = self.absent.lock().unwrap().clone();
        absent.iter().for_each(|absent| absent.touch(Gfn(page)));
    }

    /// The guest begins anew.
    pub fn forget(&self) {
        self.absent.lock().unwrap().iter().for_each(|absent| absent.forget());
    }

    /// Waits until a step has been taken.
    pub fn await_call(&self, step: &str) {
        let began = std::time::Instant::now();
        while !self.calls.lock().unwrap().contains(&step) {
            assert!(began.elapsed() < super::PATIENCE, "no {step}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// A VM that runs.
    pub fn running(load: Load, runners: &Arc<Runners>) -> Arc<Self> {
        let vm = Arc::new_cyclic(|me| Self::new(load, runners, me.clone()));
        for page in (0..160).chain(256..1400) {
            vm.stamp_page(page);
        }
        {
            let mut state = vm.state.lock().unwrap();
            (state.running, state.may_run) = (true, true);
        }
        runners.start();
        vm.start_vcpu();
        vm
    }

    /// A machine that waits for a VM.
    pub fn waiting(load: Load, runners: &Arc<Runners>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self::new(load, runners, me.clone()))
    }

    /// Lets the named step fail from now on.
    pub fn fail(&self, step: &'static str) {
        self.faults.lock().unwrap().insert(step);
    }

    fn has_fault(&self, fault: &str) -> bool {
        self.faults.lock().unwrap().contains(fault)
    }

    pub fn heal(&self) {
        self.faults.lock().unwrap().clear();
    }

    pub fn epoch(&self) -> Epoch {
        self.state.lock().unwrap().epoch
    }

    pub fn is_running(&self) -> bool {
        self.state.lock().unwrap().running
    }

    /// Ends the vCPU for good.
    pub fn power_off(&self) {
        let mut state = self.state.lock().unwrap();
        if std::mem::take(&mut state.running) {
            self.runners.stop();
        }
        state.may_run = false;
    }

    /// Its memory by frame number, zeros between the ranges.
    pub fn image(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.load(Relaxed).to_le_bytes()).collect()
    }

    /// Gives it disks that move with it.
    pub fn give_disks(&self) -> Arc<ModelDisks> {
        Arc::clone(self.disks.get_or_init(|| Arc::new(ModelDisks::new(&self.ranges))))
    }

    /// What its host has kept of it, as [`ModelVm::image`] has it.
    pub fn keep(&self, mut image: Vec<u8>) {
        let hole = 160 * PAGE_SIZE_BYTES as usize..256 * PAGE_SIZE_BYTES as usize;
        image[hole].fill(0);
        assert!(self.kept.set(ModelKept::new(image)).is_ok(), "kept twice");
    }

    /// What is left of that.
    pub fn kept_bytes(&self) -> usize {
        self.kept.get().map_or(0, ModelKept::filled)
    }

    /// The first page that differs between two VMs that both stand.
    pub fn first_difference(&self, other: &Self) -> Option<u64> {
        let same = |page: &u64| {
            let at = *page as usize * WORDS_PER_PAGE;
            (at..at + WORDS_PER_PAGE).all(|i| self.words[i].load(Relaxed) == other.words[i].load(Relaxed))
        };
        (0..160).chain(256..2656).find(|page| !same(page))
    }

    fn step(&self, step: &'static str) -> Result<(), MachineError> {
        self.calls.lock().unwrap().push(step);
        if self.has_fault(step) {
            return Err(MachineError { step: step.into(), reason: "injected".into() });
        }
        Ok(())
    }

    /// Fills a page with a new stamp, then marks it, as the hardware's log would.
    fn stamp_page(&self, page: u64) {
        let stamp = self.stamp.fetch_add(1, Relaxed);
        let at = page as usize * WORDS_PER_PAGE;
        // Every seventh write clears the page.
        let value = if stamp.is_multiple_of(7) { 0 } else { stamp };
        let step = if self.load.noise { value.wrapping_mul(0x9e37_79b9_7f4a_7c15) } else { 0 };
        let values = std::iter::successors(Some(value), |last| Some(last.rotate_left(23).wrapping_add(step)));
        self.words[at..at + WORDS_PER_PAGE]
            .iter()
            .zip(values)
            .for_each(|(word, value)| word.store(value, Relaxed));
        if self.logging.load(SeqCst) {
            self.dirty[(page / 64) as usize].fetch_or(1 << (page % 64), SeqCst);
        }
    }

    fn start_vcpu(self: &Arc<Self>) {
        let vm = Arc::downgrade(self);
        let load = self.load;
        thread::spawn(move || {
            let mut random = 0x9e37_79b9_7f4a_7c15_u64;
            while let Some(vm) = vm.upgrade() {
                {
                    let state = vm.state.lock().unwrap();
                    if !state.may_run {
                        return;
                    }
                    for _ in 0..if state.running { load.pages_per_ms } else { 0 } {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        vm.stamp_page(256 + random % load.working_set.max(1));
                    }
                    if let Some(disks) = vm.disks.get().filter(|_| state.running) {
                        disks.work(random, 1);
                    }
                }
                drop(vm);
                thread::sleep(Duration::from_millis(1));
            }
        });
    }

    fn words_of(&self, first: Gfn, bytes: usize) -> Result<&[AtomicU64], MachineError> {
        let pages = (bytes as u64).div_ceil(PAGE_SIZE_BYTES);
        let inside = self
            .ranges
            .iter()
            .any(|range| first.0 >= range.start.0 && first.0 + pages <= range.start.0 + range.pages);
        if !inside {
            let reason = format!("{pages} pages from {} are not RAM", first.0);
            return Err(MachineError { step: "accessing memory".into(), reason });
        }
        let at = first.0 as usize * WORDS_PER_PAGE;
        Ok(&self.words[at..at + pages as usize * WORDS_PER_PAGE])
    }
}

impl GuestMemory for ModelVm {
    fn ranges(&self) -> &[PageRange] {
        &self.ranges
    }

    fn bytes(&self, pages: PageRange) -> Result<&[u8], MachineError> {
        let words = self.words_of(pages.start, (pages.pages * PAGE_SIZE_BYTES) as usize)?;
        // SAFETY: the words live as long as the VM, and any bytes are valid. The vCPU's thread may store to them meanwhile, as
        // a guest does: what is read may be torn, and nothing is concluded from it that must be true.
        Ok(unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) })
    }

    fn write(&self, first: Gfn, from: &[u8]) -> Result<(), MachineError> {
        let words = self.words_of(first, from.len())?;
        for (bytes, word) in from.chunks_exact(8).zip(words) {
            word.store(u64::from_le_bytes(bytes.try_into().unwrap()), Relaxed);
        }
        if self.has_fault("flips-a-bit") {
            self.words_of(first, from.len())?[7].fetch_xor(1, Relaxed);
        }
        Ok(())
    }

    /// What would be read into memory if it were a process's own.
    fn receive(&self, pages: PageRange, done: usize, from: BorrowedFd<'_>) -> io::Result<usize> {
        let mut came = vec![0; (pages.pages * PAGE_SIZE_BYTES) as usize - done];
        let count = TcpStream::from(from.try_clone_to_owned()?).read(&mut came)?;
        let words = self.words_of(pages.start, done + came.len()).map_err(io::Error::other)?;
        for (at, byte) in (done..).zip(&came[..count]) {
            let (shift, mask) = (at % 8 * 8, 0xff << (at % 8 * 8));
            let put = |word: u64| Some(word & !mask | u64::from(*byte) << shift);
            words[at / 8].fetch_update(Relaxed, Relaxed, put).unwrap();
        }
        if self.has_fault("flips-a-bit") {
            words[7].fetch_xor(1, Relaxed);
        }
        Ok(count)
    }

    fn zero(&self, first: Gfn, pages: u64) -> Result<(), MachineError> {
        let bytes = pages.checked_mul(PAGE_SIZE_BYTES).and_then(|bytes| usize::try_from(bytes).ok());
        let words = self.words_of(first, bytes.unwrap_or(usize::MAX))?;
        words.iter().for_each(|word| word.store(0, Relaxed));
        Ok(())
    }
}

/// The time, since 1970, which passes alike for all hosts.
fn true_time() -> Duration {
    static BEGAN: OnceLock<(Duration, Instant)> = OnceLock::new();
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let (unix, began) = BEGAN.get_or_init(|| (now(), Instant::now()));
    *unix + began.elapsed()
}

impl Source for ModelVm {
    fn manifest(&self) -> Manifest {
        Manifest {
            vm: VmId(uuid::Uuid::from_u128(1)),
            epoch: self.epoch(),
            spec_json: b"{}".to_vec(),
            ranges: self.ranges.clone(),
            disks: self.disks.get().map_or_else(Vec::new, |disks| LeavingDisks::ranges(&**disks).to_vec()),
            cpu: vec![1],
        }
    }

    fn blockers(&self) -> Vec<String> {
        self.step("blockers").map_or_else(|error| vec![error.to_string()], |()| Vec::new())
    }

    fn memory(&self) -> &dyn GuestMemory {
        self
    }

    fn disks(&self) -> Option<Arc<dyn LeavingDisks>> {
        self.disks.get().map(|disks| Arc::clone(disks) as _)
    }

    fn start_dirty_log(&self) -> Result<(), MachineError> {
        self.step("start_dirty_log")?;
        self.dirty.iter().for_each(|word| word.store(0, SeqCst));
        self.logging.store(true, SeqCst);
        Ok(())
    }

    fn harvest_dirty(&self, dirty: &mut PageBitmap) -> Result<(), MachineError> {
        self.step("harvest_dirty")?;
        let forgets = self.has_fault("forgets-writes");
        for (index, word) in self.dirty.iter().enumerate() {
            if forgets && index as u64 == FORGOTTEN_PAGES / 64 {
                word.store(0, SeqCst);
            }
            dirty.insert_word(Gfn(index as u64 * 64), word.swap(0, SeqCst));
        }
        self.disks.get().into_iter().for_each(|disks| disks.harvest(dirty));
        Ok(())
    }

    fn stop_dirty_log(&self) {
        self.logging.store(false, SeqCst);
    }

    fn pause(&self) -> Result<Duration, MachineError> {
        self.step("pause")?;
        let mut state = self.state.lock().unwrap();
        assert!(std::mem::take(&mut state.running), "a VM that stands was paused");
        self.runners.stop();
        Ok(Duration::ZERO)
    }

    fn resume(&self) -> Result<(), MachineError> {
        self.step("resume")?;
        let mut state = self.state.lock().unwrap();
        assert!(state.may_run && !state.running, "a VM that runs, or was handed over, was resumed");
        state.running = true;
        self.runners.start();
        self.resumes.fetch_add(1, SeqCst);
        Ok(())
    }

    fn real_time(&self) -> Option<Duration> {
        Some(Duration::from_nanos(self.host_ns(true_time()) as u64))
    }

    fn save(&self, ahead_ns: i64) -> Result<Vec<Section>, MachineError> {
        self.step("save")?;
        self.stamp_page(SAVE_PAGE);
        let now = true_time();
        let there_ns = (self.host_ns(now) + ahead_ns) as u64;
        let saved = [self.stamp.load(Relaxed), there_ns, now.as_nanos() as u64];
        let payload = saved.into_iter().flat_map(u64::to_le_bytes).collect();
        Ok(vec![Section { device: "cpu0".into(), kind: "model".into(), version: 1, payload }])
    }

    fn let_go(&self) {
        let _ = self.step("let_go");
    }

    fn reclaim(&self, _: MigrationId) -> Result<Reclaimed, MachineError> {
        self.step("reclaim").map(|()| Reclaimed::Ours)
    }

    fn hand_over(&self) {
        let _ = self.step("hand_over");
        self.state.lock().unwrap().may_run = false;
    }
}

/// The destination's half; separate because both traits have a `memory`.
impl Destination for ModelVm {
    fn admit(&self, manifest: &Manifest) -> Result<(), Vec<String>> {
        self.step("admit").map_err(|error| vec![error.to_string()])?;
        let disks = self.disks.get().map_or(&[][..], |disks| ArrivingDisks::ranges(&**disks));
        let differs =
            [(manifest.ranges != self.ranges, "other memory"), (manifest.disks != disks, "other disks")];
        let reasons: Vec<String> =
            differs.into_iter().filter(|(differs, _)| *differs).map(|(_, what)| what.into()).collect();
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    fn memory(&self) -> &dyn GuestMemory {
        self
    }

    fn disks(&self) -> Option<Arc<dyn ArrivingDisks>> {
        self.disks.get().map(|disks| Arc::clone(disks) as _)
    }

    fn kept(&self) -> Option<&dyn Kept> {
        self.kept.get().map(|kept| kept as &dyn Kept)
    }

    fn real_time(&self) -> Option<Duration> {
        Some(Duration::from_nanos(self.host_ns(true_time()) as u64))
    }

    fn can_follow(&self) -> Result<(), String> {
        self.step("can_follow").map_err(|error| error.to_string())
    }

    fn await_pages(&self, missing: &PageBitmap) -> Result<Arc<dyn Absent>, MachineError> {
        let absent = Arc::new(ModelAbsent::new(self.me.clone(), &self.ranges, missing));
        *self.absent.lock().unwrap() = Some(Arc::clone(&absent));
        Ok(absent)
    }

    fn load(&self, sections: Vec<Section>) -> Result<Loaded, MachineError> {
        self.step("load")?;
        self.disks.get().into_iter().try_for_each(|disks| disks.flush())?;
        if self.has_fault("load-waits") {
            thread::sleep(Duration::from_millis(100));
        }
        self.touch(SAVE_PAGE);
        assert_eq!(sections.len(), 1);
        let saved: Vec<u64> =
            sections[0].payload.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
        self.stamp.store(saved[0], Relaxed);
        // The guest's clock goes on by the host's.
        let now = true_time();
        let (went, passed) = (self.host_ns(now) - saved[1] as i64, now.as_nanos() as i64 - saved[2] as i64);
        self.clock_error_ns.store(went - passed, Relaxed);
        Ok(Loaded { clock_error_ns: Some(0) })
    }

    fn take_over(&self, _: MigrationId) -> Witness {
        let _ = self.step("take_over");
        Witness::None
    }

    fn run(&self, epoch: Epoch) -> Result<Duration, MachineError> {
        self.step("run")?;
        let mut state = self.state.lock().unwrap();
        // The vCPU of the model stays still, so that its memory can be compared.
        *state = State { running: true, may_run: true, epoch };
        self.runners.start();
        Ok(Duration::ZERO)
    }
}

impl ModelVm {
    /// Lets the vCPU of a VM that has arrived begin to work.
    pub fn go_on(self: &Arc<Self>) {
        self.start_vcpu();
    }
}
