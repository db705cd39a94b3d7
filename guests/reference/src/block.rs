//! A virtio disk that does one request at a time.

use core::fmt;

use godwit_guest_contract::disk::RECORD_BYTES;

use crate::memory::Memory;
use crate::queue::{DEVICE_WRITES, NEXT, Queue};
use crate::virtio::{DEVICE_BLOCK, Virtio};

const FEATURE_FLUSH: u64 = 1 << 9;
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;

/// Most bytes of one request.
pub const TRANSFER_BYTES_MAX: usize = 64 << 10;

/// The disk.
pub struct Disk {
    queue: Queue,
    request: &'static mut Request,
    sectors: u64,
    flushes: bool,
}

#[repr(C, align(4096))]
struct Request {
    data: [u8; TRANSFER_BYTES_MAX],
    kind: u32,
    reserved: u32,
    sector: u64,
    status: u8,
}

/// What to do, in sectors of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Into [`Disk::data`].
    Read {
        sector: u64,
        bytes: usize,
    },
    /// From [`Disk::data`].
    Write {
        sector: u64,
        bytes: usize,
    },
    Flush,
}

/// The device answered an operation with this status.
#[derive(Debug, Clone, Copy)]
pub struct Failed {
    pub operation: Operation,
    pub status: u8,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} failed with status {}", self.operation, self.status)
    }
}

impl Disk {
    /// The first disk, if there is one.
    pub fn find(ecam: u64, memory: &mut Memory) -> Option<Self> {
        let mut virtio = Virtio::find(ecam, DEVICE_BLOCK, FEATURE_FLUSH, memory)?;
        let queue = virtio.queue(0, None, memory);
        // SAFETY: a request of zeroes is a valid value.
        let request = &mut unsafe { memory.zeroed::<Request>(1) }.expect("memory for disk requests")[0];
        let sectors = u64::from(virtio.config32(0)) | u64::from(virtio.config32(4)) << 32;
        virtio.start();
        Some(Self { queue, request, sectors, flushes: virtio.features & FEATURE_FLUSH != 0 })
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.sectors * RECORD_BYTES as u64
    }

    /// The buffer of reads and writes, while nothing is under way.
    pub fn data(&mut self) -> &mut [u8; TRANSFER_BYTES_MAX] {
        assert_eq!(self.queue.in_flight(), 0, "the device has the buffer");
        &mut self.request.data
    }

    /// Starts an operation; the one before has ended.
    pub fn start(&mut self, operation: Operation) {
        assert_eq!(self.queue.in_flight(), 0, "one request at a time");
        let (kind, sector, bytes, direction) = match operation {
            Operation::Read { sector, bytes } => (READ, sector, bytes, DEVICE_WRITES),
            Operation::Write { sector, bytes } => (WRITE, sector, bytes, 0),
            // A disk without a volatile cache needs none: an empty read takes its place.
            Operation::Flush if !self.flushes => (READ, 0, RECORD_BYTES, DEVICE_WRITES),
            Operation::Flush => (FLUSH, 0, 0, 0),
        };
        self.request.kind = kind;
        self.request.sector = sector;
        self.request.status = 0xff;
        let header = (&raw const self.request.kind) as u64;
        let data = (&raw const self.request.data) as u64;
        let status = (&raw const self.request.status) as u64;
        let after_header = if bytes > 0 { 1 } else { 2 };
        self.queue.describe(0, (header, 16), NEXT, after_header);
        self.queue.describe(1, (data, bytes as u32), NEXT | direction, 2);
        self.queue.describe(2, (status, 1), DEVICE_WRITES, 0);
        self.queue.offer(0);
        self.queue.notify();
    }

    /// The outcome of the operation that was started, once there is one.
    pub fn poll(&mut self, operation: Operation) -> Option<Result<(), Failed>> {
        self.queue.take()?;
        // SAFETY: the field is valid; the device has written to it, which the compiler cannot know.
        let status = unsafe { (&raw const self.request.status).read_volatile() };
        Some(if status == 0 { Ok(()) } else { Err(Failed { operation, status }) })
    }

    /// Does an operation and waits for it.
    pub fn run(&mut self, operation: Operation) -> Result<(), Failed> {
        self.start(operation);
        loop {
            if let Some(outcome) = self.poll(operation) {
                return outcome;
            }
            core::hint::spin_loop();
        }
    }
}
