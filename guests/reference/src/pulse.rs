//! The pulse on the serial console, and the sweep that can be asked for there; see `godwit_guest_contract::pulse`.

use core::fmt::Write;

use godwit_guest_contract::pulse::{PULSE_BYTES_MAX, PULSE_INTERVAL_US, SWEEP};

use crate::clock::Micros;
use crate::console;
use crate::report::Heart;
use crate::text::Text;
use crate::workload;

/// Bytes written between two looks at everything else. Each is a VM exit: a whole line at once would be a gap itself.
const BYTES_PER_STEP: usize = 2;
const END_BYTES: usize = 2;

/// Prints the pulse, a few bytes at a time.
pub struct Beacon {
    line: Text<{ PULSE_BYTES_MAX + END_BYTES }>,
    /// How much of the line has been written.
    position: usize,
    next: Micros,
}

impl Default for Beacon {
    fn default() -> Self {
        Self { line: Text::new(), position: 0, next: 0 }
    }
}

impl Beacon {
    pub fn step(&mut self, now: Micros, heart: &mut Heart) {
        let left = &self.line.as_str().as_bytes()[self.position..];
        if !left.is_empty() {
            let now_written = &left[..left.len().min(BYTES_PER_STEP)];
            now_written.iter().for_each(|byte| console::byte(*byte));
            self.position += now_written.len();
        } else if now >= self.next {
            self.next = now + PULSE_INTERVAL_US;
            self.line = Text::new();
            self.position = 0;
            if console::typed() == Some(SWEEP) {
                workload::sweep();
            }
            // There is room for the longest pulse.
            let _ = write!(self.line, "{}\r\n", heart.pulse(now));
        }
    }
}
