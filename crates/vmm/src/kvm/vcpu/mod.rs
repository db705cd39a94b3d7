//! Saving and restoring one vCPU, in the one order that works.
//!
//! Reading the run state and the local APIC changes pending events, and writing one register file changes others, so
//! the order of the calls below matters. The clock comes between [`VcpuState::restore`] and [`VcpuState::finish`].

mod msrs;
mod tsc;
mod xsave;

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::abi::Abi;
use super::{KvmError, call, clock};
use crate::device::State;
use msrs::Msr;

/// The local APIC's timer entry in `kvm_lapic_state`, its mask bit, its mode bits, and the mode "TSC deadline".
const LAPIC_LVT_TIMER: usize = 0x320;
const LVT_MASKED: u32 = 1 << 16;
const LVT_TIMER_MODE: u32 = 3 << 17;
const LVT_TIMER_TSC_DEADLINE: u32 = 2 << 17;
/// Everything about a vCPU but its CPUID, which travels in the manifest. Byte fields are structures of the KVM ABI.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VcpuState {
    #[prost(uint32, tag = "1")]
    mp_state: u32,
    #[prost(bytes = "vec", tag = "2")]
    regs: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    sregs: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    xsave: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    xcrs: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    debug_regs: Vec<u8>,
    #[prost(bytes = "vec", tag = "7")]
    lapic: Vec<u8>,
    #[prost(uint32, optional, tag = "8")]
    tsc_khz: Option<u32>,
    #[prost(message, repeated, tag = "9")]
    msrs: Vec<Msr>,
    #[prost(bytes = "vec", tag = "10")]
    events: Vec<u8>,
    #[prost(uint64, optional, tag = "11")]
    tsc_offset: Option<u64>,
}

impl State for VcpuState {
    const KIND: &'static str = "kvm-vcpu";
    const VERSION: u16 = 1;
}

/// What of the host's KVM a vCPU's state depends on.
#[derive(Debug, Clone)]
pub struct VcpuFacts {
    /// MSRs that make up a vCPU's state; some may not exist under the guest's CPUID.
    msrs: Vec<u32>,
    /// Size of the extended register state, in bytes.
    xsave_bytes: usize,
}

impl VcpuFacts {
    /// Asks KVM.
    pub fn of(kvm: &Kvm, vm: &VmFd) -> Result<Self, KvmError> {
        let mut msrs = kvm.get_msr_index_list().map_err(call("listing MSRs"))?.as_slice().to_vec();
        // The deadline is armed last, once the TSC is right; see `VcpuState::finish`.
        msrs.retain(|index| *index != msrs::TSC_DEADLINE);
        msrs.push(msrs::TSC_DEADLINE);
        let xsave_bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Ok(Self { msrs, xsave_bytes: xsave_bytes.max(size_of::<kvm_xsave>()) })
    }
}

/// Writes MSRs by index, as KVM takes them.
pub fn write_msrs(vcpu: &VcpuFd, values: impl IntoIterator<Item = (u32, u64)>) -> Result<(), KvmError> {
    let msrs: Vec<Msr> = values.into_iter().map(|(index, value)| Msr { index, value }).collect();
    msrs::set(vcpu, &msrs)
}

impl VcpuState {
    /// Reads a stopped vCPU, whose pending I/O has been completed.
    pub fn save(vcpu: &VcpuFd, facts: &VcpuFacts) -> Result<Self, KvmError> {
        let mp_state = vcpu.get_mp_state().map_err(call("saving the run state"))?.mp_state;
        let regs = vcpu.get_regs().map_err(call("saving general registers"))?.to_bytes();
        let sregs = vcpu.get_sregs().map_err(call("saving segment and control registers"))?.to_bytes();
        let xsave = xsave::get(vcpu, facts.xsave_bytes)?;
        let xcrs = vcpu.get_xcrs().map_err(call("saving extended control registers"))?.to_bytes();
        let debug_regs = vcpu.get_debug_regs().map_err(call("saving debug registers"))?.to_bytes();
        let lapic = vcpu.get_lapic().map_err(call("saving the local APIC"))?.to_bytes();
        let tsc_khz = vcpu.get_tsc_khz().ok().filter(|khz| *khz != 0);
        let msrs = msrs::get(vcpu, &facts.msrs)?;
        let tsc_offset = clock::tsc_offset(vcpu);
        let events = vcpu.get_vcpu_events().map_err(call("saving pending events"))?.to_bytes();
        Ok(Self { mp_state, regs, sregs, xsave, xcrs, debug_regs, lapic, tsc_khz, msrs, events, tsc_offset })
    }

    /// Whether every structure is complete, and of this host's sizes.
    pub fn check(&self, facts: &VcpuFacts) -> Result<(), String> {
        let sizes = [
            ("general registers", self.regs.len(), size_of::<kvm_regs>()),
            ("segment and control registers", self.sregs.len(), size_of::<kvm_sregs>()),
            ("extended control registers", self.xcrs.len(), size_of::<kvm_xcrs>()),
            ("debug registers", self.debug_regs.len(), size_of::<kvm_debugregs>()),
            ("local APIC", self.lapic.len(), size_of::<kvm_lapic_state>()),
            ("pending events", self.events.len(), size_of::<kvm_vcpu_events>()),
        ];
        if let Some((what, found, expected)) = sizes.iter().find(|(_, found, expected)| found != expected) {
            return Err(format!("its {what} have {found} bytes instead of {expected}"));
        }
        // The area beyond the legacy 4 KiB is only used by features that the destination has checked to have.
        let xsave = size_of::<kvm_xsave>()..=facts.xsave_bytes.max(size_of::<kvm_xsave>());
        if !xsave.contains(&self.xsave.len()) || !self.xsave.len().is_multiple_of(4) {
            return Err(format!("its extended registers have {} bytes, outside {xsave:?}", self.xsave.len()));
        }
        Ok(())
    }

    /// The value of an MSR, if it is part of this state.
    pub fn msr(&self, index: u32) -> Option<u64> {
        self.msrs.iter().find(|msr| msr.index == index).map(|msr| msr.value)
    }

    /// What is computed of a state that was accepted, on a host with `xsave_bytes` of extended registers.
    #[cfg(feature = "fuzzing")]
    pub fn accept(&self, xsave_bytes: usize) -> bool {
        let accepted = self.check(&VcpuFacts { msrs: vec![], xsave_bytes }).is_ok();
        if accepted {
            let _ = self.deadline();
        }
        accepted
    }

    /// Loads a vCPU that has not run yet; its CPUID is set and [`VcpuState::check`] has passed.
    pub fn restore(&self, vcpu: &VcpuFd, facts: &VcpuFacts) -> Result<(), KvmError> {
        if let Some(khz) = self.tsc_khz {
            tsc::set_khz(vcpu, khz)?;
        }
        self.restore_registers(vcpu, facts)?;
        msrs::set(vcpu, self.msrs.iter().filter(|msr| msr.index != msrs::TSC_DEADLINE))?;
        let events = structure::<kvm_vcpu_events>(&self.events);
        vcpu.set_vcpu_events(&events).map_err(call("restoring pending events"))
    }

    /// After the VM's clock was set: the TSC goes on by the time that passed, then the timer is armed.
    pub fn finish(
        &self,
        vcpu: &VcpuFd,
        source: &clock::ClockState,
        here: &clock::ClockState,
    ) -> Result<(), KvmError> {
        let offset =
            self.tsc_offset.zip(self.tsc_khz).and_then(|(offset, khz)| here.tsc_offset(source, offset, khz));
        if let Some(offset) = offset
            && clock::tsc_offset(vcpu).is_some()
        {
            clock::set_tsc_offset(vcpu, offset)?;
        }
        match self.deadline() {
            Some(deadline) => msrs::set(vcpu, [&deadline]),
            None => Ok(()),
        }
    }

    /// Puts a vCPU back to this state, saved right after its creation. Its clock runs on.
    pub fn reset(&self, vcpu: &VcpuFd, facts: &VcpuFacts) -> Result<(), KvmError> {
        self.restore_registers(vcpu, facts)?;
        msrs::set(vcpu, self.msrs.iter().filter(|msr| msr.index != msrs::TSC))?;
        let events = structure::<kvm_vcpu_events>(&self.events);
        vcpu.set_vcpu_events(&events).map_err(call("resetting pending events"))?;
        // The state says so too, but a vCPU that waits for its start-up signal forgets it while its registers are set.
        set_mp_state(vcpu, self.mp_state)
    }

    fn restore_registers(&self, vcpu: &VcpuFd, facts: &VcpuFacts) -> Result<(), KvmError> {
        set_mp_state(vcpu, self.mp_state)?;
        vcpu.set_regs(&structure(&self.regs)).map_err(call("restoring general registers"))?;
        vcpu.set_sregs(&structure(&self.sregs)).map_err(call("restoring segment and control registers"))?;
        xsave::set(vcpu, facts.xsave_bytes, &self.xsave)?;
        vcpu.set_xcrs(&structure(&self.xcrs)).map_err(call("restoring extended control registers"))?;
        vcpu.set_debug_regs(&structure(&self.debug_regs)).map_err(call("restoring debug registers"))?;
        vcpu.set_lapic(&structure(&self.lapic)).map_err(call("restoring the local APIC"))
    }

    /// The TSC deadline to arm. An armed timer that had just fired reads as 0; it is made to fire again, since the
    /// guest may not have seen it, and tolerates one interrupt too many.
    fn deadline(&self) -> Option<Msr> {
        let saved = self.msrs.iter().find(|msr| msr.index == msrs::TSC_DEADLINE)?;
        let lvt = self.lapic.get(LAPIC_LVT_TIMER..LAPIC_LVT_TIMER + 4)?;
        let lvt = u32::from_le_bytes(lvt.try_into().ok()?);
        let armed = lvt & LVT_TIMER_MODE == LVT_TIMER_TSC_DEADLINE && lvt & LVT_MASKED == 0;
        let tsc = self.msrs.iter().find(|msr| msr.index == msrs::TSC);
        match (saved.value, tsc) {
            (0, Some(tsc)) if armed => Some(Msr { index: msrs::TSC_DEADLINE, value: tsc.value.max(1) }),
            _ => Some(*saved),
        }
    }

    /// Marks a vCPU as the one that starts, or as waiting for its start-up signal.
    pub fn start_here(&mut self, boots: bool) {
        self.mp_state = if boots { KVM_MP_STATE_RUNNABLE } else { KVM_MP_STATE_UNINITIALIZED };
    }
}

/// A structure whose length [`VcpuState::check`] has verified.
fn structure<T: Abi>(bytes: &[u8]) -> T {
    T::from_bytes(bytes).unwrap_or_else(T::zeroed)
}

fn set_mp_state(vcpu: &VcpuFd, mp_state: u32) -> Result<(), KvmError> {
    vcpu.set_mp_state(kvm_mp_state { mp_state }).map_err(call("restoring the run state"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(lvt: u32, deadline: u64) -> VcpuState {
        let mut lapic = vec![0; size_of::<kvm_lapic_state>()];
        lapic[LAPIC_LVT_TIMER..LAPIC_LVT_TIMER + 4].copy_from_slice(&lvt.to_le_bytes());
        let msrs =
            vec![Msr { index: msrs::TSC, value: 1234 }, Msr { index: msrs::TSC_DEADLINE, value: deadline }];
        VcpuState { lapic, msrs, ..Default::default() }
    }

    #[test]
    fn a_deadline_that_may_have_fired_unseen_fires_again_and_others_are_kept() {
        let deadline = |lvt, saved| state(lvt, saved).deadline().unwrap().value;
        assert_eq!(deadline(LVT_TIMER_TSC_DEADLINE | 0xec, 0), 1234);
        assert_eq!(deadline(LVT_TIMER_TSC_DEADLINE | 0xec, 99), 99);
        assert_eq!(deadline(LVT_TIMER_TSC_DEADLINE | LVT_MASKED, 0), 0);
        assert_eq!(deadline(0xec, 0), 0);
    }

    #[test]
    fn truncated_register_files_are_refused_before_anything_is_loaded() {
        let facts = VcpuFacts { msrs: vec![], xsave_bytes: size_of::<kvm_xsave>() };
        let whole = VcpuState {
            regs: vec![0; size_of::<kvm_regs>()],
            sregs: vec![0; size_of::<kvm_sregs>()],
            xsave: vec![0; size_of::<kvm_xsave>()],
            xcrs: vec![0; size_of::<kvm_xcrs>()],
            debug_regs: vec![0; size_of::<kvm_debugregs>()],
            lapic: vec![0; size_of::<kvm_lapic_state>()],
            events: vec![0; size_of::<kvm_vcpu_events>()],
            ..Default::default()
        };
        assert_eq!(whole.check(&facts), Ok(()));
        assert!(VcpuState { regs: vec![0; 8], ..whole.clone() }.check(&facts).is_err());
        assert!(VcpuState { xsave: vec![0; 100], ..whole.clone() }.check(&facts).is_err());
        assert!(VcpuState { xsave: vec![0; 1 << 20], ..whole }.check(&facts).is_err());
    }
}
