//! Time since boot, from the TSC, which ring 3 reads without an exit.
//!
//! Its frequency comes from KVM's clock page, which every KVM offers, PVM included; elsewhere (plain emulation) it is
//! measured against the PIT. The page stays registered, so a migration has to carry it.

use core::arch::x86_64::_rdtsc;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu::port;

/// Microseconds since boot.
pub type Micros = u64;

/// Microseconds per TSC tick, in units of 2^-64.
static SCALE: AtomicU64 = AtomicU64::new(0);

/// How often a vCPU's TSC was seen to have gone back.
static STEPS_BACK: AtomicU64 = AtomicU64::new(0);

pub fn steps_back() -> u64 {
    STEPS_BACK.load(Ordering::Relaxed)
}

/// One vCPU's clock. It never goes back, whatever a migration does to the TSC.
pub struct Clock {
    last: u64,
    ticks: u64,
}

impl Clock {
    pub fn start() -> Self {
        Self { last: timestamp(), ticks: 0 }
    }

    pub fn now(&mut self) -> Micros {
        let now = timestamp();
        if now < self.last {
            STEPS_BACK.fetch_add(1, Ordering::Relaxed);
        }
        self.ticks += now.saturating_sub(self.last);
        self.last = now;
        ((u128::from(self.ticks) * u128::from(SCALE.load(Ordering::Relaxed))) >> 64) as u64
    }
}

/// The raw TSC.
pub fn timestamp() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC, and CR4.TSD is clear.
    unsafe { _rdtsc() }
}

/// Waits without sleeping.
pub fn spin(duration: Micros) {
    let mut clock = Clock::start();
    while clock.now() < duration {
        core::hint::spin_loop();
    }
}

/// Finds the TSC's frequency. Answers it in kHz, and where it comes from.
pub fn calibrate() -> (u64, &'static str) {
    let (khz, source) = match CLOCK_PAGE.tsc_khz() {
        Some(khz) => (khz, "kvmclock"),
        None => (measure_khz(), "PIT"),
    };
    SCALE.store((1000_u128 * (1 << 64) / u128::from(khz)) as u64, Ordering::Relaxed);
    (khz, source)
}

/// `struct pvclock_vcpu_time_info` of Linux's pvclock-abi.h, written by KVM.
#[repr(C, align(64))]
struct ClockPage(UnsafeCell<[u32; 8]>);

// SAFETY: only KVM writes to it, and it is read by volatile reads.
unsafe impl Sync for ClockPage {}

#[unsafe(export_name = "clock_page")]
static CLOCK_PAGE: ClockPage = ClockPage(UnsafeCell::new([0; 8]));

impl ClockPage {
    /// As `pvclock_tsc_khz` of Linux computes it; `None` if there is no such page.
    fn tsc_khz(&self) -> Option<u64> {
        // SAFETY: the memory is valid; KVM may change it at any time, hence the volatile read.
        let words = unsafe { self.0.get().read_volatile() };
        let multiplier = u64::from(words[6]);
        let shift = words[7] as i8;
        let khz = (1_000_000_u64 << 32).checked_div(multiplier)?;
        Some(if shift < 0 { khz << -shift } else { khz >> shift })
    }
}

/// Counts TSC ticks while the PIT's channel 0 counts 1,193,182 a second.
fn measure_khz() -> u64 {
    const CHANNEL0: u16 = 0x40;
    const COMMAND: u16 = 0x43;
    const PIT_HZ: u64 = 1_193_182;
    const PIT_TICKS: u64 = PIT_HZ / 25;
    let count = || {
        port::write8(COMMAND, 0);
        let low = port::read8(CHANNEL0);
        u16::from_le_bytes([low, port::read8(CHANNEL0)])
    };
    // Mode 2, count 65536: wraps every 55 ms. Its interrupt is masked.
    port::write8(COMMAND, 0x34);
    port::write8(CHANNEL0, 0);
    port::write8(CHANNEL0, 0);
    let mut last = count();
    let start = timestamp();
    let mut elapsed = 0;
    while elapsed < PIT_TICKS {
        let now = count();
        elapsed += u64::from(last.wrapping_sub(now));
        last = now;
    }
    (timestamp() - start) * PIT_HZ / elapsed / 1000
}
