//! The machine as the migration engine sees it, on either side.

use std::collections::BTreeMap;
use std::sync::Arc;

use godwit_migration::bitmap::PageBitmap;
use godwit_migration::{Destination, GuestMemory, MachineError, Manifest, Section, Source};
use godwit_types::Epoch;
use godwit_types::vm::VmSpec;

use super::life::{Life, Step};
use super::{Machine, illegal, step};
use crate::cpu::CpuModel;
use crate::device::{DeviceError, State};
use crate::kvm::clock::ClockState;
use crate::kvm::irqchip::{IrqchipState, PitState};
use crate::kvm::vcpu::VcpuState;
use crate::kvm::{KvmError, call};

const CLOCK: &str = "clock";
const IRQCHIP: &str = "irqchip";
const PIT: &str = "pit";

impl Source for Machine {
    fn manifest(&self) -> Manifest {
        Manifest {
            vm: self.config.vm,
            epoch: self.condition().epoch,
            spec_json: serde_json::to_vec(&self.config.spec).expect("a specification has no maps with odd keys"),
            ranges: self.ram.ranges().to_vec(),
            cpu: self.cpu.lock().expect("no user of the CPU model panics").encode(),
        }
    }

    fn blockers(&self) -> Vec<String> {
        let blocker = |device: &Arc<dyn crate::device::Device>| {
            device.migration_blocker().map(|reason| format!("{}: {reason}", device.name()))
        };
        self.devices.iter().filter_map(blocker).collect()
    }

    fn memory(&self) -> &dyn GuestMemory {
        &self.ram
    }

    fn start_dirty_log(&self) -> Result<(), MachineError> {
        // From here on; what was written before goes with the first round.
        self.ram.forget_own_writes();
        self.dirty_log.start().map_err(|error| step("starting the dirty log", &error))
    }

    fn harvest_dirty(&self, dirty: &mut PageBitmap) -> Result<(), MachineError> {
        self.dirty_log.harvest(dirty).map_err(|error| step("harvesting the dirty log", &error))?;
        self.ram.harvest_own_writes(dirty);
        Ok(())
    }

    fn stop_dirty_log(&self) {
        self.dirty_log.stop();
    }

    fn pause(&self) -> Result<(), MachineError> {
        Self::pause(self)
    }

    fn resume(&self) -> Result<(), MachineError> {
        self.tell_vcpus_of_pause();
        Self::resume(self)
    }

    fn save(&self) -> Result<Vec<Section>, MachineError> {
        let condition = self.condition();
        if condition.life != Life::Paused {
            return Err(MachineError { step: "saving".into(), reason: format!("the VM is {:?}", condition.life) });
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
            ClockState::save(&self.vm).map_err(|error| saved(&error))?.to_section(CLOCK),
            IrqchipState::save(&self.vm).map_err(|error| saved(&error))?.to_section(IRQCHIP),
            PitState::save(&self.vm).map_err(|error| saved(&error))?.to_section(PIT),
        ];
        for device in &self.devices {
            sections.push(device.save().map_err(|error| step("saving", &error))?);
        }
        for (index, answer) in vcpus.into_iter().enumerate() {
            let state = answer.wait()?.map_err(|error| step(&format!("saving vCPU {index}"), &error))?;
            sections.push(state.to_section(&vcpu_name(index)));
        }
        Ok(sections)
    }

    fn hand_over(&self) {
        Self::hand_over(self);
    }
}

impl Destination for Machine {
    fn admit(&self, manifest: &Manifest) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        if manifest.vm != self.config.vm {
            reasons.push(format!("this machine was built for the VM {}, not for {}", self.config.vm, manifest.vm));
        }
        if manifest.epoch >= self.config.epoch {
            let (theirs, ours) = (manifest.epoch, self.config.epoch);
            reasons.push(format!("the VM already runs at epoch {theirs}; this machine waits for epoch {ours}"));
        }
        match serde_json::from_slice::<VmSpec>(&manifest.spec_json) {
            Ok(spec) if spec == self.config.spec => {}
            Ok(_) => reasons.push("the VM's specification differs from the one this machine was built from".into()),
            Err(error) => reasons.push(format!("the VM's specification cannot be read: {error}")),
        }
        if manifest.ranges != self.ram.ranges() {
            reasons.push("the VM's memory lies elsewhere than this machine's".into());
        }
        match self.admit_cpu(&manifest.cpu) {
            Ok(cpu) if reasons.is_empty() => *self.cpu.lock().expect("no user of the CPU model panics") = cpu,
            Ok(_) => {}
            Err(more) => reasons.extend(more),
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    fn memory(&self) -> &dyn GuestMemory {
        &self.ram
    }

    fn load(&self, sections: Vec<Section>) -> Result<(), MachineError> {
        let mut condition = self.condition();
        let next = condition.life.after(Step::Load).map_err(illegal)?;
        let arrived = Arrived::sort(sections, self.section_names())?;
        self.load_arrived(arrived)?;
        self.enter(&mut condition, next);
        Ok(())
    }

    fn run(&self, epoch: Epoch) -> Result<(), MachineError> {
        let mut condition = self.condition();
        let next = condition.life.after(Step::Run).map_err(illegal)?;
        self.pci.take_locks(epoch).map_err(|error| step("locking the disks", &error))?;
        if let Err(error) = self.resume_devices() {
            self.pci.release_locks();
            return Err(error);
        }
        self.tell_vcpus_of_pause();
        self.run_vcpus();
        condition.epoch = epoch;
        self.enter(&mut condition, next);
        Ok(())
    }
}

impl Machine {
    fn admit_cpu(&self, encoded: &[u8]) -> Result<CpuModel, Vec<String>> {
        let cpu = CpuModel::decode(encoded).map_err(|error| vec![error.to_string()])?;
        let offer = CpuModel::offered(self.kvm()).map_err(|error| vec![crate::kvm::chain(&error)])?;
        let missing = cpu.missing_on(&offer);
        if missing.is_empty() { Ok(cpu) } else { Err(missing) }
    }

    /// The sections that make up this machine.
    fn section_names(&self) -> Vec<String> {
        let vcpus = (0..self.vcpus.len()).map(vcpu_name);
        let devices = self.devices.iter().map(|device| device.name().to_owned());
        [CLOCK, IRQCHIP, PIT].map(str::to_owned).into_iter().chain(vcpus).chain(devices).collect()
    }

    /// Checks what the core itself loads, then loads everything in the order in which it depends on each other.
    fn load_arrived(&self, mut arrived: Arrived) -> Result<(), MachineError> {
        let clock: ClockState = arrived.take(CLOCK, |_| Ok(()))?;
        let irqchip = arrived.take(IRQCHIP, IrqchipState::check)?;
        let pit = arrived.take(PIT, PitState::check)?;
        let vcpus: Vec<Arc<VcpuState>> = (0..self.vcpus.len())
            .map(|index| arrived.take(&vcpu_name(index), |state: &VcpuState| state.check(&self.facts)).map(Arc::new))
            .collect::<Result<_, _>>()?;
        for device in &self.devices {
            let section = arrived.take_raw(device.name())?;
            device.restore(&section).map_err(|error| step("loading", &error))?;
        }
        self.load_vcpus(&vcpus)?;
        let chips = irqchip.restore(&self.vm).and_then(|()| pit.restore(&self.vm));
        chips.map_err(|error| step("loading the interrupt controllers", &error))?;
        clock.restore(&self.vm).map_err(|error| step("loading the clock", &error))?;
        let here = ClockState::save(&self.vm).map_err(|error| step("reading the clock", &error))?;
        self.each_vcpu("starting the timer of", &vcpus, move |state, fd| state.finish(fd, &clock, &here))
    }

    fn load_vcpus(&self, states: &[Arc<VcpuState>]) -> Result<(), MachineError> {
        let (cpu, facts) = (self.cpu.lock().expect("no user of the CPU model panics").clone(), self.facts.clone());
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
        work: impl Fn(&T, &kvm_ioctls::VcpuFd) -> Result<(), KvmError> + Send + Sync + 'static,
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

    /// Lets the guest's watchdogs know that time has passed without it.
    fn tell_vcpus_of_pause(&self) {
        for vcpu in &self.vcpus {
            // An error means that the guest does not use kvmclock, and then there is nobody to tell.
            drop(vcpu.call(|fd| fd.kvmclock_ctrl()));
        }
    }
}

fn vcpu_name(index: usize) -> String {
    format!("vcpu-{index}")
}

/// Sections that have arrived, each to be taken once.
struct Arrived {
    sections: BTreeMap<String, Section>,
}

impl Arrived {
    /// Refuses sections that are unknown, missing, or there twice.
    fn sort(sections: Vec<Section>, expected: Vec<String>) -> Result<Self, MachineError> {
        let refuse = |reason: String| Err(MachineError { step: "loading device state".into(), reason });
        let mut sorted = BTreeMap::new();
        for section in sections {
            let name = section.device.clone();
            if !expected.contains(&name) {
                return refuse(format!("this machine has no device {name}"));
            }
            if sorted.insert(name.clone(), section).is_some() {
                return refuse(format!("the state of {name} has arrived twice"));
            }
        }
        match expected.iter().find(|name| !sorted.contains_key(*name)) {
            Some(name) => refuse(format!("the state of {name} is missing")),
            None => Ok(Self { sections: sorted }),
        }
    }

    fn take_raw(&mut self, name: &str) -> Result<Section, MachineError> {
        let missing = || MachineError { step: format!("loading {name}"), reason: "its state is missing".into() };
        self.sections.remove(name).ok_or_else(missing)
    }

    fn take<T: State>(&mut self, name: &str, check: impl Fn(&T) -> Result<(), String>) -> Result<T, MachineError> {
        let damaged = |error: DeviceError| step("loading", &error);
        let state = T::from_section(&self.take_raw(name)?).map_err(damaged)?;
        check(&state).map_err(|reason| MachineError { step: format!("loading {name}"), reason })?;
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(device: &str) -> Section {
        Section { device: device.into(), kind: "test".into(), version: 1, payload: vec![] }
    }

    #[test]
    fn unknown_missing_and_repeated_sections_are_refused_by_name() {
        let expected = || vec!["a".to_owned(), "b".to_owned()];
        let sort = |names: &[&str]| Arrived::sort(names.iter().map(|name| section(name)).collect(), expected());
        assert!(sort(&["b", "a"]).is_ok());
        for (names, blamed) in [(&["a"][..], "of b"), (&["a", "b", "c"][..], "c"), (&["a", "b", "a"][..], "a has arrived twice")] {
            let error = sort(names).err().unwrap().to_string();
            assert!(error.contains(blamed), "{error}");
        }
    }
}
