//! The log as a ring of pages for each vCPU, which KVM fills and this process empties.
//!
//! ```text
//!            a first write                collected                 KVM_RESET_DIRTY_RINGS
//!   empty ------------------> dirty ------------------> to re-arm ------------------------> empty
//!          (KVM, release)          (here, acquire: what        (KVM: the page is write-protected
//!                                   the entry says is whole;    again)
//!                                   release: KVM sees it read)
//! ```
//!
//! Entries are collected in their order. The contents of a page are read only after it was re-armed, or a write in between
//! would go unseen. A vCPU whose ring is full leaves the guest until it has been emptied: its own thread does that, and the
//! pages wait here for the next harvest. KVM must not find entries newly marked while it re-arms, so all of it is done
//! under one lock; a vCPU that has room never takes it.
//!
//! No signal may come while KVM re-arms. Since 6.16 it then stops, and forgets up to 64 entries that it has taken out and not
//! yet re-armed (`kvm_dirty_ring_reset` returns with pages left in its mask): what the guest writes there later is in no log.
//! So signals wait; and where one comes that cannot wait (the process is stopped, frozen or traced), the log is not to be
//! trusted until it is started again.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex, MutexGuard};

use godwit_migration::PageRange;
use godwit_migration::bitmap::PageBitmap;
use godwit_types::{Gfn, PAGE_SIZE_BYTES};
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_DIRTY_LOG_PAGE_OFFSET, KVMIO, kvm_dirty_gfn, kvm_enable_cap,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

use crate::kvm::{KvmError, call, last_error};
use crate::memory::Slot;

ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);

/// Fewest and most entries of a ring: KVM keeps some hundred of them for itself.
pub const ENTRIES_MIN: u32 = 1 << 10;
pub const ENTRIES_MAX: u32 = 1 << 16;
/// Entries of all rings of a VM together, as long as each has its fewest: 16 MiB of the kernel's memory.
const ALL_ENTRIES: u32 = 1 << 20;
/// States of an entry (`KVM_DIRTY_GFN_F_*`, <linux/kvm.h>).
const DIRTY: u32 = 1 << 0;
const TO_REARM: u32 = 1 << 1;

/// How many entries each vCPU's ring has, a power of two: enough that a vCPU seldom has to empty its own.
pub fn entries(vcpus: u8) -> u32 {
    let even = (ALL_ENTRIES / u32::from(vcpus.max(1))).clamp(ENTRIES_MIN, ENTRIES_MAX);
    1 << even.ilog2()
}

/// Gives every vCPU that is created from now on a ring of at most so many entries. How many they have; 0 if KVM has no rings.
pub(crate) fn enable(vm: &VmFd, entries: u32) -> Result<u32, KvmError> {
    let bytes_max = vm.check_extension_raw(KVM_CAP_DIRTY_LOG_RING_ACQ_REL.into());
    let entry = size_of::<kvm_dirty_gfn>() as u32;
    let entries = entries.min(u32::try_from(bytes_max).unwrap_or(0) / entry);
    if entries < ENTRIES_MIN {
        return Ok(0);
    }
    let enable = kvm_enable_cap {
        cap: KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
        args: [u64::from(entries * entry), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&enable).map_err(call("preparing the rings of the dirty log"))?;
    Ok(entries)
}

/// See the module.
pub(super) struct RingLog {
    vm: Arc<VmFd>,
    /// The pages of each slot, by its id.
    slots: Vec<PageRange>,
    rings: Mutex<Rings>,
}

struct Rings {
    rings: Vec<Ring>,
    /// Pages found since the last harvest; none while the log is off.
    found: Option<PageBitmap>,
    /// Re-arming was interrupted since the log was started.
    forgetful: bool,
}

impl RingLog {
    pub(super) fn new(
        vm: Arc<VmFd>,
        slots: &[Slot],
        vcpus: &[VcpuFd],
        entries: u32,
    ) -> Result<Self, KvmError> {
        let rings =
            vcpus.iter().map(|vcpu| Ring::map(vcpu.as_raw_fd(), entries)).collect::<Result<_, _>>()?;
        let slots: Vec<PageRange> = slots.iter().map(|slot| slot.range).collect();
        Ok(Self { vm, slots, rings: Mutex::new(Rings { rings, found: None, forgetful: false }) })
    }

    /// Before the log is switched on: drops what an earlier one has left.
    pub(super) fn begin(&self) -> Result<(), KvmError> {
        let mut rings = self.rings();
        rings.found = Some(PageBitmap::covering(&self.slots));
        for ring in &mut rings.rings {
            ring.collect(|_, _| {});
            ring.written = 0;
        }
        self.rearm(&mut rings)?;
        // All pages are write-protected when the log is switched on.
        rings.forgetful = false;
        Ok(())
    }

    /// After it was switched off.
    pub(super) fn end(&self) {
        self.rings().found = None;
    }

    pub(super) fn harvest(&self, dirty: &mut PageBitmap) -> Result<(), KvmError> {
        let mut rings = self.rings();
        let Rings { rings: each, found, .. } = &mut *rings;
        each.iter_mut().for_each(|ring| self.collect(ring, found.as_mut()));
        if let Some(found) = found {
            self.slots.iter().flat_map(|range| found.runs(*range)).for_each(|run| dirty.insert_range(run));
            found.clear();
        }
        self.rearm(&mut rings)?;
        if rings.forgetful { Err(KvmError::LogInterrupted) } else { Ok(()) }
    }

    pub(super) fn make_room(&self, vcpu: u8) -> Result<(), KvmError> {
        let mut rings = self.rings();
        let Rings { rings: each, found, .. } = &mut *rings;
        if let Some(ring) = each.get_mut(usize::from(vcpu)) {
            self.collect(ring, found.as_mut());
        }
        self.rearm(&mut rings)
    }

    pub(super) fn written(&self) -> Vec<u64> {
        self.rings().rings.iter().map(|ring| ring.written).collect()
    }

    /// Moves a ring's pages to those found. KVM puts in a page as often as it writes it by itself, so that each counts once a
    /// harvest, for the vCPU in whose ring it was found first.
    fn collect(&self, ring: &mut Ring, found: Option<&mut PageBitmap>) {
        let Some(found) = found else { return ring.collect(|_, _| {}) };
        let mut written = 0;
        ring.collect(|slot, offset| {
            // Slots of guest RAM are all that have a log.
            if let Some(range) = self.slots.get(slot as usize).filter(|range| offset < range.pages) {
                written += u64::from(found.insert_new(Gfn(range.start.0 + offset)));
            }
        });
        ring.written += written;
    }

    fn rearm(&self, rings: &mut Rings) -> Result<(), KvmError> {
        let _signals_wait = SignalsWait::begin();
        loop {
            // SAFETY: it takes no argument, and changes only what KVM tracks.
            if unsafe { ioctl(&*self.vm, KVM_RESET_DIRTY_RINGS()) } >= 0 {
                return Ok(());
            }
            if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return Err(last_error("re-arming the dirty log"));
            }
            rings.forgetful = true;
        }
    }

    fn rings(&self) -> MutexGuard<'_, Rings> {
        self.rings.lock().expect("nobody panics with the rings")
    }
}

/// As long as it lives, this thread takes no signal.
struct SignalsWait {
    before: libc::sigset_t,
}

impl SignalsWait {
    fn begin() -> Self {
        // SAFETY: plain data, which the call fills in.
        let mut all: libc::sigset_t = unsafe { mem::zeroed() };
        let mut before = all;
        // SAFETY: all three point to what the calls read and write. They fail for bad arguments only.
        unsafe {
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        }
        Self { before }
    }
}

impl Drop for SignalsWait {
    fn drop(&mut self) {
        // SAFETY: the set is the one that `begin` was given.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, ptr::null_mut()) };
    }
}

/// One vCPU's ring, mapped.
struct Ring {
    entries: *mut kvm_dirty_gfn,
    count: u32,
    /// The entry that KVM fills next, counted from the beginning.
    next: u32,
    /// Pages that were found in it first, since the log was started.
    written: u64,
}

// SAFETY: the mapping belongs to the process, and is read by whoever holds the lock around the ring.
unsafe impl Send for Ring {}

impl Ring {
    fn map(vcpu: RawFd, count: u32) -> Result<Self, KvmError> {
        let offset = i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_SIZE_BYTES as i64;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let mapped =
            unsafe { libc::mmap(ptr::null_mut(), bytes(count), protection, libc::MAP_SHARED, vcpu, offset) };
        if mapped == libc::MAP_FAILED {
            return Err(last_error("mapping a ring of the dirty log"));
        }
        Ok(Self { entries: mapped.cast(), count, next: 0, written: 0 })
    }

    /// Takes out all pages that KVM has put in, each as a slot and an offset in it.
    fn collect(&mut self, mut page: impl FnMut(u32, u64)) {
        // As many as there are, however fast the vCPU goes on: the next call finds the rest.
        for _ in 0..self.count {
            // SAFETY: the index is below the count, and the mapping lives as long as `self`.
            let entry = unsafe { self.entries.add((self.next & (self.count - 1)) as usize) };
            // SAFETY: the field is aligned, and both sides access it atomically.
            let flags = unsafe { AtomicU32::from_ptr(ptr::addr_of_mut!((*entry).flags)) };
            if flags.load(Acquire) != DIRTY {
                return;
            }
            // SAFETY: KVM has filled in the entry before it was marked dirty, and leaves it alone until it is re-armed.
            let (slot, offset) = unsafe { ((*entry).slot, (*entry).offset) };
            page(slot, offset);
            flags.store(TO_REARM, Release);
            self.next = self.next.wrapping_add(1);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and not used any more.
        unsafe { libc::munmap(self.entries.cast(), bytes(self.count)) };
    }
}

const fn bytes(count: u32) -> usize {
    count as usize * size_of::<kvm_dirty_gfn>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_powers_of_two_and_bounded_together() {
        assert_eq!([1, 16, 17, 64].map(entries), [ENTRIES_MAX, ENTRIES_MAX, 1 << 15, 1 << 14]);
        for vcpus in 1..=u8::MAX {
            let entries = entries(vcpus);
            assert!(entries.is_power_of_two() && (ENTRIES_MIN..=ENTRIES_MAX).contains(&entries));
            assert!(entries * u32::from(vcpus) <= ALL_ENTRIES);
        }
    }

    /// A ring in this process's own memory, as KVM would share it.
    fn ring(count: u32) -> Ring {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), bytes(count), protection, flags, -1, 0) };
        assert_ne!(mapped, libc::MAP_FAILED);
        Ring { entries: mapped.cast(), count, next: 0, written: 0 }
    }

    fn put(ring: &Ring, index: u32, offset: u64) {
        // SAFETY: the index is in the ring, and nobody else uses it.
        unsafe { *ring.entries.add(index as usize) = kvm_dirty_gfn { flags: DIRTY, slot: 1, offset } };
    }

    fn flags(ring: &Ring) -> Vec<u32> {
        // SAFETY: as above.
        (0..ring.count as usize).map(|index| unsafe { (*ring.entries.add(index)).flags }).collect()
    }

    #[test]
    fn entries_are_taken_once_in_their_order_and_around_the_end() {
        let mut ring = ring(4);
        let taken = |ring: &mut Ring| {
            let mut pages = Vec::new();
            ring.collect(|slot, offset| pages.push((slot, offset)));
            pages
        };
        (0..3).for_each(|index| put(&ring, index, 10 + u64::from(index)));
        assert_eq!(taken(&mut ring), [(1, 10), (1, 11), (1, 12)]);
        assert_eq!(flags(&ring), [TO_REARM, TO_REARM, TO_REARM, 0]);
        assert_eq!(taken(&mut ring), []);
        // KVM has re-armed the first two, and goes on with them after the last.
        put(&ring, 3, 13);
        put(&ring, 0, 14);
        assert_eq!(taken(&mut ring), [(1, 13), (1, 14)]);
        assert_eq!(taken(&mut ring), [], "the others are still to be re-armed");
    }
}
