//! The CPU that the guest sees: CPUID, chosen when the VM boots, carried with the VM ever after.

mod compare;
mod features;
mod profile;
mod topology;

use godwit_types::vm::CpuProfile;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use prost::Message;

use crate::kvm::{KvmError, call};
pub use features::Register;

/// Version of [`CpuModel::encode`]'s result.
const ENCODING_VERSION: u32 = 1;

/// CPUID without what differs from one vCPU to the next, and the frequency of the TSC.
#[derive(Debug, Clone, PartialEq)]
pub struct CpuModel {
    entries: Vec<kvm_cpuid_entry2>,
    tsc: Option<Tsc>,
}

/// The time stamp counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tsc {
    pub khz: u32,
    /// Whether this host can make it run at another frequency. Says nothing about a guest that has arrived.
    pub scalable: bool,
}

/// Why the guest cannot be given a CPU.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error("this host's CPU lacks {}, which the CPU profile x86-64-v2 promises; use another host", .0.join(", "))]
    BelowProfile(Vec<String>),
    #[error("the CPU description is damaged: {0}")]
    Damaged(String),
}

impl CpuModel {
    /// The CPU that this profile gives on this host.
    pub fn new(kvm: &Kvm, profile: CpuProfile) -> Result<Self, CpuError> {
        let offer = Self::offered(kvm)?;
        match profile {
            CpuProfile::Host => Ok(offer),
            CpuProfile::X86_64V2 => profile::x86_64_v2(offer),
        }
    }

    /// Everything that this host can give to a guest that migrates.
    pub fn offered(kvm: &Kvm) -> Result<Self, CpuError> {
        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(call("asking for the supported CPUID"))?;
        let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(profile::migratable(Self { entries: supported.as_slice().to_vec(), tsc: None }, deadline_timer))
    }

    /// The same with the TSC of a vCPU on this host.
    #[must_use]
    pub fn with_tsc(mut self, kvm: &Kvm, vcpu: &VcpuFd) -> Self {
        let khz = vcpu.get_tsc_khz().ok().filter(|khz| *khz != 0);
        self.tsc = khz.map(|khz| Tsc { khz, scalable: kvm.check_extension(Cap::TscControl) });
        self
    }

    /// The TSC, if KVM tells its frequency.
    pub fn tsc(&self) -> Option<Tsc> {
        self.tsc
    }

    /// The same with another TSC.
    #[must_use]
    pub fn and_tsc(mut self, tsc: Option<Tsc>) -> Self {
        self.tsc = tsc;
        self
    }

    /// CPUID of vCPU `index` of `vcpus`.
    pub fn for_vcpu(&self, index: u8, vcpus: u8) -> CpuId {
        CpuId::from_entries(&topology::apply(&self.entries, index, vcpus))
            .expect("fewer entries than KVM's limit")
    }

    /// What a guest with this CPU would miss on a host that offers `offer`, by name; empty if nothing.
    pub fn missing_on(&self, offer: &Self) -> Vec<String> {
        compare::missing(self, offer)
    }

    /// For the manifest.
    pub fn encode(&self) -> Vec<u8> {
        let entries = self.entries.iter().map(|entry| Leaf {
            function: entry.function,
            index: entry.index,
            flags: entry.flags,
            registers: vec![entry.eax, entry.ebx, entry.ecx, entry.edx],
        });
        Encoded { version: ENCODING_VERSION, leaves: entries.collect(), tsc_khz: self.tsc.map(|tsc| tsc.khz) }
            .encode_to_vec()
    }

    /// From the manifest.
    pub fn decode(bytes: &[u8]) -> Result<Self, CpuError> {
        let damaged = |reason: &str| CpuError::Damaged(reason.to_owned());
        let encoded = Encoded::decode(bytes).map_err(|error| CpuError::Damaged(error.to_string()))?;
        if encoded.version != ENCODING_VERSION {
            return Err(CpuError::Damaged(format!(
                "version {} instead of {ENCODING_VERSION}",
                encoded.version
            )));
        }
        // Room for the leaves that the topology adds.
        if encoded.leaves.is_empty()
            || encoded.leaves.len() > KVM_MAX_CPUID_ENTRIES - topology::LEAVES_ADDED_MAX
        {
            return Err(damaged("it has too few or too many CPUID leaves"));
        }
        let entry = |leaf: &Leaf| match leaf.registers[..] {
            [eax, ebx, ecx, edx] => {
                let (function, index, flags) = (leaf.function, leaf.index, leaf.flags);
                Ok(kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() })
            }
            _ => Err(damaged("a CPUID leaf does not have four registers")),
        };
        let tsc = encoded.tsc_khz.filter(|khz| *khz != 0).map(|khz| Tsc { khz, scalable: false });
        Ok(Self { entries: encoded.leaves.iter().map(entry).collect::<Result<_, _>>()?, tsc })
    }

    /// A register of a leaf; 0 where the leaf does not exist, as a CPU would say.
    fn register(&self, function: u32, index: u32, register: Register) -> u32 {
        let found = self.entries.iter().find(|entry| entry.function == function && entry.index == index);
        found.map_or(0, |entry| register.of(entry))
    }

    /// The CPU's maker, such as `GenuineIntel`.
    fn vendor(&self) -> String {
        let part = |register| self.register(0, 0, register).to_le_bytes();
        let bytes = [part(Register::Ebx), part(Register::Edx), part(Register::Ecx)].concat();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Encoded {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(message, repeated, tag = "2")]
    leaves: Vec<Leaf>,
    #[prost(uint32, optional, tag = "3")]
    tsc_khz: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Leaf {
    #[prost(uint32, tag = "1")]
    function: u32,
    #[prost(uint32, tag = "2")]
    index: u32,
    #[prost(uint32, tag = "3")]
    flags: u32,
    /// EAX, EBX, ECX, EDX.
    #[prost(uint32, repeated, tag = "4")]
    registers: Vec<u32>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A leaf for tests.
    pub(crate) fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    /// A model for tests.
    pub(crate) fn model(entries: Vec<kvm_cpuid_entry2>) -> CpuModel {
        CpuModel { entries, tsc: None }
    }

    #[test]
    fn a_cpu_survives_the_journey_unchanged() {
        let cpu = model(vec![leaf(0, 0, [0xd, 1, 2, 3]), leaf(0xd, 1, [u32::MAX, 0, 5, 0])]);
        assert_eq!(CpuModel::decode(&cpu.encode()).unwrap(), cpu);
    }

    #[test]
    fn damaged_descriptions_are_refused() {
        let good = model(vec![leaf(0, 0, [1, 2, 3, 4])]).encode();
        assert!(CpuModel::decode(&good[..good.len() - 1]).is_err());
        assert!(CpuModel::decode(&[]).is_err());
        let too_many = vec![leaf(0, 0, [0; 4]); KVM_MAX_CPUID_ENTRIES + 1];
        assert!(CpuModel::decode(&model(too_many).encode()).is_err());
    }
}
