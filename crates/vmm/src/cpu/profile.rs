//! CPU profiles as filters over what KVM offers.

use godwit_types::cpu::X86_64_V2_PHYSICAL_BITS_MAX;

use super::CpuModel;
use super::features::{FEATURE_WORDS, Register};

const LEAF1_ECX_VMX: u32 = 1 << 5;
const LEAF1_ECX_PDCM: u32 = 1 << 15;
const LEAF1_ECX_X2APIC: u32 = 1 << 21;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_OSXSAVE: u32 = 1 << 27;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF6_EAX_ARAT: u32 = 1 << 2;
const LEAF7_EBX_INTEL_PT: u32 = 1 << 25;
const LEAF7_ECX_OSPKE: u32 = 1 << 4;
const LEAF7_EDX_ARCH_LBR: u32 = 1 << 19;
/// SVM, IBS, and the performance counters of cores, northbridge and last-level cache.
const LEAF8000_0001_ECX_HIDDEN: u32 = 1 << 2 | 1 << 10 | 1 << 23 | 1 << 24 | 1 << 28;

/// What of KVM's offer a guest may see that is to move between hosts.
///
/// Hidden are: nested virtualisation, performance counters and tracing, whose state would have to move too; and the
/// promise of a TSC that never changes its rate, which a guest that moves cannot be given.
pub(super) fn migratable(mut offer: CpuModel, deadline_timer: bool) -> CpuModel {
    offer.entries.retain(|entry| {
        !matches!(entry.function, 0xb | 0x1f | 0x14 | 0x1c | 0x8000_000a | 0x8000_001b | 0x8000_0022)
    });
    for entry in &mut offer.entries {
        match (entry.function, entry.index) {
            (0, _) => entry.eax = entry.eax.max(0xb),
            (1, _) => {
                entry.ecx &= !(LEAF1_ECX_VMX | LEAF1_ECX_PDCM | LEAF1_ECX_OSXSAVE);
                entry.ecx |= LEAF1_ECX_X2APIC | LEAF1_ECX_HYPERVISOR;
                if deadline_timer {
                    entry.ecx |= LEAF1_ECX_TSC_DEADLINE;
                }
            }
            (5 | 0xa | 0x8000_0007, _) => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
            (6, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (entry.eax & LEAF6_EAX_ARAT, 0, 0, 0),
            (7, 0) => {
                entry.ebx &= !LEAF7_EBX_INTEL_PT;
                entry.ecx &= !LEAF7_ECX_OSPKE;
                entry.edx &= !LEAF7_EDX_ARCH_LBR;
            }
            (0x8000_0001, _) => entry.ecx &= !LEAF8000_0001_ECX_HIDDEN,
            _ => {}
        }
    }
    offer
}

/// Feature bits that x86-64-v2 keeps, by leaf. Registers that are not named here keep nothing.
///
/// Beside what the psABI promises to programs these are the bits of any 64-bit PC that kernels rely on, and, from KVM,
/// the paravirtual interfaces that every kernel since 2017 has.
const V2_KEPT: [(u32, Register, &str); 5] = [
    (1, Register::Ecx, "sse3 ssse3 cx16 sse4.1 sse4.2 x2apic popcnt tsc-deadline hypervisor"),
    (
        1,
        Register::Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ht",
    ),
    (
        0x4000_0001,
        Register::Eax,
        "kvmclock kvm-nopiodelay kvmclock2 kvm-steal-time kvm-pv-eoi kvm-pv-unhalt kvm-pv-tlb-flush kvmclock-stable",
    ),
    (0x8000_0001, Register::Ecx, "lahf-lm cmp-legacy cr8-legacy"),
    (0x8000_0001, Register::Edx, "syscall nx lm"),
];

/// On AMD hosts leaf 0x8000_0001 EDX repeats these bits of leaf 1 EDX.
const AMD_REPEATED_EDX: u32 = 0x0183_f3ff;
const V2_BRAND: &[u8; 48] =
    b"Godwit x86-64-v2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Reduces an offer to x86-64-v2, all of which it has.
pub(super) fn x86_64_v2(offer: CpuModel) -> CpuModel {
    let kept = |function, register, value: u32| {
        let entry = V2_KEPT.iter().find(|(f, r, _)| (*f, *r) == (function, register));
        entry.map_or(0, |(function, register, names)| value & mask(*function, *register, names))
    };
    let mut v2 = offer;
    // Neither structured extended features (7) nor extended state (0xd): nothing of them is in level 2.
    v2.entries.retain(|entry| matches!(entry.function, 0..=2 | 4 | 6 | 0x4000_0000 | 0x4000_0001 | 0x8000_0000..=0x8000_0006 | 0x8000_0008));
    for entry in &mut v2.entries {
        match entry.function {
            0 => entry.eax = 0xb,
            0x8000_0000 => entry.eax = 0x8000_0008,
            1 | 0x4000_0001 | 0x8000_0001 => {
                let (function, repeated) = (entry.function, entry.edx & AMD_REPEATED_EDX);
                entry.ecx = kept(function, Register::Ecx, entry.ecx);
                entry.edx = kept(function, Register::Edx, entry.edx);
                match function {
                    0x4000_0001 => entry.eax = kept(function, Register::Eax, entry.eax),
                    0x8000_0001 => entry.edx |= repeated & kept(1, Register::Edx, u32::MAX),
                    _ => {}
                }
            }
            0x8000_0002..=0x8000_0004 => {
                let at = 16 * (entry.function - 0x8000_0002) as usize;
                let word = |n: usize| {
                    u32::from_le_bytes(V2_BRAND[at + 4 * n..at + 4 * n + 4].try_into().expect("4 bytes"))
                };
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (word(0), word(1), word(2), word(3));
            }
            0x8000_0008 => {
                let physical = (entry.eax & 0xff).min(X86_64_V2_PHYSICAL_BITS_MAX);
                (entry.eax, entry.ebx, entry.edx) = (48 << 8 | physical, 0, 0);
            }
            _ => {}
        }
    }
    v2
}

/// The bits of these features in a register.
fn mask(function: u32, register: Register, names: &str) -> u32 {
    let word = FEATURE_WORDS
        .iter()
        .find(|word| (word.function, word.index, word.register) == (function, 0, register));
    let bit = |name: &str| {
        let word = word.expect("every mask is of a feature word");
        (0..32).find(|bit| word.name(*bit) == name).expect("every masked feature has a name")
    };
    names.split_whitespace().fold(0, |mask, name| mask | 1 << bit(name))
}

#[cfg(test)]
mod tests {
    use godwit_types::vm::CpuProfile;

    use super::super::CpuError;
    use super::super::tests::{leaf, model};
    use super::*;

    fn everything() -> CpuModel {
        model(vec![
            leaf(0, 0, [0x1f, 0, 0, 0]),
            leaf(1, 0, [0x806f8, u32::MAX, u32::MAX, u32::MAX]),
            leaf(7, 0, [2, u32::MAX, u32::MAX, u32::MAX]),
            leaf(0xa, 0, [8, 0, 0, 0]),
            leaf(0xd, 0, [7, 832, 832, 0]),
            leaf(0x4000_0001, 0, [u32::MAX, 0, 0, 1]),
            leaf(0x8000_0000, 0, [0x8000_0028, 0, 0, 0]),
            leaf(0x8000_0001, 0, [0, 0, u32::MAX, u32::MAX]),
            leaf(0x8000_0002, 0, [0; 4]),
            leaf(0x8000_0007, 0, [0, 0, 0, 1 << 8]),
            leaf(0x8000_0008, 0, [52 | 57 << 8, u32::MAX, 0, 0]),
            leaf(0x8000_000a, 0, [1, 8, 0, u32::MAX]),
        ])
    }

    #[test]
    fn nested_virtualisation_counters_and_the_promise_of_an_invariant_tsc_are_hidden() {
        let cpu = migratable(everything(), true);
        assert_eq!(cpu.register(1, 0, Register::Ecx) & (LEAF1_ECX_VMX | LEAF1_ECX_PDCM), 0);
        assert_eq!(cpu.register(0x8000_0001, 0, Register::Ecx) & LEAF8000_0001_ECX_HIDDEN, 0);
        assert_eq!(cpu.register(0x8000_0007, 0, Register::Edx), 0);
        assert_eq!(cpu.register(0xa, 0, Register::Eax), 0);
        assert_eq!(cpu.register(0x8000_000a, 0, Register::Edx), 0);
    }

    #[test]
    fn x86_64_v2_has_exactly_its_features_on_the_richest_host() {
        let cpu = x86_64_v2(migratable(everything(), true));
        let ecx = cpu.register(1, 0, Register::Ecx);
        assert_eq!(ecx, mask(1, Register::Ecx, V2_KEPT[0].2));
        assert_eq!(ecx & mask(1, Register::Ecx, "avx xsave aes fma movbe"), 0);
        assert_eq!(cpu.register(7, 0, Register::Ebx), 0);
        assert_eq!(cpu.register(0xd, 0, Register::Eax), 0);
        assert_eq!(cpu.register(0x8000_0008, 0, Register::Eax), 48 << 8 | 41);
        assert_eq!(cpu.register(0x8000_0002, 0, Register::Eax).to_le_bytes(), *b"Godw");
    }

    #[test]
    fn a_host_below_x86_64_v2_is_told_what_it_lacks() {
        let mut old = everything();
        old.entries[1].ecx &= !mask(1, Register::Ecx, "sse4.2 popcnt");
        match old.reduced_to(&CpuProfile::X86_64V2) {
            Err(CpuError::BelowProfile(lacking)) => {
                assert!(lacking[0].contains("lacks popcnt, sse4.2,"), "{lacking:?}");
            }
            other => panic!("{other:?}"),
        }
    }
}
