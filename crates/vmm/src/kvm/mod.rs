//! The kernel's edge: everything that is asked of `/dev/kvm`.

pub mod abi;
pub mod clock;
pub mod dirty_log;
pub mod events;
pub mod irqchip;
pub mod vcpu;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::memory::{Slot, layout};
use godwit_types::PAGE_SIZE_BYTES;

/// Why KVM cannot do what the machine needs.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    #[error(
        "/dev/kvm is missing: switch on virtualisation (VT-x or AMD-V) in the firmware and load kvm_intel or kvm_amd, such as with 'modprobe kvm_amd'"
    )]
    Missing,
    #[error("/dev/kvm may not be opened by this user: run as root or join the group that owns it")]
    Forbidden,
    #[error("/dev/kvm speaks API version {0}, not 12: update the kernel")]
    Version(i32),
    #[error("this host's KVM lacks {0}: update the kernel")]
    Lacks(&'static str),
    #[error(
        "KVM was interrupted while it re-armed the dirty log, and may miss what the guest writes: migrate it again"
    )]
    LogInterrupted,
    #[error("KVM: {step} failed")]
    Call {
        step: String,
        #[source]
        source: io::Error,
    },
}

/// What the machine cannot do without, and what to call it.
const REQUIRED: [(Cap, &str); 14] = [
    (Cap::UserMemory, "memory slots"),
    (Cap::Irqchip, "in-kernel interrupt controllers"),
    (Cap::Pit2, "the in-kernel timer (PIT)"),
    (Cap::SetTssAddr, "KVM_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "extended CPUID"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::Irqfd, "irqfd"),
    (Cap::SignalMsi, "KVM_SIGNAL_MSI"),
    (Cap::ImmediateExit, "immediate_exit"),
    (Cap::MpState, "saving the run state of vCPUs"),
    (Cap::VcpuEvents, "saving the events of vCPUs"),
    (Cap::Debugregs, "saving debug registers"),
    (Cap::Xcrs, "saving extended control registers"),
    (Cap::AdjustClock, "saving the clock"),
];

/// Opens `/dev/kvm` and checks that it can carry the machine. For tests: a VM's process is given it open.
pub fn open() -> Result<Kvm, KvmError> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let device = device.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => KvmError::Missing,
        Some(libc::EACCES | libc::EPERM) => KvmError::Forbidden,
        _ => KvmError::Call { step: "opening /dev/kvm".into(), source: error },
    })?;
    take(device.into())
}

/// Checks that the open `/dev/kvm` can carry the machine.
pub fn take(device: OwnedFd) -> Result<Kvm, KvmError> {
    // SAFETY: the descriptor is open, and given away here.
    let kvm = unsafe { Kvm::from_raw_fd(device.into_raw_fd()) };
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION as i32 {
        return Err(KvmError::Version(version));
    }
    match REQUIRED.iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
        Some((_, name)) => Err(KvmError::Lacks(name)),
        None => Ok(kvm),
    }
}

/// Creates a VM with its interrupt controllers and timer, the PIC masked, and the dirty log prepared: with at most so many
/// entries in a ring for each vCPU, or no rings for 0. How many they have, if KVM knows rings at all.
///
/// KVM's own interrupt routing stays: GSI n is pin n of the I/O APIC and, below 16, line n of the PIC.
pub fn create_vm(kvm: &Kvm, rings: u32) -> Result<(VmFd, u32), KvmError> {
    let vm = kvm.create_vm().map_err(call("creating a VM"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(call("placing the identity map"))?;
    vm.set_tss_address(layout::KVM_TSS as usize).map_err(call("placing the task state segment"))?;
    vm.create_irq_chip().map_err(call("creating the interrupt controllers"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(call("creating the timer"))?;
    irqchip::mask_pic(&vm)?;
    let rings = if rings > 0 { dirty_log::enable_rings(&vm, rings)? } else { 0 };
    if rings == 0 && manual_protect(&vm) {
        // Not INITIALLY_SET: the first round sends every page anyway, so protecting all of them at once when the log
        // starts is a single pass, and nothing is gained by clearing the log once more before that round.
        let enable = kvm_enable_cap {
            cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
            args: [u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE), 0, 0, 0],
            ..Default::default()
        };
        vm.enable_cap(&enable).map_err(call("preparing the dirty log"))?;
    }
    Ok((vm, rings))
}

/// Whether the dirty log can be read without re-arming it.
pub fn manual_protect(vm: &VmFd) -> bool {
    let flags = vm.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into());
    flags & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE as i32 != 0
}

/// Gives KVM a memory slot, or changes its flags.
pub fn set_slot(vm: &VmFd, slot: &Slot, flags: u32) -> Result<(), KvmError> {
    let region = kvm_userspace_memory_region {
        slot: slot.id,
        flags,
        guest_phys_addr: slot.range.start.address(),
        memory_size: slot.range.pages * PAGE_SIZE_BYTES,
        userspace_addr: slot.host_address,
    };
    // SAFETY: the slot describes a mapping of guest RAM, which the machine keeps for as long as the VM.
    unsafe { vm.set_user_memory_region(region) }.map_err(call("setting a memory slot"))
}

/// Turns an errno into an error that names the step.
pub(crate) fn call(step: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |error| KvmError::Call { step: step.into(), source: io::Error::from_raw_os_error(error.errno()) }
}

/// Turns the error of an ioctl made here into an error that names the step.
pub(crate) fn last_error(step: &str) -> KvmError {
    KvmError::Call { step: step.to_owned(), source: io::Error::last_os_error() }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
