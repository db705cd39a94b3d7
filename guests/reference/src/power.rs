//! Turning the machine off, and hearing its power button, by the fixed hardware of ACPI.

use crate::acpi::{self, Acpi};
use crate::bytes::Bytes;
use crate::clock::{self, Micros};
use crate::cpu::port;
use crate::say;

const POWER_BUTTON: u16 = 1 << 8;
const SLEEP_ENABLE: u16 = 1 << 13;
const BUTTON_INTERVAL: Micros = 100_000;
const OFF_TIMEOUT: Micros = 1_000_000;

/// The machine's switch.
pub struct Power {
    /// Port that takes the sleep type, and the value that means off.
    off: Option<(u16, u16)>,
    /// Status port with the button's bit.
    button: Option<u16>,
    next_look: Micros,
}

impl Power {
    /// Looks it up in the FADT and in the DSDT's `_S5_`. Without either the machine stays on.
    pub fn new(acpi: &Acpi) -> Self {
        let fadt = acpi.find(b"FACP");
        let off = fadt.and_then(|fadt| {
            let control = u16::try_from(fadt.u32(64)).ok().filter(|port| *port != 0)?;
            Some((control, sleep_type(acpi::table(fadt.u32(40).into()))? << 10 | SLEEP_ENABLE))
        });
        let button = fadt.and_then(|fadt| {
            let status = u16::try_from(fadt.u32(56)).ok().filter(|port| *port != 0)?;
            port::write16(status + u16::from(fadt.u8(88)) / 2, POWER_BUTTON);
            Some(status)
        });
        Self { off, button, next_look: 0 }
    }

    /// Turns the machine off if its button was pressed.
    pub fn step(&mut self, now: Micros) {
        let Some(status) = self.button.filter(|_| now >= self.next_look) else { return };
        self.next_look = now + BUTTON_INTERVAL;
        if port::read16(status) & POWER_BUTTON != 0 {
            port::write16(status, POWER_BUTTON);
            self.off();
        }
    }

    /// Turns the machine off, if it can be.
    pub fn off(&self) {
        say!("power off");
        if let Some((port, value)) = self.off {
            port::write16(port, value);
            clock::spin(OFF_TIMEOUT);
        }
        say!("the machine stays on");
    }
}

/// The first number in the package `_S5_`: the sleep type of soft off.
fn sleep_type(dsdt: Bytes) -> Option<u16> {
    const PACKAGE: u8 = 0x12;
    const BYTE_PREFIX: u8 = 0x0a;
    let code = dsdt.as_slice();
    let name = code.windows(5).position(|bytes| bytes == [b'_', b'S', b'5', b'_', PACKAGE])?;
    let length = name + 5;
    let first = length + 1 + usize::from(code.get(length)? >> 6) + 1;
    match *code.get(first)? {
        BYTE_PREFIX => code.get(first + 1).map(|value| u16::from(*value)),
        // ZeroOp and OneOp are their own values.
        value @ (0 | 1) => Some(value.into()),
        _ => None,
    }
}
