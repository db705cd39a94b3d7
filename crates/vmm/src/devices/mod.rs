//! The devices of all machine types, built from the VM's configuration.

pub mod console;
pub mod disk;
pub mod legacy;
pub mod pci;
pub mod report;
#[cfg(test)]
pub(crate) mod tests;
pub mod virtio;
pub mod vmclock;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use godwit_types::control::{DiskDescriptors, VmmConfig};
use godwit_types::units::Bytes;
use godwit_types::{Epoch, MigrationId};

use self::disk::{Disk, DiskError};
use self::pci::{ConfigAddress, ConfigData, Ecam, PciFunction, Root, layout};
use self::report::Reports;
use self::virtio::balloon::{self, Balloon};
use self::virtio::block::{Block, BlockFunction};
use self::virtio::console::{self as virtio_console, ConsolePort};
use self::virtio::net::{self, Net};
use self::virtio::rng::Rng;
use self::virtio::{Environment, Function, VirtioDevice};
use crate::bus::{Bus, BusDevice};
use crate::device::{Device, DeviceError};
use crate::interrupt::{IoEvents, MsiSink};
use crate::memory::GuestRam;

/// All PCI devices of the VM. Dropping it takes them off the buses and ends their threads.
pub struct Pci {
    devices: Vec<Arc<dyn Device>>,
    functions: Vec<Arc<dyn Card>>,
    disks: Vec<BlockFunction>,
    cards: Vec<Arc<Function<Net>>>,
    balloon: Arc<Function<Balloon>>,
    reports: Reports,
    mmio: Arc<Bus>,
    pio: Arc<Bus>,
}

/// A function in a slot, whatever it is.
trait Card: Device + PciFunction {
    fn shut_down(&self);
}

impl<D: VirtioDevice> Card for Function<D> {
    fn shut_down(&self) {
        Function::shut_down(self);
    }
}

/// What the devices work with.
pub struct Given {
    pub terminal: Arc<ConsolePort>,
    /// One for each disk of the configuration.
    pub disks: Vec<DiskDescriptors<OwnedFd>>,
    /// One for each network card of the configuration, attached.
    pub taps: Vec<OwnedFd>,
}

/// Builds the devices and puts them on the buses. Of disks only the size is read, until [`Pci::take_locks`].
pub fn build(
    config: &VmmConfig,
    given: Given,
    ram: Arc<GuestRam>,
    msi: Arc<dyn MsiSink>,
    io_events: Arc<dyn IoEvents>,
    mmio: Arc<Bus>,
    pio: Arc<Bus>,
) -> Result<Pci, DeviceError> {
    let environment = Environment { ram: Arc::clone(&ram), msi, io_events, mmio: Arc::clone(&mmio) };
    let reports = Reports::default();
    let mut functions: Vec<(u8, Arc<dyn Card>)> = Vec::new();

    functions.push((layout::RNG_SLOT, Function::new(layout::RNG_SLOT, &environment, |_| Rng, 1)?));
    let reporting = config.spec.machine.reports_free_pages();
    let inflatable = |interrupts: &_| Balloon::new(&ram, interrupts, reporting);
    let balloon =
        Function::new(layout::BALLOON_SLOT, &environment, inflatable, balloon::queues(reporting).len())?;
    functions.push((layout::BALLOON_SLOT, Arc::clone(&balloon) as _));
    let console = |_: &_| virtio_console::Console::new(given.terminal);
    let terminal = Function::new(layout::CONSOLE_SLOT, &environment, console, virtio_console::QUEUES)?;
    functions.push((layout::CONSOLE_SLOT, terminal));

    let mut disks = Vec::new();
    let slots = layout::DISK_SLOT_FIRST..layout::NIC_SLOT_FIRST;
    for ((index, files), slot) in given.disks.into_iter().enumerate().zip(slots) {
        let block = build_disk(config, index, files, slot, &environment, &reports)?;
        functions.push((slot, Arc::clone(&block) as _));
        disks.push(block);
    }
    let mut cards = Vec::new();
    for ((nic, tap), slot) in config.nics.iter().zip(given.taps).zip(layout::NIC_SLOT_FIRST..) {
        let card = |interrupts: &_| Net::new(net::Tap::new(tap), nic.mac, interrupts);
        let card = Function::new(slot, &environment, card, net::QUEUES)?;
        functions.push((slot, Arc::clone(&card) as _));
        cards.push(card);
    }

    let on_bus = functions.iter().map(|(slot, card)| (*slot, Arc::clone(card) as Arc<dyn PciFunction>));
    let root = Arc::new(Root::new(on_bus));
    let mut devices: Vec<Arc<dyn Device>> = vec![Arc::clone(&root) as _];
    devices.extend(functions.iter().map(|(_, card)| Arc::clone(card) as Arc<dyn Device>));
    let functions = functions.into_iter().map(|(_, card)| card).collect();
    let pci = Pci { devices, functions, disks, cards, balloon, reports, mmio, pio };
    pci.attach(&root)?;
    Ok(pci)
}

fn build_disk(
    config: &VmmConfig,
    index: usize,
    files: DiskDescriptors<OwnedFd>,
    slot: u8,
    environment: &Environment,
    reports: &Reports,
) -> Result<BlockFunction, DeviceError> {
    let name = format!("pci-00.{slot:x}/{}", Block::NAME);
    let disk = Disk::new(config.disks[index].clone(), files, config.vm, config.host.clone())
        .map_err(|error| DeviceError { device: name.clone(), reason: error.to_string() })?;
    // Known to the guest, and so the same on every host.
    let serial = format!("{}-{index}", &config.vm.0.simple().to_string()[..16]);
    let block = |_: &_| Block::new(disk, &serial, name, reports.clone());
    Function::new(slot, environment, block, 1)
}

impl Pci {
    /// Every device, for the machine's life cycle; the host bridge first.
    pub fn devices(&self) -> &[Arc<dyn Device>] {
        &self.devices
    }

    /// The disks, in the order of the configuration.
    pub fn disks(&self) -> &[BlockFunction] {
        &self.disks
    }

    /// Takes the locks of all writable disks with `epoch` and opens all disks for I/O; all of them or none. Waits a few
    /// seconds for a last owner that is letting go.
    pub fn take_locks(&self, epoch: Epoch) -> Result<(), DeviceError> {
        for block in &self.disks {
            if let Err(error) = block.device().disk().take(epoch) {
                self.release_locks();
                return Err(disk_error(block, &error));
            }
        }
        Ok(())
    }

    /// Takes the locks that a dead source of `migration` has left on all writable disks; all of them or none, and without
    /// waiting. See [`Pci::sees_locks`] for when they are worth anything.
    pub fn take_over(&self, source: Epoch, migration: MigrationId) -> Result<bool, DiskError> {
        for block in &self.disks {
            let taken = block.device().disk().take_over(source, migration);
            if !matches!(taken, Ok(None | Some(true))) {
                self.release_locks();
                return taken.map(|_| false);
            }
        }
        Ok(true)
    }

    /// Whether the locks of a source that is known to run can be seen from here: only then does one that is free say that
    /// the source is dead.
    pub fn sees_locks(&self) -> bool {
        let seen: Vec<bool> =
            self.disks.iter().filter_map(|block| block.device().disk().sees_lock()).collect();
        !seen.is_empty() && seen.iter().all(|seen| *seen)
    }

    /// Takes the locks again if they were let go, and records that the guest runs on here after `migration`.
    pub fn reclaim(&self, epoch: Epoch, migration: MigrationId) -> Result<(), DiskError> {
        self.disks.iter().try_for_each(|block| block.device().disk().reclaim(epoch, migration))
    }

    /// Flushes and closes all disks and lets go of their locks. The guest's disk requests fail from then on.
    pub fn release_locks(&self) {
        self.disks.iter().for_each(|block| block.device().disk().release());
    }

    /// Asks the guest to give `target` of its memory to the balloon.
    pub fn set_balloon(&self, target: Bytes) {
        self.balloon.device().set_target(target);
    }

    /// The memory that the balloon holds.
    pub fn balloon(&self) -> Bytes {
        self.balloon.device().size()
    }

    /// Whether the guest has network cards.
    pub fn has_cards(&self) -> bool {
        !self.cards.is_empty()
    }

    /// When the guest's first frame left, by any card, since the devices were started.
    pub fn spoke(&self) -> Option<Instant> {
        self.cards.iter().filter_map(|card| card.device().spoke()).min()
    }

    /// Takes nothing of what the guest gives back as long as `awaited` says so.
    pub fn free_nothing_while(&self, awaited: impl Fn() -> bool + Send + Sync + 'static) {
        self.balloon.device().free_nothing_while(awaited);
    }

    /// Sets who is told of errors that the guest was told of: the device's name and a message.
    pub fn on_device_error(&self, sink: impl Fn(&str, &str) + Send + Sync + 'static) {
        self.reports.set_sink(sink);
    }

    fn attach(&self, root: &Arc<Root>) -> Result<(), DeviceError> {
        let ecam: Arc<dyn BusDevice> = Arc::new(Ecam(Arc::clone(root)));
        let address: Arc<dyn BusDevice> = Arc::new(ConfigAddress(Arc::clone(root)));
        let data: Arc<dyn BusDevice> = Arc::new(ConfigData(Arc::clone(root)));
        let attached = self
            .mmio
            .insert(layout::ECAM_START, layout::ECAM_BYTES, ecam)
            .and_then(|()| self.pio.insert(layout::CONFIG_ADDRESS_PORT, 1, address))
            .and_then(|()| self.pio.insert(layout::CONFIG_DATA_PORT, 4, data));
        attached
            .map_err(|overlap| DeviceError { device: root.name().to_owned(), reason: overlap.to_string() })
    }
}

impl Drop for Pci {
    fn drop(&mut self) {
        self.mmio.remove(layout::ECAM_START);
        self.pio.remove(layout::CONFIG_ADDRESS_PORT);
        self.pio.remove(layout::CONFIG_DATA_PORT);
        self.functions.iter().for_each(|function| function.shut_down());
        self.release_locks();
    }
}

fn disk_error(block: &BlockFunction, error: &DiskError) -> DeviceError {
    DeviceError { device: block.name().to_owned(), reason: error.to_string() }
}
