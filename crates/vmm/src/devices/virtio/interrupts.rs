//! What both the vCPU threads and the worker of a device change: how the driver is told of something.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};

use crate::devices::pci::msix::MsiX;
use crate::interrupt::MsiSink;

/// "No MSI-X vector", as the driver writes and reads it.
pub(super) const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;

/// Vectors, interrupt status, device status and configuration generation of one device.
pub struct Interrupts {
    pub msix: MsiX,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    isr: AtomicU8,
    status: AtomicU8,
    generation: AtomicU8,
}

impl Interrupts {
    /// One vector for each queue, and one for the configuration.
    pub fn new(queues: usize, sink: Arc<dyn MsiSink>) -> Self {
        Self {
            msix: MsiX::new(queues as u16 + 1, sink),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: AtomicU8::new(0),
            status: AtomicU8::new(0),
            generation: AtomicU8::new(0),
        }
    }

    /// Tells the driver that queue `index` has answers.
    pub fn queue(&self, index: usize) {
        self.send(ISR_QUEUE, &self.queue_vectors[index]);
    }

    /// Tells the driver that the device's configuration has changed.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        if self.status() & DRIVER_OK != 0 {
            self.send(ISR_CONFIG, &self.config_vector);
        }
    }

    /// Tells the driver that it broke the rules, and that the device waits for a reset.
    pub fn need_reset(&self) {
        let before = self.status.fetch_or(NEEDS_RESET, Ordering::SeqCst);
        if before & DRIVER_OK != 0 {
            self.send(ISR_CONFIG, &self.config_vector);
        }
    }

    /// The device status byte.
    pub fn status(&self) -> u8 {
        self.status.load(Ordering::SeqCst)
    }

    /// Sets bits of the device status byte; what the worker has set meanwhile stays.
    pub fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, Ordering::SeqCst);
    }

    /// The configuration's generation.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The interrupt status, which reading clears.
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::SeqCst)
    }

    /// The interrupt status, left alone.
    pub fn isr(&self) -> u8 {
        self.isr.load(Ordering::SeqCst)
    }

    /// The vector of queue `index`, or of the configuration for `None`.
    pub fn vector(&self, index: Option<usize>) -> u16 {
        self.vector_of(index).map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    /// Sets a vector; one that does not exist becomes [`NO_VECTOR`], which is how the driver learns of it.
    pub fn set_vector(&self, index: Option<usize>, vector: u16) {
        let valid = if vector < self.msix.vectors() { vector } else { NO_VECTOR };
        if let Some(slot) = self.vector_of(index) {
            slot.store(valid, Ordering::SeqCst);
        }
    }

    /// Back to what the driver finds after a device reset; MSI-X itself stays.
    pub fn reset(&self) {
        self.restore(0, 0, 0);
        self.config_vector.store(NO_VECTOR, Ordering::SeqCst);
        self.queue_vectors.iter().for_each(|vector| vector.store(NO_VECTOR, Ordering::SeqCst));
    }

    /// Sets the bytes that a saved state holds.
    pub fn restore(&self, status: u8, isr: u8, generation: u8) {
        self.status.store(status, Ordering::SeqCst);
        self.isr.store(isr, Ordering::SeqCst);
        self.generation.store(generation, Ordering::SeqCst);
    }

    fn vector_of(&self, index: Option<usize>) -> Option<&AtomicU16> {
        index.map_or(Some(&self.config_vector), |index| self.queue_vectors.get(index))
    }

    fn send(&self, isr: u8, vector: &AtomicU16) {
        if self.msix.enabled() {
            self.msix.signal(vector.load(Ordering::SeqCst));
        } else {
            self.isr.fetch_or(isr, Ordering::SeqCst);
        }
    }
}
