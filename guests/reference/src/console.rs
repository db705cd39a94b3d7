//! The serial console at COM1, for a short boot log and the first error: each byte is a VM exit.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu::port;

const COM1: u16 = 0x3f8;
const LINE_CONTROL: u16 = COM1 + 3;
const MODEM_CONTROL: u16 = COM1 + 4;
const LINE_STATUS: u16 = COM1 + 5;
const DATA_READY: u8 = 1;

/// 8 bits, no parity; the speed means nothing to a virtual port.
pub fn initialise() {
    port::write8(LINE_CONTROL, 3);
    port::write8(MODEM_CONTROL, 3);
}

/// Writes one line to the console.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => { $crate::console::line(format_args!($($argument)*)) };
}

/// See [`say!`].
pub fn line(line: fmt::Arguments<'_>) {
    static BUSY: AtomicBool = AtomicBool::new(false);
    while BUSY.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    // Writing to a port cannot fail.
    let _ = writeln!(Port, "godwit: {line}\r");
    BUSY.store(false, Ordering::Release);
}

/// Writes one byte of a line that takes its time. Another line may get between two bytes.
pub fn byte(byte: u8) {
    port::write8(COM1, byte);
}

/// What was typed. Asking is a VM exit.
pub fn typed() -> Option<u8> {
    (port::read8(LINE_STATUS) & DATA_READY != 0).then(|| port::read8(COM1))
}

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| port::write8(COM1, byte));
        Ok(())
    }
}
