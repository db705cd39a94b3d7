//! All devices together, as the machine builds them.

use std::fs;
use std::path::{Path, PathBuf};

use godwit_types::control::{DiskBacking, Role};
use godwit_types::ids::VmId;
use godwit_types::vm::{BootSpec, DiskFormat, VmSpec};

use vm_memory::{Bytes as _, GuestAddress};

use super::virtio::test_driver::{BUFFERS, Driver, Machine, RAM_BYTES, WRITE};
use super::*;

const VM: &str = "00000000-0000-0000-0000-00000000000a";

pub(crate) fn config(directory: &Path, host: &str, disks: usize) -> VmmConfig {
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
        user: None,
        cgroup: None,
        descriptors: None,
        write_log: None,
    }
}

fn given(config: &VmmConfig) -> Given {
    let terminal = terminal();
    let disks = config.disks.iter().map(|disk| godwit_provision::open_disk(disk).unwrap()).collect();
    Given { terminal, disks, taps: Vec::new() }
}

pub(crate) fn terminal() -> Arc<ConsolePort> {
    ConsolePort::new(Arc::new(console::Console::new().unwrap())).unwrap()
}

pub(crate) fn built(machine: &Machine, config: &VmmConfig) -> Pci {
    let Environment { ram, msi, io_events, mmio } = machine.environment.clone();
    build(config, given(config), ram, msi, io_events, mmio, Arc::new(Bus::default())).unwrap()
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

/// Number of queues of the device that answers where that in `slot` was at power-on.
fn queues_at(machine: &Machine, slot: u8) -> u16 {
    let mut queues = [0; 2];
    machine.environment.mmio.read(layout::bar_start(slot) + 18, &mut queues);
    u16::from_le_bytes(queues)
}

#[test]
fn bars_may_trade_places_and_keep_them_over_a_move() {
    let (directory, machine) = (tempfile::tempdir().unwrap(), Machine::empty());
    let here = built(&machine, &config(directory.path(), "a", 0));
    let set = |slot: u64, address: u64| {
        machine
            .environment
            .mmio
            .write(layout::ECAM_START + (slot << 15) + 0x10, &(address as u32).to_le_bytes());
    };
    assert_eq!((queues_at(&machine, 1), queues_at(&machine, 2)), (1, 2));
    // The first is in the way until it has moved itself; then the other takes the place it was given.
    set(2, layout::bar_start(1));
    assert_eq!((queues_at(&machine, 1), queues_at(&machine, 2)), (1, 0xffff));
    set(1, layout::bar_start(2));
    assert_eq!((queues_at(&machine, 1), queues_at(&machine, 2)), (2, 1));

    let destination = Machine::with_ram(Arc::clone(&machine.environment.ram));
    let there = built(&destination, &config(directory.path(), "b", 0));
    migrate(&here, &there);
    there.devices().iter().for_each(|device| device.resume().unwrap());
    assert_eq!((queues_at(&destination, 1), queues_at(&destination, 2)), (2, 1));
}

/// Moves the state of all devices; those of `to` stay paused.
fn migrate(from: &Pci, to: &Pci) {
    for (from, to) in from.devices().iter().zip(to.devices()) {
        from.pause().unwrap();
        to.restore(&from.save().unwrap()).unwrap();
        assert_eq!(to.save().unwrap(), from.save().unwrap());
    }
}

#[test]
fn a_whole_machine_moves_and_the_last_owner_is_refused_from_then_on() {
    let (directory, source) = (tempfile::tempdir().unwrap(), Machine::empty());
    let here = built(&source, &config(directory.path(), "a", 2));
    here.take_locks(Epoch(1)).unwrap();
    let destination = Machine::with_ram(Arc::clone(&source.environment.ram));
    let there = built(&destination, &config(directory.path(), "b", 2));
    migrate(&here, &there);
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

/// Numbers that look random and are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end
    }

    /// Mostly values that mean something to some register.
    fn value(&mut self) -> u64 {
        match self.below(5) {
            0 => self.below(16),
            1 => 1 << self.below(64),
            2 => self.below(RAM_BYTES as u64) & !0xf,
            3 => u64::MAX - self.below(16),
            _ => self.0,
        }
    }
}

/// What a driver does from reset to DRIVER_OK, with rings from 64 KiB on.
fn set_up_properly(mmio: &Bus, bar: u64) {
    mmio.write(bar + 20, &[0]);
    mmio.write(bar + 20, &[3]);
    for register in [8, 12] {
        mmio.write(bar + register, &1u32.to_le_bytes());
    }
    mmio.write(bar + 20, &[11]);
    for queue in 0..3u16 {
        let rings = 0x1_0000 * (u64::from(queue) + 1);
        mmio.write(bar + 22, &queue.to_le_bytes());
        mmio.write(bar + 24, &16u16.to_le_bytes());
        for (register, address) in [(32, rings), (40, rings + 0x2000), (48, rings + 0x3000)] {
            mmio.write(bar + register, &address.to_le_bytes());
        }
        mmio.write(bar + 28, &1u16.to_le_bytes());
    }
    mmio.write(bar + 20, &[15]);
}

#[test]
fn a_guest_that_pokes_at_random_harms_nobody_and_gets_its_devices_back_by_a_reset() {
    const POKES: u32 = 40_000;
    let (directory, machine) = (tempfile::tempdir().unwrap(), Machine::empty());
    let pci = built(&machine, &config(directory.path(), "a", 1));
    pci.take_locks(Epoch(1)).unwrap();
    let (mmio, ram) = (&machine.environment.mmio, machine.ram());
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let slots = [1u64, 2, 3, 8];
    let (mut seen_running, mut seen_broken) = (0, 0);
    for _ in 0..POKES {
        let slot = slots[random.below(4) as usize];
        let length = 1 << random.below(4);
        let value = random.value().to_le_bytes();
        let bar = layout::bar_start(slot as u8);
        if random.below(50) == 0 {
            set_up_properly(mmio, bar);
        }
        let mut status = [0];
        mmio.read(bar + 20, &mut status);
        seen_running += u32::from(status[0] & 0x44 == 0x04);
        seen_broken += u32::from(status[0] & 0x44 == 0x44);
        match random.below(12) {
            // The registers by which a driver starts a device, most often.
            0..3 => mmio.write(bar + (random.below(64) & !(length - 1)), &value[..length as usize]),
            // The rings and what lies around them.
            3..6 => ram.write_slice(&value, GuestAddress(0x1_0000 + random.below(0x4_0000))).unwrap(),
            6 => mmio.write(bar + random.below(0x8000), &value[..length as usize]),
            7 => mmio.write(bar + 0x3000 + 4 * random.below(4), &[0, 0]),
            8 => {
                let register = [4, random.below(256)][random.below(2) as usize];
                let place = layout::ECAM_START + (slot << 15) + register;
                // Not the BAR, so that the pokes keep finding the device.
                if !(0x10..0x18).contains(&register) {
                    mmio.write(place, &[value[0] | 6]);
                }
            }
            9 => mmio.read(bar + random.below(0x8000), &mut [0; 8][..length as usize]),
            _ => ram.write_slice(&value, GuestAddress(random.below(RAM_BYTES as u64 - 8))).unwrap(),
        }
    }
    assert!(seen_running > 100 && seen_broken > 100, "{seen_running} {seen_broken}: it has to come that far");
    for device in pci.devices() {
        device.pause().unwrap();
        let section = device.save().unwrap();
        device.reset();
        // What such a guest leaves is a state like any other.
        device.restore(&section).unwrap();
        device.reset();
        device.resume().unwrap();
    }
    mmio.write(layout::ECAM_START + (1 << 15) + 4, &[6, 0]);
    let mut driver = Driver::at(&machine, layout::bar_start(1), Arc::clone(&pci.functions[0]) as _);
    driver.start(0);
    driver.submit(0, &[(BUFFERS, 16, WRITE)]);
    assert_eq!(driver.answer(0).1, 16);
}
