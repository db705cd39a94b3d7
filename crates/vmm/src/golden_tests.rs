//! Device state as releases saved it, in `tests/golden`: this build reads all of it, and saves it again as it was.
//!
//! The rule, for whoever changes a section. A new field is optional, has a number that was never used, and means with
//! its default what its absence meant: no new version. Anything else is a new version, `N`, which also reads `N - 1`;
//! a release's files, and the list of its fields, stay until their version is `N - 2`. A build refuses newer versions by name: see `State`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use godwit_migration::Section;
use prost::encoding::{WireType, encode_key, encode_varint};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::device::{Device, DeviceError, State};
use crate::devices::console::Console;
use crate::devices::legacy::pm::{Pm, PmState};
use crate::devices::legacy::rtc::{Rtc, RtcState};
use crate::devices::legacy::serial::{Serial, UartState};
use crate::devices::pci::HostBridgeState;
use crate::devices::tests::{built, config};
use crate::devices::virtio::state::FunctionState;
use crate::devices::virtio::test_driver::Machine;
use crate::kvm::clock::ClockState;
use crate::kvm::irqchip::{IrqchipState, PitState};
use crate::kvm::vcpu::VcpuState;
use crate::memory::GuestRam;
use crate::offer;

/// RAM of the guest that was saved.
const RAM_BYTES: usize = 64 << 20;

/// The files of all releases.
fn files() -> impl Iterator<Item = PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let releases = fs::read_dir(folder).unwrap().map(|release| release.unwrap().path());
    releases.flat_map(|release| fs::read_dir(release).unwrap()).map(|file| file.unwrap().path())
}

/// What a guest at work had, by device, kind and version.
fn golden() -> Vec<Section> {
    let section = |file: PathBuf| {
        let name = file.file_name()?.to_str()?.to_owned();
        let [device, kind, version] = name.split('@').collect::<Vec<_>>()[..] else { return None };
        let (device, version) = (device.replace('+', "/"), version.parse().unwrap());
        Some(Section { device, kind: kind.to_owned(), version, payload: fs::read(file).unwrap() })
    };
    files().filter_map(section).collect()
}

/// Every field at its greatest, as the lists `fields` of all releases name them: a guest at work leaves many at 0.
fn filled() -> Vec<Section> {
    let lists = files().filter(|file| file.ends_with("fields")).map(|file| fs::read_to_string(file).unwrap());
    let section = |line: &str| {
        let (kind, fields) = line.split_once(' ').unwrap();
        let (kind, version) = kind.split_once('@').unwrap();
        let payload = fields.split(' ').flat_map(field).collect();
        Section { device: "filled".into(), kind: kind.to_owned(), version: version.parse().unwrap(), payload }
    };
    lists.flat_map(|list| list.lines().map(section).collect::<Vec<_>>()).collect()
}

/// `NUMBER:TYPE` on the wire of protobuf.
fn field(text: &str) -> Vec<u8> {
    let (number, kind) = text.split_once(':').unwrap();
    let number: u32 = number.parse().unwrap();
    let mut bytes = Vec::new();
    let mut varint = |value: u64| {
        encode_key(number, WireType::Varint, &mut bytes);
        encode_varint(value, &mut bytes);
    };
    match kind {
        "bool" => varint(1),
        "u32" => varint(u32::MAX.into()),
        "u64" => varint(u64::MAX),
        other => {
            let message = other.strip_prefix('(').and_then(|other| other.strip_suffix(')'));
            let content = match message {
                Some(fields) => fields.split(',').flat_map(field).collect(),
                None if other == "bytes" => b"bytes".to_vec(),
                None => panic!("{other} is no type"),
            };
            encode_key(number, WireType::LengthDelimited, &mut bytes);
            encode_varint(content.len() as u64, &mut bytes);
            bytes.extend(content);
        }
    }
    bytes
}

/// Reads a section and writes what was read.
fn again(section: &Section) -> Result<Section, DeviceError> {
    fn of<S: State>(section: &Section) -> Result<Section, DeviceError> {
        Ok(S::from_section(section)?.to_section(&section.device))
    }
    match section.kind.as_str() {
        ClockState::KIND => of::<ClockState>(section),
        IrqchipState::KIND => of::<IrqchipState>(section),
        PitState::KIND => of::<PitState>(section),
        VcpuState::KIND => of::<VcpuState>(section),
        UartState::KIND => of::<UartState>(section),
        PmState::KIND => of::<PmState>(section),
        RtcState::KIND => of::<RtcState>(section),
        HostBridgeState::KIND => of::<HostBridgeState>(section),
        FunctionState::KIND => of::<FunctionState>(section),
        other => panic!("nothing reads a {other} any more: its files go with it, two releases later"),
    }
}

#[test]
fn every_field_that_a_release_saved_is_read_and_saved_again() {
    for section in golden().into_iter().chain(filled()) {
        let read = again(&section).unwrap_or_else(|error| panic!("{error}"));
        if section.version == read.version {
            // Fields whose number or type has changed, or that nobody knows any more, are lost here.
            assert_eq!(read.payload, section.payload, "{} {}", section.device, section.kind);
        }
    }
}

#[test]
fn every_kind_of_section_that_this_build_writes_is_kept_in_its_version() {
    for kept in [golden(), filled()] {
        let kept: Vec<(String, u16)> =
            kept.into_iter().map(|section| (section.kind, section.version)).collect();
        for kind in offer::sections() {
            assert!(kept.contains(&kind), "{kind:?} has no golden file, or no list of its fields");
        }
    }
}

#[test]
fn devices_take_over_what_a_release_saved_and_save_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap();
    let machine = Machine::with_ram(Arc::new(ram));
    let pci = built(&machine, &config(folder.path(), "b", 1));
    let serial = Serial::new(EventFd::new(0).unwrap(), Arc::new(Console::new().unwrap())).unwrap();
    let pm = Pm::new(Arc::new(crate::machine::doorbell::Doorbell::default()), Box::new(|_| ()));
    let mut devices: Vec<Arc<dyn Device>> = vec![Arc::new(serial), Arc::new(pm), Arc::new(Rtc::default())];
    devices.extend(pci.devices().iter().cloned());
    let golden = golden();
    for device in &devices {
        let section = golden.iter().find(|section| section.device == device.name());
        let section = section.unwrap_or_else(|| panic!("{} has no golden file", device.name()));
        device.restore(section).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(device.save().unwrap().payload, section.payload, "{}", device.name());
    }
}

#[test]
fn what_is_newer_is_refused_with_its_version_and_what_to_do() {
    for section in golden() {
        let newer = Section { version: offer::sections()[&section.kind] + 1, ..section };
        let error = again(&newer).unwrap_err().to_string();
        assert!(error.contains(&format!("has version {}", newer.version)), "{error}");
        assert!(error.contains("install"), "{error}");
    }
}
