//! Clusters that tests plan for.

use godwit_scheduler::cluster::{Cluster, Guest, Room};

/// Hosts of 256 GiB and 64 cores, and VMs of a few sizes on them: more on the first hosts than on the last.
pub(crate) fn cluster(hosts: usize, sizes: &[u8]) -> Cluster {
    let room = |whole, own, most| Room { whole, own, most };
    let rooms = vec![room(262_144, 4096, 262_144), room(64, 0, 256), room(1000, 0, u64::MAX)];
    let mut free = vec![258_048; hosts];
    let mut guests = Vec::new();
    for (at, size) in sizes.iter().enumerate() {
        let size = u64::from(*size);
        let (memory, vcpus, load) = (2048 << (size % 5), 1 << (size % 3), 5 + size % 97);
        // Two of three go to the first half.
        let first = if at % 3 == 0 { at % hosts } else { at % hosts.div_ceil(2) };
        let place = (first..hosts).chain(0..first).find(|host| free[*host] >= memory);
        let Some(host) = place else { continue };
        free[host] -= memory;
        guests.push(Guest { host, loads: vec![memory, vcpus, load] });
    }
    Cluster::new(&vec![rooms; hosts], &guests).expect("a cluster of a test")
}
