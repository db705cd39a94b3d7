//! Descriptor chains, read strictly: what the driver may not do is a fault, never a shorter chain.

use std::collections::VecDeque;

use virtio_queue::desc::split::Descriptor;
use vm_memory::bitmap::BS;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use crate::memory::GuestRam;

/// Bytes of a descriptor in guest memory.
const DESCRIPTOR_BYTES: u32 = 16;

/// A piece of a guest buffer. Writes through it mark its pages.
pub type Buffer<'r> = VolatileSlice<'r, BS<'r, vm_memory::bitmap::AtomicBitmap>>;

/// A request of the driver: buffers to read, then buffers to write.
pub struct Chain<'r> {
    /// The descriptor that it starts with, which names it in the used ring.
    pub head: u16,
    pub readable: VecDeque<Buffer<'r>>,
    pub writable: VecDeque<Buffer<'r>>,
}

/// A driver broke the rules; its device stops until the driver resets it.
#[derive(Debug, thiserror::Error)]
pub enum DriverFault {
    #[error("the ring is unusable: {0}")]
    Ring(virtio_queue::Error),
    #[error("a descriptor index lies outside its table")]
    IndexOutOfRange,
    #[error("a descriptor chain is longer than its queue, or a loop")]
    ChainTooLong,
    #[error("a descriptor chain has more than 4 GiB")]
    TooManyBytes,
    #[error("a descriptor or its buffer lies outside RAM")]
    OutsideRam,
    #[error("a descriptor has length zero")]
    ZeroLength,
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    #[error("an indirect descriptor table is nested, chained, or of an odd size")]
    BadIndirectTable,
    #[error("a request is malformed: {0}")]
    Request(&'static str),
}

impl<'r> Chain<'r> {
    /// Follows the chain that starts at `head` in the table at `table` with `size` entries.
    pub fn read(ram: &'r GuestRam, table: u64, size: u16, head: u16) -> Result<Self, DriverFault> {
        let mut chain = Self { head, readable: VecDeque::new(), writable: VecDeque::new() };
        let mut table = GuestAddress(table);
        let mut entries = u32::from(size);
        let mut index = u32::from(head);
        let mut indirect = false;
        let mut bytes = 0u32;
        // An indirect descriptor does not count; a chain may have as many as the queue, wherever they lie.
        let mut left = size;
        loop {
            let descriptor = read_descriptor(ram, table, entries, index)?;
            if descriptor.refers_to_indirect_table() {
                let length = descriptor.len();
                let odd = length == 0 || !length.is_multiple_of(DESCRIPTOR_BYTES);
                if indirect || odd || descriptor.has_next() {
                    return Err(DriverFault::BadIndirectTable);
                }
                (table, entries, index, indirect) = (descriptor.addr(), length / DESCRIPTOR_BYTES, 0, true);
                continue;
            }
            left = left.checked_sub(1).ok_or(DriverFault::ChainTooLong)?;
            bytes = bytes.checked_add(descriptor.len()).ok_or(DriverFault::TooManyBytes)?;
            chain.add(ram, &descriptor)?;
            if !descriptor.has_next() {
                return Ok(chain);
            }
            index = u32::from(descriptor.next());
        }
    }

    /// Bytes that the driver has put into the chain.
    pub fn readable_bytes(&self) -> usize {
        self.readable.iter().map(VolatileSlice::len).sum()
    }

    /// Bytes that the device may put into the chain.
    pub fn writable_bytes(&self) -> usize {
        self.writable.iter().map(VolatileSlice::len).sum()
    }

    /// Takes the first `data.len()` readable bytes off the chain.
    pub fn take(&mut self, data: &mut [u8]) -> Result<(), DriverFault> {
        let mut done = 0;
        while done < data.len() {
            let Some(buffer) = self.readable.pop_front() else {
                return Err(DriverFault::Request("its readable part is too short"));
            };
            let copied = buffer.copy_to(&mut data[done..]);
            push_rest(&mut self.readable, &buffer, copied);
            done += copied;
        }
        Ok(())
    }

    /// Fills the next writable bytes with `data`, as far as there is room; returns how many it took.
    pub fn put(&mut self, data: &[u8]) -> usize {
        let mut done = 0;
        while done < data.len() {
            let Some(buffer) = self.writable.pop_front() else { break };
            let count = buffer.len().min(data.len() - done);
            buffer.copy_from(&data[done..done + count]);
            push_rest(&mut self.writable, &buffer, count);
            done += count;
        }
        done
    }

    /// Takes the last writable byte off the chain, where some devices put their verdict.
    pub fn take_last(&mut self) -> Option<Buffer<'r>> {
        let buffer = self.writable.pop_back()?;
        let (rest, last) = buffer.split_at(buffer.len() - 1).ok()?;
        if !rest.is_empty() {
            self.writable.push_back(rest);
        }
        Some(last)
    }

    fn add(&mut self, ram: &'r GuestRam, descriptor: &Descriptor) -> Result<(), DriverFault> {
        if descriptor.len() == 0 {
            return Err(DriverFault::ZeroLength);
        }
        let writable = descriptor.is_write_only();
        if !writable && !self.writable.is_empty() {
            return Err(DriverFault::ReadableAfterWritable);
        }
        let access = if writable { Permissions::Write } else { Permissions::Read };
        let slices = GuestMemory::get_slices(ram, descriptor.addr(), descriptor.len() as usize, access)
            .map_err(|_| DriverFault::OutsideRam)?;
        let list = if writable { &mut self.writable } else { &mut self.readable };
        for slice in slices {
            list.push_back(slice.map_err(|_| DriverFault::OutsideRam)?);
        }
        Ok(())
    }
}

/// Puts what lies behind the first `used` bytes of `buffer` back in front.
fn push_rest<'r>(list: &mut VecDeque<Buffer<'r>>, buffer: &Buffer<'r>, used: usize) {
    if let Ok(rest) = buffer.offset(used)
        && !rest.is_empty()
    {
        list.push_front(rest);
    }
}

fn read_descriptor(
    ram: &GuestRam,
    table: GuestAddress,
    entries: u32,
    index: u32,
) -> Result<Descriptor, DriverFault> {
    if index >= entries {
        return Err(DriverFault::IndexOutOfRange);
    }
    let address = table.0.checked_add(u64::from(index * DESCRIPTOR_BYTES)).ok_or(DriverFault::OutsideRam)?;
    ram.read_obj(GuestAddress(address)).map_err(|_| DriverFault::OutsideRam)
}
