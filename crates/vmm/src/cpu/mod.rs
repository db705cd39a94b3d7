//! The CPU that the guest sees: CPUID, chosen when the VM boots, carried with the VM ever after.

mod baseline;
mod features;
mod msrs;
mod profile;
mod topology;

use std::collections::BTreeMap;

use godwit_types::cpu::{CpuFacts, TscFacts};
use godwit_types::vm::CpuProfile;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use prost::Message;

use crate::kvm::vcpu::{VcpuState, write_msrs};
use crate::kvm::{KvmError, call};
use features::FEATURE_WORDS;
pub use features::Register;

/// Version of [`CpuModel::encode`]'s result.
const ENCODING_VERSION: u32 = 1;

/// CPUID without what differs from one vCPU to the next, the frequency of the TSC, and the MSRs that tell of features.
#[derive(Debug, Clone, PartialEq)]
pub struct CpuModel {
    entries: Vec<kvm_cpuid_entry2>,
    tsc: Option<TscFacts>,
    msrs: BTreeMap<u32, u64>,
}

/// Why the guest cannot be given a CPU.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error("{}; start the VM on another host", .0.join(", "))]
    BelowProfile(Vec<String>),
    #[error("the CPU description is damaged: {0}")]
    Damaged(String),
}

impl CpuModel {
    /// Everything that this host can give to a guest that migrates.
    pub fn offered(kvm: &Kvm) -> Result<Self, CpuError> {
        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(call("asking for the supported CPUID"))?;
        let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
        let (entries, msrs) = (supported.as_slice().to_vec(), msrs::offered(kvm));
        Ok(profile::migratable(Self { entries, tsc: None, msrs }, deadline_timer))
    }

    /// What this profile takes of an offer.
    pub fn reduced_to(self, profile: &CpuProfile) -> Result<Self, CpuError> {
        let missing = profile.missing_on(&self.facts(), "this host");
        if !missing.is_empty() {
            return Err(CpuError::BelowProfile(missing.into_iter().map(|finding| finding.reason).collect()));
        }
        Ok(match profile {
            CpuProfile::Host | CpuProfile::Cluster => self,
            CpuProfile::X86_64V2 => profile::x86_64_v2(self),
            CpuProfile::Baseline(facts) => baseline::reduced(self, facts),
        })
    }

    /// Takes from a vCPU the features of MSRs that KVM has given it of `offer` and this model has not.
    pub fn take_msrs(&self, offer: &Self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let less = self.msrs.iter().filter(|(index, value)| offer.msrs.get(index) != Some(value));
        write_msrs(vcpu, less.map(|(index, value)| (*index, *value)))
    }

    /// The same with the TSC of a vCPU on this host, if KVM tells its frequency.
    #[must_use]
    pub fn with_tsc(mut self, kvm: &Kvm, vcpu: &VcpuFd) -> Self {
        let khz = vcpu.get_tsc_khz().ok().filter(|khz| *khz != 0);
        self.tsc = khz.map(|khz| TscFacts { khz, scalable: kvm.check_extension(Cap::TscControl) });
        self
    }

    /// The same with the MSRs that KVM gave to a vCPU.
    #[must_use]
    pub fn with_msrs(mut self, vcpu: &VcpuState) -> Self {
        self.msrs = msrs::given(vcpu);
        self
    }

    /// CPUID of vCPU `index` of `vcpus`.
    pub fn for_vcpu(&self, index: u8, vcpus: u8) -> CpuId {
        CpuId::from_entries(&topology::apply(&self.entries, index, vcpus))
            .expect("fewer entries than KVM's limit")
    }

    /// The same in words, to compare with another.
    pub fn facts(&self) -> CpuFacts {
        let named = |word: &features::FeatureWord| {
            let value = self.register(word.function, word.index, word.register);
            (0..32).filter(|bit| value >> bit & 1 == 1).map(|bit| word.name(bit)).collect::<Vec<_>>()
        };
        let features = FEATURE_WORDS.iter().flat_map(named).collect();
        CpuFacts {
            vendor: self.vendor(),
            msr_features: msrs::names(&self.msrs, &features),
            features,
            physical_bits: self.register(0x8000_0008, 0, Register::Eax) & 0xff,
            xsave_bytes: self.register(0xd, 0, Register::Ecx),
            tsc: self.tsc,
        }
    }

    /// What a guest with this CPU would miss on this host, which offers `offer`, by name; empty if nothing.
    pub fn missing_on(&self, offer: &Self) -> Vec<String> {
        let missing = self.facts().missing_on(&offer.facts(), "this host");
        missing.into_iter().map(|finding| finding.reason).collect()
    }

    /// For the manifest.
    pub fn encode(&self) -> Vec<u8> {
        let entries = self.entries.iter().map(|entry| Leaf {
            function: entry.function,
            index: entry.index,
            flags: entry.flags,
            registers: vec![entry.eax, entry.ebx, entry.ecx, entry.edx],
        });
        let msrs = self.msrs.iter().map(|(index, value)| FeatureMsr { index: *index, value: *value });
        Encoded {
            version: ENCODING_VERSION,
            leaves: entries.collect(),
            tsc_khz: self.tsc.map(|tsc| tsc.khz),
            msrs: msrs.collect(),
        }
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
        if encoded.msrs.len() > msrs::COUNT_MAX {
            return Err(damaged("it has too many MSRs"));
        }
        let tsc = encoded.tsc_khz.filter(|khz| *khz != 0).map(|khz| TscFacts { khz, scalable: false });
        let msrs = encoded.msrs.iter().map(|msr| (msr.index, msr.value)).collect();
        Ok(Self { entries: encoded.leaves.iter().map(entry).collect::<Result<_, _>>()?, tsc, msrs })
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
    #[prost(message, repeated, tag = "4")]
    msrs: Vec<FeatureMsr>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct FeatureMsr {
    #[prost(uint32, tag = "1")]
    index: u32,
    #[prost(uint64, tag = "2")]
    value: u64,
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
        CpuModel { entries, tsc: None, msrs: BTreeMap::new() }
    }

    #[test]
    fn a_cpu_survives_the_journey_unchanged() {
        let mut cpu = model(vec![leaf(0, 0, [0xd, 1, 2, 3]), leaf(0xd, 1, [u32::MAX, 0, 5, 0])]);
        cpu.msrs.insert(0x10a, 9);
        cpu.tsc = Some(TscFacts { khz: 2_000_000, scalable: false });
        assert_eq!(CpuModel::decode(&cpu.encode()).unwrap(), cpu);
    }

    #[test]
    fn a_guest_is_compared_by_the_names_of_what_it_sees() {
        let cpu = |leaf7_ebx, msr| {
            let mut cpu = model(vec![
                leaf(0, 0, [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
                leaf(7, 0, [0, leaf7_ebx, 0, 1 << 29]),
                leaf(0xd, 0, [0, 0, 832, 0]),
                leaf(0x8000_0008, 0, [46, 0, 0, 0]),
            ]);
            cpu.msrs.insert(0x10a, msr);
            cpu
        };
        let (guest, host) = (cpu(1 << 5 | 1 << 16, 1), cpu(1 << 5, 0));
        let facts = guest.facts();
        assert_eq!(
            (facts.vendor.as_str(), facts.physical_bits, facts.xsave_bytes),
            ("GenuineIntel", 46, 832)
        );
        assert_eq!(facts.features.iter().collect::<Vec<_>>(), ["arch-capabilities", "avx2", "avx512f"]);
        let missing = guest.missing_on(&host);
        assert!(missing[0].ends_with("of this host lacks avx512f"), "{missing:?}");
        assert!(missing[1].contains("of this host lacks rdcl-no"), "{missing:?}");
        assert_eq!(host.missing_on(&guest), Vec::<String>::new());
    }

    #[test]
    fn damaged_descriptions_are_refused() {
        let good = model(vec![leaf(0, 0, [1, 2, 3, 4])]).encode();
        assert!(CpuModel::decode(&good[..good.len() - 1]).is_err());
        assert!(CpuModel::decode(&[]).is_err());
        let mut laden = model(vec![leaf(0, 0, [1, 2, 3, 4])]);
        laden.msrs.extend((0..=msrs::COUNT_MAX as u32).map(|index| (index, 1)));
        assert!(CpuModel::decode(&laden.encode()).is_err());
        let too_many = vec![leaf(0, 0, [0; 4]); KVM_MAX_CPUID_ENTRIES + 1];
        assert!(CpuModel::decode(&model(too_many).encode()).is_err());
    }
}
