//! The VMClock: a page that tells the guest when its clock was disturbed.
//!
//! After a live migration the guest's TSC counts by another host's crystal, and its clock is off by what could not be told of how the two
//! hosts' clocks differ. A guest that looks here (Linux 6.13 and later, and whoever maps `/dev/vmclock0`) sees the disruption marker changed,
//! and calibrates anew at once instead of trusting what it had learned.
//!
//! The page is RAM that the memory map reserves, so that it moves with all else. Its layout is `struct vmclock_abi` of
//! Linux (`include/uapi/linux/vmclock-abi.h`), version 1. It says nothing of the time itself: a guest has kvmclock for that.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::{GuestRam, layout};

/// Size of the page, in bytes.
pub const PAGE_BYTES: usize = 4096;

const MAGIC: u32 = u32::from_le_bytes(*b"VCLK");
const VERSION: u16 = 1;
/// The page does not pair a counter with the time.
const COUNTER_INVALID: u8 = 0xff;

/// Offsets of the fields that are not zero.
const SIZE_AT: u64 = 4;
const VERSION_AT: u64 = 8;
const COUNTER_AT: u64 = 10;
const SEQUENCE_AT: u64 = 12;
const MARKER_AT: u64 = 16;

/// Writes the page of a guest that begins.
pub fn begin(ram: &GuestRam) -> Result<(), GuestMemoryError> {
    ram.write_slice(&[0; PAGE_BYTES], field(0))?;
    ram.write_obj(MAGIC, field(0))?;
    ram.write_obj(PAGE_BYTES as u32, field(SIZE_AT))?;
    ram.write_obj(VERSION, field(VERSION_AT))?;
    ram.write_obj(COUNTER_INVALID, field(COUNTER_AT))
}

/// Tells the guest, whose vCPUs stand, that its clock was disturbed. A page that the guest has made its own is left alone.
pub fn disrupt(ram: &GuestRam) -> Result<(), GuestMemoryError> {
    if ram.read_obj::<u32>(field(0))? != MAGIC {
        return Ok(());
    }
    let (sequence, marker): (u32, u64) = (ram.read_obj(field(SEQUENCE_AT))?, ram.read_obj(field(MARKER_AT))?);
    ram.write_obj(marker.wrapping_add(1), field(MARKER_AT))?;
    // Even: no update is under way, nor can a reader that was stopped in the middle take the old values for the new.
    ram.write_obj((sequence & !1).wrapping_add(2), field(SEQUENCE_AT))
}

fn field(at: u64) -> GuestAddress {
    GuestAddress(layout::VMCLOCK + at)
}
