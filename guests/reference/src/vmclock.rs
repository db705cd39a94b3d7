//! The VMClock of the machine type `godwit-1`, a page at a fixed address: how often the clock was disturbed.

use core::ptr::read_volatile;
use core::sync::atomic::{Ordering, fence};

const PAGE: u64 = 0xd_f000;
const MAGIC: u32 = u32::from_le_bytes(*b"VCLK");
const SEQUENCE_AT: u64 = 12;
const MARKER_AT: u64 = 16;

/// The disruption marker; none on a machine without the page.
pub fn disruptions() -> Option<u64> {
    // SAFETY: on any machine the page is mapped, and reading it changes nothing.
    let read = |at: u64| unsafe { read_volatile((PAGE + at) as *const u32) };
    if read(0) != MAGIC {
        return None;
    }
    loop {
        let before = read(SEQUENCE_AT);
        fence(Ordering::Acquire);
        let marker = u64::from(read(MARKER_AT)) | u64::from(read(MARKER_AT + 4)) << 32;
        fence(Ordering::Acquire);
        if before & 1 == 0 && read(SEQUENCE_AT) == before {
            return Some(marker);
        }
    }
}
