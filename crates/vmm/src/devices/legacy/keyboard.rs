//! The keyboard controller's one function that outlived it: its output line resets the machine.

use std::sync::Arc;

use super::Platform;
use crate::bus::BusDevice;

/// The controller's status and command port.
pub const PORT: u16 = 0x64;
/// "Pulse output line 0", which is wired to reset.
const PULSE_RESET: u8 = 0xfe;

/// A keyboard controller without keyboard.
pub struct Keyboard {
    platform: Arc<dyn Platform>,
}

impl Keyboard {
    /// Resets through `platform`.
    pub fn new(platform: Arc<dyn Platform>) -> Self {
        Self { platform }
    }
}

impl BusDevice for Keyboard {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Input buffer empty: ready for a command. All ones would keep Linux waiting for it.
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data == [PULSE_RESET] {
            self.platform.reset();
        }
    }
}
