//! The state of a cluster and its score, through any moves.

mod common;

use godwit_scheduler::balance::{Balance, WeightError};
use godwit_scheduler::cluster::{Cluster, ClusterError, Guest, Move, Room};
use proptest::prelude::*;

/// Memory in MiB, virtual CPUs, CPU load in thousandths of a host; as `hbal` weighs them.
const WEIGHTS: [f64; 3] = [1.0, 1.0, 1.0];

/// From the places alone, as one would write it down.
fn by_hand(cluster: &Cluster) -> f64 {
    let hosts = cluster.hosts() as f64;
    let deviation = |dimension| {
        let part = |host| {
            let (used, room) = cluster.used(host, dimension);
            used as f64 / room.whole as f64
        };
        let mean = (0..cluster.hosts()).map(part).sum::<f64>() / hosts;
        ((0..cluster.hosts()).map(|host| (part(host) - mean).powi(2)).sum::<f64>() / hosts).sqrt()
    };
    (0..cluster.dimensions()).map(deviation).sum()
}

/// The cluster built anew from where its VMs are.
fn rebuilt(sizes: &[u8], moved: &Cluster) -> Cluster {
    let start = common::cluster(moved.hosts(), sizes);
    let mut rebuilt = start.clone();
    for vm in (0..start.vms()).rev() {
        rebuilt.apply(Move::Relocate { vm, to: moved.host_of(vm) });
    }
    rebuilt
}

fn any_move(cluster: &Cluster, (swap, one, other): (bool, u16, u16)) -> Move {
    let (one, other) = (usize::from(one), usize::from(other));
    let vms = cluster.vms();
    if swap {
        Move::Swap { one: one % vms, other: other % vms }
    } else {
        Move::Relocate { vm: one % vms, to: other % cluster.hosts() }
    }
}

proptest! {
    #[test]
    fn a_score_that_is_kept_up_to_date_is_the_one_computed_anew_to_the_bit(
        hosts in 1..9usize,
        sizes in prop::collection::vec(any::<u8>(), 1..60),
        moves in prop::collection::vec(any::<(bool, u16, u16)>(), 0..60),
    ) {
        let mut cluster = common::cluster(hosts, &sizes);
        let mut balance = Balance::new(&cluster, &WEIGHTS).unwrap();
        for choice in moves {
            let change = any_move(&cluster, choice);
            let predicted = balance.score_after(&cluster, change);
            balance.apply(&cluster, change);
            cluster.apply(change);
            prop_assert_eq!(balance.score(), predicted);
            prop_assert!((balance.score() - by_hand(&cluster)).abs() < 1e-8);
        }
        prop_assert_eq!(&Balance::new(&cluster, &WEIGHTS).unwrap(), &balance);
        let rebuilt = rebuilt(&sizes, &cluster);
        for host in 0..hosts {
            for dimension in 0..3 {
                prop_assert_eq!(cluster.used(host, dimension), rebuilt.used(host, dimension));
            }
            let mut guests = cluster.guests(host).to_vec();
            guests.sort_unstable();
            let there: Vec<u32> = (0..cluster.vms() as u32).filter(|vm| cluster.host_of(*vm as usize) == host).collect();
            prop_assert_eq!(guests, there);
        }
    }

    #[test]
    fn moves_that_are_allowed_keep_every_host_within_its_room(
        sizes in prop::collection::vec(any::<u8>(), 1..120),
        moves in prop::collection::vec(any::<(bool, u16, u16)>(), 0..80),
    ) {
        let mut cluster = common::cluster(4, &sizes);
        for choice in moves {
            let change = any_move(&cluster, choice);
            if cluster.allows(change) {
                cluster.apply(change);
            }
        }
        for (host, dimension) in (0..4).flat_map(|host| (0..3).map(move |dimension| (host, dimension))) {
            let (used, room) = cluster.used(host, dimension);
            prop_assert!(used <= room.most);
        }
    }
}

fn room(whole: u64, most: u64) -> Room {
    Room { whole, own: 0, most }
}

fn guest(host: usize, load: u64) -> Guest {
    Guest { host, loads: vec![load] }
}

#[test]
fn a_host_that_is_over_full_may_lose_and_may_not_gain() {
    let hosts = vec![vec![room(10, 10)], vec![room(10, 10)]];
    let cluster = Cluster::new(&hosts, &[guest(0, 9), guest(0, 4), guest(1, 5), guest(0, 2)]).unwrap();
    assert!(cluster.allows(Move::Relocate { vm: 1, to: 1 }), "15 become 11, and 5 become 9");
    assert!(!cluster.allows(Move::Relocate { vm: 0, to: 1 }), "5 become 14");
    assert!(!cluster.allows(Move::Relocate { vm: 2, to: 0 }), "15 become 20");
    assert!(cluster.allows(Move::Swap { one: 2, other: 0 }), "15 become 11, and 5 become 9");
    assert!(!cluster.allows(Move::Swap { one: 1, other: 2 }), "15 become 16");
    assert!(!cluster.allows(Move::Swap { one: 0, other: 1 }), "of the same host");
}

#[test]
fn a_score_is_weights_times_standard_deviations() {
    let rooms = |whole: [u64; 2]| whole.map(|whole| room(whole, u64::MAX)).to_vec();
    let vm = |host, loads: [u64; 2]| Guest { host, loads: loads.to_vec() };
    let hosts = [rooms([100, 10]), rooms([50, 10])];
    let cluster = Cluster::new(&hosts, &[vm(0, [50, 8]), vm(1, [50, 2])]).unwrap();
    // 0.5 and 1.0; 0.8 and 0.2.
    let balance = Balance::new(&cluster, &[2.0, 0.5]).unwrap();
    assert!((balance.score() - (2.0 * 0.25 + 0.5 * 0.3)).abs() < 1e-9);
    let change = Move::Swap { one: 0, other: 1 };
    assert!((balance.score_after(&cluster, change) - (2.0 * 0.25 + 0.5 * 0.3)).abs() < 1e-9);
    let change = Move::Relocate { vm: 1, to: 0 };
    assert!((balance.score_after(&cluster, change) - (2.0 * 0.5 + 0.5 * 0.5)).abs() < 1e-9);
}

#[test]
fn loads_beyond_all_measure_are_no_danger() {
    let hosts = vec![vec![room(1, u64::MAX)], vec![room(1, u64::MAX)]];
    let cluster = Cluster::new(&hosts, &[guest(0, u64::MAX)]).unwrap();
    let balance = Balance::new(&cluster, &[1.0]).unwrap();
    assert_eq!(balance.score(), 1024.0, "2048 wholes and none");
    assert_eq!(balance.score_after(&cluster, Move::Relocate { vm: 0, to: 1 }), 1024.0);
}

#[test]
fn what_is_no_cluster_is_refused() {
    let hosts = || vec![vec![room(1, 1)], vec![room(1, 1)]];
    let refused = |hosts: Vec<Vec<Room>>, vms: &[Guest]| Cluster::new(&hosts, vms).unwrap_err();
    let wide = ClusterError::Dimensions { what: "host", index: 1, found: 2, expected: 1 };
    assert_eq!(refused(vec![vec![room(1, 1)], vec![room(1, 1); 2]], &[]), wide);
    let empty = ClusterError::Dimensions { what: "VM", index: 0, found: 0, expected: 1 };
    assert_eq!(refused(hosts(), &[Guest { host: 0, loads: vec![] }]), empty);
    assert_eq!(refused(vec![vec![room(0, 1)]], &[]), ClusterError::NothingOf { host: 0, dimension: 0 });
    assert_eq!(refused(hosts(), &[guest(2, 1)]), ClusterError::NoSuchHost { vm: 0, host: 2 });
    let large = ClusterError::TooLarge { dimension: 0 };
    assert_eq!(refused(hosts(), &[guest(0, u64::MAX), guest(1, 1)]), large);
    let own = Room { own: 1, ..room(1, 1) };
    assert_eq!(refused(vec![vec![own]], &[guest(0, u64::MAX)]), large);
}

#[test]
fn weights_that_are_none_are_refused() {
    let cluster = common::cluster(2, &[1, 2]);
    assert_eq!(Balance::new(&cluster, &[1.0]), Err(WeightError::Count { found: 1, expected: 3 }));
    assert_eq!(Balance::new(&cluster, &[1.0, -1.0, 1.0]), Err(WeightError::Value(-1.0)));
    assert!(Balance::new(&cluster, &[1.0, f64::NAN, 1.0]).is_err());
}
