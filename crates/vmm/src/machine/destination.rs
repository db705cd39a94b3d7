//! The machine as the migration engine sees it on the destination.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use godwit_migration::bitmap::PageBitmap;
use godwit_migration::{
    Absent, ArrivingDisks, Destination, GuestMemory, Kept, Loaded, MachineError, Manifest, Section,
};
use godwit_types::ownership::Witness;
use godwit_types::vm::VmSpec;
use godwit_types::{Epoch, MigrationId};
use kvm_ioctls::VcpuFd;

use super::life::Step;
use super::sections::{Arrived, CLOCK, IRQCHIP, PIT, vcpu_name};
use super::{Machine, Origin, illegal, step, unless_failing};
use crate::cpu::CpuModel;
use crate::devices::disk::{DiskError, LockError};
use crate::devices::vmclock;
use crate::kvm::clock::ClockState;
use crate::kvm::irqchip::{IrqchipState, PitState};
use crate::kvm::vcpu::VcpuState;
use crate::kvm::{KvmError, call, chain};
use crate::memory::AbsentRam;

/// How often it is looked whether the guest has sent anything.
const LOOK_INTERVAL: Duration = Duration::from_micros(500);

impl Destination for Machine {
    fn admit(&self, manifest: &Manifest) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        if manifest.vm != self.config.vm {
            reasons.push(format!(
                "this machine was built for the VM {}, not for {}",
                self.config.vm, manifest.vm
            ));
        }
        if manifest.epoch >= self.config.epoch {
            let (theirs, ours) = (manifest.epoch, self.config.epoch);
            reasons
                .push(format!("the VM already runs at epoch {theirs}; this machine waits for epoch {ours}"));
        }
        match serde_json::from_slice::<VmSpec>(&manifest.spec_json) {
            Ok(spec) if self.is_specified_by(&spec) => {}
            Ok(_) => {
                reasons.push("the VM's specification differs from the one this machine was built from".into())
            }
            // The error may quote all that the source sent.
            Err(error) => {
                let (line, column) = (error.line(), error.column());
                reasons.push(format!(
                    "the VM's specification cannot be read beyond line {line}, column {column}"
                ));
            }
        }
        if manifest.ranges != self.ram.ranges() {
            reasons.push("the VM's memory lies elsewhere than this machine's".into());
        }
        let arriving = self.arriving.as_ref().map_or(&[][..], |arriving| arriving.ranges());
        if manifest.disks != arriving {
            let (sends, awaits) = (manifest.disks.len(), arriving.len());
            reasons.push(format!(
                "the source sends {sends} disks along and this machine awaits {awaits}, or they have other sizes"
            ));
        }
        match self.admit_cpu(&manifest.cpu) {
            Ok(cpu) if reasons.is_empty() => *self.cpu.lock().expect("no user of the CPU model panics") = cpu,
            Ok(_) => {}
            Err(more) => reasons.extend(more),
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        // The source runs the guest now, and so holds its locks.
        let origin = Origin { epoch: manifest.epoch, locks_seen: self.pci.sees_locks() };
        *self.origin.lock().expect("nobody panics with it") = Some(origin);
        Ok(())
    }

    fn memory(&self) -> &dyn GuestMemory {
        &self.ram
    }

    fn disks(&self) -> Option<Arc<dyn ArrivingDisks>> {
        self.arriving.clone().map(|arriving| arriving as _)
    }

    fn kept(&self) -> Option<&dyn Kept> {
        self.kept.as_ref().map(|kept| kept as &dyn Kept)
    }

    fn can_follow(&self) -> Result<(), String> {
        self.userfault.lock().expect("nobody panics with it").as_ref().map(drop).map_err(Clone::clone)
    }

    fn await_pages(&self, missing: &PageBitmap) -> Result<Arc<dyn Absent>, MachineError> {
        let used = Err("memory is awaited already".to_owned());
        let userfault = std::mem::replace(&mut *self.userfault.lock().expect("nobody panics with it"), used);
        let userfault =
            userfault.map_err(|reason| MachineError { step: "awaiting memory".into(), reason })?;
        let absent = Arc::new(AbsentRam::new(userfault, &self.ram, missing)?);
        *self.absent.lock().expect("nobody panics with it") = Some(Arc::clone(&absent));
        // A page that was placed and then freed would be missing once more, and nobody would bring it again.
        let awaited = Arc::clone(&absent);
        self.pci.free_nothing_while(move || awaited.is_awaited());
        Ok(absent)
    }

    fn load(&self, sections: Vec<Section>) -> Result<Loaded, MachineError> {
        let mut condition = self.condition();
        let next = condition.life.after(Step::Load).map_err(illegal)?;
        // The guest may have been told that it is, and nobody else will have it.
        self.arriving.iter().try_for_each(|arriving| arriving.flush())?;
        let arrived = Arrived::sort(sections, self.section_names())?;
        let loaded = self.load_arrived(arrived)?;
        self.enter(&mut condition, next);
        Ok(loaded)
    }

    fn take_over(&self, migration: MigrationId) -> Witness {
        let blind = |reason: String| Witness::Blind { reason };
        let origin = self.origin.lock().expect("nobody panics with it");
        let epoch = match &*origin {
            Some(Origin { epoch, locks_seen: true }) => *epoch,
            _ => return blind("the VM has no disk whose lock is seen from host to host".into()),
        };
        match self.pci.take_over(epoch, migration) {
            Ok(true) => Witness::SourceDead,
            // A disk that cannot be reached just now says nothing.
            Ok(false) | Err(DiskError::Lock(LockError::Io { .. })) => Witness::None,
            Err(error) => blind(chain(&error)),
        }
    }

    fn run(&self, epoch: Epoch) -> Result<Duration, MachineError> {
        let mut condition = self.condition();
        let next = condition.life.after(Step::Run).map_err(illegal)?;
        let began = Instant::now();
        self.pci.take_locks(epoch).map_err(|error| step("locking the disks", &error))?;
        let locked = began.elapsed();
        if let Err(error) = self.resume_devices() {
            self.pci.release_locks();
            return Err(error);
        }
        self.tell_vcpus_of_pause();
        self.run_vcpus();
        *self.ran.lock().expect("nobody panics with it") = Some(Instant::now());
        condition.epoch = epoch;
        self.enter(&mut condition, next);
        Ok(locked)
    }

    fn first_packet(&self, within: Duration) -> Option<Duration> {
        let ran = (*self.ran.lock().expect("nobody panics with it"))?;
        while self.pci.has_cards() {
            if let Some(spoke) = self.pci.spoke() {
                return Some(spoke.saturating_duration_since(ran));
            }
            if ran.elapsed() >= within {
                break;
            }
            thread::sleep(LOOK_INTERVAL);
        }
        None
    }
}

impl Machine {
    /// Whether it was built from this specification, but for where the disks lie that arrive.
    fn is_specified_by(&self, spec: &VmSpec) -> bool {
        let mut spec = spec.clone();
        let arriving = self.arriving.as_ref().map_or(&[][..], |arriving| arriving.ranges());
        for index in arriving.iter().map(|disk| disk.index as usize) {
            if let (Some(theirs), Some(ours)) = (spec.disks.get_mut(index), self.config.spec.disks.get(index))
            {
                theirs.image = ours.image.clone();
            }
        }
        spec == self.config.spec
    }

    fn admit_cpu(&self, encoded: &[u8]) -> Result<CpuModel, Vec<String>> {
        let cpu = CpuModel::decode(encoded).map_err(|error| vec![error.to_string()])?;
        let missing = cpu.missing_on(&self.offer);
        if missing.is_empty() { Ok(cpu) } else { Err(missing) }
    }

    /// The sections that make up this machine.
    fn section_names(&self) -> Vec<String> {
        let vcpus = (0..self.vcpus.len()).map(vcpu_name);
        let devices = self.devices.iter().map(|device| device.name().to_owned());
        [CLOCK, IRQCHIP, PIT].map(str::to_owned).into_iter().chain(vcpus).chain(devices).collect()
    }

    /// Checks what the core itself loads, then loads everything in the order in which it depends on each other.
    fn load_arrived(&self, mut arrived: Arrived) -> Result<Loaded, MachineError> {
        let clock: ClockState = arrived.take(CLOCK, |_| Ok(()))?;
        let irqchip = arrived.take(IRQCHIP, IrqchipState::check)?;
        let pit = arrived.take(PIT, PitState::check)?;
        let vcpus: Vec<Arc<VcpuState>> = (0..self.vcpus.len())
            .map(|index| {
                arrived.take(&vcpu_name(index), |state: &VcpuState| state.check(&self.facts)).map(Arc::new)
            })
            .collect::<Result<_, _>>()?;
        for device in &self.devices {
            unless_failing(godwit_faults::Step::DestinationLoad, device.name())?;
            let section = arrived.take_raw(device.name())?;
            device.restore(&section).map_err(|error| step("loading", &error))?;
        }
        self.load_vcpus(&vcpus)?;
        let chips = irqchip.restore(&self.vm).and_then(|()| pit.restore(&self.vm));
        chips.map_err(|error| step("loading the interrupt controllers", &error))?;
        clock.restore(&self.vm).map_err(|error| step("loading the clock", &error))?;
        let here = ClockState::save(&self.vm).map_err(|error| step("reading the clock", &error))?;
        self.each_vcpu("starting the timer of", &vcpus, move |state, fd| state.finish(fd, &clock, &here))?;
        vmclock::disrupt(self.ram.guest()).map_err(|error| step("telling the guest of its clock", &error))?;
        Ok(Loaded { clock_error_ns: here.error_ns(&clock) })
    }

    fn load_vcpus(&self, states: &[Arc<VcpuState>]) -> Result<(), MachineError> {
        let (cpu, facts) =
            (self.cpu.lock().expect("no user of the CPU model panics").clone(), self.facts.clone());
        let count = states.len() as u8;
        let indexed: Vec<_> = (0..).zip(states.iter().cloned()).map(Arc::new).collect();
        self.each_vcpu("loading", &indexed, move |indexed: &(u8, Arc<VcpuState>), fd| {
            let (index, state) = indexed;
            fd.set_cpuid2(&cpu.for_vcpu(*index, count)).map_err(call("setting the CPUID"))?;
            state.restore(fd, &facts)
        })
    }

    /// Does something with every vCPU at once, each with its own share of `shares`.
    fn each_vcpu<T: Send + Sync + 'static>(
        &self,
        what: &str,
        shares: &[Arc<T>],
        work: impl Fn(&T, &VcpuFd) -> Result<(), KvmError> + Send + Sync + 'static,
    ) -> Result<(), MachineError> {
        let work = Arc::new(work);
        let answers: Vec<_> = self
            .vcpus
            .iter()
            .zip(shares)
            .map(|(vcpu, share)| {
                let (work, share) = (Arc::clone(&work), Arc::clone(share));
                vcpu.call(move |fd| work(&share, fd))
            })
            .collect();
        for (index, answer) in answers.into_iter().enumerate() {
            answer.wait()?.map_err(|error| step(&format!("{what} vCPU {index}"), &error))?;
        }
        Ok(())
    }
}
