//! The memory map that kernels are given.

use godwit_types::{Bytes, PAGE_SIZE_BYTES};

use crate::memory::layout;

/// Where conventional memory ends; the kilobyte up to 0xa_0000 is where firmware keeps its data.
const CONVENTIONAL_END: u64 = 0x9_fc00;

/// A run of addresses and what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    pub start: u64,
    pub bytes: u64,
    pub kind: MapKind,
}

/// The kinds of the E820 map; PVH uses the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKind {
    Ram = 1,
    Reserved = 2,
}

/// The map of a VM with this much memory, ascending. Entries that do not exist are not listed.
pub fn memory_map(memory: Bytes) -> Vec<MapEntry> {
    let entry = |start, end, kind| MapEntry { start, bytes: end - start, kind };
    let mut map = vec![
        entry(0, CONVENTIONAL_END, MapKind::Ram),
        entry(CONVENTIONAL_END, layout::HIGH_MEMORY_START, MapKind::Reserved),
    ];
    let (ecam, ecam_bytes) = layout::ECAM;
    for range in layout::ram_ranges(memory) {
        let start = range.start.address().max(layout::HIGH_MEMORY_START);
        let end = range.start.address() + range.pages * PAGE_SIZE_BYTES;
        map.push(entry(start, end, MapKind::Ram));
        if range.start.0 == 0 {
            map.push(entry(ecam, ecam + ecam_bytes, MapKind::Reserved));
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_ascend_without_overlap_and_name_all_ram_but_the_legacy_area() {
        for mib in [16, 512, 3072, 3073, 16384] {
            let map = memory_map(Bytes::mib(mib));
            assert!(map.windows(2).all(|pair| pair[0].start + pair[0].bytes <= pair[1].start), "{map:x?}");
            let ram: u64 =
                map.iter().filter(|entry| entry.kind == MapKind::Ram).map(|entry| entry.bytes).sum();
            assert_eq!(ram, (mib << 20) - (layout::HIGH_MEMORY_START - CONVENTIONAL_END), "{mib} MiB");
        }
    }
}
