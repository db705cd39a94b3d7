//! Interrupts into the guest and notifications out of it.

use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_msi;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::interrupt::{IoEvents, MsiSink};

/// The VM as devices reach it.
pub struct KvmEvents(pub Arc<VmFd>);

impl MsiSink for KvmEvents {
    fn signal(&self, address: u64, data: u32) -> io::Result<()> {
        let msi = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        // 0 means that the guest blocks it, as an interrupt to a disabled local APIC: not an error of the device.
        self.0.signal_msi(msi).map(drop).map_err(io_error)
    }
}

impl IoEvents for KvmEvents {
    fn register(&self, address: u64, event: &EventFd) -> io::Result<()> {
        // Without a data match the length is 0: writes of any size fire.
        self.0.register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch).map_err(io_error)
    }

    fn unregister(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.0.unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch).map_err(io_error)
    }
}

fn io_error(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
