//! What the compiler takes for granted: memory functions, and what happens when all is lost.

use core::arch::asm;
use core::fmt;
use core::panic::PanicInfo;

use crate::cpu;
use crate::fault;

#[panic_handler]
fn on_panic(info: &PanicInfo<'_>) -> ! {
    stop(format_args!("{info}"))
}

/// Where handlers.s goes, back in ring 3, after an exception that is not a call to ring 0.
#[unsafe(no_mangle)]
extern "C" fn on_exception(vector: u64, code: u64, at: u64, address: u64) -> ! {
    stop(format_args!("exception {vector} (code {code:#x}) at {at:#x}, address {address:#x}"))
}

/// The end of this vCPU. It counts as an error of the memory, so that the report of those that are left shows it.
fn stop(why: fmt::Arguments<'_>) -> ! {
    fault::MEMORY.add(why);
    let cpu = cpu::all().next();
    loop {
        if let Some(cpu) = cpu {
            cpu.clear_wake();
            cpu.halt();
        }
    }
}

/// The precompiled `core` names it; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { asm!("rep movsb", inout("rcx") length => _, inout("rdi") to => _, inout("rsi") from => _) };
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= length {
        // SAFETY: going up overwrites nothing that is still to be read.
        return unsafe { memcpy(to, from, length) };
    }
    // SAFETY: the caller's promise; going down overwrites nothing that is still to be read.
    unsafe {
        asm!(
            "std", "rep movsb", "cld",
            inout("rcx") length => _, inout("rdi") to.wrapping_add(length).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(length).wrapping_sub(1) => _
        );
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, length: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { asm!("rep stosb", inout("rcx") length => _, inout("rdi") to => _, in("al") value as u8) };
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    for i in 0..length {
        // SAFETY: the caller's promise.
        let (left, right) = unsafe { (*left.add(i), *right.add(i)) };
        if left != right {
            return i32::from(left) - i32::from(right);
        }
    }
    0
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(left, right, length) }
}
