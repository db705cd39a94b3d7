//! The machine: one VM's vCPUs, memory and devices, and what can be done with them as a whole.

mod build;
mod destination;
mod disks;
pub mod doorbell;
mod hold;
mod life;
mod sections;
mod source;
mod storage;
mod survey;
mod vcpu;

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use godwit_migration::{GuestMemory, Kept, MachineError, Source};
use godwit_types::capability::GuestFacts;
use godwit_types::control::{VmmConfig, VmmState};
use godwit_types::{Bytes, Epoch};
use kvm_ioctls::VmFd;
use vm_memory::GuestAddress;

use crate::acpi;
use crate::boot::{BootError, Kernel, set_entry};
use crate::cpu::CpuModel;
use crate::device::Device;
use crate::devices::legacy::pm::Pm;
use crate::devices::vmclock;
use crate::devices::{Pci, console};
use crate::kvm::chain;
use crate::kvm::dirty_log::DirtyLog;
use crate::kvm::irqchip::{IrqchipState, PitState};
use crate::kvm::vcpu::{VcpuFacts, VcpuState};
use crate::memory::{AbsentRam, KeptMemory, Ram, Userfault};
use crate::offer;
pub use build::{BuildError, Observer, Parts};
use disks::{Arriving, Leaving};
use doorbell::Doorbell;
pub use life::{Illegal, Life, Step};
pub use storage::{StorageMove, Target};
use survey::LogUser;
use vcpu::Vcpu;

/// One VM. Fields are dropped in this order: vCPUs end before what they use.
pub struct Machine {
    vcpus: Vec<Vcpu>,
    pci: Pci,
    /// All devices, those of PCI last.
    devices: Vec<Arc<dyn Device>>,
    pm: Arc<Pm>,
    console: Mutex<Option<console::Running>>,
    dirty_log: Arc<DirtyLog>,
    log_user: LogUser,
    ram: Ram,
    facts: VcpuFacts,
    pristine: Pristine,
    kernel: Kernel,
    /// The CPU that the guest sees: this host's choice if it booted here, else what it brought along.
    cpu: Mutex<CpuModel>,
    /// The most that this host gives to a guest that arrives.
    offer: CpuModel,
    condition: Mutex<Condition>,
    /// Once a source was admitted.
    origin: Mutex<Option<Origin>>,
    /// When the vCPUs first ran here, of a VM that has arrived.
    ran: Mutex<Option<Instant>>,
    /// Until memory is awaited; or why it cannot be.
    userfault: Mutex<Result<Userfault, String>>,
    /// Memory of which a part is, or was, still at the source.
    absent: Mutex<Option<Arc<AbsentRam>>>,
    /// What this host has of the VM's memory from before.
    kept: Option<KeptMemory>,
    /// The disks that go along with the migration away.
    leaving: Mutex<Option<Arc<Leaving>>>,
    /// The disks that arrive with the VM.
    arriving: Option<Arc<Arriving>>,
    doorbell: Arc<Doorbell>,
    observer: Arc<dyn Observer>,
    vm: Arc<VmFd>,
    config: VmmConfig,
}

/// The source that a destination has admitted.
struct Origin {
    epoch: Epoch,
    /// Its disk locks can be seen from here, so that their fall says that it is dead.
    locks_seen: bool,
}

/// Changes only with the lock held, so that one step at a time is under way.
struct Condition {
    life: Life,
    epoch: Epoch,
}

/// The state after power-on, to which a reset goes back.
struct Pristine {
    vcpus: Vec<Arc<VcpuState>>,
    irqchip: IrqchipState,
    pit: PitState,
}

impl Machine {
    /// What the machine was built from.
    pub fn config(&self) -> &VmmConfig {
        &self.config
    }

    /// What the VM would need elsewhere.
    pub fn guest(&self) -> GuestFacts {
        GuestFacts {
            release: offer::RELEASE.to_owned(),
            protocol: offer::PROTOCOL,
            sections: offer::sections(),
            cpu: self.cpu.lock().expect("no user of the CPU model panics").facts(),
            blockers: Source::blockers(self),
            moves_disks: true,
            moves_storage: true,
            disks: Vec::new(),
        }
    }

    /// Where events arrive for whoever supervises the machine.
    pub fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }

    /// Takes the disk locks, loads the kernel and starts.
    pub fn start(&self) -> Result<(), MachineError> {
        let mut condition = self.condition();
        let next = condition.life.after(Step::Start).map_err(illegal)?;
        self.pci.take_locks(condition.epoch).map_err(|error| step("locking the disks", &error))?;
        self.load_kernel()?;
        self.run_vcpus();
        self.enter(&mut condition, next);
        Ok(())
    }

    /// Presses the power button.
    pub fn press_power_button(&self) -> Result<(), MachineError> {
        let life = self.condition().life;
        if life != Life::Running {
            let reason = format!("the VM is {life:?}");
            return Err(MachineError { step: "pressing the power button".into(), reason });
        }
        self.pm.press_power_button();
        Ok(())
    }

    /// Asks the guest to give `target` of its memory to the balloon.
    pub fn set_balloon(&self, target: Bytes) {
        self.pci.set_balloon(target);
    }

    /// The memory that the balloon holds.
    pub fn balloon(&self) -> Bytes {
        self.pci.balloon()
    }

    /// What the guest has asked of its disks.
    pub fn disk_operations(&self) -> u64 {
        self.pci.disks().iter().map(|block| block.device().disk().operations()).sum()
    }

    /// Lets go of whatever is still at the source: the guest begins anew, or ends.
    /// Whether there was anything.
    pub fn forget_absent(&self) -> bool {
        let absent = self.absent();
        absent.iter().for_each(|absent| absent.forget());
        absent.is_some()
    }

    /// Before a migration away: the disks with these numbers go along.
    pub fn move_disks(&self, disks: &BTreeSet<u32>) -> Result<(), MachineError> {
        let leaving = Leaving::new(self.pci.disks(), disks, self.ram.ranges())?;
        let leaving = (!disks.is_empty()).then(|| Arc::new(leaving));
        *self.leaving.lock().expect("nobody panics with it") = leaving;
        Ok(())
    }

    fn leaving(&self) -> Option<Arc<Leaving>> {
        self.leaving.lock().expect("nobody panics with it").clone()
    }

    /// Gives back what this host had of memory from before, however much of it was of use.
    pub fn forget_kept(&self) {
        if let Some(kept) = &self.kept {
            self.ram.ranges().iter().for_each(|range| kept.forget(*range));
        }
    }

    /// Moves the memory of a VM that is not here into `file`, with so many threads, until `stop` says that it is enough.
    pub fn keep_memory(
        &self,
        file: &File,
        threads: usize,
        stop: impl Fn() -> bool + Sync,
    ) -> Result<(), MachineError> {
        let life = self.condition().life;
        if life == Life::Running {
            let reason = format!("the VM is {life:?}");
            return Err(MachineError { step: "keeping memory".into(), reason });
        }
        self.ram.keep(file, threads, stop).map_err(|error| step("keeping memory", &error))
    }

    /// Memory of which a part is still at the source.
    fn absent(&self) -> Option<Arc<AbsentRam>> {
        let absent = self.absent.lock().expect("nobody panics with it");
        absent.as_ref().filter(|absent| absent.is_awaited()).map(Arc::clone)
    }

    /// Resets the machine in place: memory cleared, kernel loaded anew.
    pub fn reset(&self) -> Result<(), MachineError> {
        let mut condition = self.condition();
        let next = condition.life.after(Step::Reset).map_err(illegal)?;
        // A vCPU that waits for a page does not stop.
        self.forget_absent();
        self.stop_vcpus()?;
        self.reset_stopped()?;
        self.run_vcpus();
        self.enter(&mut condition, next);
        Ok(())
    }

    /// Ends the VM: I/O drained, disks flushed, locks dropped. A machine that was handed over is left alone.
    pub fn stop(&self) {
        let mut condition = self.condition();
        let Ok(next) = condition.life.after(Step::Stop) else { return };
        if condition.life == Life::Running {
            let stopped = self.stop_vcpus().and_then(|()| self.pause_devices());
            if let Err(error) = stopped {
                tracing::warn!("stopping: {error}");
            }
        }
        self.pci.release_locks();
        self.enter(&mut condition, next);
    }

    /// Ends the console: what the guest has printed is in the log afterwards, and the socket is gone. Nothing runs here.
    pub fn close_console(&self) {
        drop(self.console.lock().expect("no user of the console panics").take());
    }

    /// Stops vCPUs, then devices, and says how long those took. A reset that the guest has asked for happens before, so that
    /// it moves as reset.
    fn pause(&self) -> Result<Duration, MachineError> {
        let mut condition = self.condition();
        let next = condition.life.after(Step::Pause).map_err(illegal)?;
        let paused = self.stop_vcpus().and_then(|()| self.settle()).and_then(|()| {
            let began = Instant::now();
            self.pause_devices().map(|()| began.elapsed())
        });
        match paused {
            Ok(_) => self.enter(&mut condition, next),
            Err(_) => self.run_vcpus(),
        }
        paused
    }

    /// Undoes [`Machine::pause`]. The VM runs afterwards even if a device is reported not to.
    fn resume(&self) -> Result<(), MachineError> {
        let mut condition = self.condition();
        let next = condition.life.after(Step::Resume).map_err(illegal)?;
        let resumed = self.resume_devices();
        self.run_vcpus();
        self.enter(&mut condition, next);
        resumed
    }

    /// Lets go of the VM for good.
    fn hand_over(&self) {
        let mut condition = self.condition();
        match condition.life.after(Step::HandOver) {
            Ok(next) => {
                self.pci.release_locks();
                self.enter(&mut condition, next);
            }
            Err(error) => tracing::error!("{error}"),
        }
    }

    fn settle(&self) -> Result<(), MachineError> {
        if self.doorbell.powered_off() {
            return Err(MachineError {
                step: "pausing".into(),
                reason: "the guest has powered itself off".into(),
            });
        }
        if self.doorbell.take_reset() { self.reset_stopped() } else { Ok(()) }
    }

    fn reset_stopped(&self) -> Result<(), MachineError> {
        let answers: Vec<_> = self
            .vcpus
            .iter()
            .zip(&self.pristine.vcpus)
            .map(|(vcpu, state)| {
                let (state, facts) = (Arc::clone(state), self.facts.clone());
                vcpu.call(move |fd| state.reset(fd, &facts))
            })
            .collect();
        for answer in answers {
            answer.wait()?.map_err(|error| step("resetting a vCPU", &error))?;
        }
        self.devices.iter().for_each(|device| device.reset());
        let chips =
            self.pristine.irqchip.restore(&self.vm).and_then(|()| self.pristine.pit.restore(&self.vm));
        chips.map_err(|error| step("resetting the interrupt controllers", &error))?;
        self.ram.clear().map_err(|error| step("resetting", &error))?;
        self.load_kernel()
    }

    /// Loads kernel and tables into zeroed memory and points vCPU 0 at them.
    fn load_kernel(&self) -> Result<(), MachineError> {
        let load = || -> Result<_, BootError> {
            let (ram, spec) = (self.ram.guest().as_ref(), &self.config.spec);
            let entry = self.kernel.load(ram, spec.memory, acpi::TABLES)?;
            entry.write_tables(ram)?;
            vm_memory::Bytes::write_slice(ram, &acpi::tables(spec.vcpus), GuestAddress(acpi::TABLES))?;
            vmclock::begin(ram)?;
            Ok(entry)
        };
        let entry = load().map_err(|error| step("loading the kernel", &error))?;
        let set = self.vcpus[0].call(move |fd| set_entry(fd, entry)).wait()?;
        set.map_err(|error| step("pointing vCPU 0 at the kernel", &error))
    }

    fn run_vcpus(&self) {
        self.vcpus.iter().for_each(Vcpu::run);
    }

    /// Stops all vCPUs, all at once; all have been asked when it fails.
    fn stop_vcpus(&self) -> Result<(), MachineError> {
        let answers: Vec<_> = self.vcpus.iter().map(Vcpu::stop).collect();
        answers.into_iter().try_for_each(|answer| answer.wait())
    }

    /// Pauses all devices, or none.
    fn pause_devices(&self) -> Result<(), MachineError> {
        for (index, device) in self.devices.iter().enumerate() {
            if let Err(error) = device.pause() {
                for paused in &self.devices[..index] {
                    if let Err(error) = paused.resume() {
                        tracing::error!("after a failed pause: {error}");
                    }
                }
                return Err(step("pausing devices", &error));
            }
        }
        Ok(())
    }

    /// Resumes all devices, also after one has failed; the first failure is told.
    fn resume_devices(&self) -> Result<(), MachineError> {
        let mut resumed = Ok(());
        for device in &self.devices {
            if let Err(error) = device.resume() {
                resumed = resumed.and(Err(step("resuming devices", &error)));
            }
        }
        resumed
    }

    fn condition(&self) -> MutexGuard<'_, Condition> {
        self.condition.lock().expect("no step of the machine panics")
    }

    fn enter(&self, condition: &mut Condition, next: Life) {
        condition.life = next;
        self.observer.state(next.as_told(), condition.epoch);
    }

    /// The state as the control socket names it. Waits for a step that is under way.
    pub fn state(&self) -> (VmmState, Epoch) {
        let condition = self.condition();
        (condition.life.as_told(), condition.epoch)
    }
}

/// Fails where a test wants a device to fail.
fn unless_failing(at: godwit_faults::Step, device: &str) -> Result<(), MachineError> {
    if godwit_faults::fails(at) {
        return Err(MachineError { step: device.to_owned(), reason: "a test wants it to fail".into() });
    }
    Ok(())
}

/// A failed step with the whole chain of causes, since the result travels as text.
fn step(step: &str, error: &dyn std::error::Error) -> MachineError {
    MachineError { step: step.to_owned(), reason: chain(error) }
}

fn illegal(error: Illegal) -> MachineError {
    step("changing the machine's state", &error)
}
