//! Saving and restoring one vCPU, in the one order that works.
//!
//! Reading the run state and the local APIC changes pending events, and writing one register file changes others, so
//! the order of the calls below matters. The clock comes between [`VcpuState::restore`] and [`VcpuState::finish`].

use std::io;

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, Msrs, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::abi::Abi;
use super::{KvmError, call, clock};
use crate::device::State;

const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// MSRs read or written by one call; KVM takes at most 256.
const MSRS_PER_CALL_MAX: usize = 128;
/// The local APIC's timer entry in `kvm_lapic_state`, its mask bit, its mode bits, and the mode "TSC deadline".
const LAPIC_LVT_TIMER: usize = 0x320;
const LVT_MASKED: u32 = 1 << 16;
const LVT_TIMER_MODE: u32 = 3 << 17;
const LVT_TIMER_TSC_DEADLINE: u32 = 2 << 17;
/// How far a TSC that cannot be scaled may be off, in parts per million of the source's frequency.
const TSC_DRIFT_PPM_MAX: u64 = 10_000;

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

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Msr {
    #[prost(uint32, tag = "1")]
    index: u32,
    #[prost(uint64, tag = "2")]
    value: u64,
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
        msrs.retain(|index| *index != MSR_TSC_DEADLINE);
        msrs.push(MSR_TSC_DEADLINE);
        let xsave_bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Ok(Self { msrs, xsave_bytes: xsave_bytes.max(size_of::<kvm_xsave>()) })
    }
}

impl VcpuState {
    /// Reads a stopped vCPU, whose pending I/O has been completed.
    pub fn save(vcpu: &VcpuFd, facts: &VcpuFacts) -> Result<Self, KvmError> {
        let mp_state = vcpu.get_mp_state().map_err(call("saving the run state"))?.mp_state;
        let regs = vcpu.get_regs().map_err(call("saving general registers"))?.to_bytes();
        let sregs = vcpu.get_sregs().map_err(call("saving segment and control registers"))?.to_bytes();
        let xsave = get_xsave(vcpu, facts)?;
        let xcrs = vcpu.get_xcrs().map_err(call("saving extended control registers"))?.to_bytes();
        let debug_regs = vcpu.get_debug_regs().map_err(call("saving debug registers"))?.to_bytes();
        let lapic = vcpu.get_lapic().map_err(call("saving the local APIC"))?.to_bytes();
        let tsc_khz = vcpu.get_tsc_khz().ok().filter(|khz| *khz != 0);
        let msrs = get_msrs(vcpu, &facts.msrs)?;
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

    /// Loads a vCPU that has not run yet; its CPUID is set and [`VcpuState::check`] has passed.
    pub fn restore(&self, vcpu: &VcpuFd, facts: &VcpuFacts) -> Result<(), KvmError> {
        if let Some(khz) = self.tsc_khz {
            set_tsc_khz(vcpu, khz)?;
        }
        self.restore_registers(vcpu, facts)?;
        set_msrs(vcpu, self.msrs.iter().filter(|msr| msr.index != MSR_TSC_DEADLINE))?;
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
        let offset = self.tsc_offset.zip(self.tsc_khz).and_then(|(offset, khz)| here.tsc_offset(source, offset, khz));
        if let Some(offset) = offset
            && clock::tsc_offset(vcpu).is_some()
        {
            clock::set_tsc_offset(vcpu, offset)?;
        }
        match self.deadline() {
            Some(deadline) => set_msrs(vcpu, [&deadline]),
            None => Ok(()),
        }
    }

    /// Puts a vCPU back to this state, saved right after its creation. Its clock runs on.
    pub fn reset(&self, vcpu: &VcpuFd, facts: &VcpuFacts) -> Result<(), KvmError> {
        self.restore_registers(vcpu, facts)?;
        set_msrs(vcpu, self.msrs.iter().filter(|msr| msr.index != MSR_TSC))?;
        let events = structure::<kvm_vcpu_events>(&self.events);
        vcpu.set_vcpu_events(&events).map_err(call("resetting pending events"))?;
        // The state says so too, but a vCPU that waits for its start-up signal forgets it while its registers are set.
        set_mp_state(vcpu, self.mp_state)
    }

    fn restore_registers(&self, vcpu: &VcpuFd, facts: &VcpuFacts) -> Result<(), KvmError> {
        set_mp_state(vcpu, self.mp_state)?;
        vcpu.set_regs(&structure(&self.regs)).map_err(call("restoring general registers"))?;
        vcpu.set_sregs(&structure(&self.sregs)).map_err(call("restoring segment and control registers"))?;
        set_xsave(vcpu, facts, &self.xsave)?;
        vcpu.set_xcrs(&structure(&self.xcrs)).map_err(call("restoring extended control registers"))?;
        vcpu.set_debug_regs(&structure(&self.debug_regs)).map_err(call("restoring debug registers"))?;
        vcpu.set_lapic(&structure(&self.lapic)).map_err(call("restoring the local APIC"))
    }

    /// The TSC deadline to arm. An armed timer that had just fired reads as 0; it is made to fire again, since the
    /// guest may not have seen it, and tolerates one interrupt too many.
    fn deadline(&self) -> Option<Msr> {
        let saved = self.msrs.iter().find(|msr| msr.index == MSR_TSC_DEADLINE)?;
        let lvt = self.lapic.get(LAPIC_LVT_TIMER..LAPIC_LVT_TIMER + 4)?;
        let lvt = u32::from_le_bytes(lvt.try_into().ok()?);
        let armed = lvt & LVT_TIMER_MODE == LVT_TIMER_TSC_DEADLINE && lvt & LVT_MASKED == 0;
        let tsc = self.msrs.iter().find(|msr| msr.index == MSR_TSC);
        match (saved.value, tsc) {
            (0, Some(tsc)) if armed => Some(Msr { index: MSR_TSC_DEADLINE, value: tsc.value.max(1) }),
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

fn get_xsave(vcpu: &VcpuFd, facts: &VcpuFacts) -> Result<Vec<u8>, KvmError> {
    if facts.xsave_bytes == size_of::<kvm_xsave>() {
        let xsave = vcpu.get_xsave().map_err(call("saving extended registers"))?;
        return Ok(xsave.region.iter().flat_map(|word| word.to_ne_bytes()).collect());
    }
    let mut xsave = new_xsave(facts.xsave_bytes)?;
    // SAFETY: the buffer has the size that KVM_CAP_XSAVE2 asked for.
    unsafe { vcpu.get_xsave2(&mut xsave) }.map_err(call("saving extended registers"))?;
    let legacy = xsave.as_fam_struct_ref().xsave.region;
    Ok(legacy.iter().chain(xsave.as_slice()).flat_map(|word| word.to_ne_bytes()).collect())
}

fn set_xsave(vcpu: &VcpuFd, facts: &VcpuFacts, saved: &[u8]) -> Result<(), KvmError> {
    let mut xsave = new_xsave(facts.xsave_bytes)?;
    let mut words = saved.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    // SAFETY: the length field of the structure is left alone.
    let legacy = unsafe { &mut xsave.as_mut_fam_struct().xsave.region };
    legacy.iter_mut().zip(&mut words).for_each(|(to, from)| *to = from);
    xsave.as_mut_slice().iter_mut().zip(words).for_each(|(to, from)| *to = from);
    // SAFETY: the buffer has the size that this kernel reads.
    unsafe { vcpu.set_xsave2(&xsave) }.map_err(call("restoring extended registers"))
}

fn new_xsave(bytes: usize) -> Result<Xsave, KvmError> {
    let extra = (bytes - size_of::<kvm_xsave>()).div_ceil(4);
    Xsave::new(extra).map_err(|_| KvmError::Call {
        step: "reserving extended registers".into(),
        source: io::Error::from(io::ErrorKind::OutOfMemory),
    })
}

/// Reads the MSRs that exist under the vCPU's CPUID; KVM stops at each that does not.
fn get_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<Msr>, KvmError> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let asked = &rest[..rest.len().min(MSRS_PER_CALL_MAX)];
        let entries: Vec<_> = asked.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries).expect("fewer entries than KVM's limit");
        let read = vcpu.get_msrs(&mut msrs).map_err(call("saving MSRs"))?;
        found.extend(msrs.as_slice()[..read].iter().map(|entry| Msr { index: entry.index, value: entry.data }));
        rest = &rest[(read + usize::from(read < asked.len())).min(rest.len())..];
    }
    Ok(found)
}

/// Writes MSRs. One that KVM refuses is an error, unless it has the right value already.
fn set_msrs<'a>(vcpu: &VcpuFd, msrs: impl IntoIterator<Item = &'a Msr>) -> Result<(), KvmError> {
    let entries: Vec<_> =
        msrs.into_iter().map(|msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() }).collect();
    let mut rest = entries.as_slice();
    while !rest.is_empty() {
        let asked = &rest[..rest.len().min(MSRS_PER_CALL_MAX)];
        let msrs = Msrs::from_entries(asked).expect("fewer entries than KVM's limit");
        let written = vcpu.set_msrs(&msrs).map_err(call("restoring MSRs"))?;
        let Some(refused) = asked.get(written) else {
            rest = &rest[written..];
            continue;
        };
        let current = get_msrs(vcpu, &[refused.index])?.first().map_or(0, |msr| msr.value);
        if current != refused.data {
            let source = io::Error::other(format!("this host's KVM refuses the value {:#x}", refused.data));
            return Err(KvmError::Call { step: format!("restoring MSR {:#x}", refused.index), source });
        }
        rest = &rest[written + 1..];
    }
    Ok(())
}

/// Makes the TSC run at the source's frequency: by scaling, or, within [`TSC_DRIFT_PPM_MAX`], by taking it as it is.
///
/// Linux guests read time from kvmclock, which knows the true frequency; only their timers drift by as much.
fn set_tsc_khz(vcpu: &VcpuFd, khz: u32) -> Result<(), KvmError> {
    let host = vcpu.get_tsc_khz().unwrap_or(0);
    if host == khz {
        return Ok(());
    }
    let Err(error) = vcpu.set_tsc_khz(khz) else { return Ok(()) };
    let drift_ppm = u64::from(host.abs_diff(khz)) * 1_000_000 / u64::from(khz);
    if drift_ppm <= TSC_DRIFT_PPM_MAX {
        tracing::warn!("the guest's TSC was {khz} kHz and is {host} kHz here, {drift_ppm} ppm off");
        return Ok(());
    }
    Err(call(format!("running the TSC at {khz} kHz on a host with {host} kHz and no TSC scaling"))(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(lvt: u32, deadline: u64) -> VcpuState {
        let mut lapic = vec![0; size_of::<kvm_lapic_state>()];
        lapic[LAPIC_LVT_TIMER..LAPIC_LVT_TIMER + 4].copy_from_slice(&lvt.to_le_bytes());
        let msrs = vec![Msr { index: MSR_TSC, value: 1234 }, Msr { index: MSR_TSC_DEADLINE, value: deadline }];
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
