//! Starting the other vCPUs, and the interrupts that go round among them.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::clock::{Clock, Micros};
use crate::cpu::{self, Cpu};
use crate::workload::Share;
use crate::{lapic, say};

/// Where SIPI starts a vCPU; free RAM on every PC.
const TRAMPOLINE: u64 = 0x8000;
const START_TIMEOUT: Micros = 1_000_000;
/// Least time between two interrupts of one vCPU to its neighbour.
const IPI_INTERVAL: Micros = 20_000;

/// What the boot vCPU hands to the one that it starts.
static HANDOVER: Handover = Handover { share: UnsafeCell::new(None), taken: AtomicBool::new(false) };

struct Handover {
    share: UnsafeCell<Option<Share>>,
    taken: AtomicBool,
}

// SAFETY: the boot vCPU writes `share` while no other runs `take`, and waits for `taken` before the next.
unsafe impl Sync for Handover {}

/// Starts the vCPU with this LAPIC number, which then calls [`take`]. False if it does not come.
pub fn start(cpu: &'static Cpu, apic_id: u32, share: Share, clock: &mut Clock) -> bool {
    unsafe extern "C" {
        static ap_cpu: AtomicU32;
        static ap_trampoline: u8;
        static ap_trampoline_end: u8;
    }
    cpu.apic_id.store(apic_id, Ordering::Relaxed);
    let address = u32::try_from(core::ptr::from_ref(cpu) as u64).expect("vCPUs lie below 4 GiB");
    // SAFETY: the trampoline lies between its two labels, its page is RAM that nobody uses any more, and the vCPU that
    // will read `ap_cpu` and `share` has not been started.
    unsafe {
        let length = (&raw const ap_trampoline_end) as usize - (&raw const ap_trampoline) as usize;
        core::ptr::copy_nonoverlapping(&raw const ap_trampoline, TRAMPOLINE as *mut u8, length);
        ap_cpu.store(address, Ordering::Relaxed);
        *HANDOVER.share.get() = Some(share);
    }
    HANDOVER.taken.store(false, Ordering::Release);
    lapic::start_up(apic_id, (TRAMPOLINE >> 12) as u8);
    let deadline = clock.now() + START_TIMEOUT;
    while !HANDOVER.taken.load(Ordering::Acquire) {
        if clock.now() > deadline {
            say!("ERROR: the vCPU with LAPIC {apic_id} does not start");
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// Whether all vCPUs have been started.
static ALL_STARTED: AtomicBool = AtomicBool::new(false);

/// Lets the vCPUs that were started begin their work: no more will come.
pub fn release() {
    ALL_STARTED.store(true, Ordering::Release);
}

/// Waits for [`release`].
pub fn wait(cpu: &Cpu) {
    while !ALL_STARTED.load(Ordering::Acquire) {
        cpu.clear_wake();
        cpu.halt();
    }
}

/// Registers the vCPU that was just started, and takes over what was meant for it.
pub fn take(cpu: &'static Cpu) -> Share {
    // SAFETY: the boot vCPU has written it before it started this one, and waits.
    let share = unsafe { &mut *HANDOVER.share.get() }.take().expect("each vCPU is started with a share");
    cpu::register(cpu);
    HANDOVER.taken.store(true, Ordering::Release);
    share
}

/// Interrupts from one vCPU to the next, the last to the first. The next is sent when the one before has arrived, so
/// one that gets lost stops the neighbour's counter for good.
pub struct Ring {
    sent: u64,
    next_send: Micros,
}

impl Ring {
    pub const fn new() -> Self {
        Self { sent: 0, next_send: 0 }
    }

    pub fn step(&mut self, now: Micros, cpu: &Cpu) {
        if now < self.next_send {
            return;
        }
        let next = (cpu.index.load(Ordering::Relaxed) + 1) % cpu::count();
        let neighbour = cpu::all().nth(next).expect("an index below the count");
        if neighbour.counters.ipis.load(Ordering::Relaxed) == self.sent {
            self.sent += 1;
            self.next_send = now + IPI_INTERVAL;
            lapic::interrupt(neighbour.apic_id.load(Ordering::Relaxed));
        }
    }
}
