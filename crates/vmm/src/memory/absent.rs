//! Guest RAM of which a part is still at the VM's source, by userfaultfd.
//!
//! ```text
//!  before the sandbox      await_pages                                        all is here, or nothing more is needed
//!  Userfault::open ------> missing pages dropped, RAM registered ----------> unregistered: ordinary memory again
//!                          who touches a page that is not there stands,
//!                          in the guest, in KVM or in a device's thread,
//!                          until it is placed
//! ```
//!
//! The thread that sees to the faults never touches guest memory itself: nobody would see to its own.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use godwit_migration::bitmap::PageBitmap;
use godwit_migration::{Absent, MachineError, PageRange};
use godwit_types::{Gfn, PAGE_SIZE_BYTES};

use super::aside::Aside;
use super::uffd::{self, Api, Copy, Message, Range, Register, Zero};
use super::{GuestRam, Ram, Slot};

/// Faults that are read with one call.
const MESSAGES: usize = 64;
/// What is freed while nothing comes and nobody waits: some milliseconds' work.
const IDLE_BYTES: usize = 32 << 20;

/// A userfaultfd of this process that nothing is registered with yet. It sees the faults of the kernel too: KVM reaches
/// guest memory for its guest.
#[derive(Debug)]
pub struct Userfault(File);

impl Userfault {
    /// From `/dev/userfaultfd`, or, without it, by the system call, which takes `CAP_SYS_PTRACE`. Who opens it here must be
    /// the process whose memory it is for.
    pub fn open(device: Option<OwnedFd>) -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        let number = match &device {
            // SAFETY: the call takes flags and makes a descriptor.
            Some(device) => unsafe { libc::ioctl(device.as_raw_fd(), uffd::NEW, flags) }.into(),
            // SAFETY: as above.
            None => unsafe { libc::syscall(libc::SYS_userfaultfd, flags) },
        };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it, and nobody else knows it.
        let userfault = Self(unsafe { File::from_raw_fd(number as i32) });
        uffd::call(&userfault.0, uffd::API, &mut Api { api: uffd::API_VERSION, ..Api::default() })?;
        Ok(userfault)
    }
}

/// See the module.
pub struct AbsentRam {
    userfault: File,
    slots: Vec<Slot>,
    /// What is registered: in each range, from its first missing page to its last.
    spans: Vec<Range>,
    /// The pages that were dropped, and are still to be freed.
    aside: Aside,
    /// Keeps the mappings.
    _guest: Arc<GuestRam>,
    ended: AtomicBool,
    forgotten: AtomicBool,
}

impl AbsentRam {
    /// Drops these pages, and lets whoever touches them wait from now on.
    pub fn new(userfault: Userfault, ram: &Ram, missing: &PageBitmap) -> Result<Self, MachineError> {
        let slots = ram.slots();
        let absent = Self {
            userfault: userfault.0,
            spans: slots.iter().filter_map(|slot| span(slot, missing)).collect(),
            slots,
            aside: Aside::default(),
            _guest: Arc::clone(ram.guest()),
            ended: AtomicBool::new(false),
            forgotten: AtomicBool::new(false),
        };
        for range in absent.spans.iter().copied() {
            let mut register = Register { range, mode: uffd::REGISTER_MISSING, ioctls: 0 };
            uffd::call(&absent.userfault, uffd::REGISTER, &mut register)
                .map_err(failed("registering memory"))?;
        }
        // Not before: in memory that is not registered the kernel may join what is left of a huge page, and fill the gaps
        // with zeros.
        ram.drop_all_soon(missing, &absent.aside).map_err(failed("dropping pages"))?;
        Ok(absent)
    }

    /// The guest begins anew: what is still at the source is not needed, and does not come any more.
    pub fn forget(&self) {
        self.forgotten.store(true, SeqCst);
        self.end();
    }

    /// Whether pages may still be missing.
    pub fn is_awaited(&self) -> bool {
        !self.ended.load(SeqCst)
    }

    fn bytes(&self, pages: PageRange) -> Result<Range, MachineError> {
        let end = pages.start.0.saturating_add(pages.pages);
        let holds = |slot: &&Slot| {
            pages.start.0 >= slot.range.start.0 && end <= slot.range.start.0 + slot.range.pages
        };
        let slot = self.slots.iter().find(holds);
        slot.map(|slot| slot.bytes(pages)).ok_or_else(|| MachineError {
            step: "placing pages".into(),
            reason: format!("{} pages from {:#x} on are not all RAM", pages.pages, pages.start.0),
        })
    }

    fn gfn(&self, address: u64) -> Option<Gfn> {
        self.slots.iter().find_map(|slot| {
            let offset = address.checked_sub(slot.host_address)? / PAGE_SIZE_BYTES;
            (offset < slot.range.pages).then(|| Gfn(slot.range.start.0 + offset))
        })
    }

    /// Calls `place` on what is left of `range`, which returns how many bytes it has placed, until nothing is.
    fn each_part(
        &self,
        mut range: Range,
        mut place: impl FnMut(Range) -> (io::Result<()>, i64),
    ) -> Result<(), MachineError> {
        while range.len > 0 {
            let (result, placed) = place(range);
            let placed = match result {
                Ok(()) => range.len,
                Err(error) => match error.raw_os_error() {
                    // Some of it, and then something was in the way.
                    Some(libc::EAGAIN) => u64::try_from(placed).unwrap_or(0),
                    // The page is here.
                    Some(libc::EEXIST) => PAGE_SIZE_BYTES,
                    // Nothing is registered any more, and nobody waits.
                    Some(libc::ENOENT) if !self.is_awaited() => return Ok(()),
                    _ => return Err(failed("placing pages")(error)),
                },
            };
            range = Range { start: range.start + placed, len: range.len - placed };
        }
        Ok(())
    }
}

/// From the first missing page of a slot to its last.
fn span(slot: &Slot, missing: &PageBitmap) -> Option<Range> {
    let mut runs = missing.runs(slot.range).map(|run| slot.bytes(run));
    let first = runs.next()?;
    let last = runs.last().unwrap_or(first);
    Some(Range { start: first.start, len: last.start + last.len - first.start })
}

impl Absent for AbsentRam {
    fn touched(&self, pages: &mut Vec<Gfn>, within: Duration) -> Result<(), MachineError> {
        let mut poll =
            libc::pollfd { fd: self.userfault.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the pointer is to one live value.
        if unsafe { libc::poll(&mut poll, 1, timeout) } <= 0 {
            self.aside.free(IDLE_BYTES);
            return Ok(());
        }
        let mut messages = [0; MESSAGES * Message::BYTES];
        match (&self.userfault).read(&mut messages) {
            Ok(count) => {
                let faults = messages[..count].chunks_exact(Message::BYTES).filter_map(Message::page_fault);
                pages.extend(faults.filter_map(|address| self.gfn(address)));
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(())
            }
            Err(error) => Err(failed("reading faults")(error)),
        }
    }

    fn place(&self, first: Gfn, contents: &[u8]) -> Result<(), MachineError> {
        let pages = PageRange { start: first, pages: contents.len() as u64 / PAGE_SIZE_BYTES };
        let all = self.bytes(pages)?;
        // As much as comes, so that no more memory is taken than the guest has.
        self.aside.free(contents.len());
        self.each_part(all, |Range { start, len }| {
            let src = contents.as_ptr() as u64 + (start - all.start);
            let mut copy = Copy { dst: start, src, len, mode: 0, copy: 0 };
            (uffd::call(&self.userfault, uffd::COPY, &mut copy), copy.copy)
        })
    }

    fn place_zeros(&self, pages: PageRange) -> Result<(), MachineError> {
        self.each_part(self.bytes(pages)?, |range| {
            let mut zero = Zero { range, mode: 0, zeropage: 0 };
            (uffd::call(&self.userfault, uffd::ZEROPAGE, &mut zero), zero.zeropage)
        })
    }

    fn end(&self) {
        if !self.ended.swap(true, SeqCst) {
            for mut span in self.spans.iter().copied() {
                if let Err(error) = uffd::call(&self.userfault, uffd::UNREGISTER, &mut span) {
                    tracing::error!("guest memory stays registered for faults: {error}");
                }
            }
            self.aside.free(usize::MAX);
        }
    }

    fn is_forgotten(&self) -> bool {
        self.forgotten.load(SeqCst)
    }
}

impl Slot {
    /// Where pages of its range are mapped.
    fn bytes(&self, pages: PageRange) -> Range {
        let start = self.host_address + (pages.start.0 - self.range.start.0) * PAGE_SIZE_BYTES;
        Range { start, len: pages.pages * PAGE_SIZE_BYTES }
    }
}

fn failed(step: &str) -> impl Fn(io::Error) -> MachineError {
    let step = format!("awaiting memory: {step}");
    move |error| MachineError { step: step.clone(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use godwit_migration::GuestMemory as _;
    use godwit_types::Bytes;

    use super::*;

    const PAGE: usize = PAGE_SIZE_BYTES as usize;

    fn run(start: u64, pages: u64) -> PageRange {
        PageRange { start: Gfn(start), pages }
    }

    /// None where this process may not have one.
    fn userfault() -> Option<Userfault> {
        let device = File::open("/dev/userfaultfd").ok().map(OwnedFd::from);
        let userfault = Userfault::open(device).ok();
        if userfault.is_none() {
            eprintln!("SKIPPED: needs /dev/userfaultfd");
        }
        userfault
    }

    /// 16 MiB of sevens of which pages 10 to 19 are missing; none where this process may not have a userfaultfd.
    fn absent() -> Option<(Arc<Ram>, Arc<AbsentRam>)> {
        let userfault = userfault()?;
        let ram = Ram::new(Bytes::mib(16)).unwrap();
        ram.write(Gfn(0), &vec![7; 100 * PAGE]).unwrap();
        let mut missing = PageBitmap::covering(ram.ranges());
        missing.insert_range(run(10, 10));
        let absent = AbsentRam::new(userfault, &ram, &missing).unwrap();
        Some((Arc::new(ram), Arc::new(absent)))
    }

    fn first_byte(ram: &Ram, page: u64) -> u8 {
        ram.bytes(run(page, 1)).unwrap()[0]
    }

    fn touched(absent: &AbsentRam) -> Vec<Gfn> {
        let mut pages = Vec::new();
        for _ in 0..600 {
            absent.touched(&mut pages, Duration::from_millis(100)).unwrap();
            if !pages.is_empty() {
                return pages;
            }
        }
        panic!("nobody waits for a page");
    }

    #[test]
    fn who_touches_a_missing_page_waits_until_it_is_placed_and_the_others_are_as_they_were() {
        let Some((ram, absent)) = absent() else { return };
        assert_eq!((first_byte(&ram, 9), first_byte(&ram, 20)), (7, 7));
        let reader = {
            let ram = Arc::clone(&ram);
            thread::spawn(move || first_byte(&ram, 12))
        };
        assert_eq!(touched(&absent), [Gfn(12)]);
        absent.place(Gfn(12), &[3; PAGE]).unwrap();
        assert_eq!(reader.join().unwrap(), 3);
    }

    #[test]
    fn long_runs_are_dropped_at_once_and_freed_as_pages_come() {
        let Some(device) = userfault() else { return };
        let ram = Arc::new(Ram::new(Bytes::mib(16)).unwrap());
        ram.write(Gfn(0), &vec![7; 16 << 20]).unwrap();
        let mut missing = PageBitmap::covering(ram.ranges());
        // From the middle of one page table to the middle of another.
        let long = run(700, 2500);
        missing.insert_range(long);
        let absent = Arc::new(AbsentRam::new(device, &ram, &missing).unwrap());
        assert_eq!((first_byte(&ram, 699), first_byte(&ram, 3200)), (7, 7));
        assert_eq!(absent.aside.bytes(), 2500 * PAGE);
        let reader = {
            let ram = Arc::clone(&ram);
            thread::spawn(move || first_byte(&ram, 1500))
        };
        assert_eq!(touched(&absent), [Gfn(1500)]);
        absent.place(Gfn(1200), &vec![3; 500 * PAGE]).unwrap();
        assert_eq!(reader.join().unwrap(), 3);
        assert!(absent.aside.bytes() <= 2000 * PAGE);
        absent.place_zeros(long).unwrap();
        assert_eq!(
            [699, 700, 1199, 1200, 1699, 1700, 3199, 3200].map(|page| first_byte(&ram, page)),
            [7, 0, 0, 3, 3, 0, 0, 7]
        );
        absent.end();
        assert_eq!(absent.aside.bytes(), 0);
    }

    #[test]
    fn of_many_runs_each_is_dropped_and_what_lies_between_stays() {
        let Some(device) = userfault() else { return };
        let ram = Ram::new(Bytes::mib(32)).unwrap();
        ram.write(Gfn(0), &vec![7; 32 << 20]).unwrap();
        let mut missing = PageBitmap::covering(ram.ranges());
        (0..1000).for_each(|number| missing.insert(Gfn(number * 2)));
        [run(2100, 600), run(2900, 1024), run(4500, 700)]
            .into_iter()
            .for_each(|long| missing.insert_range(long));
        let absent = AbsentRam::new(device, &ram, &missing).unwrap();
        assert_eq!(absent.aside.bytes(), (600 + 1024 + 700) * PAGE);
        absent.aside.free(1100 * PAGE);
        assert_eq!(absent.aside.bytes(), (600 + 624) * PAGE);
        absent.end();
        assert_eq!(absent.aside.bytes(), 0);
        for page in 0..8192 {
            let value = if missing.contains(Gfn(page)) { 0 } else { 7 };
            assert_eq!(first_byte(&ram, page), value, "page {page}");
        }
    }

    #[test]
    fn a_page_that_is_here_is_not_placed_again_and_its_neighbours_are() {
        let Some((ram, absent)) = absent() else { return };
        absent.place(Gfn(13), &[1; PAGE]).unwrap();
        absent.place_zeros(run(15, 1)).unwrap();
        absent.place(Gfn(10), &[2; 10 * PAGE]).unwrap();
        let here: Vec<u8> = (10..20).map(|page| first_byte(&ram, page)).collect();
        assert_eq!(here, [2, 2, 2, 1, 2, 0, 2, 2, 2, 2]);
        absent.place_zeros(run(10, 10)).unwrap();
        assert_eq!(first_byte(&ram, 10), 2);
        assert!(absent.place(Gfn(4095), &[0; 2 * PAGE]).is_err());
    }

    #[test]
    fn in_the_end_nobody_waits_and_what_comes_later_is_dropped() {
        let Some((ram, absent)) = absent() else { return };
        let reader = {
            let ram = Arc::clone(&ram);
            thread::spawn(move || first_byte(&ram, 12))
        };
        touched(&absent);
        absent.forget();
        assert_eq!(reader.join().unwrap(), 0);
        absent.place(Gfn(13), &[1; PAGE]).unwrap();
        assert_eq!(first_byte(&ram, 13), 0);
        assert!(absent.is_forgotten() && !absent.is_awaited());
    }
}
