//! Address spaces of devices: ports and MMIO.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

/// A device behind a range of addresses. Accesses come from any vCPU thread at once.
pub trait BusDevice: Send + Sync {
    /// Reads at `offset` within the range. Unhandled bytes must be filled by the device (all ones by custom).
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes at `offset` within the range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A map from addresses to devices, changed only while PCI BARs move.
#[derive(Default)]
pub struct Bus {
    /// Length and device by first address.
    ranges: RwLock<BTreeMap<u64, Mapping>>,
}

type Mapping = (u64, Arc<dyn BusDevice>);

/// Two devices claim the same addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("addresses {start:#x}..{end:#x} are already in use by another device")]
pub struct Overlap {
    pub start: u64,
    pub end: u64,
}

impl Bus {
    /// Maps `length` addresses from `start` on to `device`.
    pub fn insert(&self, start: u64, length: u64, device: Arc<dyn BusDevice>) -> Result<(), Overlap> {
        let end =
            start.checked_add(length).filter(|end| *end > start).ok_or(Overlap { start, end: start })?;
        let mut ranges = self.ranges.write().expect("no bus user panics");
        let overlaps = ranges.range(..end).next_back().is_some_and(|(at, (len, _))| at + len > start);
        if overlaps {
            return Err(Overlap { start, end });
        }
        ranges.insert(start, (length, device));
        Ok(())
    }

    /// Unmaps the range that starts at `start`, if there is one.
    pub fn remove(&self, start: u64) {
        self.ranges.write().expect("no bus user panics").remove(&start);
    }

    /// Reads; addresses that no device has read as all ones, as on hardware.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes; addresses that no device has swallow it, as on hardware.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address) {
            device.write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(u64, Arc<dyn BusDevice>)> {
        let ranges = self.ranges.read().expect("no bus user panics");
        let (start, (length, device)) = ranges.range(..=address).next_back()?;
        (address - start < *length).then(|| (address - start, Arc::clone(device)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Constant(u8);
    impl BusDevice for Constant {
        fn read(&self, _offset: u64, data: &mut [u8]) {
            data.fill(self.0);
        }
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }

    #[test]
    fn ranges_that_touch_are_kept_apart_and_ranges_that_overlap_are_refused() {
        let bus = Bus::default();
        bus.insert(0x10, 0x10, Arc::new(Constant(1))).unwrap();
        bus.insert(0x20, 0x10, Arc::new(Constant(2))).unwrap();
        for (start, length) in
            [(0x1f, 1), (0x0, 0x11), (0x2f, 0x10), (0x14, 2), (0x0, 0x100), (5, 0), (u64::MAX, 2)]
        {
            assert!(bus.insert(start, length, Arc::new(Constant(3))).is_err(), "{start:#x}+{length:#x}");
        }
        let read = |address| {
            let mut byte = [0];
            bus.read(address, &mut byte);
            byte[0]
        };
        assert_eq!([0xf, 0x10, 0x1f, 0x20, 0x2f, 0x30].map(read), [0xff, 1, 1, 2, 2, 0xff]);
    }
}
