//! virtio-block: one queue, one request at a time, in the worker thread.
//!
//! Requests are answered in order and one after another, so a pause finds none in flight: those that the worker has
//! not begun stay in the ring and move with the guest.

mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::{DriverFault, Io, Progress, Source, VirtioDevice, copy_config};
use crate::devices::disk::{Disk, SECTOR_BYTES};
use crate::devices::report::Reports;

const QUEUE_SIZE: u16 = 256;
/// Header and status take a descriptor each.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
const SEGMENT_BYTES_MAX: u32 = 128 << 10;
/// Most bytes of one request, so that none takes long.
const REQUEST_BYTES_MAX: usize = SEGMENTS_MAX as usize * SEGMENT_BYTES_MAX as usize;
/// Most sectors of one discard or write-zeroes: 64 MiB, which a file system without either has to write.
const RANGE_SECTORS_MAX: u32 = 128 << 10;
/// Requests between two looks at whether to stop.
const REQUESTS_PER_TURN: usize = 1;
const CONFIG_BYTES: usize = 60;
/// Length of the serial number that the guest can ask for.
const ID_BYTES: usize = 20;

/// The device.
pub struct Block {
    disk: Arc<Disk>,
    id: [u8; ID_BYTES],
    name: String,
    reports: Reports,
    /// What the driver has accepted.
    features: AtomicU64,
    /// The last request failed; the next failures are not reported again.
    failing: AtomicBool,
}

impl Block {
    /// A device on `disk`; `serial` is at most [`ID_BYTES`] long, `name` is for reports.
    pub fn new(disk: Disk, serial: &str, name: String, reports: Reports) -> Self {
        let mut id = [0; ID_BYTES];
        copy_config(serial.as_bytes(), 0, &mut id);
        Self {
            disk: Arc::new(disk),
            id,
            name,
            reports,
            features: AtomicU64::new(0),
            failing: AtomicBool::new(false),
        }
    }

    /// The disk behind the device.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The same, for whoever outlives this call.
    pub fn shared_disk(&self) -> Arc<Disk> {
        Arc::clone(&self.disk)
    }

    /// Whether the driver knows that it has to flush. If not, every write is durable before it is answered.
    fn driver_flushes(&self) -> bool {
        self.features.load(Ordering::Relaxed) & 1 << VIRTIO_BLK_F_FLUSH != 0
    }

    fn config(&self) -> [u8; CONFIG_BYTES] {
        let mut config = [0; CONFIG_BYTES];
        let mut put = |at: usize, value: &[u8]| config[at..at + value.len()].copy_from_slice(value);
        put(0, &self.disk.sectors().to_le_bytes());
        put(8, &SEGMENT_BYTES_MAX.to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &(SECTOR_BYTES as u32).to_le_bytes());
        put(34, &1u16.to_le_bytes());
        put(36, &RANGE_SECTORS_MAX.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(44, &8u32.to_le_bytes());
        put(48, &RANGE_SECTORS_MAX.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        put(56, &[1]);
        config
    }

    fn note(&self, outcome: &io::Result<()>) {
        match outcome {
            Err(error) if !self.failing.swap(true, Ordering::Relaxed) => {
                self.reports.report(&self.name, &error.to_string());
            }
            Ok(()) => self.failing.store(false, Ordering::Relaxed),
            Err(_) => {}
        }
    }
}

impl VirtioDevice for Block {
    const NAME: &'static str = "virtio-block";
    const ID: u32 = VIRTIO_ID_BLOCK;
    /// Mass storage, other.
    const CLASS: u32 = 0x01_80_00;

    fn features(&self) -> u64 {
        let both = 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE;
        let one = if self.disk.read_only() {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        both | one
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&self.config(), offset, data);
    }

    fn start(&self, features: u64) -> io::Result<()> {
        self.features.store(features, Ordering::Relaxed);
        Ok(())
    }

    fn process(&self, _source: Source, io: &mut Io<'_>) -> Result<Progress, DriverFault> {
        io.serve_queue(0, REQUESTS_PER_TURN, |chain| request::serve(self, chain))
    }

    fn flush(&self) -> Result<(), String> {
        self.disk.flush().map_err(|error| error.to_string())
    }
}

/// A block device, shared with whoever takes its lock.
pub type BlockFunction = Arc<super::Function<Block>>;
