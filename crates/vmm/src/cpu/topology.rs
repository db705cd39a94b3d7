//! What differs from vCPU to vCPU: one package of single-threaded cores, APIC ids counted from 0.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Entries of leaf 0xb that [`apply`] adds.
pub(super) const LEAVES_ADDED_MAX: usize = 3;

const LEAF1_EDX_HT: u32 = 1 << 28;
const LEVEL_TYPE_SMT: u32 = 1;
const LEVEL_TYPE_CORE: u32 = 2;

/// The entries as vCPU `index` of `vcpus` sees them.
pub(super) fn apply(model: &[kvm_cpuid_entry2], index: u8, vcpus: u8) -> Vec<kvm_cpuid_entry2> {
    let (id, cores) = (u32::from(index), u32::from(vcpus));
    let id_bits = cores.next_power_of_two().trailing_zeros();
    let mut entries = model.to_vec();
    for entry in &mut entries {
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0xff00 | id << 24 | cores << 16;
                entry.edx = entry.edx & !LEAF1_EDX_HT | if cores > 1 { LEAF1_EDX_HT } else { 0 };
            }
            4 | 0x8000_001d => share_caches(entry, cores),
            0x8000_0008 => {
                entry.ecx = if entry.ecx == 0 && cores == 1 { 0 } else { id_bits << 12 | (cores - 1) }
            }
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
            _ => {}
        }
    }
    entries.extend(extended_topology(id, cores, id_bits));
    entries
}

/// Leaf 4 (Intel) and 0x8000_001d (AMD): the last level is shared by all cores, the others by none.
fn share_caches(entry: &mut kvm_cpuid_entry2, cores: u32) {
    let (kind, level) = (entry.eax & 0x1f, entry.eax >> 5 & 7);
    if kind == 0 {
        return;
    }
    let sharing = if level >= 3 { cores - 1 } else { 0 };
    let in_package = if entry.function == 4 { (cores - 1) << 26 } else { 0 };
    entry.eax = entry.eax & 0x3fff | sharing << 14 | in_package;
}

/// Leaf 0xb: a thread level of one, a core level with all, and the level that ends the list.
fn extended_topology(id: u32, cores: u32, id_bits: u32) -> [kvm_cpuid_entry2; LEAVES_ADDED_MAX] {
    let level = |index, kind: u32, shift, count| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: id,
        ..Default::default()
    };
    [level(0, LEVEL_TYPE_SMT, 0, 1), level(1, LEVEL_TYPE_CORE, id_bits, cores), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::super::tests::leaf;
    use super::*;

    #[test]
    fn each_vcpu_sees_its_own_apic_id_and_the_same_package() {
        let model = [leaf(1, 0, [0, 0x0801, 0, 0]), leaf(4, 3, [3 << 5 | 3, 0, 0, 0])];
        for (index, vcpus, bits) in [(0u8, 1u8, 0), (1, 2, 1), (2, 3, 2), (63, 64, 6)] {
            let entries = apply(&model, index, vcpus);
            let find =
                |function, sub| *entries.iter().find(|e| e.function == function && e.index == sub).unwrap();
            assert_eq!(find(1, 0).ebx, u32::from(index) << 24 | u32::from(vcpus) << 16 | 0x0800);
            assert_eq!(find(1, 0).edx & LEAF1_EDX_HT != 0, vcpus > 1);
            assert_eq!(
                (find(0xb, 1).eax, find(0xb, 1).ebx, find(0xb, 1).edx),
                (bits, vcpus.into(), index.into())
            );
            assert_eq!(find(4, 3).eax >> 26, u32::from(vcpus) - 1);
        }
    }
}
