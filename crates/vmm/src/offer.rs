//! What this build on this host can run, for whoever decides where a VM may go: `godwit-vmm --offer`.

use std::collections::BTreeMap;

use godwit_migration::wire::{VERSION_MAX, VERSION_MIN};
use godwit_types::capability::{ProtocolRange, VmmOffer};
use godwit_types::vm::MachineType;

use crate::cpu::{CpuError, CpuModel};
use crate::device::State;
use crate::devices::legacy::pm::PmState;
use crate::devices::legacy::rtc::RtcState;
use crate::devices::legacy::serial::UartState;
use crate::devices::pci::HostBridgeState;
use crate::devices::virtio::state::FunctionState;
use crate::kvm::clock::ClockState;
use crate::kvm::irqchip::{IrqchipState, PitState};
use crate::kvm::vcpu::VcpuState;
use crate::kvm::{self, call};
use crate::memory::Userfault;
use crate::supervisor::no_userfault;

/// This build's release of Godwit.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");
/// The migration protocol as this build speaks it.
pub const PROTOCOL: ProtocolRange = ProtocolRange { min: VERSION_MIN, max: VERSION_MAX };

/// Asks KVM. Creates a VM without memory and one vCPU for a moment, since only a vCPU knows the TSC's frequency.
pub fn offer() -> Result<VmmOffer, CpuError> {
    let kvm = kvm::open()?;
    let vm = kvm.create_vm().map_err(call("creating a VM"))?;
    let vcpu = vm.create_vcpu(0).map_err(call("creating a vCPU"))?;
    Ok(VmmOffer {
        release: RELEASE.to_owned(),
        protocol: PROTOCOL,
        machines: MachineType::ALL.iter().map(|machine| machine.name().to_owned()).collect(),
        sections: sections(),
        vcpus_max: u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX),
        cpu: CpuModel::offered(&kvm)?.with_tsc(&kvm, &vcpu).facts(),
        no_post_copy: no_post_copy(),
    })
}

/// Tries what a VM that arrives here is given: the device, or the system call.
fn no_post_copy() -> Option<String> {
    Userfault::open(godwit_provision::userfault()).err().map(|error| no_userfault(&error))
}

/// The version of each kind of section that this build writes: all that the state of a machine consists of.
pub fn sections() -> BTreeMap<String, u16> {
    fn of<S: State>() -> (String, u16) {
        (S::KIND.to_owned(), S::VERSION)
    }
    BTreeMap::from([
        of::<ClockState>(),
        of::<IrqchipState>(),
        of::<PitState>(),
        of::<VcpuState>(),
        of::<UartState>(),
        of::<PmState>(),
        of::<RtcState>(),
        of::<HostBridgeState>(),
        of::<FunctionState>(),
    ])
}
