//! The one BAR of a virtio function: its layout, the capabilities that describe it, and its place on the bus.

use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::VirtioDevice;
use super::common::COMMON_BYTES;
use crate::bus::{Bus, BusDevice};
use crate::devices::pci::config::{BarSpec, BarWidth, ConfigSpace, Identity};
use crate::devices::pci::{Capability, layout, msix};
use crate::interrupt::IoEvents;

/// The register of the BAR; 64 bits wide.
pub(super) const BAR: usize = 0;
/// Length of the BAR in bytes: eight regions of one page, six in use.
pub(super) const BAR_BYTES: u64 = 8 * REGION_BYTES;
const REGION_BYTES: u64 = 0x1000;

/// The regions, by number.
pub(super) const COMMON: u64 = 0;
pub(super) const ISR: u64 = 1;
pub(super) const DEVICE: u64 = 2;
pub(super) const NOTIFY: u64 = 3;
pub(super) const TABLE: u64 = 4;
pub(super) const PENDING: u64 = 5;

/// Distance between the notification addresses of neighbouring queues, in bytes.
const NOTIFY_STRIDE: u64 = 4;

const CAPABILITY_VENDOR: u8 = 0x09;
/// Values of `cfg_type` (virtio 1.2, 4.1.4).
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

const VENDOR_VIRTIO: u16 = 0x1AF4;
/// A device ID is this and the virtio ID; revision 1 marks a device without the legacy interface.
const DEVICE_ID_BASE: u16 = 0x1040;

/// The region of an offset in the BAR, and the offset in the region.
pub(super) fn region(offset: u64) -> (u64, usize) {
    (offset / REGION_BYTES, (offset % REGION_BYTES) as usize)
}

/// The configuration space at power-on: where the PCI access window and the MSI-X capability are comes with it.
pub(super) fn config_space<D: VirtioDevice>(slot: u8, queues: u16) -> (ConfigSpace, PciAccess, usize) {
    let mut config = ConfigSpace::new(Identity {
        vendor: VENDOR_VIRTIO,
        device: DEVICE_ID_BASE + D::ID as u16,
        revision: 1,
        class: D::CLASS,
        subsystem_vendor: VENDOR_VIRTIO,
        subsystem: 0x1100,
    });
    let address = layout::bar_start(slot);
    config.add_bar(BAR, BarSpec { address, bytes: BAR_BYTES, width: BarWidth::Bits64 });
    let region_bytes = REGION_BYTES as u32;
    config.add_capability(&vendor(CFG_COMMON, COMMON, COMMON_BYTES as u32, &[]));
    let notify_bytes = u32::from(queues) * NOTIFY_STRIDE as u32;
    config.add_capability(&vendor(CFG_NOTIFY, NOTIFY, notify_bytes, &(NOTIFY_STRIDE as u32).to_le_bytes()));
    config.add_capability(&vendor(CFG_ISR, ISR, 1, &[]));
    config.add_capability(&vendor(CFG_DEVICE, DEVICE, region_bytes, &[]));
    let mut window = vendor(CFG_PCI, 0, 0, &[0; 4]);
    // BAR number, offset, length and data are the driver's to write.
    window.writable[2] = 0xff;
    window.writable[6..].fill(0xff);
    let at = config.add_capability(&window);
    let (table, pending) = (TABLE as u32 * region_bytes, PENDING as u32 * region_bytes);
    let msix_at = config.add_capability(&msix::capability(queues + 1, BAR as u8, table, pending));
    (config, PciAccess { slot, at, data: at + 16 }, msix_at)
}

/// A `virtio_pci_cap` behind its ID and link: length, type, BAR, id, padding, offset, length, and `extra`.
fn vendor(cfg_type: u8, region: u64, bytes: u32, extra: &[u8]) -> Capability {
    let mut body = vec![16 + extra.len() as u8, cfg_type, BAR as u8, 0, 0, 0];
    body.extend((region as u32 * REGION_BYTES as u32).to_le_bytes());
    body.extend(bytes.to_le_bytes());
    body.extend(extra);
    Capability::fixed(CAPABILITY_VENDOR, body)
}

/// The capability through which the BAR is reached from configuration space.
pub(super) struct PciAccess {
    pub slot: u8,
    /// Offset of the capability.
    at: usize,
    /// Offset of its four data bytes.
    pub data: usize,
}

/// An access to the BAR that an access to configuration space stands for.
pub(super) struct Window {
    pub offset: u64,
    pub length: usize,
}

impl PciAccess {
    /// The access that `length` bytes at `offset` of configuration space stand for, if any.
    pub(super) fn window(&self, config: &ConfigSpace, offset: usize, length: usize) -> Option<Window> {
        let touched = offset < self.data + 4 && self.data < offset + length;
        let bar = config.u16_at(self.at + 4) & 0xff;
        let window = Window {
            offset: config.u32_at(self.at + 8).into(),
            length: config.u32_at(self.at + 12) as usize,
        };
        let valid = matches!(window.length, 1 | 2 | 4) && window.offset.is_multiple_of(window.length as u64);
        (touched && valid && usize::from(bar) == BAR && window.offset < BAR_BYTES).then_some(window)
    }
}

/// Where the BAR is on the bus now, and the notification addresses with it.
pub(super) struct BarMapping {
    mmio: Arc<Bus>,
    io_events: Arc<dyn IoEvents>,
    kicks: Arc<[EventFd]>,
    mapped: Mutex<Option<u64>>,
}

impl BarMapping {
    /// Nowhere yet.
    pub(super) fn new(mmio: &Arc<Bus>, io_events: &Arc<dyn IoEvents>, kicks: Arc<[EventFd]>) -> Self {
        Self { mmio: Arc::clone(mmio), io_events: Arc::clone(io_events), kicks, mapped: Mutex::new(None) }
    }

    /// Moves `device` to `wanted`. It stays unmapped while others have the addresses.
    pub(super) fn settle(&self, wanted: Option<u64>, device: Option<Arc<dyn BusDevice>>) {
        let mut mapped = self.mapped.lock().expect("no user of the mapping panics");
        if *mapped == wanted {
            return;
        }
        if let Some(start) = mapped.take() {
            self.mmio.remove(start);
            for (address, kick) in self.notifications(start) {
                if let Err(error) = self.io_events.unregister(address, kick) {
                    tracing::warn!(address, %error, "cannot take a notification address back");
                }
            }
        }
        let (Some(start), Some(device)) = (wanted, device) else { return };
        if let Err(overlap) = self.mmio.insert(start, BAR_BYTES, device) {
            tracing::debug!(%overlap, "a BAR is not mapped where the guest put it");
            return;
        }
        for (address, kick) in self.notifications(start) {
            if let Err(error) = self.io_events.register(address, kick) {
                // The kick still arrives, by way of the bus.
                tracing::warn!(address, %error, "notifications take the slow way");
            }
        }
        *mapped = Some(start);
    }

    /// A notification that came over the bus, at `within` its region.
    pub(super) fn kick(&self, within: usize) {
        if let Some(kick) = self.kicks.get(within / NOTIFY_STRIDE as usize) {
            // A full counter wakes the worker just as well.
            let _ = kick.write(1);
        }
    }

    fn notifications(&self, start: u64) -> impl Iterator<Item = (u64, &EventFd)> {
        let first = start + NOTIFY * REGION_BYTES;
        self.kicks.iter().enumerate().map(move |(index, kick)| (first + index as u64 * NOTIFY_STRIDE, kick))
    }
}
