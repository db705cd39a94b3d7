//! Names of CPUID feature bits, as in the vendors' manuals and `/proc/cpuinfo`.

use kvm_bindings::kvm_cpuid_entry2;

/// One of the four registers that CPUID fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    /// Its value in a leaf.
    pub fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }

    /// The same, to be changed.
    pub(super) fn of_mut(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Self::Eax => &mut entry.eax,
            Self::Ebx => &mut entry.ebx,
            Self::Ecx => &mut entry.ecx,
            Self::Edx => &mut entry.edx,
        }
    }
}

/// A register whose bits are features that a guest may use once it has seen them.
pub(super) struct FeatureWord {
    pub function: u32,
    pub index: u32,
    pub register: Register,
    /// 32 names from bit 0 on; `-` where there is none. Fewer mean that the rest has none.
    names: &'static str,
}

const fn word(function: u32, index: u32, register: Register, names: &'static str) -> FeatureWord {
    FeatureWord { function, index, register, names }
}

use Register::{Eax, Ebx, Ecx, Edx};

pub(super) const FEATURE_WORDS: [FeatureWord; 16] = [
    word(
        1,
        0,
        Ecx,
        "sse3 pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave osxsave avx f16c rdrand hypervisor",
    ),
    word(
        1,
        0,
        Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - ds acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    ),
    word(
        7,
        0,
        Ebx,
        "fsgsbase tsc-adjust sgx bmi1 hle avx2 fdp-excptn-only smep bmi2 erms invpcid rtm pqm zero-fcs-fds mpx pqe avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel-pt avx512pf avx512er avx512cd sha-ni avx512bw avx512vl",
    ),
    word(
        7,
        0,
        Ecx,
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512vbmi2 shstk gfni vaes vpclmulqdq avx512vnni avx512bitalg tme avx512vpopcntdq - la57 - - - - - rdpid kl bus-lock-detect cldemote - movdiri movdir64b enqcmd sgx-lc pks",
    ),
    word(
        7,
        0,
        Edx,
        "- - avx512-4vnniw avx512-4fmaps fsrm uintr - - avx512-vp2intersect srbds-ctrl md-clear rtm-always-abort - - serialize hybrid tsxldtrk - pconfig arch-lbr ibt - amx-bf16 avx512fp16 amx-tile amx-int8 spec-ctrl stibp flush-l1d arch-capabilities core-capabilities ssbd",
    ),
    word(
        7,
        1,
        Eax,
        "sha512 sm3 sm4 rao-int avx-vnni avx512-bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - fred lkgs wrmsrns - amx-fp16 hreset avx-ifma - - lam msrlist",
    ),
    word(
        7,
        1,
        Edx,
        "- - - - avx-vnni-int8 avx-ne-convert - - amx-complex - avx-vnni-int16 - - - prefetchiti",
    ),
    word(7, 2, Edx, "psfd ipred-ctrl rrsba-ctrl ddpd-u bhi-ctrl mcdt-no"),
    word(
        0xd,
        0,
        Eax,
        "x87-state sse-state avx-state mpx-bndregs-state mpx-bndcsr-state avx512-opmask-state avx512-zmm-hi256-state avx512-hi16-zmm-state pt-state pkru-state pasid-state cet-user-state cet-kernel-state hdc-state uintr-state lbr-state hwp-state amx-tilecfg-state amx-tiledata-state",
    ),
    word(0xd, 1, Eax, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    word(
        0xd,
        1,
        Ecx,
        "- - - - - - - - xss-pt - xss-pasid xss-cet-user xss-cet-kernel xss-hdc xss-uintr xss-lbr xss-hwp",
    ),
    word(
        0x4000_0001,
        0,
        Eax,
        "kvmclock kvm-nopiodelay kvm-mmu kvmclock2 kvm-asyncpf kvm-steal-time kvm-pv-eoi kvm-pv-unhalt - kvm-pv-tlb-flush kvm-asyncpf-vmexit kvm-pv-ipi kvm-poll-control kvm-pv-sched-yield kvm-asyncpf-int kvm-msi-ext-dest-id kvm-hc-map-gpa-range kvm-migration-control - - - - - - kvmclock-stable",
    ),
    word(
        0x8000_0001,
        0,
        Ecx,
        "lahf-lm cmp-legacy svm extapic cr8-legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid-msr - tbm topoext perfctr-core perfctr-nb - - perfctr-llc mwaitx",
    ),
    word(
        0x8000_0001,
        0,
        Edx,
        "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr-opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    word(
        0x8000_0008,
        0,
        Ebx,
        "clzero irperf xsaveerptr - rdpru - mcommit - - wbnoinvd - - ibpb - ibrs amd-stibp - - stibp-always-on - - - - ppin amd-ssbd virt-ssbd amd-ssb-no cppc amd-psfd btc-no ibpb-ret",
    ),
    word(
        0x8000_0021,
        0,
        Eax,
        "no-nested-data-bp - lfence-always-serializing smm-pgcfg-lock - - null-sel-clr-base - auto-ibrs - - - - - - - - - - - prefetchi - - - - - - sbpb ibpb-brtype srso-no",
    ),
];

impl FeatureWord {
    /// The name of a feature bit, or its place if it has none here.
    pub(super) fn name(&self, bit: u32) -> String {
        match self.names.split_whitespace().nth(bit as usize) {
            Some(name) if name != "-" => name.to_owned(),
            _ => format!("CPUID {:#x}.{} {:?} bit {bit}", self.function, self.index, self.register),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_features_have_the_same_name() {
        let names = FEATURE_WORDS.iter().flat_map(|word| (0..32).map(|bit| word.name(bit)));
        let mut seen = std::collections::BTreeSet::new();
        for name in names {
            assert!(seen.insert(name.clone()), "{name} is two features");
        }
    }

    #[test]
    fn names_stand_at_the_bits_that_the_manuals_give_them() {
        let name = |function, index, register: Register, bit| {
            let matches = |w: &&FeatureWord| (w.function, w.index, w.register) == (function, index, register);
            FEATURE_WORDS.iter().find(matches).unwrap().name(bit)
        };
        for (function, index, register, bit, expected) in [
            (1, 0, Ecx, 20, "sse4.2"),
            (1, 0, Ecx, 23, "popcnt"),
            (1, 0, Ecx, 31, "hypervisor"),
            (1, 0, Edx, 26, "sse2"),
            (7, 0, Ebx, 5, "avx2"),
            (7, 0, Ebx, 31, "avx512vl"),
            (7, 0, Ecx, 16, "la57"),
            (7, 0, Ecx, 22, "rdpid"),
            (7, 0, Edx, 31, "ssbd"),
            (0x4000_0001, 0, Eax, 24, "kvmclock-stable"),
            (0x8000_0001, 0, Edx, 20, "nx"),
            (0x8000_0001, 0, Edx, 11, "syscall"),
            (0x8000_0001, 0, Edx, 26, "pdpe1gb"),
            (0x8000_0001, 0, Edx, 29, "lm"),
            (0x8000_0021, 0, Eax, 8, "auto-ibrs"),
            (0x8000_0021, 0, Eax, 20, "prefetchi"),
            (0x8000_0021, 0, Eax, 29, "srso-no"),
            (7, 1, Eax, 26, "lam"),
            (0x8000_0001, 0, Ecx, 22, "topoext"),
            (0x8000_0008, 0, Ebx, 12, "ibpb"),
            (0x8000_0008, 0, Ebx, 24, "amd-ssbd"),
            (1, 0, Edx, 10, "CPUID 0x1.0 Edx bit 10"),
        ] {
            assert_eq!(
                name(function, index, register, bit),
                expected,
                "{function:#x}.{index} {register:?} {bit}"
            );
        }
    }
}
