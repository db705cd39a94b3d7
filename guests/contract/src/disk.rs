//! Numbered records on the first disk. One that the guest has counted as acknowledged was flushed first, so whoever
//! reads the disk afterwards must find it, unless a later record has taken its slot.
//!
//! | bytes | little-endian content |
//! | --- | --- |
//! | 0..8 | `GODWITRC` |
//! | 8..16 | sequence number, from 1 |
//! | 16..24 | capacity: the number of slots on the disk |
//! | 24..504 | filler: byte `i` of the record is `(sequence * 31 + i) mod 256` |
//! | 504..512 | FNV-1a-64 over bytes 0..504 |
//!
//! Record `s` lies in slot `s % capacity`, at byte `512 * slot`.

use core::fmt;

use crate::fnv1a_64;

/// Size of a record in bytes: one sector.
pub const RECORD_BYTES: usize = 512;

/// Most slots that a disk is given.
pub const CAPACITY_SLOTS_MAX: u64 = 65_536;

const MAGIC: [u8; 8] = *b"GODWITRC";
const FILLER: core::ops::Range<usize> = 24..504;

/// A record's bytes.
pub type RecordBytes = [u8; RECORD_BYTES];

/// The number of record slots on a disk of `disk_bytes`.
pub const fn capacity(disk_bytes: u64) -> u64 {
    let sectors = disk_bytes / RECORD_BYTES as u64;
    if sectors < CAPACITY_SLOTS_MAX { sectors } else { CAPACITY_SLOTS_MAX }
}

/// A record's number and the capacity of the disk it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub sequence: u64,
    pub capacity: u64,
}

impl Record {
    /// Where on the disk the record lies, in bytes from its start. The capacity must not be zero.
    pub const fn offset(&self) -> u64 {
        self.sequence % self.capacity * RECORD_BYTES as u64
    }

    /// The record as it lies on the disk.
    pub fn encode(&self) -> RecordBytes {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.capacity.to_le_bytes());
        for i in FILLER {
            bytes[i] = self.filler(i);
        }
        let sum = fnv1a_64(&bytes[..FILLER.end]);
        bytes[FILLER.end..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads a record of any number, checking every byte of it.
    pub fn decode(bytes: &RecordBytes) -> Result<Self, RecordFault> {
        if bytes[..8] != MAGIC {
            return Err(RecordFault::NoRecord);
        }
        let record = Self { sequence: word(bytes, 8), capacity: word(bytes, 16) };
        if word(bytes, FILLER.end) != fnv1a_64(&bytes[..FILLER.end]) {
            return Err(RecordFault::Checksum { sequence: record.sequence });
        }
        match FILLER.into_iter().find(|&i| bytes[i] != record.filler(i)) {
            Some(offset) => Err(RecordFault::Filler { sequence: record.sequence, offset }),
            None => Ok(record),
        }
    }

    /// Checks that `bytes` hold exactly this record.
    pub fn verify(&self, bytes: &RecordBytes) -> Result<(), RecordFault> {
        let found = Self::decode(bytes)?;
        if found == *self { Ok(()) } else { Err(RecordFault::Other { found, expected: *self }) }
    }

    const fn filler(&self, i: usize) -> u8 {
        self.sequence.wrapping_mul(31).wrapping_add(i as u64) as u8
    }
}

fn word(bytes: &RecordBytes, at: usize) -> u64 {
    u64::from_le_bytes(core::array::from_fn(|i| bytes[at + i]))
}

/// What is wrong with a slot of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordFault {
    /// The slot was never written, or its beginning is destroyed.
    NoRecord,
    /// A torn or damaged record that names this number.
    Checksum { sequence: u64 },
    /// The checksum holds, but the filler at this byte is not the one the number calls for.
    Filler { sequence: u64, offset: usize },
    /// A whole record, but not the one that belongs here.
    Other { found: Record, expected: Record },
}

impl fmt::Display for RecordFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRecord => write!(f, "no record where one belongs"),
            Self::Checksum { sequence } => write!(f, "record {sequence}: wrong checksum"),
            Self::Filler { sequence, offset } => write!(f, "record {sequence}: wrong byte at {offset}"),
            Self::Other { found, expected } => write!(
                f,
                "record {} of {} slots where {} of {} belongs",
                found.sequence, found.capacity, expected.sequence, expected.capacity
            ),
        }
    }
}

impl core::error::Error for RecordFault {}

/// Judges a whole disk, slot by slot from slot 0: every record that was acknowledged is there, or a newer one in its slot.
///
/// The slot after the last acknowledged record may hold anything: its write may have been cut short.
#[derive(Debug, Clone)]
pub struct Scan {
    capacity: u64,
    acknowledged: u64,
    slot: u64,
    newest: u64,
    lost: u64,
    first_lost: Option<(u64, RecordFault)>,
}

impl Scan {
    /// A scan of a disk with `capacity` slots, whose writer has counted records up to `acknowledged`; 0 if that is not
    /// known, to learn the newest first.
    pub const fn new(capacity: u64, acknowledged: u64) -> Self {
        Self { capacity, acknowledged, slot: 0, newest: 0, lost: 0, first_lost: None }
    }

    /// Looks at the next slot.
    pub fn feed(&mut self, bytes: &RecordBytes) {
        let slot = self.slot;
        self.slot += 1;
        let expected = Record { sequence: self.expected_in(slot), capacity: self.capacity };
        let fault = match Record::decode(bytes) {
            Ok(found) if found.capacity == self.capacity && found.sequence % self.capacity == slot => {
                self.newest = self.newest.max(found.sequence);
                (found.sequence < expected.sequence).then_some(RecordFault::Other { found, expected })
            }
            Ok(found) => Some(RecordFault::Other { found, expected }),
            Err(fault) => Some(fault),
        };
        if let Some(fault) = fault.filter(|_| expected.sequence > 0) {
            self.lost += 1;
            self.first_lost.get_or_insert((expected.sequence, fault));
        }
    }

    /// The number of the newest record so far; 0 if there is none.
    pub const fn newest(&self) -> u64 {
        self.newest
    }

    /// How many acknowledged records are lost so far.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// The first lost record, by its number, and what is in its place.
    pub const fn first_lost(&self) -> Option<(u64, RecordFault)> {
        self.first_lost
    }

    /// The newest acknowledged record of this slot, 0 if none is due.
    const fn expected_in(&self, slot: u64) -> u64 {
        let behind = (self.acknowledged % self.capacity + self.capacity - slot) % self.capacity;
        if behind + 1 == self.capacity { 0 } else { self.acknowledged.saturating_sub(behind) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern crate std;
    use std::vec::Vec;

    fn disk(capacity: u64, records: impl IntoIterator<Item = u64>) -> Vec<RecordBytes> {
        let mut slots = std::vec![[0; RECORD_BYTES]; capacity as usize];
        for sequence in records {
            slots[(sequence % capacity) as usize] = Record { sequence, capacity }.encode();
        }
        slots
    }

    fn scan(slots: &[RecordBytes], acknowledged: u64) -> Scan {
        let mut scan = Scan::new(slots.len() as u64, acknowledged);
        slots.iter().for_each(|slot| scan.feed(slot));
        scan
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let bytes = Record { sequence: 0x0102, capacity: 9 }.encode();
        assert_eq!(&bytes[..8], b"GODWITRC");
        assert_eq!(bytes[8..16], [2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..24], [9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[24], (0x0102 * 31 + 24) as u8);
        assert_eq!(bytes[503], ((0x0102 * 31 + 503) & 0xff) as u8);
        assert_eq!(bytes[504..], fnv1a_64(&bytes[..504]).to_le_bytes());
        assert_eq!(Record { sequence: 0x0102, capacity: 9 }.offset(), (0x0102 % 9) * 512);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let record = Record { sequence: 77, capacity: 100 };
        let good = record.encode();
        assert_eq!(record.verify(&good), Ok(()));
        for bit in 0..RECORD_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(record.verify(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_whole_record_in_the_wrong_place_is_named() {
        let expected = Record { sequence: 108, capacity: 100 };
        let found = Record { sequence: 8, capacity: 100 };
        assert_eq!(expected.verify(&found.encode()), Err(RecordFault::Other { found, expected }));
    }

    #[test]
    fn a_disk_has_one_slot_a_sector_up_to_the_limit() {
        assert_eq!([0, 511, 512, 1 << 20, 1 << 40].map(capacity), [0, 0, 1, 2048, 65_536]);
    }

    #[test]
    fn a_scan_names_each_lost_record_on_new_and_on_wrapped_disks() {
        for last in 0_u64..40 {
            let whole = disk(8, 1..=last);
            assert_eq!((scan(&whole, last).newest(), scan(&whole, last).lost()), (last, 0), "last {last}");
            assert_eq!(scan(&whole, last + 3).lost(), 3, "last {last}");
            for missing in last.saturating_sub(6).max(1)..=last {
                let without = disk(8, (1..=last).filter(|&sequence| sequence != missing));
                let scan = scan(&without, last);
                assert_eq!(scan.lost(), 1, "last {last}, missing {missing}");
                assert_eq!(scan.first_lost().unwrap().0, missing);
            }
        }
    }

    #[test]
    fn a_record_torn_by_a_crash_before_it_was_acknowledged_is_not_lost() {
        let mut slots = disk(8, 1..=20);
        slots[(21 % 8) as usize][100..].fill(0);
        assert_eq!(scan(&slots, 20).lost(), 0);
    }

    #[test]
    fn records_written_after_the_count_was_taken_are_welcome() {
        assert_eq!(scan(&disk(8, 1..=25), 20).lost(), 0);
    }
}
