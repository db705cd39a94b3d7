//! Building a machine from its configuration.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use godwit_migration::{GuestMemory as _, MachineError};
use godwit_types::Epoch;
use godwit_types::control::{DiskDescriptors, Role, VmmConfig, VmmState, WriteLog};
use godwit_types::vm::InvalidVmSpec;
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::disks::Arriving;
use super::doorbell::Doorbell;
use super::life::Life;
use super::survey::LogUser;
use super::vcpu::{Buses, Vcpu, install_kick};
use super::{Condition, Machine, Pristine};
use crate::boot::{BootError, Kernel};
use crate::bus::Overlap;
use crate::cpu::{CpuError, CpuModel};
use crate::device::{Device, DeviceError};
use crate::devices;
use crate::devices::console::{self, Console};
use crate::devices::legacy::keyboard::{self, Keyboard};
use crate::devices::legacy::pm::{self, Pm};
use crate::devices::legacy::rtc::{self, Rtc};
use crate::devices::legacy::serial::{self, Serial};
use crate::devices::virtio::console::ConsolePort;
use crate::kvm::dirty_log::{self, DirtyLog};
use crate::kvm::events::KvmEvents;
use crate::kvm::irqchip::{IrqchipState, PitState};
use crate::kvm::vcpu::{VcpuFacts, VcpuState};
use crate::kvm::{self, KvmError, call};
use crate::memory::{KeptMemory, MemoryError, Ram, Userfault};

/// Who is told of the machine's state and of its devices' errors.
pub trait Observer: Send + Sync {
    fn state(&self, state: VmmState, epoch: Epoch);
    fn device_error(&self, device: &str, message: &str);
}

/// Why a machine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Spec(#[from] InvalidVmSpec),
    #[error("the configuration provides {provided} {kind} and the VM has {wanted}")]
    Backings { kind: &'static str, provided: usize, wanted: usize },
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error("this host's KVM runs at most {max} vCPUs per VM, not {wanted}")]
    Vcpus { max: usize, wanted: u8 },
    #[error(transparent)]
    Cpu(#[from] CpuError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Bus(#[from] Overlap),
    #[error(transparent)]
    Disks(#[from] MachineError),
    #[error("cannot {0}")]
    Host(String, #[source] io::Error),
}

impl Machine {
    /// Builds the machine: nothing of the guest runs or is loaded yet, and no disk is locked.
    pub fn build(
        config: VmmConfig,
        parts: Parts,
        observer: Arc<dyn Observer>,
    ) -> Result<Arc<Self>, BuildError> {
        check(&config, &parts)?;
        let spec = &config.spec;
        let initrd = config.initrd.clone().zip(parts.initrd.map(File::from));
        let kernel = Kernel::new((config.kernel.clone(), parts.kernel.into()), initrd, &spec.boot.cmdline)?;
        let kvm = kvm::take(parts.kvm)?;
        let max = kvm.get_max_vcpus();
        if usize::from(spec.vcpus) > max {
            return Err(BuildError::Vcpus { max, wanted: spec.vcpus });
        }
        let offer = CpuModel::offered(&kvm)?;
        let cpu = offer.clone().reduced_to(&spec.cpu)?;
        let rings = match config.write_log {
            None => dirty_log::entries(spec.vcpus),
            Some(WriteLog::Rings { entries }) => entries,
            Some(WriteLog::Bitmap) => 0,
        };
        let (vm, rings) = kvm::create_vm(&kvm, rings)?;
        let vm = Arc::new(vm);
        let ram = Ram::new(spec.memory)?;
        for slot in ram.slots() {
            kvm::set_slot(&vm, &slot, 0)?;
        }
        let kept = parts.kept.map_or(Ok(None), |file| KeptMemory::open(file.into(), ram.ranges()));
        let kept = kept.map_err(|error| BuildError::Host("look at kept memory".into(), error))?;
        let (buses, doorbell) = (Buses::default(), Arc::new(Doorbell::default()));
        let legacy = Legacy::build((parts.console, parts.console_log.into()), &vm, &buses, &doorbell)?;
        let events = Arc::new(KvmEvents(Arc::clone(&vm)));
        let pci = devices::build(
            &config,
            devices::Given { terminal: legacy.terminal, disks: parts.disks, taps: parts.taps },
            Arc::clone(ram.guest()),
            Arc::clone(&events) as _,
            events,
            Arc::clone(&buses.mmio),
            Arc::clone(&buses.pio),
        )?;
        let watcher = Arc::clone(&observer);
        pci.on_device_error(move |device, message| watcher.device_error(device, message));
        let arriving = match &config.role {
            Role::Incoming { disks, .. } if !disks.is_empty() => {
                Some(Arc::new(Arriving::new(pci.disks(), disks, ram.ranges())?))
            }
            Role::Incoming { .. } | Role::Boot => None,
        };
        let facts = VcpuFacts::of(&kvm, &vm)?;
        let fds = create_vcpus(&vm, (&offer, &cpu), spec.vcpus)?;
        let (offer, cpu) = (offer.with_tsc(&kvm, &fds[0]), cpu.with_tsc(&kvm, &fds[0]));
        let dirty_log = Arc::new(DirtyLog::new(Arc::clone(&vm), ram.slots(), &fds, rings)?);
        let (vcpus, pristine) = start_vcpus(&vm, fds, &facts, &buses, &doorbell, &dirty_log)?;
        let cpu = cpu.with_msrs(&pristine.vcpus[0]);
        let life = if matches!(config.role, Role::Boot) { Life::Built } else { Life::Incoming };
        let condition = Mutex::new(Condition { life, epoch: config.epoch });
        let devices = legacy.devices.into_iter().chain(pci.devices().iter().cloned()).collect();
        Ok(Arc::new(Self {
            vcpus,
            pci,
            devices,
            pm: legacy.pm,
            console: Mutex::new(Some(legacy.console)),
            dirty_log,
            log_user: LogUser::default(),
            ram,
            facts,
            pristine,
            kernel,
            offer,
            cpu: Mutex::new(cpu),
            condition,
            origin: Mutex::default(),
            userfault: Mutex::new(parts.userfault),
            ran: Mutex::default(),
            absent: Mutex::default(),
            kept,
            leaving: Mutex::default(),
            arriving,
            doorbell,
            observer,
            vm,
            config,
        }))
    }
}

/// What the machine is built with, opened by others. `OwnedFd`s are files.
pub struct Parts {
    pub kvm: OwnedFd,
    pub kernel: OwnedFd,
    pub initrd: Option<OwnedFd>,
    pub disks: Vec<DiskDescriptors<OwnedFd>>,
    pub taps: Vec<OwnedFd>,
    pub console: UnixListener,
    pub console_log: OwnedFd,
    /// Or why there is none.
    pub userfault: Result<Userfault, String>,
    /// What there is of the VM's memory from before.
    pub kept: Option<OwnedFd>,
}

fn check(config: &VmmConfig, parts: &Parts) -> Result<(), BuildError> {
    config.spec.validate()?;
    let counts = [
        ("disks", config.disks.len(), config.spec.disks.len()),
        ("network cards", config.nics.len(), config.spec.nics.len()),
        ("open disks", parts.disks.len(), config.disks.len()),
        ("open taps", parts.taps.len(), config.nics.len()),
    ];
    match counts.into_iter().find(|(_, provided, wanted)| provided != wanted) {
        Some((kind, provided, wanted)) => Err(BuildError::Backings { kind, provided, wanted }),
        None => Ok(()),
    }
}

/// The devices at fixed ports.
struct Legacy {
    devices: Vec<Arc<dyn Device>>,
    pm: Arc<Pm>,
    console: console::Running,
    /// The console's other port, for a virtio device.
    terminal: Arc<ConsolePort>,
}

impl Legacy {
    fn build(
        (listener, log): (UnixListener, File),
        vm: &Arc<VmFd>,
        buses: &Buses,
        doorbell: &Arc<Doorbell>,
    ) -> Result<Self, BuildError> {
        let host = |what: &str| {
            let what = what.to_owned();
            move |error| BuildError::Host(what, error)
        };
        let interrupt =
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(host("create an event"))?;
        vm.register_irqfd(&interrupt, serial::IRQ).map_err(call("wiring the serial port"))?;
        let console = Arc::new(Console::new().map_err(host("create the console"))?);
        let serial = Serial::new(interrupt, Arc::clone(&console)).map_err(host("create the serial port"))?;
        let serial = Arc::new(serial);
        let terminal =
            ConsolePort::new(Arc::clone(&console)).map_err(host("create the virtio console's port"))?;
        let console = console::serve(console, Arc::clone(&serial), Arc::clone(&terminal), listener, log)
            .map_err(host("serve the console"))?;
        let line = Arc::clone(vm);
        let sci = move |high| {
            if let Err(error) = line.set_irq_line(pm::SCI, high) {
                tracing::warn!("cannot set the ACPI interrupt: {error}");
            }
        };
        let pm = Arc::new(Pm::new(Arc::clone(doorbell) as _, Box::new(sci)));
        let clock = Arc::new(Rtc::default());
        let keyboard = Arc::new(Keyboard::new(Arc::clone(doorbell) as _));
        buses.pio.insert(serial::BASE.into(), serial::PORTS, Arc::clone(&serial) as _)?;
        buses.pio.insert(pm::BASE.into(), pm::PORTS, Arc::clone(&pm) as _)?;
        buses.pio.insert(rtc::BASE.into(), rtc::PORTS, Arc::clone(&clock) as _)?;
        buses.pio.insert(keyboard::PORT.into(), 1, keyboard)?;
        Ok(Self { devices: vec![serial, Arc::clone(&pm) as _, clock], pm, console, terminal })
    }
}

fn create_vcpus(vm: &VmFd, (offer, cpu): (&CpuModel, &CpuModel), count: u8) -> Result<Vec<VcpuFd>, KvmError> {
    let create = |index: u8| {
        let fd = vm.create_vcpu(index.into()).map_err(call(format!("creating vCPU {index}")))?;
        fd.set_cpuid2(&cpu.for_vcpu(index, count))
            .map_err(call(format!("setting the CPUID of vCPU {index}")))?;
        cpu.take_msrs(offer, &fd)?;
        Ok(fd)
    };
    (0..count).map(create).collect()
}

/// Notes the state after power-on and starts the threads, parked.
fn start_vcpus(
    vm: &VmFd,
    fds: Vec<VcpuFd>,
    facts: &VcpuFacts,
    buses: &Buses,
    doorbell: &Arc<Doorbell>,
    log: &Arc<DirtyLog>,
) -> Result<(Vec<Vcpu>, Pristine), BuildError> {
    install_kick().map_err(|error| BuildError::Host("install a signal handler".into(), error))?;
    let (mut vcpus, mut states) = (Vec::new(), Vec::new());
    for (index, fd) in (0..).zip(fds) {
        let mut state = VcpuState::save(&fd, facts)?;
        state.start_here(index == 0);
        states.push(Arc::new(state));
        let thread = Vcpu::spawn(index, fd, buses.clone(), Arc::clone(doorbell), Arc::clone(log));
        vcpus.push(
            thread.map_err(|error| BuildError::Host(format!("start the thread of vCPU {index}"), error))?,
        );
    }
    let pristine = Pristine { vcpus: states, irqchip: IrqchipState::save(vm)?, pit: PitState::save(vm)? };
    Ok((vcpus, pristine))
}
