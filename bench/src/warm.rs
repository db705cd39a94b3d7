//! Memory that the machine really has, for the destination to find.
//!
//! Where the machine is itself a virtual one, memory that nobody has used for a second or two may have gone back to its
//! host, and the first touch of it then takes ten times as long: a run would measure what ran before it.

use godwit_migration::GuestMemory;
use godwit_types::Bytes;
use godwit_vmm::memory::Ram;

use crate::error::{BenchError, Result};

/// Touched memory, until it is dropped: whoever then asks the kernel for memory is given it.
pub(crate) struct Warm(#[expect(dead_code, reason = "held for its memory")] Ram);

impl Warm {
    pub(crate) fn hold(memory: Bytes) -> Result<Self> {
        let ram = Ram::new(memory).map_err(|error| BenchError::Warm(error.to_string()))?;
        ram.ranges().iter().for_each(|range| ram.prepare(*range));
        Ok(Self(ram))
    }
}
