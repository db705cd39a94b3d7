//! The machine as the migration engine sees it on the source.

use std::sync::Arc;
use std::time::Duration;

use godwit_migration::bitmap::PageBitmap;
use godwit_migration::{
    GuestMemory, LeavingDisks, MachineError, Manifest, Reclaimed, Section, Source, VcpuActivity,
};
use godwit_types::MigrationId;

use super::life::Life;
use super::sections::{CLOCK, IRQCHIP, PIT, vcpu_name};
use super::vcpu::Vcpu;
use super::{Machine, step, unless_failing};
use crate::device::{Device, State};
use crate::devices::disk::{DiskError, LockError};
use crate::kvm::KvmError;
use crate::kvm::clock::ClockState;
use crate::kvm::irqchip::{IrqchipState, PitState};
use crate::kvm::vcpu::VcpuState;

impl Source for Machine {
    fn manifest(&self) -> Manifest {
        Manifest {
            vm: self.config.vm,
            epoch: self.condition().epoch,
            spec_json: serde_json::to_vec(&self.spec()).expect("a specification has no maps with odd keys"),
            ranges: self.ram.ranges().to_vec(),
            disks: self.leaving().map_or_else(Vec::new, |leaving| leaving.ranges().to_vec()),
            cpu: self.cpu.lock().expect("no user of the CPU model panics").encode(),
        }
    }

    fn blockers(&self) -> Vec<String> {
        let blocker = |device: &Arc<dyn Device>| {
            device.migration_blocker().map(|reason| format!("{}: {reason}", device.name()))
        };
        let arriving =
            self.absent().map(|_| "part of its memory is still at the host that it came from".to_owned());
        self.devices.iter().filter_map(blocker).chain(arriving).collect()
    }

    fn memory(&self) -> &dyn GuestMemory {
        &self.ram
    }

    fn disks(&self) -> Option<Arc<dyn LeavingDisks>> {
        self.leaving().map(|leaving| leaving as _)
    }

    fn start_dirty_log(&self) -> Result<(), MachineError> {
        self.log_user.migration_begins();
        self.leaving().iter().for_each(|leaving| leaving.start_log());
        self.start_log()
    }

    fn harvest_dirty(&self, dirty: &mut PageBitmap) -> Result<(), MachineError> {
        self.dirty_log.harvest(dirty).map_err(|error| step("harvesting the dirty log", &error))?;
        self.ram.harvest_own_writes(dirty);
        self.leaving().iter().for_each(|leaving| leaving.harvest(dirty));
        Ok(())
    }

    fn stop_dirty_log(&self) {
        self.slow(&[]);
        self.dirty_log.stop();
        self.leaving().iter().for_each(|leaving| leaving.stop_log());
        self.log_user.migration_ends();
    }

    fn vcpus(&self) -> Vec<VcpuActivity> {
        let activity =
            |(vcpu, written_pages): (&Vcpu, u64)| VcpuActivity { written_pages, held: vcpu.held() };
        self.vcpus.iter().zip(self.dirty_log.written()).map(activity).collect()
    }

    fn slow(&self, shares: &[u16]) {
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            vcpu.hold(shares.get(index).copied().unwrap_or(0));
        }
    }

    fn pause(&self) -> Result<Duration, MachineError> {
        Self::pause(self)
    }

    fn resume(&self) -> Result<(), MachineError> {
        self.tell_vcpus_of_pause();
        Self::resume(self)
    }

    fn save(&self, ahead_ns: i64) -> Result<Vec<Section>, MachineError> {
        let condition = self.condition();
        if condition.life != Life::Paused {
            return Err(MachineError {
                step: "saving".into(),
                reason: format!("the VM is {:?}", condition.life),
            });
        }
        // Each vCPU saves itself on its own thread, while this one saves the rest.
        let vcpus: Vec<_> = self
            .vcpus
            .iter()
            .map(|vcpu| {
                let facts = self.facts.clone();
                vcpu.call(move |fd| VcpuState::save(fd, &facts))
            })
            .collect();
        let saved = |error: &KvmError| step("saving", error);
        let mut sections = vec![
            ClockState::save(&self.vm).map_err(|error| saved(&error))?.seen_from(ahead_ns).to_section(CLOCK),
            IrqchipState::save(&self.vm).map_err(|error| saved(&error))?.to_section(IRQCHIP),
            PitState::save(&self.vm).map_err(|error| saved(&error))?.to_section(PIT),
        ];
        for device in &self.devices {
            unless_failing(godwit_faults::Step::SourceSave, device.name())?;
            sections.push(device.save().map_err(|error| step("saving", &error))?);
        }
        for (index, answer) in vcpus.into_iter().enumerate() {
            let state = answer.wait()?.map_err(|error| step(&format!("saving vCPU {index}"), &error))?;
            sections.push(state.to_section(&vcpu_name(index)));
        }
        Ok(sections)
    }

    fn let_go(&self) {
        // With the condition held, so that the VM does not run meanwhile.
        let condition = self.condition();
        if condition.life == Life::Paused {
            tracing::warn!(
                "the arbiter does not answer: letting go of the disks, so that the destination can take over"
            );
            self.pci.release_locks();
        }
    }

    fn reclaim(&self, migration: MigrationId) -> Result<Reclaimed, MachineError> {
        let condition = self.condition();
        match self.pci.reclaim(condition.epoch, migration) {
            Ok(()) => Ok(Reclaimed::Ours),
            // The record of a newer epoch: the disks belong to whoever wrote it, for good.
            Err(DiskError::Lock(error @ LockError::Refused { .. })) => Ok(Reclaimed::Lost(error.to_string())),
            Err(error) => Err(step("reclaiming the disks", &error)),
        }
    }

    fn hand_over(&self) {
        Self::hand_over(self);
    }
}

impl Machine {
    /// Lets the guest's watchdogs know that time has passed without it.
    pub(super) fn tell_vcpus_of_pause(&self) {
        for vcpu in &self.vcpus {
            // An error means that the guest does not use kvmclock, and then there is nobody to tell.
            drop(vcpu.call(|fd| fd.kvmclock_ctrl()));
        }
    }
}
