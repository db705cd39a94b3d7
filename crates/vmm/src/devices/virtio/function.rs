//! One virtio device as a PCI function: its registers, its BAR, its life.
//!
//! ```text
//!   the worker runs  <=>  DRIVER_OK, no NEEDS_RESET, bus master on, not paused, not resetting
//! ```

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};
use vmm_sys_util::eventfd::EventFd;

use super::bar::{self, BarMapping, PciAccess};
use super::common::{CommonConfig, Effect};
use super::interrupts::Interrupts;
use super::worker::{Overdue, StopError, Worker};
use super::{VirtQueue, VirtioDevice};
use crate::bus::{Bus, BusDevice};
use crate::device::DeviceError;
use crate::devices::pci::config::ConfigSpace;
use crate::devices::pci::msix;
use crate::devices::pci::{PciFunction, layout};
use crate::interrupt::{IoEvents, MsiSink};
use crate::memory::GuestRam;

/// How long a pause, or a reset of the machine, waits for requests in flight.
pub(super) const PAUSE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a driver's reset blocks its vCPU; afterwards the driver sees from the status that it is still going on.
const RESET_PATIENCE: Duration = Duration::from_millis(500);

const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

/// What every device is built from.
#[derive(Clone)]
pub struct Environment {
    pub ram: Arc<GuestRam>,
    pub msi: Arc<dyn MsiSink>,
    pub io_events: Arc<dyn IoEvents>,
    pub mmio: Arc<Bus>,
}

/// The device `D` in a slot.
pub struct Function<D: VirtioDevice> {
    pub(super) name: String,
    pub(super) device: Arc<D>,
    pub(super) ram: Arc<GuestRam>,
    pub(super) interrupts: Arc<Interrupts>,
    worker: Worker<D>,
    pub(super) config: Mutex<ConfigSpace>,
    pub(super) access: PciAccess,
    pub(super) msix_at: usize,
    mapping: BarMapping,
    life: Mutex<Life>,
    itself: Weak<Self>,
}

pub(super) struct Life {
    pub(super) common: CommonConfig,
    pub(super) paused: bool,
    /// A reset waits for the worker.
    pub(super) resetting: bool,
}

impl<D: VirtioDevice> Function<D> {
    /// Builds the device that `device` makes into `slot`; it is given the means to interrupt the driver.
    pub fn new(
        slot: u8,
        environment: &Environment,
        device: impl FnOnce(&Arc<Interrupts>) -> D,
        queues: usize,
    ) -> Result<Arc<Self>, DeviceError> {
        let name = format!("pci-00.{slot:x}/{}", D::NAME);
        let interrupts = Arc::new(Interrupts::new(queues, Arc::clone(&environment.msi)));
        let device = Arc::new(device(&interrupts));
        assert_eq!(device.queue_sizes().len(), queues);
        let refuse = |error: std::io::Error| DeviceError { device: name.clone(), reason: error.to_string() };
        let kick = |_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let kicks: Arc<[EventFd]> = (0..queues).map(kick).collect::<Result<_, _>>().map_err(refuse)?;
        let (config, access, msix_at) = bar::config_space::<D>(slot, queues as u16);
        let ram = Arc::clone(&environment.ram);
        let worker =
            Worker::new(Arc::clone(&device), Arc::clone(&ram), Arc::clone(&interrupts), Arc::clone(&kicks))
                .map_err(refuse)?;
        let common = CommonConfig::new(device.features(), device.queue_sizes());
        let mapping = BarMapping::new(&environment.mmio, &environment.io_events, kicks);
        let function = Arc::new_cyclic(|itself| Self {
            name,
            device,
            ram,
            interrupts,
            worker,
            config: Mutex::new(config),
            access,
            msix_at,
            mapping,
            life: Mutex::new(Life { common, paused: false, resetting: false }),
            itself: Weak::clone(itself),
        });
        function.settle_bars();
        Ok(function)
    }

    /// The device behind the function.
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// Takes the function off the bus and ends its thread. It answers nothing afterwards.
    pub fn shut_down(&self) {
        self.life().paused = true;
        self.mapping.settle(None, None);
        self.worker.quit(PAUSE_PATIENCE);
    }

    /// Starts or stops the worker as the registers say. A worker that does not stop in time goes on stopping.
    pub(super) fn settle(&self, life: &mut Life, patience: Duration) {
        if life.resetting && self.stop(life, false, patience, Overdue::KeepStopping).is_ok() {
            life.resetting = false;
            life.common.reset();
            self.interrupts.reset();
            self.device.reset();
        }
        let master = self.config().bus_master();
        let ready = self.interrupts.status() & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK;
        let wanted = ready && master && !life.paused && !life.resetting;
        match (self.worker.parked(), wanted) {
            (true, true) => self.start(life),
            (false, false) => {
                // Without bus mastering the device may not touch memory; it stops as soon as the host lets it.
                let _ = self.stop(life, false, patience, Overdue::KeepStopping);
            }
            _ => {}
        }
    }

    fn start(&self, life: &mut Life) {
        let states = life.common.queue_states().enumerate();
        let queues: Result<Vec<_>, _> =
            states.map(|(index, state)| VirtQueue::new(index, &state, &self.ram)).collect();
        let failure = match queues {
            Ok(queues) => match self.device.start(life.common.features) {
                Ok(()) => return self.worker.start(queues),
                Err(error) => error.to_string(),
            },
            Err(fault) => fault.to_string(),
        };
        tracing::warn!(device = self.name, failure, "the device cannot start; its driver must reset it");
        self.interrupts.need_reset();
    }

    pub(super) fn stop(
        &self,
        life: &mut Life,
        flush: bool,
        patience: Duration,
        overdue: Overdue,
    ) -> Result<(), StopError> {
        let queues = self.worker.stop(flush, patience, overdue)?;
        for (state, queue) in life.common.queues.iter_mut().zip(&queues) {
            (state.next_avail, state.next_used) = queue.position();
        }
        Ok(())
    }

    fn write_common(&self, offset: usize, data: &[u8]) {
        let mut life = self.life();
        match life.common.write(offset, data, &self.interrupts) {
            Effect::None => {}
            Effect::Status => self.settle(&mut life, RESET_PATIENCE),
            Effect::Reset => {
                life.resetting = true;
                self.settle(&mut life, RESET_PATIENCE);
            }
        }
    }

    fn read_common(&self, offset: usize, data: &mut [u8]) {
        let mut life = self.life();
        if life.resetting {
            self.settle(&mut life, Duration::ZERO);
        }
        life.common.read(offset, data, &self.interrupts);
    }

    pub(super) fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().expect("no user of the configuration space panics")
    }

    pub(super) fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().expect("no user of the registers panics")
    }
}

impl<D: VirtioDevice> PciFunction for Function<D> {
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let window = self.access.window(&self.config(), offset, data.len());
        if let Some(window) = window {
            let mut value = [0; 4];
            self.read(window.offset, &mut value[..window.length]);
            self.config().write(self.access.data, &value[..window.length]);
        }
        self.config().read(offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let (window, value, control) = {
            let mut config = self.config();
            config.write(offset, data);
            let window = self.access.window(&config, offset, data.len());
            (window, config.u32_at(self.access.data), config.u16_at(self.msix_at + msix::CONTROL))
        };
        self.interrupts.msix.set_control(control);
        if let Some(window) = window {
            self.write(window.offset, &value.to_le_bytes()[..window.length]);
        }
        self.settle(&mut self.life(), RESET_PATIENCE);
    }

    fn settle_bars(&self) {
        let address = self.config().bar_address(bar::BAR);
        let device = self.itself.upgrade().map(|function| function as Arc<dyn BusDevice>);
        self.mapping.settle(address, device);
    }
}

impl<D: VirtioDevice> BusDevice for Function<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let (region, within) = bar::region(offset);
        match region {
            bar::COMMON => self.read_common(within, data),
            bar::ISR if within == 0 => data[0] = self.interrupts.take_isr(),
            bar::DEVICE => self.device.read_config(within, data),
            bar::TABLE => self.interrupts.msix.read_table(within, data),
            bar::PENDING => self.interrupts.msix.read_pending(within, data),
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (region, within) = bar::region(offset);
        match region {
            bar::COMMON => self.write_common(within, data),
            bar::DEVICE => self.device.write_config(within, data),
            bar::NOTIFY => self.mapping.kick(within),
            bar::TABLE => self.interrupts.msix.write_table(within, data),
            _ => {}
        }
    }
}

const _: () = assert!(layout::MMIO_START.is_multiple_of(bar::BAR_BYTES));
