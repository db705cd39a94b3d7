//! MSRs whose bits are features.

use std::collections::{BTreeMap, BTreeSet};

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::Kvm;

use crate::kvm::vcpu::VcpuState;

/// Most MSRs in one CPU description.
pub(super) const COUNT_MAX: usize = 16;

/// An MSR that a vCPU has from KVM, and that its state carries.
struct Msr {
    index: u32,
    /// The CPUID feature without which no guest sees it; none if KVM refuses its bits to any guest that arrives.
    shown_by: Option<&'static str>,
    /// Names from bit 0 on, as in Intel's manual; `-` where there is none.
    names: &'static str,
}

const FEATURE_MSRS: [Msr; 2] = [
    // IA32_ARCH_CAPABILITIES
    Msr {
        index: 0x10a,
        shown_by: Some("arch-capabilities"),
        names: "rdcl-no ibrs-all rsba skip-l1dfl-vmentry ssb-no mds-no pschange-mc-no tsx-ctrl taa-no mcu-control \
                misc-package-ctls energy-filtering-ctl doitm sbdr-ssdp-no fbsdp-no psdp-no - fb-clear fb-clear-ctrl rrsba \
                bhi-no xapic-disable-status - overclocking-status pbrsb-no gds-ctrl gds-no rfds-no rfds-clear",
    },
    // IA32_PERF_CAPABILITIES
    Msr {
        index: 0x345,
        shown_by: None,
        names: "lbr-fmt-0 lbr-fmt-1 lbr-fmt-2 lbr-fmt-3 lbr-fmt-4 lbr-fmt-5 pebs-trap pebs-arch-reg pebs-fmt-0 \
                pebs-fmt-1 pebs-fmt-2 pebs-fmt-3 freeze-while-smm full-width-write pebs-baseline perf-metrics",
    },
];

/// Bits that tell of a weakness, whose absence is the feature: a guest misses nothing where they are not set.
const WEAKNESSES: [&str; 2] = ["rsba", "rrsba"];

/// What this host's KVM gives. An MSR that it does not know gives no features.
pub(super) fn offered(kvm: &Kvm) -> BTreeMap<u32, u64> {
    let read = |msr: &Msr| {
        let entry = kvm_msr_entry { index: msr.index, ..Default::default() };
        let mut msrs = Msrs::from_entries(&[entry]).expect("one entry is within KVM's limit");
        let known = kvm.get_msrs(&mut msrs).ok()? == 1;
        known.then(|| (msr.index, msrs.as_slice()[0].data))
    };
    FEATURE_MSRS.iter().filter_map(read).collect()
}

/// What KVM gave to a vCPU.
pub(super) fn given(vcpu: &VcpuState) -> BTreeMap<u32, u64> {
    FEATURE_MSRS.iter().filter_map(|msr| Some((msr.index, vcpu.msr(msr.index)?))).collect()
}

/// The names of the bits that are set and count, under these features of CPUID.
pub(super) fn names(values: &BTreeMap<u32, u64>, features: &BTreeSet<String>) -> BTreeSet<String> {
    let counts = |msr: &&Msr| msr.shown_by.is_none_or(|feature| features.contains(feature));
    let set = |msr: &'static Msr| {
        let value = values.get(&msr.index).copied().unwrap_or(0);
        (0..64).filter(move |bit| value >> bit & 1 == 1).map(|bit| msr.name(bit))
    };
    let names = FEATURE_MSRS.iter().filter(counts).flat_map(set);
    names.filter(|name| !WEAKNESSES.contains(&name.as_str())).collect()
}

/// The values without the bits that are none of `features`. A weakness stays: the guest is to know of it.
pub(super) fn kept(values: &BTreeMap<u32, u64>, features: &BTreeSet<String>) -> BTreeMap<u32, u64> {
    let stays = |name: String| features.contains(&name) || WEAKNESSES.contains(&name.as_str());
    let mask = |msr: &Msr| (0..64).filter(|bit| stays(msr.name(*bit))).fold(0, |mask, bit| mask | 1 << bit);
    let of = |index: &u32| FEATURE_MSRS.iter().find(|msr| msr.index == *index).map_or(0, mask);
    values.iter().map(|(index, value)| (*index, value & of(index))).collect()
}

impl Msr {
    fn name(&self, bit: usize) -> String {
        match self.names.split_whitespace().nth(bit) {
            Some(name) if name != "-" => name.to_owned(),
            _ => format!("MSR {:#x} bit {bit}", self.index),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_count_by_name_where_the_guest_sees_them_and_a_weakness_is_no_feature() {
        let values = BTreeMap::from([(0x10a, 1 << 2 | 1 << 8 | 1 << 27 | 1 << 63), (0x345, 1 << 13)]);
        let shown = BTreeSet::from(["arch-capabilities".to_owned()]);
        let all: Vec<String> = names(&values, &shown).into_iter().collect();
        assert_eq!(all, ["MSR 0x10a bit 63", "full-width-write", "rfds-no", "taa-no"]);
        assert_eq!(names(&values, &BTreeSet::new()), BTreeSet::from(["full-width-write".to_owned()]));
    }
}
