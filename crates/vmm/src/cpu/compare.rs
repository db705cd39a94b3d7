//! Whether a guest's CPU can go on at a host.

use super::CpuModel;
use super::features::{FEATURE_WORDS, Register};
use crate::kvm::vcpu::tsc;

/// What a guest with the CPU `guest` would miss on a host that offers `offer`.
///
/// Every feature bit that the guest has seen must be there. Beyond features, the maker must be the same (the makers'
/// system-call and virtualisation instructions differ), and addresses and saved registers must fit.
pub(super) fn missing(guest: &CpuModel, offer: &CpuModel) -> Vec<String> {
    let mut reasons = Vec::new();
    let (theirs, ours) = (guest.vendor(), offer.vendor());
    if theirs != ours {
        reasons.push(format!("the guest runs on a {theirs} CPU and this host has a {ours} CPU"));
    }
    for word in &FEATURE_WORDS {
        let seen = guest.register(word.function, word.index, word.register);
        let lacking = seen & !offer.register(word.function, word.index, word.register);
        let bits = (0..32).filter(|bit| lacking >> bit & 1 == 1);
        reasons.extend(bits.map(|bit| format!("this host's CPU or KVM lacks {}", word.name(bit))));
    }
    let physical_bits = |cpu: &CpuModel| cpu.register(0x8000_0008, 0, Register::Eax) & 0xff;
    if physical_bits(guest) > physical_bits(offer) {
        reasons.push(format!(
            "the guest was promised {} bits of physical address and this host has {}",
            physical_bits(guest),
            physical_bits(offer)
        ));
    }
    let xsave_bytes = |cpu: &CpuModel| cpu.register(0xd, 0, Register::Ecx);
    if xsave_bytes(guest) > xsave_bytes(offer) {
        reasons.push(format!(
            "the guest's extended registers take {} bytes and this host has room for {}",
            xsave_bytes(guest),
            xsave_bytes(offer)
        ));
    }
    if let (Some(known), Some(host)) = (guest.tsc, offer.tsc)
        && !host.scalable
        && !tsc::near_enough(known.khz, host.khz)
    {
        reasons.push(format!(
            "the guest's TSC runs at {} kHz and this host's at {} kHz, which it cannot scale",
            known.khz, host.khz
        ));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::super::Tsc;
    use super::super::tests::{leaf, model};
    use super::*;

    const AVX2: u32 = 1 << 5;
    const POPCNT: u32 = 1 << 23;

    fn cpu(vendor: u32, leaf1_ecx: u32, leaf7_ebx: u32, physical: u32) -> CpuModel {
        model(vec![
            leaf(0, 0, [0xd, vendor, 0, 0]),
            leaf(1, 0, [0, 0, leaf1_ecx, 0]),
            leaf(7, 0, [0, leaf7_ebx, 0, 0]),
            leaf(0x8000_0008, 0, [physical, 0, 0, 0]),
        ])
    }

    #[test]
    fn a_host_with_more_takes_the_guest_and_a_host_with_less_names_each_missing_bit() {
        let small = cpu(1, POPCNT, 0, 40);
        let large = cpu(1, POPCNT, AVX2, 46);
        assert!(small.missing_on(&large).is_empty());
        assert!(large.missing_on(&large).is_empty());
        let reasons = large.missing_on(&small);
        assert_eq!(reasons.len(), 2, "{reasons:?}");
        assert!(reasons[0].ends_with("lacks avx2"), "{reasons:?}");
        assert!(reasons[1].contains("46 bits"), "{reasons:?}");
    }

    #[test]
    fn a_host_with_another_tsc_must_be_able_to_scale_it() {
        let with = |khz, scalable| cpu(1, 0, 0, 40).and_tsc(Some(Tsc { khz, scalable }));
        assert_eq!(with(2_000_000, false).missing_on(&with(3_000_000, false)).len(), 1);
        assert!(with(2_000_000, false).missing_on(&with(3_000_000, true)).is_empty());
        assert!(with(2_000_000, false).missing_on(&with(2_000_100, false)).is_empty());
    }

    #[test]
    fn a_guest_never_moves_between_makers() {
        assert_eq!(cpu(1, 0, 0, 40).missing_on(&cpu(2, 0, 0, 40)).len(), 1);
    }
}
