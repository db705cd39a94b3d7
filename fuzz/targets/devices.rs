//! What a guest can do to its devices, and what a peer can send as their state: in any order, on one machine.
#![no_main]

use arbitrary::{Result, Unstructured};
use godwit_fuzz::edited;
use godwit_fuzz::guest::{Guest, RAM_BYTES};
use godwit_types::Bytes;
use godwit_vmm::devices::pci::layout;
use libfuzzer_sys::fuzz_target;

/// Most things that happen to one machine.
const STEPS_MAX: usize = 64;
/// Slots of rng, balloon, console, disk and network card.
const SLOTS: [u8; 5] = [
    layout::RNG_SLOT,
    layout::BALLOON_SLOT,
    layout::CONSOLE_SLOT,
    layout::DISK_SLOT_FIRST,
    layout::NIC_SLOT_FIRST,
];
/// Descriptors of a queue that is set up properly.
const QUEUE_SIZE: u16 = 8;
/// Where the rings of such a queue lie, from its beginning.
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Where buffers lie.
const BUFFERS: u64 = 0x8_0000;
/// The kinds of requests that a disk knows, and one more.
const DISK_REQUESTS: [u32; 7] = [0, 1, 4, 8, 11, 13, 99];

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    // An input that is too short for what it began is as good as none.
    let _ = life(&mut input);
});

fn life(input: &mut Unstructured<'_>) -> Result<()> {
    let guest = Guest::new();
    for device in 0..SLOTS.len() {
        if !input.ratio(1, 8)? {
            set_up(&guest, device, input)?;
        }
    }
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        step(&guest, input)?;
    }
    Ok(())
}

fn step(guest: &Guest, input: &mut Unstructured<'_>) -> Result<()> {
    let device = input.int_in_range(0..=SLOTS.len() - 1)?;
    let slot = SLOTS[device];
    let bar = layout::bar_start(slot);
    match input.int_in_range(0..=11)? {
        0 => set_up(guest, device, input)?,
        1..=3 => request(guest, device, input)?,
        4 => {
            let (at, bytes) = (input.int_in_range(0..=0x7fff)?, value(input)?);
            guest.mmio.write(bar + at, &bytes);
        }
        5 => {
            let at = input.int_in_range(0..=0x7fff)?;
            guest.mmio.read(bar + at, &mut vec![0; width(input)?]);
        }
        6 => {
            let at = layout::ECAM_START + (u64::from(slot) << 15) + input.int_in_range(0..=0xfff)?;
            guest.mmio.read(at, &mut vec![0; width(input)?]);
            guest.mmio.write(at, &value(input)?);
        }
        7 => ports(guest, input)?,
        8 => guest.put(input.int_in_range(0..=RAM_BYTES as u64)?, input.arbitrary::<[u8; 8]>()?.as_slice()),
        9 => guest.set_balloon(Bytes(input.int_in_range(0..=2 * RAM_BYTES as u64)?)),
        _ => restore(guest, input)?,
    }
    Ok(())
}

/// A device gets a state that it may have had, or nearly. What it accepts is a state like any other.
fn restore(guest: &Guest, input: &mut Unstructured<'_>) -> Result<()> {
    let devices = guest.devices();
    let device = *input.choose(&devices)?;
    device.pause().expect("a worker stops in time");
    let mut section = device.save().expect("a paused device can be saved");
    section.payload = edited(section.payload, input)?;
    if input.ratio(1, 16)? {
        section.version = input.arbitrary()?;
    }
    device.reset();
    if device.restore(&section).is_ok() {
        let again = device.save().expect("a restored device can be saved");
        device.reset();
        device.restore(&again).expect("what a device has saved it can restore");
    }
    device.resume().expect("a paused device can be resumed");
    Ok(())
}

/// What a driver does from reset to DRIVER_OK.
fn set_up(guest: &Guest, device: usize, input: &mut Unstructured<'_>) -> Result<()> {
    let bar = layout::bar_start(SLOTS[device]);
    let features: u32 = input.arbitrary()?;
    let write = |register: u64, value: u32| guest.mmio.write(bar + register, &value.to_le_bytes());
    let config = layout::ECAM_START + (u64::from(SLOTS[device]) << 15);
    guest.mmio.write(config + 4, &[6, 0]);
    guest.mmio.write(bar + 20, &[0]);
    guest.mmio.write(bar + 20, &[3]);
    for (select, half) in [(0, features), (1, 1)] {
        write(8, select);
        write(12, half & offered(guest, bar, select));
    }
    guest.mmio.write(bar + 20, &[11]);
    for queue in 0..3u16 {
        guest.put(rings(device, queue), &[0; 0x3000]);
        guest.mmio.write(bar + 22, &queue.to_le_bytes());
        guest.mmio.write(bar + 24, &QUEUE_SIZE.to_le_bytes());
        for (register, address) in [
            (32, rings(device, queue)),
            (40, rings(device, queue) + AVAILABLE),
            (48, rings(device, queue) + USED),
        ] {
            write(register, address as u32);
            write(register + 4, 0);
        }
        guest.mmio.write(bar + 28, &1u16.to_le_bytes());
    }
    guest.mmio.write(bar + 20, &[15]);
    Ok(())
}

fn offered(guest: &Guest, bar: u64, select: u32) -> u32 {
    let mut offered = [0; 4];
    guest.mmio.write(bar, &select.to_le_bytes());
    guest.mmio.read(bar + 4, &mut offered);
    u32::from_le_bytes(offered)
}

/// Offers a chain and rings the doorbell.
fn request(guest: &Guest, device: usize, input: &mut Unstructured<'_>) -> Result<()> {
    let queue = if input.ratio(1, 2)? { 0 } else { input.int_in_range(0..=2)? };
    let rings = rings(device, queue);
    header(guest, input)?;
    let chain = if input.arbitrary()? { proper_chain(input)? } else { any_chain(input)? };
    for (index, descriptor) in (0..).zip(chain) {
        guest.put(rings + index * 16, &descriptor);
    }
    let before = guest.used_index(rings + USED);
    let available = before.wrapping_add(if input.ratio(1, 16)? { input.arbitrary()? } else { 1 });
    let head = if input.ratio(1, 16)? { input.arbitrary::<u16>()? } else { 0 };
    guest.put(rings + AVAILABLE + 4 + u64::from(before % QUEUE_SIZE) * 2, &head.to_le_bytes());
    guest.put(rings + AVAILABLE + 2, &available.to_le_bytes());
    let bar = layout::bar_start(SLOTS[device]);
    guest.mmio.write(bar + 0x3000 + 4 * u64::from(queue), &queue.to_le_bytes());
    guest.await_answer(rings + USED, before);
    Ok(())
}

/// A header, a part that is read or written, room for a status: what a disk wants, and others may take.
fn proper_chain(input: &mut Unstructured<'_>) -> Result<Vec<[u8; 16]>> {
    let length = *input.choose(&[16, 512, 4096])?;
    let writable = u16::from(input.arbitrary::<bool>()?) << 1;
    let parts = [(BUFFERS, 16, 0), (BUFFERS + 0x1000, length, writable), (BUFFERS + 0x2000, 1, 2)];
    let descriptor = |(index, (address, length, writable))| {
        descriptor(address, length, writable | u16::from(index < 2), index + 1)
    };
    Ok((0u16..).zip(parts).map(descriptor).collect())
}

/// A chain as it comes.
fn any_chain(input: &mut Unstructured<'_>) -> Result<Vec<[u8; 16]>> {
    let mut chain = Vec::new();
    for index in 0..QUEUE_SIZE {
        let last = input.ratio(1, 4)?;
        let near = BUFFERS + u64::from(index) * 0x1000;
        let address = if input.ratio(1, 8)? { input.arbitrary()? } else { near };
        let length =
            if input.ratio(1, 8)? { input.arbitrary()? } else { *input.choose(&[1, 16, 512, 4096])? };
        let writable = u16::from(input.arbitrary::<bool>()?) << 1;
        let indirect = u16::from(input.ratio(1, 16)?) << 2;
        let next = if input.ratio(1, 16)? { input.arbitrary()? } else { index + 1 };
        chain.push(descriptor(address, length, writable | indirect | u16::from(!last), next));
        if last {
            break;
        }
    }
    Ok(chain)
}

/// A descriptor as it lies in memory (virtio 1.2, 2.7.5).
fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> [u8; 16] {
    let low = u128::from(address) | u128::from(length) << 64;
    (low | u128::from(flags) << 96 | u128::from(next) << 112).to_le_bytes()
}

/// What the first buffer holds: a disk's request, a card's frame or order, page numbers for the balloon.
fn header(guest: &Guest, input: &mut Unstructured<'_>) -> Result<()> {
    let kind = if input.ratio(1, 8)? { input.arbitrary()? } else { *input.choose(&DISK_REQUESTS)? };
    let sector = if input.ratio(1, 8)? { input.arbitrary()? } else { input.int_in_range(0..=130u64)? };
    guest.put(BUFFERS, &[&u32::to_le_bytes(kind)[..], &[0; 4], &u64::to_le_bytes(sector)].concat());
    let second = [&u64::to_le_bytes(input.int_in_range(0..=130)?)[..], &u64::to_le_bytes(input.arbitrary()?)];
    guest.put(BUFFERS + 0x1000, &second.concat());
    Ok(())
}

fn ports(guest: &Guest, input: &mut Unstructured<'_>) -> Result<()> {
    let ports = [0x3f8, 0x600, 0x70, 0x64, layout::CONFIG_ADDRESS_PORT, layout::CONFIG_DATA_PORT];
    let port = *input.choose(&ports)? + input.int_in_range(0..=8)?;
    guest.pio.write(port, &value(input)?);
    guest.pio.read(port, &mut vec![0; width(input)?]);
    Ok(())
}

/// Where a queue's rings lie: every queue of every device has its own.
fn rings(device: usize, queue: u16) -> u64 {
    0x1_0000 + (device as u64 * 3 + u64::from(queue)) * 0x4000
}

/// Bytes of one access.
fn width(input: &mut Unstructured<'_>) -> Result<usize> {
    Ok(1 << input.int_in_range(0..=3)?)
}

fn value(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let bytes: [u8; 8] = input.arbitrary()?;
    Ok(bytes[..width(input)?].to_vec())
}
