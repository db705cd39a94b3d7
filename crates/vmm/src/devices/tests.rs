//! All devices together, as the machine builds them.

use std::fs;
use std::path::{Path, PathBuf};

use godwit_types::control::{DiskBacking, Role};
use godwit_types::ids::VmId;
use godwit_types::vm::{BootSpec, DiskFormat, VmSpec};

use super::virtio::test_driver::Machine;
use super::*;

const VM: &str = "00000000-0000-0000-0000-00000000000a";

fn config(directory: &Path, host: &str, disks: usize) -> VmmConfig {
    let backing = |index| DiskBacking {
        path: directory.join(format!("{index}.raw")),
        lock: directory.join(format!("{index}.raw.lock")),
        format: DiskFormat::Raw,
        read_only: false,
    };
    let disks: Vec<DiskBacking> = (0..disks).map(backing).collect();
    for disk in &disks {
        fs::File::create(&disk.path).unwrap().set_len(1 << 20).unwrap();
    }
    VmmConfig {
        vm: VmId(VM.parse().unwrap()),
        name: "web1".parse().unwrap(),
        host: host.parse().unwrap(),
        epoch: Epoch(1),
        spec: VmSpec {
            vcpus: 1,
            memory: Bytes::mib(16),
            boot: BootSpec { kernel: "shared/kernel".parse().unwrap(), initrd: None, cmdline: String::new() },
            disks: Vec::new(),
            nics: Vec::new(),
            machine: Default::default(),
            cpu: Default::default(),
        },
        control: PathBuf::new(),
        console_socket: PathBuf::new(),
        console_log: PathBuf::new(),
        kernel: PathBuf::new(),
        initrd: None,
        disks,
        nics: Vec::new(),
        role: Role::Boot,
    }
}

fn built(machine: &Machine, config: &VmmConfig) -> Pci {
    let Environment { ram, msi, io_events, mmio } = machine.environment.clone();
    build(config, ram, msi, io_events, mmio, Arc::new(Bus::default())).unwrap()
}

fn ecam_u32(machine: &Machine, slot: u64, register: u64) -> u32 {
    let mut data = [0; 4];
    machine.environment.mmio.read(layout::ECAM_START + (slot << 15) + register, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn every_device_is_in_its_slot_and_answers_where_its_bar_says() {
    let (directory, machine) = (tempfile::tempdir().unwrap(), Machine::empty());
    let pci = built(&machine, &config(directory.path(), "a", 2));
    let ids: Vec<(u64, u32)> = (0..32)
        .map(|slot| (slot, ecam_u32(&machine, slot, 0)))
        .filter(|(_, id)| *id != 0xffff_ffff)
        .collect();
    let virtio = |id: u32| (0x1040 + id) << 16 | 0x1AF4;
    assert_eq!(
        ids,
        [(0, 0x0008_1B36), (1, virtio(4)), (2, virtio(5)), (3, virtio(3)), (8, virtio(2)), (9, virtio(2))]
    );
    for (slot, _) in &ids[1..] {
        let bar = ecam_u32(&machine, *slot, 0x10) & !0xf;
        let mut queues = [0; 2];
        machine.environment.mmio.read(u64::from(bar) + 18, &mut queues);
        assert!((1..=3).contains(&queues[0]), "slot {slot}");
    }
    let names: Vec<&str> = pci.devices().iter().map(|device| device.name()).collect();
    assert_eq!(
        names,
        [
            "pci-00.0/host-bridge",
            "pci-00.1/virtio-rng",
            "pci-00.2/virtio-balloon",
            "pci-00.3/virtio-console",
            "pci-00.8/virtio-block",
            "pci-00.9/virtio-block"
        ]
    );
}

#[test]
fn bars_may_trade_places() {
    let (directory, machine) = (tempfile::tempdir().unwrap(), Machine::empty());
    let _pci = built(&machine, &config(directory.path(), "a", 0));
    let mmio = &machine.environment.mmio;
    let queues_at = |slot: u8| {
        let mut queues = [0; 2];
        mmio.read(layout::bar_start(slot) + 18, &mut queues);
        u16::from_le_bytes(queues)
    };
    let set = |slot: u64, address: u64| {
        mmio.write(layout::ECAM_START + (slot << 15) + 0x10, &(address as u32).to_le_bytes());
    };
    assert_eq!((queues_at(1), queues_at(2)), (1, 2));
    // The first is in the way until it has moved itself; then the other takes the place it was given.
    set(2, layout::bar_start(1));
    assert_eq!((queues_at(1), queues_at(2)), (1, 0xffff));
    set(1, layout::bar_start(2));
    assert_eq!((queues_at(1), queues_at(2)), (2, 1));
}

#[test]
fn a_whole_machine_moves_and_the_last_owner_is_refused_from_then_on() {
    let (directory, source) = (tempfile::tempdir().unwrap(), Machine::empty());
    let here = built(&source, &config(directory.path(), "a", 2));
    here.take_locks(Epoch(1)).unwrap();
    let destination = Machine::with_ram(Arc::clone(&source.environment.ram));
    let there = built(&destination, &config(directory.path(), "b", 2));
    for (from, to) in here.devices().iter().zip(there.devices()) {
        from.pause().unwrap();
        to.restore(&from.save().unwrap()).unwrap();
        assert_eq!(to.save().unwrap(), from.save().unwrap());
    }
    here.release_locks();
    there.take_locks(Epoch(2)).unwrap();
    there.devices().iter().for_each(|device| device.resume().unwrap());
    drop(there);
    let error = here.take_locks(Epoch(1)).unwrap_err().to_string();
    assert!(error.contains("the VM has moved on"), "{error}");
}

#[test]
fn locks_are_taken_all_or_none() {
    let (directory, machine) = (tempfile::tempdir().unwrap(), Machine::empty());
    let config = config(directory.path(), "a", 2);
    let pci = built(&machine, &config);
    fs::write(&config.disks[1].lock, "damaged").unwrap();
    let error = pci.take_locks(Epoch(1)).unwrap_err();
    assert!(error.device.starts_with("pci-00.9") && error.reason.contains("damaged"), "{error}");
    fs::remove_file(&config.disks[1].lock).unwrap();
    let other = Machine::empty();
    let mut rival = config.clone();
    rival.host = "b".parse().unwrap();
    built(&other, &rival).take_locks(Epoch(2)).unwrap();
}

#[test]
fn a_dropped_machine_leaves_nothing_on_the_buses() {
    let (directory, machine) = (tempfile::tempdir().unwrap(), Machine::empty());
    drop(built(&machine, &config(directory.path(), "a", 1)));
    assert!(machine.notifications.0.lock().unwrap().is_empty());
    assert_eq!(ecam_u32(&machine, 8, 0), 0xffff_ffff);
    drop(built(&machine, &config(directory.path(), "a", 1)));
}

#[test]
fn a_missing_tap_is_named_with_the_remedy() {
    let (directory, machine) = (tempfile::tempdir().unwrap(), Machine::empty());
    let mut config = config(directory.path(), "a", 0);
    let mac = "52:54:00:00:00:01".parse().unwrap();
    config.nics = vec![godwit_types::control::NicBacking { tap: "gw-no-such-tap".to_owned(), mac }];
    let Environment { ram, msi, io_events, mmio } = machine.environment.clone();
    let error =
        build(&config, ram, msi, io_events, mmio, Arc::new(Bus::default())).err().unwrap().to_string();
    assert!(error.contains("cannot attach to the tap gw-no-such-tap"), "{error}");
}
