//! How devices reach the guest's interrupt controllers.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// Delivers message-signalled interrupts.
pub trait MsiSink: Send + Sync {
    /// Sends the message `data` to `address`, as a PCI function's memory write would.
    fn signal(&self, address: u64, data: u32) -> io::Result<()>;
}

/// Turns guest writes to an MMIO address into events, without a VM exit to user space.
pub trait IoEvents: Send + Sync {
    /// Registers `event` for 2-byte and 4-byte writes of any value to `address`.
    fn register(&self, address: u64, event: &EventFd) -> io::Result<()>;
    /// Undoes [`IoEvents::register`].
    fn unregister(&self, address: u64, event: &EventFd) -> io::Result<()>;
}
