//! The receiving half: one frame on its way from the tap to the driver's buffers.

use std::io;

use super::tap::{FRAME_BYTES_MAX, HEADER_BYTES, Tap};
use crate::devices::virtio::{Chain, DriverFault, Progress, VirtQueue};
use crate::memory::GuestRam;

/// Where the header has the number of buffers that the frame was spread over.
const BUFFERS_AT: usize = 10;
/// Most buffers for one frame; at the least a kilobyte each, they hold the longest.
const BUFFERS_MAX: usize = 80;

/// A frame with its header, or nothing.
pub(super) struct Receiver {
    buffer: Box<[u8]>,
    length: usize,
}

impl Default for Receiver {
    fn default() -> Self {
        Self { buffer: vec![0; FRAME_BYTES_MAX].into_boxed_slice(), length: 0 }
    }
}

impl Receiver {
    /// Whether a frame waits for buffers.
    pub(super) fn holds_frame(&self) -> bool {
        self.length > 0
    }

    /// The frame that waits; empty if there is none.
    pub(super) fn frame(&self) -> &[u8] {
        &self.buffer[..self.length]
    }

    /// Forgets the frame.
    pub(super) fn drop_frame(&mut self) {
        self.length = 0;
    }

    /// Takes over a frame that was saved.
    pub(super) fn set_frame(&mut self, frame: &[u8]) -> Result<(), String> {
        if frame.len() > FRAME_BYTES_MAX || !frame.is_empty() && frame.len() <= HEADER_BYTES {
            return Err(format!("a held frame of {} bytes is no frame", frame.len()));
        }
        self.buffer[..frame.len()].copy_from_slice(frame);
        self.length = frame.len();
        Ok(())
    }

    /// Reads the next frame from the tap. False if there is none.
    pub(super) fn fetch(&mut self, tap: &Tap) -> bool {
        match tap.receive(&mut self.buffer) {
            Ok(length) if length > HEADER_BYTES => self.length = length,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => tracing::debug!(%error, "the tap gives no frames; is it up?"),
        }
        self.holds_frame()
    }

    /// Puts the frame into the driver's buffers. False if they do not suffice; the driver then kicks at the next one.
    pub(super) fn deliver(
        &mut self,
        ram: &GuestRam,
        queue: &mut VirtQueue,
        mergeable: bool,
    ) -> Result<bool, DriverFault> {
        let most = if mergeable { BUFFERS_MAX } else { 1 };
        let mut chains: Vec<Chain<'_>> = Vec::new();
        let mut room = 0;
        while room < self.length && chains.len() < most {
            if let Some(chain) = queue.pop(ram)? {
                room += chain.writable_bytes();
                chains.push(chain);
            } else if queue.rearm(ram)? == Progress::Idle {
                queue.unpop(chains.len());
                return Ok(false);
            }
        }
        if room < self.length {
            // The driver's buffers will never do for this frame, which is lost as on a wire.
            queue.unpop(chains.len());
        } else {
            self.fill(ram, queue, chains)?;
        }
        self.drop_frame();
        Ok(true)
    }

    fn fill(
        &mut self,
        ram: &GuestRam,
        queue: &mut VirtQueue,
        chains: Vec<Chain<'_>>,
    ) -> Result<(), DriverFault> {
        // At most `BUFFERS_MAX`, so that it fits the field.
        let buffers = chains.len() as u16;
        self.buffer[BUFFERS_AT..HEADER_BYTES].copy_from_slice(&buffers.to_le_bytes());
        let mut rest = &self.buffer[..self.length];
        let mut answers = Vec::with_capacity(chains.len());
        for mut chain in chains {
            let written = chain.put(rest);
            rest = &rest[written..];
            answers.push((chain.head, written as u32));
        }
        queue.push(ram, &answers)
    }
}
