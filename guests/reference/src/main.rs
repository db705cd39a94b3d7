//! The reference guest: a small kernel that notices everything a migration can do wrong to it.
//!
//! It keeps numbered records on its disk, rewrites and checks a working set of memory, answers on the network, and
//! counts its timer ticks and the interrupts between its vCPUs; `GET /report` tells how it fared. What it promises is
//! written down in `godwit-guest-contract`.
//!
//! All work runs in ring 3, so that it runs at full speed on every kind of KVM: SVM, VMX, and PVM, which emulates
//! ring 0. There is no user and kernel here: all memory, device registers included, is mapped for ring 3, and ring 0 is
//! left with a few instructions for boot, interrupts and `hlt` (`boot.s`, `handlers.s`).

#![no_std]
#![no_main]

mod acpi;
mod block;
mod bytes;
mod clock;
mod console;
mod cpu;
mod fault;
mod http;
mod lapic;
mod memory;
mod mmio;
mod net;
mod network;
mod pci;
mod power;
mod pulse;
mod queue;
mod records;
mod report;
mod runtime;
mod smp;
mod start_info;
mod text;
mod virtio;
mod vmclock;
mod workload;

use core::sync::atomic::Ordering;

use godwit_guest_contract::params::Parameters;

use acpi::Acpi;
use block::Disk;
use clock::{Clock, Micros};
use cpu::{CPUS_MAX, Cpu};
use memory::Memory;
use net::Card;
use network::Network;
use power::Power;
use pulse::Beacon;
use records::Records;
use report::{Heart, Served, View};
use smp::Ring;
use start_info::StartInfo;
use workload::Share;

/// The boot vCPU's tick: as often as its heart beats.
const BOOT_TICK: Micros = 1_000;
const OTHER_TICK: Micros = 4_000;

/// Where boot.s enters ring 3 on the boot vCPU.
#[unsafe(no_mangle)]
extern "C" fn boot_main(cpu: &'static Cpu) -> ! {
    cpu::install_handlers();
    console::initialise();
    let (khz, source) = clock::calibrate();
    let mut clock = Clock::start();
    let info = StartInfo::get();
    let parameters = match Parameters::parse(info.command_line()) {
        Ok(parameters) => parameters,
        Err(error) => panic!("{error}"),
    };
    let acpi = Acpi::new(info.rsdp());
    let mut memory = Memory::new(&info);
    say!("{} MiB free, TSC {khz} kHz by {source}", memory.left() >> 20);
    cpu.apic_id.store(lapic::id(), Ordering::Relaxed);
    cpu::register(cpu);
    lapic::start(BOOT_TICK);

    let devices = Devices::find(&acpi, &parameters, cpu, &mut memory);
    let share = start_others(&acpi, &parameters, &mut clock, &mut memory);
    say!("{} vCPUs, {} MiB working set; running", cpu::count(), parameters.working_set >> 20);
    run(cpu, clock, share, devices, parameters.working_set)
}

/// Where boot.s enters ring 3 on every other vCPU.
#[unsafe(no_mangle)]
extern "C" fn ap_main(cpu: &'static Cpu) -> ! {
    lapic::start(OTHER_TICK);
    let mut share = smp::take(cpu);
    smp::wait(cpu);
    let mut clock = Clock::start();
    let mut ring = Ring::new();
    loop {
        cpu.clear_wake();
        let now = clock.now();
        ring.step(now, cpu);
        if !share.step(now, &cpu.tally) {
            cpu.halt();
        }
    }
}

struct Devices {
    network: Option<Network>,
    records: Option<Records>,
    power: Power,
    beacon: Option<Beacon>,
}

impl Devices {
    fn find(acpi: &Acpi, parameters: &Parameters, cpu: &Cpu, memory: &mut Memory) -> Self {
        let ecam = acpi.ecam();
        let card = ecam.and_then(|ecam| Card::find(ecam, cpu, memory));
        let network = card.zip(parameters.ip).map(|(card, (address, prefix))| {
            say!("{address}/{prefix} on {}", card.mac);
            Network::new(card, (address, prefix), memory).expect("memory for the network")
        });
        let disk = ecam.filter(|_| parameters.disk).and_then(|ecam| Disk::find(ecam, memory));
        let records = disk.map(|disk| {
            let bytes = disk.bytes();
            let records = Records::new(disk);
            say!("disk of {} KiB, newest record {}", bytes >> 10, records.acknowledged());
            records
        });
        Self { network, records, power: Power::new(acpi), beacon: parameters.pulse.then(Beacon::default) }
    }
}

/// Divides the working set among all vCPUs and starts the others with theirs. Answers the boot vCPU's own.
fn start_others(acpi: &Acpi, parameters: &Parameters, clock: &mut Clock, memory: &mut Memory) -> Share {
    let boot = lapic::id();
    let count = acpi.apic_ids().take(CPUS_MAX).count() as u64;
    let others = acpi.apic_ids().take(CPUS_MAX).filter(|apic_id| *apic_id != boot);
    // Before the working set, since the lowest memory is handed out first.
    // SAFETY: a vCPU of zeroes is a valid one.
    let cpus: &'static [Cpu] = unsafe { memory.zeroed(count as usize - 1) }.expect("memory for the vCPUs");
    for ((index, apic_id), cpu) in (1..).zip(others).zip(cpus) {
        smp::start(cpu, apic_id, share(parameters, index, count, memory), clock);
    }
    smp::release();
    share(parameters, 0, count, memory)
}

fn share(parameters: &Parameters, index: u64, count: u64, memory: &mut Memory) -> Share {
    let Some(share) = Share::new(parameters, index, count, memory) else {
        panic!(
            "a working set of {} MiB does not fit, {} MiB are left: lower godwit.ws",
            parameters.working_set >> 20,
            memory.left() >> 20
        );
    };
    share
}

/// The boot vCPU's main loop.
fn run(cpu: &'static Cpu, mut clock: Clock, mut share: Share, devices: Devices, working_set_bytes: u64) -> ! {
    let Devices { mut network, mut records, mut power, mut beacon } = devices;
    let (mut heart, mut served, mut ring) = (Heart::default(), Served::default(), Ring::new());
    loop {
        cpu.clear_wake();
        let now = clock.now();
        heart.step(now);
        ring.step(now, cpu);
        power.step(now);
        if let Some(beacon) = &mut beacon {
            beacon.step(now, &mut heart);
        }
        if let Some(records) = &mut records {
            records.step(now);
        }
        let mut view = View {
            now,
            working_set_bytes,
            heart: &mut heart,
            served: &mut served,
            records: records.as_ref(),
        };
        let talked = network.as_mut().is_some_and(|network| network.step(now, &mut |r| view.answer(r)));
        if served.power_off {
            power.off();
            served.power_off = false;
        }
        let more = share.step(now, &cpu.tally);
        if !talked && !more {
            cpu.halt();
        }
    }
}
