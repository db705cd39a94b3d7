//! Pools, reservations and what they come to for VMs.

use godwit_scheduler::entitlement::{
    Capacity, Controls, Finding, Happiness, Member, Owner, Pool, Refusal, Tree, Vm, mean,
};
use godwit_scheduler::{PerResource, Resource};
use godwit_types::Name;
use proptest::prelude::*;

fn name(text: &str) -> Name {
    text.parse().expect("a name of a test")
}

fn all<T: Clone>(value: T) -> PerResource<T> {
    PerResource::from_fn(|_| value.clone())
}

fn pool(called: &str, parent: Option<&str>, controls: Controls) -> Pool {
    Pool {
        name: name(called),
        parent: parent.map(name),
        controls: all(controls),
        expandable: all(true),
        scalable_shares: false,
    }
}

/// One that may not borrow.
fn alone(pool: Pool) -> Pool {
    Pool { expandable: all(false), ..pool }
}

fn vm(called: &str, pool: Option<&str>, controls: Controls, demand: u64) -> Vm {
    Vm { name: name(called), pool: pool.map(name), controls: all(controls), demand: all(demand) }
}

fn shares(shares: u32) -> Controls {
    Controls { shares, ..Controls::default() }
}

fn reserved(reservation: u64) -> Controls {
    Controls { reservation, ..Controls::default() }
}

/// CPU of the VMs, by name.
fn entitled(tree: &Tree, capacity: u64) -> Vec<u64> {
    tree.entitle(&all(capacity)).vms.iter().map(|(_, entitled)| entitled.cpu).collect()
}

#[test]
fn a_pool_divides_what_it_is_given_and_not_what_its_vms_want() {
    let pools = vec![pool("gold", None, shares(3000)), pool("bronze", None, shares(1000))];
    let vms = ["a", "b", "c"].map(|called| vm(called, Some("bronze"), shares(9000), 1000));
    let one = vm("z", Some("gold"), shares(1), 1000);
    let tree = Tree::new(pools, [vms.to_vec(), vec![one]].concat()).unwrap();
    assert_eq!(entitled(&tree, 1200), [100, 100, 100, 900]);
    assert_eq!(entitled(&tree, 1600), [200, 200, 200, 1000], "gold has enough, and the rest is bronze's");
}

#[test]
fn scalable_shares_follow_the_number_of_vms_in_a_pool_and_below_it() {
    let scalable = |called, parent| Pool { scalable_shares: true, ..pool(called, parent, shares(1000)) };
    let vms = || {
        let many = (0..3).map(|at| vm(&format!("many{at}"), Some("many"), shares(1000), 1000));
        let below = vm("under", Some("below"), shares(1000), 1000);
        many.chain([below, vm("only", Some("few"), shares(1000), 1000)]).collect::<Vec<_>>()
    };
    let fixed = ["many", "few"].map(|called| pool(called, None, shares(1000)));
    let fixed = [fixed.to_vec(), vec![pool("below", Some("many"), shares(1000))]].concat();
    assert_eq!(entitled(&Tree::new(fixed, vms()).unwrap(), 1000), [125, 125, 125, 500, 125]);
    let scalable = vec![scalable("many", None), scalable("few", None), scalable("below", Some("many"))];
    assert_eq!(entitled(&Tree::new(scalable, vms()).unwrap(), 1000), [200; 5]);
}

#[test]
fn a_reservation_below_an_expandable_pool_holds_against_the_shares_above() {
    let vms = || vec![vm("a", Some("small"), reserved(600), 1000), vm("b", None, shares(1_000_000), 1000)];
    let expandable = Tree::new(vec![pool("small", None, shares(1))], vms()).unwrap();
    assert_eq!(entitled(&expandable, 1000), [600, 400]);
    let alone = Tree::new(vec![alone(pool("small", None, shares(1)))], vms()).unwrap();
    assert_eq!(entitled(&alone, 1000), [0, 1000], "the pool has nothing to guarantee it with");
}

#[test]
fn what_is_wrong_is_told_all_at_once_and_with_a_remedy() {
    let above = Controls { reservation: 2048, limit: Some(1024), ..Controls::default() };
    let below = |called, parent| pool(called, Some(parent), shares(1));
    let twice = [pool("b", None, shares(0)), pool("b", None, shares(1))];
    let pools = [vec![below("a", "nowhere"), below("under", "a"), below("c", "c")], twice.to_vec()].concat();
    let mut limited = vm("v", Some("gone"), shares(1), 1);
    limited.controls.memory = above;
    let findings = Tree::new(pools, vec![limited]).unwrap_err();
    let owner = |called| Owner::Pool(name(called));
    let no_shares = Resource::ALL.map(|resource| Finding::NoShares { owner: owner("b"), resource });
    let unknown = |owner, parent| Finding::UnknownParent { owner, parent: name(parent) };
    let vm = || Owner::Vm(name("v"));
    let memory = Resource::Memory;
    let limit =
        Finding::ReservationAboveLimit { owner: vm(), resource: memory, reservation: 2048, limit: 1024 };
    let mut expected =
        vec![Finding::Twice(owner("b")), unknown(owner("a"), "nowhere"), unknown(vm(), "gone")];
    expected.push(Finding::Cycle(name("c")));
    expected.extend(no_shares);
    expected.push(limit.clone());
    assert_eq!(findings, expected);
    assert_eq!(limit.to_string(), "VM 'v' reserves 2KiB of memory and is limited to 1KiB");
    assert!(findings.iter().all(|finding| !finding.remedy().is_empty()));
}

#[test]
fn pools_that_lie_within_themselves_are_named() {
    let pools = [
        ("a", Some("b")),
        ("b", Some("a")),
        ("self", Some("self")),
        ("fine", None),
        ("under", Some("a")),
        ("deep", Some("under")),
    ];
    let pools = pools.map(|(called, parent)| pool(called, parent, shares(1))).to_vec();
    let cycles = ["a", "b", "self"].map(|called| Finding::Cycle(name(called)));
    assert_eq!(Tree::new(pools, Vec::new()).unwrap_err(), cycles, "what hangs below a cycle is no cycle");
}

#[test]
fn a_very_deep_tree_is_only_deep() {
    let pools = (0..20_000).map(|at: usize| {
        let parent = at.checked_sub(1).map(|parent| format!("p{parent}"));
        pool(&format!("p{at}"), parent.as_deref(), shares(1))
    });
    let tree = Tree::new(pools.collect(), vec![vm("v", Some("p19999"), reserved(5), 9)]).unwrap();
    assert_eq!(entitled(&tree, 7), [7]);
    assert_eq!(tree.refusals(&Capacity::without_largest(&[all(7)], 0)), []);
}

fn of_cpu(tree: &Tree, hosts: &[u64], lost: usize) -> Vec<Refusal> {
    let hosts: Vec<_> = hosts.iter().map(|cpu| PerResource { cpu: *cpu, ..all(u64::MAX) }).collect();
    tree.refusals(&Capacity::without_largest(&hosts, lost))
}

#[test]
fn a_pool_that_may_not_borrow_refuses_what_it_has_not_reserved() {
    type Kind = fn(Pool) -> Pool;
    let tree = |(top_is, top): (Kind, u64), (below_is, below): (Kind, u64)| {
        let top = top_is(pool("top", None, reserved(top)));
        let below = below_is(pool("below", Some("top"), reserved(below)));
        let vms = [("a", 30), ("b", 20)].map(|(called, own)| vm(called, Some("below"), reserved(own), 0));
        Tree::new(vec![top, below], vms.to_vec()).unwrap()
    };
    let (alone, borrows): (Kind, Kind) = (alone, |pool| pool);
    let refused = |called, missing| Refusal::Pool { pool: name(called), resource: Resource::Cpu, missing };
    let cpu = |tree: &Tree| {
        let refusals = of_cpu(tree, &[100], 0);
        refusals
            .into_iter()
            .filter(|refusal| matches!(refusal, Refusal::Pool { resource: Resource::Cpu, .. }))
            .collect::<Vec<_>>()
    };
    assert_eq!(cpu(&tree((borrows, 0), (alone, 45))), [refused("below", 5)]);
    assert_eq!(
        cpu(&tree((alone, 45), (borrows, 10))),
        [refused("top", 5)],
        "it borrows, and the pool above cannot lend"
    );
    assert_eq!(cpu(&tree((alone, 50), (borrows, 10))), []);
    assert_eq!(
        cpu(&tree((alone, 45), (alone, 45))),
        [refused("below", 5)],
        "what is refused is not asked for above"
    );
    let message = refused("below", 5).to_string();
    assert_eq!(
        message,
        "what is in pool 'below' reserves 5 MHz of CPU more than the pool, which may not borrow"
    );
}

#[test]
fn an_expandable_pool_borrows_up_to_its_limit() {
    let limited = Controls { limit: Some(40), ..reserved(10) };
    let vms = vec![vm("a", Some("p"), reserved(50), 0)];
    let tree = Tree::new(vec![pool("p", None, limited)], vms).unwrap();
    let refusal = Refusal::Limit { pool: name("p"), resource: Resource::Cpu, missing: 10 };
    assert_eq!(of_cpu(&tree, &[100], 0)[0], refusal);
}

#[test]
fn reservations_must_fit_what_is_left_when_the_largest_hosts_are_lost() {
    let vms = vec![vm("a", None, reserved(60), 0), vm("b", None, reserved(60), 0)];
    let tree = Tree::new(Vec::new(), vms).unwrap();
    assert_eq!(of_cpu(&tree, &[60, 100, 60], 0), []);
    assert_eq!(of_cpu(&tree, &[60, 100, 60], 1), []);
    let cpu = Resource::Cpu;
    assert_eq!(of_cpu(&tree, &[60, 100, 60], 2), [Refusal::Cluster { resource: cpu, missing: 60, lost: 2 }]);
    let too_small = Refusal::Host { vm: name("a"), resource: cpu, missing: 10, lost: 1 };
    assert_eq!(of_cpu(&tree, &[50, 50, 50, 100], 1)[0], too_small);
    let lost = of_cpu(&tree, &[60], 9);
    assert!(lost.contains(&Refusal::Cluster { resource: cpu, missing: 120, lost: 9 }), "{lost:?}");
}

#[test]
fn happiness_is_that_of_the_resource_that_is_served_worst() {
    let entitled = PerResource { cpu: 1000, memory: 3, network: 0, storage: 10 };
    let happiness = |received| Happiness::of(&received, &entitled);
    assert_eq!(happiness(PerResource { cpu: 900, memory: 2, network: 0, storage: 99 }), Happiness(666_666));
    assert_eq!(happiness(PerResource { cpu: 1000, memory: 4, network: 7, storage: 10 }), Happiness::FULL);
    assert_eq!(Happiness::of(&all(0), &all(u64::MAX)), Happiness(0));
}

#[test]
fn the_mean_weighs_by_shares_whatever_their_scale() {
    let member = |happiness, cpu, memory| {
        let shares = PerResource { cpu, memory, network: 1, storage: 1 };
        Member { happiness: Happiness(happiness), shares }
    };
    assert_eq!(mean(&[]), Happiness::FULL);
    let even = [member(1_000_000, 1, 40_000), member(0, 3, 40_000)];
    // 1/4 + 1/2 + 1/2 + 1/2 of four.
    assert_eq!(mean(&even), Happiness(437_500));
    let many = vec![member(999_999, u32::MAX, u32::MAX); 1000];
    assert_eq!(mean(&many), Happiness(999_999));
}

/// Up to 5 pools, each in one before it or in none, and up to 10 VMs; amounts of a few units.
fn trees() -> impl Strategy<Value = (Vec<Pool>, Vec<Vm>)> {
    let controls = || {
        (0..8u64, prop::option::of(0..30u64), 1..5u32).prop_map(|(reservation, more, shares)| Controls {
            reservation,
            limit: more.map(|more| reservation + more),
            shares,
        })
    };
    let pool_of = (controls(), any::<prop::sample::Index>(), any::<bool>(), any::<bool>());
    let pools = prop::collection::vec(pool_of, 0..6);
    let vms = prop::collection::vec((controls(), any::<prop::sample::Index>(), 0..40u64), 0..11);
    (pools, vms).prop_map(|(pools, vms)| {
        let parent = |index: prop::sample::Index, before: usize| {
            index.index(before + 1).checked_sub(1).map(|parent| format!("p{parent}"))
        };
        let count = pools.len();
        let pools =
            pools.into_iter().enumerate().map(|(at, (controls, index, expandable, scalable_shares))| {
                let pool = pool(&format!("p{at}"), parent(index, at).as_deref(), controls);
                Pool { expandable: all(expandable), scalable_shares, ..pool }
            });
        let vms = vms.into_iter().enumerate().map(|(at, (controls, index, demand))| {
            vm(&format!("v{at}"), parent(index, count).as_deref(), controls, demand)
        });
        (pools.collect(), vms.collect())
    })
}

/// What a pool, or the cluster, can use.
fn usable(within: Option<&Name>, pools: &[Pool], vms: &[Vm]) -> u64 {
    let bounded =
        |controls: &PerResource<Controls>, amount: u64| controls.cpu.limit.unwrap_or(u64::MAX).min(amount);
    let of_pools = pools.iter().filter(|pool| pool.parent.as_ref() == within);
    let of_vms = vms.iter().filter(|vm| vm.pool.as_ref() == within);
    of_pools.map(|pool| bounded(&pool.controls, usable(Some(&pool.name), pools, vms))).sum::<u64>()
        + of_vms.map(|vm| bounded(&vm.controls, vm.demand.cpu)).sum::<u64>()
}

proptest! {
    #[test]
    fn all_that_can_be_used_is_given_and_a_pool_hands_on_what_it_gets((pools, vms) in trees(), capacity in 0..300u64) {
        let tree = Tree::new(pools.clone(), vms.clone()).unwrap();
        let entitled = tree.entitle(&all(capacity));
        let given: u64 = entitled.vms.iter().map(|(_, given)| given.cpu).sum();
        prop_assert_eq!(given, capacity.min(usable(None, &pools, &vms)));
        for (called, given) in &entitled.pools {
            let pools_in = tree.pools().zip(&entitled.pools).filter(|(pool, _)| pool.parent.as_ref() == Some(called));
            let vms_in = tree.vms().zip(&entitled.vms).filter(|(vm, _)| vm.pool.as_ref() == Some(called));
            let inside = pools_in.map(|(_, given)| given.1.cpu).sum::<u64>() + vms_in.map(|(_, given)| given.1.cpu).sum::<u64>();
            prop_assert_eq!(inside, given.cpu);
        }
    }

    #[test]
    fn whoever_is_admitted_gets_its_reservation_or_all_it_wants((pools, vms) in trees(), capacity in 0..120u64) {
        let tree = Tree::new(pools, vms).unwrap();
        prop_assume!(tree.refusals(&Capacity::without_largest(&[all(capacity)], 0)).is_empty());
        for (vm, (_, given)) in tree.vms().zip(tree.entitle(&all(capacity)).vms) {
            prop_assert!(given.memory >= vm.controls.memory.reservation.min(vm.demand.memory));
            prop_assert!(given.memory <= vm.controls.memory.limit.unwrap_or(u64::MAX).min(vm.demand.memory));
        }
    }

    #[test]
    fn the_order_in_which_things_are_listed_changes_nothing((pools, vms) in trees(), capacity in 0..120u64) {
        let reversed = Tree::new(pools.iter().rev().cloned().collect(), vms.iter().rev().cloned().collect());
        let tree = Tree::new(pools, vms);
        prop_assert_eq!(&tree, &reversed);
        let capacity = all(capacity);
        prop_assert_eq!(tree.unwrap().entitle(&capacity), reversed.unwrap().entitle(&capacity));
    }
}
