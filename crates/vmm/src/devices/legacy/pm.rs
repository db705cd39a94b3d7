//! ACPI fixed hardware: power button, power-off and reset (ACPI 6.5, section 4.8.3).

use std::sync::{Arc, Mutex};

use super::Platform;
use crate::bus::BusDevice;
use crate::device::{Device, DeviceError, State};
use godwit_migration::Section;

/// First port of the block and how many there are.
pub const BASE: u16 = 0x600;
/// See [`BASE`].
pub const PORTS: u64 = 16;
/// PM1 event registers: status, then enable, two bytes each.
pub const EVENTS: u16 = BASE;
/// PM1 control register, two bytes.
pub const CONTROL: u16 = BASE + 4;
/// Writing [`RESET_VALUE`] here resets the machine.
pub const RESET: u16 = BASE + 8;
/// See [`RESET`].
pub const RESET_VALUE: u8 = 1;
/// What `_S5` says to write into the sleep type for power-off.
pub const SLEEP_TYPE_S5: u8 = 5;
/// The interrupt (GSI) of ACPI events: level triggered, active high.
pub const SCI: u32 = 9;

const POWER_BUTTON: u16 = 1 << 8;
const SCI_ENABLED: u16 = 1;
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_SHIFT: u16 = 10;
const NAME: &str = "acpi-pm";

/// The level of the SCI line.
pub type SciLine = Box<dyn Fn(bool) + Send + Sync>;

/// The PM1 block and the reset register.
pub struct Pm {
    platform: Arc<dyn Platform>,
    sci: SciLine,
    registers: Mutex<PmState>,
}

/// The registers.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct PmState {
    #[prost(uint32, tag = "1")]
    status: u32,
    #[prost(uint32, tag = "2")]
    enable: u32,
    #[prost(uint32, tag = "3")]
    control: u32,
}

impl State for PmState {
    const KIND: &'static str = "acpi-pm";
    const VERSION: u16 = 1;
}

impl Pm {
    /// A block that is wired to `platform` and raises `sci`.
    pub fn new(platform: Arc<dyn Platform>, sci: SciLine) -> Self {
        Self { platform, sci, registers: Mutex::default() }
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.change(|registers| registers.status |= u32::from(POWER_BUTTON));
    }

    fn change(&self, change: impl FnOnce(&mut PmState)) {
        let mut registers = self.registers.lock().expect("no user of the registers panics");
        change(&mut registers);
        (self.sci)(registers.status & registers.enable != 0);
    }

    fn write_byte(&self, offset: u64, value: u8) {
        let (high, value) = (8 * (offset & 1), u32::from(value));
        let merge = |old: u32| old & !(0xff << high) | value << high;
        match offset {
            0 | 1 => self.change(|registers| registers.status &= !(value << high)),
            2 | 3 => self.change(|registers| registers.enable = merge(registers.enable)),
            4 | 5 => {
                let mut control = 0;
                self.change(|registers| {
                    control = merge(registers.control) as u16;
                    // Sleep enable is write-only.
                    registers.control = (control & !SLEEP_ENABLE).into();
                });
                let asked = control & SLEEP_ENABLE != 0;
                if asked && control >> SLEEP_TYPE_SHIFT & 7 == u16::from(SLEEP_TYPE_S5) {
                    self.platform.power_off();
                }
            }
            8 if value == u32::from(RESET_VALUE) => self.platform.reset(),
            _ => {}
        }
    }
}

impl BusDevice for Pm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = *self.registers.lock().expect("no user of the registers panics");
        let words = [registers.status, registers.enable, registers.control | u32::from(SCI_ENABLED)];
        for (at, byte) in (offset..).zip(data) {
            *byte = words.get((at / 2) as usize).map_or(0, |word| (word >> (8 * (at & 1))) as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            self.write_byte(at, *byte);
        }
    }
}

impl Device for Pm {
    fn name(&self) -> &str {
        NAME
    }

    fn pause(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn save(&self) -> Result<Section, DeviceError> {
        Ok(self.registers.lock().expect("no user of the registers panics").to_section(NAME))
    }

    fn restore(&self, section: &Section) -> Result<(), DeviceError> {
        let saved = PmState::from_section(section)?;
        if [saved.status, saved.enable, saved.control].iter().any(|register| *register > u16::MAX.into()) {
            return Err(DeviceError {
                device: NAME.into(),
                reason: "a saved register has more than 16 bits".into(),
            });
        }
        self.change(|registers| *registers = saved);
        Ok(())
    }

    fn reset(&self) {
        self.change(|registers| *registers = PmState::default());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Asked {
        resets: AtomicU32,
        power_offs: AtomicU32,
    }

    impl Platform for Asked {
        fn reset(&self) {
            self.resets.fetch_add(1, Ordering::Relaxed);
        }
        fn power_off(&self) {
            self.power_offs.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn pm() -> (Pm, Arc<Asked>, Arc<AtomicBool>) {
        let (asked, level) = (Arc::new(Asked::default()), Arc::new(AtomicBool::new(false)));
        let line = Arc::clone(&level);
        (Pm::new(asked.clone(), Box::new(move |high| line.store(high, Ordering::Relaxed))), asked, level)
    }

    fn read(pm: &Pm, offset: u64) -> u16 {
        let mut data = [0; 2];
        pm.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    #[test]
    fn the_power_button_interrupts_once_enabled_and_until_acknowledged() {
        let (pm, _, level) = pm();
        pm.press_power_button();
        assert!(!level.load(Ordering::Relaxed), "not enabled yet");
        pm.write(2, &POWER_BUTTON.to_le_bytes());
        assert!(level.load(Ordering::Relaxed));
        assert_eq!(read(&pm, 0), POWER_BUTTON);
        pm.write(0, &POWER_BUTTON.to_le_bytes());
        assert!(!level.load(Ordering::Relaxed));
        assert_eq!(read(&pm, 0), 0);
    }

    #[test]
    fn only_sleep_type_5_powers_off_and_only_the_reset_value_resets() {
        let (pm, asked, _) = pm();
        assert_eq!(read(&pm, 4) & SCI_ENABLED, SCI_ENABLED);
        pm.write(4, &(5u16 << SLEEP_TYPE_SHIFT).to_le_bytes());
        pm.write(4, &(3u16 << SLEEP_TYPE_SHIFT | SLEEP_ENABLE).to_le_bytes());
        assert_eq!(asked.power_offs.load(Ordering::Relaxed), 0);
        pm.write(4, &(5u16 << SLEEP_TYPE_SHIFT | SLEEP_ENABLE).to_le_bytes());
        assert_eq!(asked.power_offs.load(Ordering::Relaxed), 1);
        pm.write(8, &[0]);
        pm.write(8, &[RESET_VALUE]);
        assert_eq!(asked.resets.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_press_that_the_guest_has_not_seen_moves_with_it() {
        let (source, ..) = pm();
        source.write(2, &POWER_BUTTON.to_le_bytes());
        source.press_power_button();
        let (destination, _, level) = pm();
        destination.restore(&source.save().unwrap()).unwrap();
        assert!(level.load(Ordering::Relaxed));
        assert_eq!(read(&destination, 0), POWER_BUTTON);
    }
}
