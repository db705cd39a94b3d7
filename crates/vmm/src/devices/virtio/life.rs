//! The life cycle of a virtio function, and its state between source and destination.

use std::time::Duration;

use godwit_migration::Section;
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};

use super::function::{Function, Life, PAUSE_PATIENCE};
use super::state::{FunctionState, SavedQueue, narrow};
use super::worker::Overdue;
use super::{VirtQueue, VirtioDevice, bar};
use crate::device::{Device, DeviceError, State};
use crate::devices::pci::PciFunction;
use crate::devices::pci::msix::{self, SavedMsiX};

const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

impl<D: VirtioDevice> Device for Function<D> {
    fn name(&self) -> &str {
        &self.name
    }

    fn pause(&self) -> Result<(), DeviceError> {
        let mut life = self.life();
        let overdue = if life.resetting { Overdue::KeepStopping } else { Overdue::RunOn };
        self.stop(&mut life, true, PAUSE_PATIENCE, overdue).map_err(|error| self.error(error))?;
        life.paused = true;
        self.settle(&mut life, Duration::ZERO);
        Ok(())
    }

    fn resume(&self) -> Result<(), DeviceError> {
        let mut life = self.life();
        life.paused = false;
        // Addresses that another function had when this one was restored are free now.
        self.settle_bars();
        self.settle(&mut life, Duration::ZERO);
        Ok(())
    }

    fn save(&self) -> Result<Section, DeviceError> {
        let life = self.life();
        if !life.paused {
            return Err(self.error("a running device cannot be saved; pause it first"));
        }
        let (common, interrupts) = (&life.common, &self.interrupts);
        let saved = interrupts.msix.save();
        let queue = |(index, queue)| SavedQueue::new(queue, interrupts.vector(Some(index)));
        let state = FunctionState {
            virtio_id: D::ID,
            config: self.config().bytes().to_vec(),
            msix_table: saved.table,
            msix_pending: saved.pending,
            status: interrupts.status().into(),
            isr: interrupts.isr().into(),
            generation: interrupts.generation().into(),
            device_feature_select: common.device_feature_select,
            driver_feature_select: common.driver_feature_select,
            features: common.features,
            queue_select: common.queue_select.into(),
            config_vector: interrupts.vector(None).into(),
            queues: common.queues.iter().enumerate().map(queue).collect(),
            device: self.device.save(),
        };
        Ok(state.to_section(&self.name))
    }

    fn restore(&self, section: &Section) -> Result<(), DeviceError> {
        let state = FunctionState::from_section(section)?;
        self.load(&state).map_err(|reason| self.error(reason))
    }

    fn reset(&self) {
        let mut life = self.life();
        life.resetting = true;
        *self.config() = bar::config_space::<D>(self.access.slot, life.common.queues.len() as u16).0;
        self.settle(&mut life, PAUSE_PATIENCE);
        self.interrupts.msix.reset();
        drop(life);
        self.settle_bars();
    }
}

impl<D: VirtioDevice> Function<D> {
    /// Checks everything first, so that a refusal leaves the device as it was.
    fn load(&self, state: &FunctionState) -> Result<(), String> {
        let mut life = self.life();
        if state.virtio_id != D::ID {
            return Err(format!(
                "the saved device has the virtio ID {}, this one {}",
                state.virtio_id,
                D::ID
            ));
        }
        let common = state.common(&life.common)?;
        let status: u8 = narrow(state.status, "status")?;
        let (isr, generation) =
            (narrow(state.isr, "interrupt status")?, narrow(state.generation, "generation")?);
        let config_vector = narrow(state.config_vector, "configuration vector")?;
        let vector = |queue: &SavedQueue| narrow(queue.vector, "queue vector");
        let vectors = state.queues.iter().map(vector).collect::<Result<Vec<u16>, _>>()?;
        if status & DRIVER_OK != 0 && !common.features_acceptable() {
            return Err("the driver runs without features that a virtio 1 driver has".to_owned());
        }
        if status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK {
            for (index, queue) in common.queue_states().enumerate() {
                VirtQueue::new(index, &queue, &self.ram)
                    .map_err(|fault| format!("queue {index}: {fault}"))?;
            }
        }
        let msix = SavedMsiX { table: state.msix_table.clone(), pending: state.msix_pending };
        self.interrupts.msix.check(&msix)?;
        let mut config = self.config().clone();
        config.restore(&state.config)?;
        self.device.restore(&state.device)?;

        let control = config.u16_at(self.msix_at + msix::CONTROL);
        *self.config() = config;
        self.interrupts.msix.restore(&msix, control);
        self.interrupts.restore(status, isr, generation);
        self.interrupts.set_vector(None, config_vector);
        for (index, vector) in vectors.into_iter().enumerate() {
            self.interrupts.set_vector(Some(index), vector);
        }
        *life = Life { common, paused: true, resetting: false };
        drop(life);
        self.settle_bars();
        Ok(())
    }

    fn error(&self, reason: impl ToString) -> DeviceError {
        DeviceError { device: self.name.clone(), reason: reason.to_string() }
    }
}
