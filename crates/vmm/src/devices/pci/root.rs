//! The root of the bus: the host bridge in slot 0, and the two ways to configuration space.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use godwit_migration::Section;

use super::PciFunction;
use super::config::{ConfigSpace, Identity};
use super::layout::{HOST_BRIDGE_SLOT, SLOTS};
use crate::bus::BusDevice;
use crate::device::{Device, DeviceError, State};

/// The generic PCI Express host bridge that QEMU's virtual machines have; no driver needs more of it.
const HOST_BRIDGE: Identity = Identity {
    vendor: 0x1B36,
    device: 0x0008,
    revision: 0,
    class: 0x06_00_00,
    subsystem_vendor: 0x1AF4,
    subsystem: 0x1100,
};

const ADDRESS_ENABLE: u32 = 1 << 31;
/// Bits of the address register that hold a value: enable, bus, device, function, register.
const ADDRESS_BITS: u32 = 0x80FF_FFFC;

/// Bus 0 with its functions.
pub struct Root {
    name: String,
    bridge: Mutex<ConfigSpace>,
    /// By slot; slot 0 is the bridge itself.
    functions: [Option<Arc<dyn PciFunction>>; SLOTS],
    /// What was last written to the port 0xCF8.
    address: AtomicU32,
}

impl Root {
    /// The bus with `functions` in their slots.
    pub fn new(functions: impl IntoIterator<Item = (u8, Arc<dyn PciFunction>)>) -> Self {
        let mut slots = [const { None }; SLOTS];
        for (slot, function) in functions {
            assert!(slot != HOST_BRIDGE_SLOT && slots[usize::from(slot)].is_none(), "slot {slot:#x} is free");
            slots[usize::from(slot)] = Some(function);
        }
        Self {
            name: format!("pci-00.{HOST_BRIDGE_SLOT:x}/host-bridge"),
            bridge: Mutex::new(ConfigSpace::new(HOST_BRIDGE)),
            functions: slots,
            address: AtomicU32::new(0),
        }
    }

    /// `place` as in the ECAM: bus, device, function and register from bit 20, 15, 12 and 0 on.
    fn read(&self, place: u64, data: &mut [u8]) {
        let register = (place & 0xFFF) as usize;
        match slot_of(place) {
            Some(0) => self.bridge().read(register, data),
            Some(slot) => match &self.functions[slot] {
                Some(function) => function.read_config(register, data),
                None => data.fill(0xff),
            },
            None => data.fill(0xff),
        }
    }

    fn write(&self, place: u64, data: &[u8]) {
        let register = (place & 0xFFF) as usize;
        let Some(slot) = slot_of(place) else { return };
        if slot == usize::from(HOST_BRIDGE_SLOT) {
            self.bridge().write(register, data);
        } else if let Some(function) = &self.functions[slot] {
            function.write_config(register, data);
            self.functions.iter().flatten().for_each(|function| function.settle_bars());
        }
    }

    /// Where an access to the data port at `offset` goes, if the address register is enabled.
    fn selected(&self, offset: u64) -> Option<u64> {
        let address = self.address.load(Ordering::Relaxed);
        let (place, register) = (u64::from(address & 0x00FF_FF00), u64::from(address & 0xFC));
        (address & ADDRESS_ENABLE != 0).then_some(place << 4 | register | offset & 3)
    }

    fn bridge(&self) -> MutexGuard<'_, ConfigSpace> {
        self.bridge.lock().expect("no user of the host bridge panics")
    }
}

/// The slot, if the place is on bus 0 and in function 0.
fn slot_of(place: u64) -> Option<usize> {
    (place >> 20 == 0 && place >> 12 & 7 == 0).then_some((place >> 15 & 31) as usize)
}

/// The memory-mapped way to configuration space.
pub struct Ecam(pub Arc<Root>);

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// The port 0xCF8, which takes 4-byte accesses alone.
pub struct ConfigAddress(pub Arc<Root>);

impl BusDevice for ConfigAddress {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        match data.len() {
            4 => data.copy_from_slice(&self.0.address.load(Ordering::Relaxed).to_le_bytes()),
            _ => data.fill(0xff),
        }
    }
    fn write(&self, _offset: u64, data: &[u8]) {
        if let Ok(bytes) = data.try_into() {
            self.0.address.store(u32::from_le_bytes(bytes) & ADDRESS_BITS, Ordering::Relaxed);
        }
    }
}

/// The ports 0xCFC to 0xCFF.
pub struct ConfigData(pub Arc<Root>);

impl BusDevice for ConfigData {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.0.selected(offset) {
            Some(place) => self.0.read(place, data),
            None => data.fill(0xff),
        }
    }
    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(place) = self.0.selected(offset) {
            self.0.write(place, data);
        }
    }
}

/// The host bridge between source and destination.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HostBridgeState {
    #[prost(bytes = "vec", tag = "1")]
    config: Vec<u8>,
    #[prost(uint32, tag = "2")]
    config_address: u32,
}

impl State for HostBridgeState {
    const KIND: &'static str = "pci-host-bridge";
    const VERSION: u16 = 1;
}

impl Device for Root {
    fn name(&self) -> &str {
        &self.name
    }

    fn pause(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn save(&self) -> Result<Section, DeviceError> {
        let config = self.bridge().bytes().to_vec();
        let config_address = self.address.load(Ordering::Relaxed);
        Ok(HostBridgeState { config, config_address }.to_section(&self.name))
    }

    fn restore(&self, section: &Section) -> Result<(), DeviceError> {
        let state = HostBridgeState::from_section(section)?;
        let refuse = |reason| DeviceError { device: self.name.clone(), reason };
        if state.config_address & !ADDRESS_BITS != 0 {
            return Err(refuse("the configuration address has bits set that do not exist".to_owned()));
        }
        self.bridge().restore(&state.config).map_err(refuse)?;
        self.address.store(state.config_address, Ordering::Relaxed);
        Ok(())
    }

    fn reset(&self) {
        *self.bridge() = ConfigSpace::new(HOST_BRIDGE);
        self.address.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(Mutex<[u8; 4]>);

    impl PciFunction for Scratch {
        fn read_config(&self, offset: usize, data: &mut [u8]) {
            for (index, byte) in data.iter_mut().enumerate() {
                *byte = self.0.lock().unwrap().get(offset + index).copied().unwrap_or(0);
            }
        }
        fn write_config(&self, offset: usize, data: &[u8]) {
            for (index, byte) in data.iter().enumerate() {
                if let Some(slot) = self.0.lock().unwrap().get_mut(offset + index) {
                    *slot = *byte;
                }
            }
        }
        fn settle_bars(&self) {}
    }

    fn root() -> Arc<Root> {
        let scratch: Arc<dyn PciFunction> = Arc::new(Scratch(Mutex::new([1, 2, 3, 4])));
        Arc::new(Root::new([(3, scratch)]))
    }

    fn ecam_u32(root: &Arc<Root>, place: u64) -> u32 {
        let mut data = [0; 4];
        Ecam(Arc::clone(root)).read(place, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_scan_finds_the_bridge_and_the_devices_and_nothing_else() {
        let root = root();
        let found: Vec<u64> =
            (0..0x1000u64).filter(|place| ecam_u32(&root, place << 12) != 0xffff_ffff).collect();
        assert_eq!(found, [0, 3 << 3], "bus, device and function numbers that answer");
        assert_eq!(ecam_u32(&root, 0), 0x0008_1B36);
    }

    #[test]
    fn ports_and_memory_reach_the_same_registers() {
        let root = root();
        let (address, data) = (ConfigAddress(Arc::clone(&root)), ConfigData(Arc::clone(&root)));
        let mut byte = [0];
        data.read(1, &mut byte);
        assert_eq!(byte, [0xff], "not enabled yet");
        address.write(0, &(ADDRESS_ENABLE | 3 << 11).to_le_bytes());
        data.read(1, &mut byte);
        assert_eq!(byte, [2]);
        data.write(2, &[9, 8]);
        assert_eq!(ecam_u32(&root, 3 << 15), 0x0809_0201);
        address.write(0, &[0xff]);
        data.read(0, &mut byte);
        assert_eq!(byte, [1], "a one-byte write does not select anything");
    }

    #[test]
    fn a_guest_between_selecting_and_reading_a_register_survives_a_move() {
        let (source, destination) = (root(), root());
        ConfigAddress(Arc::clone(&source)).write(0, &(ADDRESS_ENABLE | 3 << 11).to_le_bytes());
        destination.restore(&source.save().unwrap()).unwrap();
        let mut byte = [0];
        ConfigData(destination).read(3, &mut byte);
        assert_eq!(byte, [4]);
    }
}
