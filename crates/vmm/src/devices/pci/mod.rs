//! PCI: one bus, reached by ECAM and by the ports 0xCF8 and 0xCFC.

mod capability;
pub mod config;
pub mod layout;
pub mod msix;
mod root;

pub use capability::Capability;
pub use root::{ConfigAddress, ConfigData, Ecam, HostBridgeState, Root};

/// A function on the bus: its configuration space. Calls come from any vCPU thread.
pub trait PciFunction: Send + Sync {
    /// Reads registers from `offset` on.
    fn read_config(&self, offset: usize, data: &mut [u8]);
    /// Writes registers from `offset` on.
    fn write_config(&self, offset: usize, data: &[u8]);
    /// Maps and unmaps the BARs as the registers say. Called after every write to any function's registers, since
    /// addresses that were taken before may have become free.
    fn settle_bars(&self);
}
