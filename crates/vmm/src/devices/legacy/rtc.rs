//! The CMOS clock (MC146818), which gives the host's time in UTC.
//!
//! Guests read it once at boot. Setting it is accepted and ignored, and there is no alarm: a guest's clock is kept right
//! by kvmclock and by its own time service.

use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use godwit_migration::Section;

use crate::bus::BusDevice;
use crate::device::{Device, DeviceError, State};

/// The index port; the data port follows.
pub const BASE: u16 = 0x70;
/// See [`BASE`].
pub const PORTS: u64 = 2;
/// The register that holds the century; the FADT names it.
pub const CENTURY: u8 = 0x32;

const STATUS_A: u8 = 0xa;
const STATUS_B: u8 = 0xb;
const STATUS_D: u8 = 0xd;
/// The divider for a 32 kHz crystal.
const STATUS_A_RUNNING: u8 = 0x20;
/// 24-hour mode, BCD numbers.
const STATUS_B_24_HOURS: u8 = 0x02;
const STATUS_D_VALID: u8 = 0x80;
const INDEX_MASK: u8 = 0x7f;
const NAME: &str = "rtc";

/// The clock.
#[derive(Default)]
pub struct Rtc {
    selected: Mutex<u8>,
}

/// Which register the index port has selected.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct RtcState {
    #[prost(uint32, tag = "1")]
    selected: u32,
}

impl State for RtcState {
    const KIND: &'static str = "cmos-rtc";
    const VERSION: u16 = 1;
}

impl Rtc {
    fn selected(&self) -> std::sync::MutexGuard<'_, u8> {
        self.selected.lock().expect("no user of the clock panics")
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        data.fill(0xff);
        if let (1, Some(byte)) = (offset, data.first_mut()) {
            *byte = register(*self.selected(), since_1970);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Some(index)) = (offset, data.first()) {
            *self.selected() = index & INDEX_MASK;
        }
    }
}

/// What a register reads at a time given in seconds since 1970.
fn register(index: u8, since_1970: u64) -> u8 {
    let (days, second) = (since_1970 / 86_400, since_1970 % 86_400);
    let (year, month, day) = civil(days);
    let bcd = |number: u64| (((number / 10 % 10) << 4) | (number % 10)) as u8;
    match index {
        0 => bcd(second % 60),
        2 => bcd(second / 60 % 60),
        4 => bcd(second / 3600),
        // 1970 began on a Thursday; Sunday is 1.
        6 => bcd((days + 4) % 7 + 1),
        7 => bcd(day),
        8 => bcd(month),
        9 => bcd(year % 100),
        CENTURY => bcd(year / 100),
        STATUS_A => STATUS_A_RUNNING,
        STATUS_B => STATUS_B_24_HOURS,
        STATUS_D => STATUS_D_VALID,
        _ => 0,
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Years are counted from March, so that the leap day is the last of a year; 400 years have 146097 days.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (400 * era + year_of_era + u64::from(month <= 2), month, day)
}

impl Device for Rtc {
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
        Ok(RtcState { selected: (*self.selected()).into() }.to_section(NAME))
    }

    fn restore(&self, section: &Section) -> Result<(), DeviceError> {
        let selected = RtcState::from_section(section)?.selected;
        let index = u8::try_from(selected).ok().filter(|index| *index <= INDEX_MASK);
        let refused =
            || DeviceError { device: NAME.into(), reason: format!("there is no register {selected}") };
        *self.selected() = index.ok_or_else(refused)?;
        Ok(())
    }

    fn reset(&self) {
        *self.selected() = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_reads_the_calendar_in_bcd() {
        for (since_1970, expected) in [
            (0, [0x70, 0x01, 0x01, 0x05, 0x00, 0x00, 0x00, 0x19]),
            (951_782_399, [0x00, 0x02, 0x28, 0x02, 0x23, 0x59, 0x59, 0x20]),
            (951_782_400, [0x00, 0x02, 0x29, 0x03, 0x00, 0x00, 0x00, 0x20]),
            (4_102_444_799, [0x99, 0x12, 0x31, 0x05, 0x23, 0x59, 0x59, 0x20]),
        ] {
            let read = [9, 8, 7, 6, 4, 2, 0, CENTURY].map(|index| register(index, since_1970));
            assert_eq!(read, expected, "{since_1970}");
        }
    }

    #[test]
    fn a_register_that_does_not_exist_cannot_be_restored() {
        let section = RtcState { selected: 0x80 }.to_section(NAME);
        assert!(Rtc::default().restore(&section).is_err());
    }
}
