//! The transport, driven through the bus by a device that copies what it reads to what it may write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use prost::Message;
use vm_memory::{Bytes, GuestAddress};

use super::test_driver::*;
use super::*;
use crate::device::{Device, State};
use crate::devices::pci::{PciFunction, layout};
use state::FunctionState;

/// Answers every chain with its own first bytes, and counts.
#[derive(Default)]
struct Echo {
    served: AtomicU32,
}

impl VirtioDevice for Echo {
    const NAME: &'static str = "virtio-echo";
    const ID: u32 = 42;
    const CLASS: u32 = 0xFF_00_00;

    fn features(&self) -> u64 {
        1 << 3
    }
    fn queue_sizes(&self) -> &[u16] {
        &[64, 16]
    }
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(b"echo", offset, data);
    }
    fn process(&self, source: Source, io: &mut Io<'_>) -> Result<Progress, DriverFault> {
        let Source::Queue(index) = source else { unreachable!("nothing is watched") };
        io.serve_queue(index, 4, |mut chain| {
            self.served.fetch_add(1, Ordering::SeqCst);
            let mut bytes = vec![0; chain.readable_bytes()];
            chain.take(&mut bytes)?;
            Ok(chain.put(&bytes) as u32)
        })
    }
}

const OUT: u64 = BUFFERS;
const IN: u64 = BUFFERS + 0x1000;

fn echo(driver: &mut Driver, text: &[u8]) {
    driver.put(OUT, text);
    driver.put(IN, &vec![0; text.len()]);
    let length = text.len() as u32;
    let head = driver.submit(0, &[(OUT, length, 0), (IN, length, WRITE)]);
    assert_eq!(driver.answer(0), (head, length));
    assert_eq!(driver.get(IN, text.len()), text);
}

fn started(machine: &Machine) -> (Plugged<Echo>, Driver) {
    let plugged = machine.plug(Echo::default());
    let mut driver = Driver::new(machine, &plugged);
    driver.start(0);
    (plugged, driver)
}

#[test]
fn a_driver_finds_all_structures_by_their_capabilities() {
    let machine = Machine::empty();
    let plugged = machine.plug(Echo::default());
    let driver = Driver::new(&machine, &plugged);
    assert_eq!(driver.config_u32(0), 0x106A_1AF4);
    assert_eq!(driver.config_u32(8) & 0xff, 1, "a device without the legacy interface has revision 1");
    for (cfg_type, offset) in [(1, 0), (2, 0x3000), (3, 0x1000), (4, 0x2000)] {
        let at = driver.capability(9, Some(cfg_type)).unwrap();
        assert_eq!(
            (driver.config_u32(at + 4) & 0xff, driver.config_u32(at + 8)),
            (0, offset),
            "type {cfg_type}"
        );
    }
    let msix = driver.capability(0x11, None).unwrap();
    assert_eq!(driver.config_u32(msix) >> 16 & 0x7ff, 2, "three vectors");
    assert_eq!((driver.config_u32(msix + 4), driver.config_u32(msix + 8)), (0x4000, 0x5000));
    assert_eq!(driver.read_u32(0x2000), u32::from_le_bytes(*b"echo"));
    assert_eq!(driver.offered(), VERSION_1 | EVENT_IDX | INDIRECT | 1 << 3);
}

#[test]
fn features_that_are_not_offered_are_refused_and_the_device_does_not_start() {
    let machine = Machine::empty();
    let plugged = machine.plug(Echo::default());
    let driver = Driver::new(&machine, &plugged);
    assert!(!driver.negotiate(VERSION_1 | 1 << 4));
    assert!(!driver.negotiate(1 << 3), "a driver that does not know virtio 1");
    driver.set_status(STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
    assert_eq!(driver.status(), STATUS_DRIVER);
    assert!(driver.negotiate(VERSION_1 | 1 << 3));
}

#[test]
fn requests_are_answered_with_an_interrupt_for_their_queue() {
    for features in [0, EVENT_IDX, EVENT_IDX | INDIRECT] {
        let machine = Machine::empty();
        let plugged = machine.plug(Echo::default());
        let mut driver = Driver::new(&machine, &plugged);
        driver.start(features);
        for round in 0..200u32 {
            driver.put(OUT, &round.to_le_bytes());
            let head = driver.submit(0, &[(OUT, 4, 0), (IN, 4, WRITE)]);
            // First the interrupt: a driver that has already seen the answer does not ask for one.
            machine.messages.wait_for(0x101);
            assert_eq!(driver.poll(0), Some((head, 4)));
            assert_eq!(driver.get(IN, 4), round.to_le_bytes());
        }
    }
}

#[test]
fn an_indirect_table_is_followed() {
    let machine = Machine::empty();
    let (_plugged, mut driver) = started(&machine);
    driver.put(OUT, b"indirect");
    let table = BUFFERS + 0x2000;
    let entries = [(OUT, 8u32, NEXT, 1u16), (IN, 8, WRITE, 0)];
    for (index, (address, length, flags, next)) in entries.into_iter().enumerate() {
        let descriptor = virtio_queue::desc::split::Descriptor::new(address, length, flags, next);
        machine.ram().write_obj(descriptor, GuestAddress(table + 16 * index as u64)).unwrap();
    }
    let head = driver.submit(0, &[(table, 32, INDIRECT_TABLE)]);
    assert_eq!(driver.answer(0), (head, 8));
    assert_eq!(driver.get(IN, 8), b"indirect");
}

#[test]
fn a_moved_bar_takes_its_notification_addresses_along() {
    let machine = Machine::empty();
    let (plugged, mut driver) = started(&machine);
    let before: Vec<u64> = machine.notifications.0.lock().unwrap().keys().copied().collect();
    assert_eq!(before, [driver.bar + 0x3000, driver.bar + 0x3004]);
    plugged.function.write_config(0x10, &0xD000_0000u32.to_le_bytes());
    plugged.function.settle_bars();
    assert_eq!(driver.read_u32(0), 0xffff_ffff, "nothing answers at the old place");
    driver.bar = 0xD000_0000;
    echo(&mut driver, b"moved");
    plugged.function.write_config(4, &0u16.to_le_bytes());
    plugged.function.settle_bars();
    assert_eq!(driver.read_u32(0), 0xffff_ffff, "decoding is off");
    assert!(machine.notifications.0.lock().unwrap().is_empty());
}

#[test]
fn nothing_is_served_without_bus_mastering() {
    let machine = Machine::empty();
    let (plugged, mut driver) = started(&machine);
    plugged.function.write_config(4, &2u16.to_le_bytes());
    driver.submit(0, &[(OUT, 4, 0), (IN, 4, WRITE)]);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(driver.used_index(0), 0);
    plugged.function.write_config(4, &6u16.to_le_bytes());
    assert_eq!(driver.answer(0).1, 4);
}

#[test]
fn the_window_in_configuration_space_reaches_the_bar() {
    let machine = Machine::empty();
    let plugged = machine.plug(Echo::default());
    let driver = Driver::new(&machine, &plugged);
    let at = driver.capability(9, Some(5)).unwrap();
    let access = |offset: u32, length: u32| {
        plugged.function.write_config(at + 8, &offset.to_le_bytes());
        plugged.function.write_config(at + 12, &length.to_le_bytes());
    };
    access(0x2000, 4);
    assert_eq!(driver.config_u32(at + 16), u32::from_le_bytes(*b"echo"));
    access(20, 1);
    plugged.function.write_config(at + 16, &[1]);
    assert_eq!(driver.status(), 1);
    for (offset, length) in [(0xffff_fff0, 4), (1, 4), (0, 0), (0, 0xffff_ffff), (0x8000, 4)] {
        access(offset, length);
        driver.config_u32(at + 16);
        plugged.function.write_config(at + 16, &[0xff; 4]);
    }
    assert_eq!(driver.status(), 1);
}

#[test]
fn a_driver_that_breaks_the_rules_stops_its_own_device_until_it_resets_it() {
    let far = RAM_BYTES as u64;
    type Attack = fn(&mut Driver, u64);
    let attacks: [(&str, Attack); 11] = [
        ("a loop", |driver, _| {
            driver.describe(0, &[(OUT, 4, 0), (OUT, 4, NEXT)]);
            driver.put(driver.queues[0].base + 16 + 14, &0u16.to_le_bytes());
            driver.offer(0, 0);
        }),
        ("a buffer outside RAM", |driver, far| {
            driver.submit(0, &[(far - 2, 4, WRITE)]);
        }),
        ("a buffer at the end of the address space", |driver, _| {
            driver.submit(0, &[(u64::MAX - 1, 4, WRITE)]);
        }),
        ("no length", |driver, _| {
            driver.submit(0, &[(OUT, 0, 0)]);
        }),
        ("more than 4 GiB", |driver, _| {
            driver.submit(0, &[(0, 1 << 24, 0), (0, u32::MAX, 0)]);
        }),
        ("a readable part behind a writable one", |driver, _| {
            driver.submit(0, &[(OUT, 4, WRITE), (OUT, 4, 0)]);
        }),
        ("a next index outside the table", |driver, _| {
            driver.describe(0, &[(OUT, 4, NEXT)]);
            driver.put(driver.queues[0].base + 14, &64u16.to_le_bytes());
            driver.offer(0, 0);
        }),
        ("a head outside the table", |driver, _| driver.offer(0, 64)),
        ("a nested indirect table", |driver, _| {
            let descriptor = virtio_queue::desc::split::Descriptor::new(OUT, 16, INDIRECT_TABLE, 0);
            driver.put(OUT, vm_memory::ByteValued::as_slice(&Raw(descriptor)));
            driver.submit(0, &[(OUT, 16, INDIRECT_TABLE)]);
        }),
        ("an indirect table of an odd size", |driver, _| {
            driver.submit(0, &[(OUT, 17, INDIRECT_TABLE)]);
        }),
        ("more requests than the ring holds", |driver, _| {
            driver.put(driver.queues[0].base + AVAILABLE + 2, &1000u16.to_le_bytes());
        }),
    ];
    for (name, attack) in attacks {
        let machine = Machine::empty();
        let (_plugged, mut driver) = started(&machine);
        let (_other, mut bystander) = other_device(&machine);
        attack(&mut driver, far);
        driver.kick(0);
        eprintln!("{name}");
        driver.wait_for_needs_reset();
        machine.messages.wait_for(0x100);
        echo(&mut bystander, b"unharmed");
        driver.start(0);
        echo(&mut driver, b"again");
    }
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Raw(virtio_queue::desc::split::Descriptor);
// SAFETY: a descriptor is sixteen plain bytes without padding.
unsafe impl vm_memory::ByteValued for Raw {}

/// A second device on the same machine, with queues and buffers elsewhere.
fn other_device(machine: &Machine) -> (Plugged<Echo>, Driver) {
    let function = Function::new(9, &machine.environment, |_| Echo::default(), 2).unwrap();
    let plugged = Plugged { function };
    let mut driver = Driver::new(machine, &plugged);
    driver.bar = layout::bar_start(9);
    assert!(driver.negotiate(VERSION_1));
    driver.set_up_queues_at(64, 0x80_0000);
    driver.set_status(STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
    (plugged, driver)
}

#[test]
fn a_ring_outside_ram_does_not_start() {
    let machine = Machine::empty();
    let plugged = machine.plug(Echo::default());
    for (register, address) in [(32, RAM_BYTES as u64 - 16), (40, u64::MAX - 1), (48, 0x1002)] {
        let mut driver = Driver::new(&machine, &plugged);
        assert!(driver.negotiate(VERSION_1));
        driver.set_up_queues(64);
        assert!(driver.negotiate(VERSION_1));
        driver.write(22, &0u16.to_le_bytes());
        driver.write(register, &address.to_le_bytes());
        driver.write(28, &1u16.to_le_bytes());
        driver.set_status(STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
        assert_ne!(driver.status() & STATUS_NEEDS_RESET, 0, "register {register}");
    }
}

#[test]
fn a_move_in_the_middle_of_traffic_loses_and_doubles_nothing() {
    let source = Machine::empty();
    let (mut here, mut driver) = started(&source);
    driver.start(EVENT_IDX);
    let mut machines = vec![source];
    let (mut sent, mut answered) = (0u32, 0u32);
    for _ in 0..20 {
        for _ in 0..30 {
            driver.submit(0, &[(OUT, 8, 0), (IN, 8, WRITE)]);
            sent += 1;
            if sent - answered > 25 {
                driver.answer(0);
                answered += 1;
            }
        }
        let next = Machine::with_ram(Arc::clone(&machines.last().unwrap().environment.ram));
        let there = next.plug(Echo::default());
        migrate(&here, &there);
        driver = driver.moved_to(&next, &there);
        there
            .function
            .device()
            .served
            .store(here.function.device().served.load(Ordering::SeqCst), Ordering::SeqCst);
        there.function.resume().unwrap();
        here = there;
        machines.push(next);
    }
    while answered < sent {
        driver.answer(0);
        answered += 1;
    }
    assert_eq!(driver.poll(0), None);
    assert_eq!(here.function.device().served.load(Ordering::SeqCst), sent);
}

#[test]
fn a_kick_that_was_lost_with_the_source_is_made_up_for() {
    let source = Machine::empty();
    let (here, mut driver) = started(&source);
    here.function.pause().unwrap();
    // The guest has published a request, but its kick never reached the worker.
    let head = driver.describe(0, &[(OUT, 4, 0), (IN, 4, WRITE)]);
    driver.offer(0, head);
    let next = Machine::with_ram(Arc::clone(&source.environment.ram));
    let there = next.plug(Echo::default());
    migrate(&here, &there);
    let mut driver = driver.moved_to(&next, &there);
    assert_eq!(driver.poll(0), None, "restored devices stay paused");
    there.function.resume().unwrap();
    assert_eq!(driver.answer(0), (head, 4));
    next.messages.wait_for(0x101);
}

#[test]
fn a_source_that_resumes_serves_on() {
    let machine = Machine::empty();
    let (plugged, mut driver) = started(&machine);
    for round in 0..10u8 {
        plugged.function.pause().unwrap();
        plugged.function.save().unwrap();
        driver.kick(0);
        plugged.function.resume().unwrap();
        echo(&mut driver, &[round; 9]);
    }
}

#[test]
fn hostile_states_are_refused_and_leave_the_device_as_it_was() {
    let machine = Machine::empty();
    let (here, _driver) = started(&machine);
    here.function.pause().unwrap();
    let section = here.function.save().unwrap();
    let good = FunctionState::decode(section.payload.as_slice()).unwrap();
    type Damage = fn(&mut FunctionState);
    let damages: [(&str, Damage); 12] = [
        ("another device", |state| state.virtio_id = 1),
        ("fixed configuration bytes", |state| state.config[0] ^= 1),
        ("no configuration space", |state| state.config.clear()),
        ("a short MSI-X table", |state| state.msix_table.truncate(16)),
        ("pending vectors that do not exist", |state| state.msix_pending = 8),
        ("a queue too few", |state| state.queues.truncate(1)),
        ("a queue size of zero", |state| state.queues[0].size = 0),
        ("a queue too large", |state| state.queues[0].size = 128),
        ("a ring outside RAM", |state| state.queues[0].used = RAM_BYTES as u64),
        ("an index out of range", |state| state.queues[0].next_used = 1 << 16),
        ("features that are not offered", |state| state.features |= 1 << 50),
        ("a state of the device that it does not have", |state| state.device = vec![1, 2, 3]),
    ];
    let fresh = Machine::with_ram(Arc::clone(&machine.environment.ram));
    let there = fresh.plug(Echo::default());
    there.function.pause().unwrap();
    let untouched = there.function.save().unwrap();
    for (name, damage) in damages {
        let mut state = good.clone();
        damage(&mut state);
        assert!(there.function.restore(&state.to_section(&section.device)).is_err(), "{name} was accepted");
        assert_eq!(there.function.save().unwrap(), untouched, "{name}");
    }
    let mut torn = section.clone();
    torn.payload.truncate(section.payload.len() - 3);
    assert!(there.function.restore(&torn).is_err());
    there.function.restore(&section).unwrap();
    assert_eq!(there.function.save().unwrap(), section);
}

#[test]
fn a_reset_of_the_machine_brings_the_device_back_to_power_on() {
    let machine = Machine::empty();
    let fresh = machine.plug(Echo::default());
    fresh.function.pause().unwrap();
    let power_on = fresh.function.save().unwrap();
    fresh.function.resume().unwrap();
    let mut driver = Driver::new(&machine, &fresh);
    driver.start(0);
    echo(&mut driver, b"before");
    fresh.function.write_config(0x10, &0xD000_0000u32.to_le_bytes());
    fresh.function.settle_bars();
    fresh.function.reset();
    fresh.function.pause().unwrap();
    assert_eq!(fresh.function.save().unwrap(), power_on);
    fresh.function.resume().unwrap();
    let mut driver = Driver::new(&machine, &fresh);
    driver.start(0);
    echo(&mut driver, b"after");
}
