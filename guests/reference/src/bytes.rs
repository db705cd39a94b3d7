//! Tables that firmware and loader leave in memory: little-endian, any alignment.

/// A table in memory.
#[derive(Clone, Copy)]
pub struct Bytes(&'static [u8]);

impl Bytes {
    /// The `length` bytes at a physical address.
    ///
    /// # Safety
    /// They are mapped RAM or ROM, and nobody changes them any more.
    pub unsafe fn at(address: u64, length: usize) -> Self {
        // SAFETY: the caller's promise; addresses are mapped one to one.
        Self(unsafe { core::slice::from_raw_parts(address as *const u8, length) })
    }

    pub fn as_slice(&self) -> &'static [u8] {
        self.0
    }

    pub fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }

    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        core::array::from_fn(|i| self.0[at + i])
    }
}
