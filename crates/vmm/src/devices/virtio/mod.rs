//! Virtio 1.2 over PCI.
//!
//! ```text
//!   vCPU threads                                   worker thread, one for each device
//!   Function: configuration space, BAR    start    Worker: owns the queues while it runs,
//!     CommonConfig: registers of the   ----------> calls VirtioDevice::process for each kick
//!     driver, state machine of the     <---------- and each watched file descriptor
//!     status byte                        stop
//!           |                                            |
//!           +-------------> Interrupts <-----------------+   vectors, ISR, status, generation
//! ```

pub mod balloon;
mod bar;
pub mod block;
mod chain;
mod common;
pub mod console;
mod function;
#[cfg(test)]
mod function_tests;
mod interrupts;
mod life;
pub mod net;
mod queue;
pub mod rng;
pub mod state;
#[cfg(test)]
pub mod test_driver;
mod worker;

use std::io;
use std::os::fd::RawFd;

pub use chain::{Buffer, Chain, DriverFault};
pub use function::{Environment, Function};
pub use interrupts::Interrupts;
pub use queue::VirtQueue;

use crate::memory::GuestRam;

/// What tells one virtio device from another. The transport calls [`VirtioDevice::process`] and
/// [`VirtioDevice::flush`] from the worker thread, everything else from any thread, at any time.
pub trait VirtioDevice: Send + Sync + 'static {
    /// The name in messages and saved states, such as `virtio-block`.
    const NAME: &'static str;
    /// The virtio device ID.
    const ID: u32;
    /// The PCI class code: base class, subclass and interface.
    const CLASS: u32;

    /// The feature bits offered beside those of the transport.
    fn features(&self) -> u64;

    /// The largest size of each queue.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the device's configuration at `offset`; `data` is zeroed, and bytes that do not exist stay so.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// Writes the device's configuration at `offset`, as far as the guest may.
    fn write_config(&self, offset: usize, data: &[u8]) {
        let _ = (offset, data);
    }

    /// File descriptors, fixed for life, whose edges (readable or writable) wake the worker.
    fn watched(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// The driver is ready, having accepted `features`. Called at every start of the worker, thus after a move too.
    fn start(&self, features: u64) -> io::Result<()> {
        let _ = features;
        Ok(())
    }

    /// Serves what woke the worker, for a bounded time.
    fn process(&self, source: Source, io: &mut Io<'_>) -> Result<Progress, DriverFault>;

    /// Makes everything done so far durable. The queues are at rest.
    fn flush(&self) -> Result<(), String> {
        Ok(())
    }

    /// Back to power-on, except for what the host has set.
    fn reset(&self) {}

    /// The device's own state, as a protobuf message.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes over a state from [`VirtioDevice::save`], all of it or nothing.
    fn restore(&self, state: &[u8]) -> Result<(), String> {
        if state.is_empty() { Ok(()) } else { Err("this device has no state of its own".to_owned()) }
    }
}

/// What woke the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The driver has added buffers to the queue with this index.
    Queue(usize),
    /// The file descriptor with this index in [`VirtioDevice::watched`].
    Watched(usize),
}

/// Whether a source has been served to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing to do until it wakes the worker again.
    Idle,
    /// There is more; call again.
    More,
}

/// What [`VirtioDevice::process`] works on.
pub struct Io<'a> {
    pub ram: &'a GuestRam,
    pub queues: &'a mut [VirtQueue],
    pub interrupts: &'a Interrupts,
}

impl<'a> Io<'a> {
    /// Serves up to `limit` of the chains that are available in queue `index`, and interrupts the driver if it asked
    /// for it. `serve` returns the number of bytes written into the chain.
    pub fn serve_queue(
        &mut self,
        index: usize,
        limit: usize,
        mut serve: impl FnMut(Chain<'a>) -> Result<u32, DriverFault>,
    ) -> Result<Progress, DriverFault> {
        let queue = &mut self.queues[index];
        let mut progress = Progress::More;
        for _ in 0..limit {
            let Some(chain) = queue.pop(self.ram)? else {
                progress = queue.rearm(self.ram)?;
                break;
            };
            let head = chain.head;
            let written = serve(chain)?;
            queue.push(self.ram, &[(head, written)])?;
        }
        queue.interrupt(self.ram, self.interrupts)?;
        Ok(progress)
    }
}

/// Copies what `from` has at `offset` to `data`.
pub fn copy_config(from: &[u8], offset: usize, data: &mut [u8]) {
    for (byte, value) in data.iter_mut().zip(from.iter().skip(offset)) {
        *byte = *value;
    }
}
