//! The local APIC in xAPIC mode. Every vCPU sees its own at the same address.

use crate::clock::{self, Micros};
use crate::cpu::{VECTOR_IPI, VECTOR_SPURIOUS, VECTOR_TICK};
use crate::mmio;

const BASE: u64 = 0xfee0_0000;
const ID: u64 = 0x20;
const SPURIOUS: u64 = 0xf0;
const COMMAND_LOW: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const TIMER: u64 = 0x320;
const TIMER_INITIAL: u64 = 0x380;
const TIMER_DIVIDE: u64 = 0x3e0;

const ENABLE: u32 = 1 << 8;
const PERIODIC: u32 = 1 << 17;
const DIVIDE_BY_1: u32 = 0b1011;
const ASSERT: u32 = 1 << 14;
const INIT: u32 = 5 << 8;
const STARTUP: u32 = 6 << 8;

/// The rate of KVM's virtual APIC bus, and of QEMU's.
const BUS_CYCLES_PER_US: u64 = 1000;

/// This vCPU's number.
pub fn id() -> u32 {
    read(ID) >> 24
}

/// Lets interrupts through, and starts a periodic tick.
pub fn start(period: Micros) {
    write(SPURIOUS, ENABLE | u32::from(VECTOR_SPURIOUS));
    write(TIMER_DIVIDE, DIVIDE_BY_1);
    write(TIMER, PERIODIC | u32::from(VECTOR_TICK));
    write(TIMER_INITIAL, (period * BUS_CYCLES_PER_US) as u32);
}

/// Interrupts another vCPU, or this one.
pub fn interrupt(apic_id: u32) {
    command(apic_id, ASSERT | u32::from(VECTOR_IPI));
}

/// Resets a vCPU and has it run the real-mode code of that page.
pub fn start_up(apic_id: u32, page: u8) {
    const AFTER_INIT: Micros = 1000;
    const BETWEEN: Micros = 200;
    command(apic_id, ASSERT | INIT);
    clock::spin(AFTER_INIT);
    command(apic_id, ASSERT | STARTUP | u32::from(page));
    clock::spin(BETWEEN);
    // As the specification asks; a vCPU that runs already ignores it.
    command(apic_id, ASSERT | STARTUP | u32::from(page));
}

fn command(apic_id: u32, what: u32) {
    write(COMMAND_HIGH, apic_id << 24);
    write(COMMAND_LOW, what);
}

fn read(register: u64) -> u32 {
    // SAFETY: the LAPIC's registers are mapped, and none of those used here moves memory.
    unsafe { mmio::read32(BASE + register) }
}

fn write(register: u64, value: u32) {
    // SAFETY: the LAPIC's registers are mapped; interrupts go to handlers that keep to their own memory.
    unsafe { mmio::write32(BASE + register, value) };
}
