//! The disk workload: numbered records, each flushed before it counts, and older ones read back.
//!
//! ```text
//!          due              done            done, counted         done, verified
//!   idle --------> writing -------> flushing ------------> reading --------------> idle
//!    ^                |                |                      |
//!    +----------------+----------------+----------------------+  failed: counted as an error, tried again later
//! ```

use godwit_guest_contract::disk::{self, RECORD_BYTES, Record, RecordBytes, Scan};

use crate::block::{Disk, Operation, TRANSFER_BYTES_MAX};
use crate::clock::Micros;
use crate::fault;

/// From the beginning of one record to the next.
const INTERVAL: Micros = 5_000;
/// After a failure.
const RETRY_INTERVAL: Micros = 100_000;
/// An operation that takes longer is an error, once.
const LATE: Micros = 10_000_000;
/// A guest that runs looks again sooner. One that does not has stood, and its disk with it.
const STOOD: Micros = 1_000_000;

/// The records on the first disk.
pub struct Records {
    disk: Disk,
    capacity: u64,
    state: State,
    /// When it was last looked at.
    seen: Micros,
    next_due: Micros,
    acknowledged: u64,
    read_back: u64,
    random: u64,
}

enum State {
    Idle,
    Busy { step: Step, operation: Operation, since: Micros, late: bool },
}

#[derive(Clone, Copy)]
enum Step {
    Writing { record: Record },
    Flushing { record: Record },
    Reading { record: Record },
}

impl Records {
    /// Goes on after the newest record on the disk, having checked that none before it is lost.
    pub fn new(mut disk: Disk) -> Self {
        let capacity = disk::capacity(disk.bytes());
        let mut acknowledged = 0;
        // The first scan learns which record is the newest; the second, if there is one, judges those before it.
        for _ in 0..2 {
            let scan = scan(&mut disk, capacity, acknowledged);
            if let Some((sequence, error)) = scan.first_lost() {
                fault::DISK.add(format_args!(
                    "at start, {} records are lost, the first is {sequence}: {error}",
                    scan.lost()
                ));
            }
            acknowledged = scan.newest();
            if acknowledged == 0 {
                break;
            }
        }
        Self {
            disk,
            capacity,
            state: State::Idle,
            seen: 0,
            next_due: 0,
            acknowledged,
            read_back: 0,
            random: 1,
        }
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    pub fn read_back(&self) -> u64 {
        self.read_back
    }

    /// Does what is due. Never waits.
    pub fn step(&mut self, now: Micros) {
        let ago = now - core::mem::replace(&mut self.seen, now);
        if let State::Busy { since, .. } = &mut self.state
            && ago > STOOD
        {
            *since += ago;
        }
        match &mut self.state {
            State::Idle if now < self.next_due || self.capacity < 2 => {}
            State::Idle => {
                self.next_due = now + INTERVAL;
                let record = self.record(self.acknowledged + 1);
                self.disk.data()[..RECORD_BYTES].copy_from_slice(&record.encode());
                self.start(Step::Writing { record }, now);
            }
            State::Busy { step, operation, since, late } => {
                let (step, operation) = (*step, *operation);
                if let Some(outcome) = self.disk.poll(operation) {
                    self.state = State::Idle;
                    match outcome {
                        Ok(()) => self.done(step, now),
                        Err(error) => {
                            fault::DISK.add(format_args!("{error}"));
                            self.next_due = now + RETRY_INTERVAL;
                        }
                    }
                } else if now - *since > LATE && !*late {
                    *late = true;
                    fault::DISK.add(format_args!("{operation:?} has not ended in {LATE} us"));
                }
            }
        }
    }

    fn done(&mut self, step: Step, now: Micros) {
        match step {
            Step::Writing { record } => self.start(Step::Flushing { record }, now),
            Step::Flushing { record } => {
                self.acknowledged = record.sequence;
                let record = self.some_record();
                self.start(Step::Reading { record }, now);
            }
            Step::Reading { record } => {
                self.read_back += 1;
                let bytes = self.disk.data().first_chunk().expect("the buffer is larger than a record");
                if let Err(error) = record.verify(bytes) {
                    fault::DISK.add(format_args!("record {} read back: {error}", record.sequence));
                }
            }
        }
    }

    fn start(&mut self, step: Step, now: Micros) {
        let operation = match step {
            Step::Writing { record } => Operation::Write { sector: sector(record), bytes: RECORD_BYTES },
            Step::Flushing { .. } => Operation::Flush,
            Step::Reading { record } => Operation::Read { sector: sector(record), bytes: RECORD_BYTES },
        };
        if matches!(step, Step::Reading { .. }) {
            // What is read must come from the disk, not from the last use of the buffer.
            self.disk.data()[..RECORD_BYTES].fill(0xee);
        }
        self.disk.start(operation);
        self.state = State::Busy { step, operation, since: now, late: false };
    }

    /// One of the records that the disk must still hold, at random.
    fn some_record(&mut self) -> Record {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let held = self.acknowledged.min(self.capacity - 1);
        self.record(self.acknowledged - self.random % held)
    }

    fn record(&self, sequence: u64) -> Record {
        Record { sequence, capacity: self.capacity }
    }
}

fn sector(record: Record) -> u64 {
    record.offset() / RECORD_BYTES as u64
}

fn scan(disk: &mut Disk, capacity: u64, acknowledged: u64) -> Scan {
    let mut scan = Scan::new(capacity, acknowledged);
    let mut slot = 0;
    while slot < capacity {
        let slots = (capacity - slot).min((TRANSFER_BYTES_MAX / RECORD_BYTES) as u64);
        let bytes = slots as usize * RECORD_BYTES;
        if let Err(error) = disk.run(Operation::Read { sector: slot, bytes }) {
            fault::DISK.add(format_args!("{error}"));
        }
        let (records, _) = disk.data()[..bytes].as_chunks::<RECORD_BYTES>();
        records.iter().for_each(|record: &RecordBytes| scan.feed(record));
        slot += slots;
    }
    scan
}
