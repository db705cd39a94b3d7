//! A vCPU: its memory, its interrupts, and its calls from ring 3 into ring 0.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::workload::Tally;

/// Most vCPUs that are used.
pub const CPUS_MAX: usize = 64;

/// Interrupt vectors.
pub const VECTOR_TICK: u8 = 0x40;
pub const VECTOR_IPI: u8 = 0x41;
pub const VECTOR_DEVICE: u8 = 0x42;
pub const VECTOR_SPURIOUS: u8 = 0xff;

const USER_STACK_BYTES: usize = 128 << 10;
const GATE_STACK_BYTES: usize = 4 << 10;
const INTERRUPT_STACK_BYTES: usize = 4 << 10;

/// All that belongs to one vCPU. All zero is its valid first state. Lies below 4 GiB.
#[repr(C, align(64))]
pub struct Cpu {
    user_stack: Raw<USER_STACK_BYTES>,
    gate_stack: Raw<GATE_STACK_BYTES>,
    interrupt_stack: Raw<INTERRUPT_STACK_BYTES>,
    pub counters: Counters,
    gdt: Raw<80>,
    tss: Raw<104>,
    /// Its place among the vCPUs, from 0.
    pub index: AtomicUsize,
    /// Its LAPIC's number.
    pub apic_id: AtomicU32,
    pub tally: Tally,
}

/// Interrupts, counted by ring 0.
#[repr(C, align(16))]
pub struct Counters {
    pub ticks: AtomicU64,
    pub ipis: AtomicU64,
    pub device: AtomicU64,
    /// Set by every interrupt, cleared before looking for work.
    wake: AtomicU32,
}

/// Memory that only ring 0 and assembly touch.
struct Raw<const N: usize>(UnsafeCell<[u8; N]>);

// SAFETY: Rust code never accesses what is inside.
unsafe impl<const N: usize> Sync for Raw<N> {}

impl<const N: usize> Raw<N> {
    const fn zero() -> Self {
        Self(UnsafeCell::new([0; N]))
    }
}

/// The vCPU that boots.
#[unsafe(export_name = "boot_cpu")]
static BOOT_CPU: Cpu = Cpu {
    user_stack: Raw::zero(),
    gate_stack: Raw::zero(),
    interrupt_stack: Raw::zero(),
    counters: Counters {
        ticks: AtomicU64::new(0),
        ipis: AtomicU64::new(0),
        device: AtomicU64::new(0),
        wake: AtomicU32::new(0),
    },
    gdt: Raw::zero(),
    tss: Raw::zero(),
    index: AtomicUsize::new(0),
    apic_id: AtomicU32::new(0),
    tally: Tally::new(),
};

static CPUS: [AtomicPtr<Cpu>; CPUS_MAX] = [const { AtomicPtr::new(core::ptr::null_mut()) }; CPUS_MAX];
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Adds a vCPU that runs.
pub fn register(cpu: &'static Cpu) {
    let index = COUNT.load(Ordering::Relaxed);
    cpu.index.store(index, Ordering::Relaxed);
    CPUS[index].store(core::ptr::from_ref(cpu).cast_mut(), Ordering::Release);
    COUNT.store(index + 1, Ordering::Release);
}

/// The vCPUs that run, by index.
pub fn all() -> impl Iterator<Item = &'static Cpu> {
    CPUS[..count()].iter().map(|slot| {
        // SAFETY: below `COUNT` every pointer comes from a `&'static Cpu`.
        unsafe { &*slot.load(Ordering::Acquire) }
    })
}

/// How many vCPUs run.
pub fn count() -> usize {
    COUNT.load(Ordering::Acquire)
}

impl Cpu {
    /// To be called before looking for work, so that [`Cpu::halt`] does not sleep over work that came meanwhile.
    pub fn clear_wake(&self) {
        self.counters.wake.store(0, Ordering::SeqCst);
    }

    /// Sleeps until an interrupt, or not at all if one has come since [`Cpu::clear_wake`].
    pub fn halt(&self) {
        let wake = self.counters.wake.as_ptr();
        // SAFETY: ring 0 reads `wake`, sleeps and returns; no register changes but the flags.
        unsafe { asm!("ud2", in("eax") CALL_HALT, in("rdx") wake) };
    }
}

const CALL: u32 = 0x60d7_1700;
const CALL_HALT: u32 = CALL;
const CALL_OUT8: u32 = CALL + 1;
const CALL_OUT16: u32 = CALL + 2;
const CALL_IN8: u32 = CALL + 3;
const CALL_IN16: u32 = CALL + 4;

/// Port I/O, by calls to ring 0.
pub mod port {
    use super::*;

    pub fn write8(port: u16, value: u8) {
        call(CALL_OUT8, port, value.into());
    }

    pub fn write16(port: u16, value: u16) {
        call(CALL_OUT16, port, value.into());
    }

    pub fn read8(port: u16) -> u8 {
        call(CALL_IN8, port, 0) as u8
    }

    pub fn read16(port: u16) -> u16 {
        call(CALL_IN16, port, 0) as u16
    }

    fn call(number: u32, port: u16, value: u32) -> u32 {
        let result;
        // SAFETY: ring 0 accesses the port and changes EAX alone. No port reaches this program's memory.
        unsafe { asm!("ud2", inout("eax") number => result, in("edx") u32::from(port), in("ecx") value) };
        result
    }
}

/// Lays the table that leads interrupts and exceptions to ring 0. Before this, an interrupt is the end.
pub fn install_handlers() {
    unsafe extern "C" {
        static exception_handlers: [u64; 22];
        fn on_tick();
        fn on_ipi();
        fn on_device();
        fn on_spurious();
    }
    // SAFETY: a constant table in handlers.s.
    let exceptions = unsafe { &exception_handlers };
    for (vector, handler) in exceptions.iter().enumerate() {
        // Calls to ring 0 may sleep, and interrupts come in their sleep: they need a stack of their own.
        let stack = if vector == 6 { 0 } else { 1 };
        set_gate(vector, *handler, stack);
    }
    set_gate(VECTOR_TICK.into(), on_tick as *const () as u64, 1);
    set_gate(VECTOR_IPI.into(), on_ipi as *const () as u64, 1);
    set_gate(VECTOR_DEVICE.into(), on_device as *const () as u64, 1);
    set_gate(VECTOR_SPURIOUS.into(), on_spurious as *const () as u64, 1);
}

#[repr(C, align(16))]
struct Idt([AtomicU64; 512]);

#[unsafe(export_name = "idt")]
static IDT: Idt = Idt([const { AtomicU64::new(0) }; 512]);

/// An interrupt gate to ring 0, on the stack of that number in the TSS (0: RSP0).
fn set_gate(vector: usize, handler: u64, stack: u64) {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e;
    const CODE64: u64 = 0x10;
    let low = handler & 0xffff | CODE64 << 16 | stack << 32 | PRESENT_INTERRUPT_GATE << 40;
    IDT.0[vector * 2 + 1].store(handler >> 32, Ordering::Relaxed);
    IDT.0[vector * 2].store(low | (handler >> 16 & 0xffff) << 48, Ordering::Release);
}

global_asm!(
    include_str!("boot.s"),
    gdt = const offset_of!(Cpu, gdt),
    tss = const offset_of!(Cpu, tss),
    counters = const offset_of!(Cpu, counters),
    user_stack_top = const offset_of!(Cpu, user_stack) + USER_STACK_BYTES,
    gate_stack_top = const offset_of!(Cpu, gate_stack) + GATE_STACK_BYTES,
    options(att_syntax)
);

global_asm!(
    include_str!("handlers.s"),
    ticks = const offset_of!(Counters, ticks),
    ipis = const offset_of!(Counters, ipis),
    device = const offset_of!(Counters, device),
    wake = const offset_of!(Counters, wake),
    call_halt = const CALL_HALT,
    call_out8 = const CALL_OUT8,
    call_out16 = const CALL_OUT16,
    call_in8 = const CALL_IN8,
    call_in16 = const CALL_IN16,
    options(att_syntax)
);

const _: () = assert!(offset_of!(Cpu, counters) == offset_of!(Cpu, interrupt_stack) + INTERRUPT_STACK_BYTES);
const _: () = assert!(size_of::<Cpu>() < 1 << 20);
