//! A CPU profile that is what several hosts have in common.

use godwit_types::cpu::CpuFacts;
use kvm_bindings::kvm_cpuid_entry2;

use super::features::{FEATURE_WORDS, FeatureWord, Register};
use super::{CpuModel, msrs};

/// Leaf of the extended registers: subleaf 0 and 1 tell of all, each one after of the one component whose bit it has.
const XSAVE_LEAF: u32 = 0xd;
/// What the registers of x87 and SSE take in an XSAVE area, with its header, in bytes (Intel SDM 1, 13.4).
const XSAVE_BYTES_MIN: u32 = 512 + 64;

/// Takes from an offer whatever is not in the baseline, all of which it has.
pub(super) fn reduced(mut offer: CpuModel, baseline: &CpuFacts) -> CpuModel {
    for word in &FEATURE_WORDS {
        let is_it =
            |entry: &&mut kvm_cpuid_entry2| (entry.function, entry.index) == (word.function, word.index);
        for entry in offer.entries.iter_mut().filter(is_it) {
            *word.register.of_mut(entry) &= kept(word, baseline);
        }
    }
    take_components(&mut offer);
    for entry in offer.entries.iter_mut().filter(|entry| entry.function == 0x8000_0008) {
        entry.eax = entry.eax & !0xff | (entry.eax & 0xff).min(baseline.physical_bits);
    }
    offer.msrs = msrs::kept(&offer.msrs, &baseline.msr_features);
    offer
}

/// The bits of a register that are features of the baseline.
fn kept(word: &FeatureWord, baseline: &CpuFacts) -> u32 {
    let is_kept = |bit: &u32| baseline.features.contains(&word.name(*bit));
    (0..32).filter(is_kept).fold(0, |mask, bit| mask | 1 << bit)
}

/// Extended registers of which nothing is said any more take no room either.
fn take_components(cpu: &mut CpuModel) {
    let user = cpu.register(XSAVE_LEAF, 0, Register::Eax);
    let all = user | cpu.register(XSAVE_LEAF, 1, Register::Ecx);
    let is_gone = |entry: &kvm_cpuid_entry2| {
        entry.function == XSAVE_LEAF && (2..32).contains(&entry.index) && all >> entry.index & 1 == 0
    };
    cpu.entries.retain(|entry| !is_gone(entry));
    let is_user = |entry: &&kvm_cpuid_entry2| {
        entry.function == XSAVE_LEAF && (2..32).contains(&entry.index) && user >> entry.index & 1 == 1
    };
    // Of a component, EAX is the size, and EBX the offset.
    let end = |entry: &kvm_cpuid_entry2| entry.ebx.saturating_add(entry.eax);
    let bytes = cpu.entries.iter().filter(is_user).map(end).max().unwrap_or(0).max(XSAVE_BYTES_MIN);
    let whole = |entry: &&mut kvm_cpuid_entry2| (entry.function, entry.index) == (XSAVE_LEAF, 0);
    for entry in cpu.entries.iter_mut().filter(whole) {
        (entry.ebx, entry.ecx) = (entry.ebx.min(bytes), bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{leaf, model};
    use super::*;

    /// AVX-512 with its registers, beside AVX.
    fn rich() -> CpuModel {
        let mut cpu = model(vec![
            leaf(0, 0, [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
            leaf(1, 0, [0x806f8, 0, 1 << 20 | 1 << 26 | 1 << 28, 1 << 26]),
            leaf(7, 0, [0, 1 << 5 | 1 << 16, 0, 1 << 29]),
            leaf(XSAVE_LEAF, 0, [0b1110_0111, 2696, 2696, 0]),
            leaf(XSAVE_LEAF, 1, [0xf, 0, 0, 0]),
            leaf(XSAVE_LEAF, 2, [256, 576, 0, 0]),
            leaf(XSAVE_LEAF, 5, [64, 1088, 0, 0]),
            leaf(XSAVE_LEAF, 6, [512, 1152, 0, 0]),
            leaf(XSAVE_LEAF, 7, [1024, 1664, 0, 0]),
            leaf(0x8000_0008, 0, [46 | 48 << 8, 0, 0, 0]),
        ]);
        cpu.msrs.insert(0x10a, 1 | 1 << 2 | 1 << 8);
        cpu
    }

    /// The same without AVX-512, with shorter addresses and without a fix that the newer one has.
    fn older() -> CpuModel {
        let mut cpu = rich();
        for entry in &mut cpu.entries {
            match (entry.function, entry.index) {
                (7, 0) => entry.ebx = 1 << 5,
                (XSAVE_LEAF, 0) => (entry.eax, entry.ebx, entry.ecx) = (0b111, 832, 832),
                (0x8000_0008, _) => entry.eax = 39 | 48 << 8,
                _ => {}
            }
        }
        cpu.entries.retain(|entry| entry.function != XSAVE_LEAF || entry.index < 5);
        cpu.msrs.insert(0x10a, 1);
        cpu
    }

    #[test]
    fn what_hosts_have_in_common_is_the_same_on_each_of_them() {
        let (rich, older) = (rich(), older());
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let baseline = CpuFacts::common([(&a, &rich.facts()), (&b, &older.facts())]).unwrap();
        assert_eq!(baseline, older.facts(), "the older one is a part of the newer");
        for offer in [&rich, &older] {
            let seen = reduced(offer.clone(), &baseline);
            assert_eq!(seen.facts(), baseline);
            assert_eq!((seen.missing_on(&rich), seen.missing_on(&older)), (vec![], vec![]));
        }
        let seen = reduced(rich, &baseline);
        assert!(!seen.entries.iter().any(|entry| entry.function == XSAVE_LEAF && entry.index > 2));
        assert_eq!(seen.register(0x8000_0008, 0, Register::Eax), 39 | 48 << 8);
        assert_eq!(seen.msrs[&0x10a], 1 | 1 << 2, "the fix is not shown, and the weakness is");
    }
}
