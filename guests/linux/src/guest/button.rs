//! The power button, as an input device of the kernel's ACPI button driver.

use std::fs::{self, File};
use std::io::Read;
use std::thread;

use crate::boot::{Power, power};

/// Size of `struct input_event` (linux/input.h): a 16-byte time, type, code, value.
const EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// Powers off once the button is pressed on any input device.
pub(super) fn watch() {
    let nodes = fs::read_dir("/dev/input").into_iter().flatten().flatten();
    for node in nodes.filter(|node| node.file_name().to_string_lossy().starts_with("event")) {
        let Ok(mut device) = File::open(node.path()) else { continue };
        thread::spawn(move || {
            let mut event = [0; EVENT_BYTES];
            while device.read_exact(&mut event).is_ok() {
                if is_press(&event) {
                    eprintln!("guest: the power button was pressed");
                    power(Power::Off);
                }
            }
        });
    }
}

fn is_press(event: &[u8; EVENT_BYTES]) -> bool {
    let half = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
    half(16) == EV_KEY && half(18) == KEY_POWER && event[20] != 0
}
