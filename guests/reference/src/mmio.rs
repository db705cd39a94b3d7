//! Device registers. Plain moves, which every instruction emulator knows.

use core::arch::asm;

/// Reads a register.
///
/// # Safety
/// `address` is a mapped device register of this width, and reading it does not disturb memory.
pub unsafe fn read8(address: u64) -> u8 {
    let value;
    // SAFETY: the caller's promise.
    unsafe { asm!("mov {}, byte ptr [{}]", out(reg_byte) value, in(reg) address, options(nostack)) };
    value
}

/// See [`read8`].
///
/// # Safety
/// As [`read8`].
pub unsafe fn read16(address: u64) -> u16 {
    let value;
    // SAFETY: the caller's promise.
    unsafe { asm!("mov {:x}, word ptr [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

/// See [`read8`].
///
/// # Safety
/// As [`read8`].
pub unsafe fn read32(address: u64) -> u32 {
    let value;
    // SAFETY: the caller's promise.
    unsafe { asm!("mov {:e}, dword ptr [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

/// Writes a register.
///
/// # Safety
/// `address` is a mapped device register of this width, and writing `value` makes the device touch only memory that was
/// given to it.
pub unsafe fn write8(address: u64, value: u8) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mov byte ptr [{}], {}", in(reg) address, in(reg_byte) value, options(nostack)) };
}

/// See [`write8`].
///
/// # Safety
/// As [`write8`].
pub unsafe fn write16(address: u64, value: u16) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mov word ptr [{}], {:x}", in(reg) address, in(reg) value, options(nostack)) };
}

/// See [`write8`].
///
/// # Safety
/// As [`write8`].
pub unsafe fn write32(address: u64, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mov dword ptr [{}], {:e}", in(reg) address, in(reg) value, options(nostack)) };
}
