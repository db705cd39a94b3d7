//! Godwit's own planner with power management, shown the data centre as the manager would show it a cluster.
//!
//! The simulator switches hosts in no time: one without VMs draws nothing, and can be given some at once. So all hosts are shown as
//! on; that the plan switches empty ones off is what the simulator does anyway.

use godwit_scheduler::PerResource;
use godwit_scheduler::planner::{Action, Goal, plan};
use godwit_scheduler::policy::{Automation, Policy as Laid, PowerPolicy};
use godwit_scheduler::snapshot::{Host, MigrationRoom, Needs, PowerModel, RECENT_SLOTS, Snapshot, Vm};
use godwit_types::Name;

use super::Policy;
use super::sketch::place_by;
use crate::planetlab::day::Day;
use crate::planetlab::kinds::{HOST_MEMORY_MB, HostKind};
use crate::planetlab::world::{HOSTS, Migration, Rules, World};
use crate::shown::{self, BEGINNING_UNIX_MS, MEBIBYTE};

/// Hosts are of each kind in turn.
const KINDS: usize = 2;
const DAY_MS: u64 = 24 * 60 * 60_000;
/// To what part hosts are to be filled.
const TARGET_PERCENT: u32 = 95;
/// Half of 1 Gbit/s.
const BYTES_PER_S: u64 = 62_500_000;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::planetlab) struct Planner {
    /// When each VM was moved within the last day.
    moved_unix_ms: Vec<Vec<u64>>,
}

impl Policy for Planner {
    /// The first host that has room, the better kind first: what VMs want shows only later.
    fn place(&mut self, day: &Day) -> Vec<usize> {
        self.moved_unix_ms = vec![Vec::new(); day.vms()];
        place_by(day, |host, _, _| rank(host) as f64)
    }

    fn plan(&mut self, world: &World<'_>) -> Vec<Migration> {
        let now = BEGINNING_UNIX_MS + (world.now_s * 1000.0) as u64;
        let plan = plan(&self.snapshot(world, now), &laid_down(), &Goal::Balance, 0);
        let migrations: Vec<Migration> = plan
            .steps
            .iter()
            .filter_map(|step| match &step.action {
                Action::Move { vm, to, .. } => Some((number(vm)?, host_of_rank(number(to)?))),
                _ => None,
            })
            .collect();
        migrations.iter().for_each(|(vm, _)| self.moved_unix_ms[*vm].push(now));
        migrations
    }
}

/// What the owner of such a cluster would lay down: hosts that are there in no time can be filled nearly to the brim. All else is as
/// nobody has changed it, but a plan may move everybody.
fn laid_down() -> Laid {
    let power = PowerPolicy {
        enabled: true,
        target_percent: TARGET_PERCENT,
        band_percent: 100 - TARGET_PERCENT,
        uptime_min_ms: 0,
        ..PowerPolicy::default()
    };
    Laid { automation: Automation::Full, moved_max_permille: 1000, power, ..Laid::default() }
}

impl Planner {
    fn snapshot(&self, world: &World<'_>, now: u64) -> Snapshot {
        let alive = (0..world.vms.len()).filter(|vm| world.vms[*vm].alive);
        Snapshot {
            at_unix_ms: now,
            hosts: (0..HOSTS).map(|host| shown_host(world, host, now)).collect(),
            vms: alive.map(|vm| self.shown_vm(world, vm, now)).collect(),
            pools: Vec::new(),
            rules: Vec::new(),
        }
    }

    fn shown_vm(&self, world: &World<'_>, vm: usize, now: u64) -> Vm {
        let known = &world.vms[vm];
        let memory = u64::from(known.kind.memory_mb) * MEBIBYTE;
        let demand = PerResource { cpu: known.demand.ceil() as u64, memory, ..PerResource::default() };
        let used = known.history.iter().take(RECENT_SLOTS).rev();
        let fast_enough = (0..KINDS).filter(|kind| HostKind::of(*kind).core_mips >= known.kind.mips);
        let lately = self.moved_unix_ms[vm].iter().copied().filter(|at| *at + DAY_MS > now);
        Vm {
            recent_mhz: used.map(|part| (part * known.kind.mips).ceil() as u64).collect(),
            needs: Needs { cpu_classes: Some(fast_enough.map(class).collect()), ..Needs::default() },
            moved_unix_ms: lately.collect(),
            ..shown::vm(named('v', vm), named('h', rank(known.host)), demand, memory, now)
        }
    }
}

fn shown_host(world: &World<'_>, host: usize, now: u64) -> Host {
    let kind = world.hosts[host].kind;
    // By the simulator's own rules memory matters only at the start.
    let memory_mb = if world.rules == Rules::Honest { HOST_MEMORY_MB.into() } else { 1 << 30 };
    let watts = (0..=10).map(|tenths| kind.watts(f64::from(tenths) / 10.0) as u32).collect();
    let capacity =
        PerResource { cpu: kind.mips() as u64, memory: memory_mb * MEBIBYTE, ..PerResource::default() };
    let migration = MigrationRoom { moves_max: 1000, bytes_per_s: BYTES_PER_S, is_assumed: false };
    Host {
        cpu_class: Some(class(host % KINDS)),
        power: Some(PowerModel { watts, standby_watts: 0, wake_ms: 0 }),
        ..shown::host(named('h', rank(host)), capacity, migration, now)
    }
}

/// The better kind of hosts comes first: of hosts that are as good for the plan, it takes the first.
fn rank(host: usize) -> usize {
    if host.is_multiple_of(2) { (HOSTS + host) / 2 } else { host / 2 }
}

fn host_of_rank(rank: usize) -> usize {
    if rank < HOSTS / 2 { 2 * rank + 1 } else { 2 * rank - HOSTS }
}

/// A VM of one virtual CPU runs where a core is fast enough.
fn class(kind: usize) -> Name {
    named('c', kind)
}

/// Names sort as their numbers do.
fn named(kind: char, number: usize) -> Name {
    // A letter and digits are a name.
    format!("{kind}{number:04}").parse().expect("a name")
}

fn number(name: &Name) -> Option<usize> {
    name.as_str()[1..].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planetlab::day::tests::day;

    /// What is planned once every VM has wanted the same for an hour.
    fn planned(rules: Rules, percents: &[u8], places: &[usize]) -> Vec<Migration> {
        let samples: Vec<Vec<u8>> = percents.iter().map(|percent| vec![*percent]).collect();
        let day = day(&samples.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let mut world = World::new(&day, rules, places);
        let mut at_s = 0.1;
        for _ in 0..RECENT_SLOTS {
            at_s += 300.0;
            world.advance(at_s);
            world.remember();
        }
        let mut planner = Planner { moved_unix_ms: vec![Vec::new(); percents.len()] };
        planner.plan(&world)
    }

    #[test]
    fn a_light_host_is_emptied_onto_the_fullest_that_has_room() {
        // Four kinds: 2500, 2000, 1000 and 500 MIPS.
        assert_eq!(planned(Rules::CloudSim, &[100, 100, 90, 20], &[1, 3, 3, 5]), [(3, 3)]);
    }

    #[test]
    fn a_full_host_gives_a_vm_away_that_is_enough() {
        // 2500 + 2000 + 800 + 450 is more than 5320, and so it is without any but the last; an empty host of the better kind gets it.
        assert_eq!(planned(Rules::CloudSim, &[100, 100, 80, 90], &[1, 1, 1, 1]), [(3, 3)]);
    }

    #[test]
    fn memory_matters_where_the_rules_say_so() {
        // CPU for all of them is on one host, and memory is not: 870 + 1740 + 1740 + 613 MB.
        let places = [1, 3, 5, 7];
        let used = |rules| {
            let mut hosts = places.to_vec();
            planned(rules, &[10; 4], &places).into_iter().for_each(|(vm, to)| hosts[vm] = to);
            hosts.into_iter().collect::<std::collections::BTreeSet<_>>().len()
        };
        assert_eq!((used(Rules::CloudSim), used(Rules::Honest)), (1, 2));
    }

    #[test]
    fn ranks_are_hosts_in_another_order_the_faster_first() {
        let mut ranks: Vec<usize> = (0..HOSTS).map(rank).collect();
        assert!((0..HOSTS).all(|host| host_of_rank(rank(host)) == host));
        assert_eq!((host_of_rank(0), host_of_rank(HOSTS / 2)), (1, 0));
        ranks.sort_unstable();
        assert!(ranks.into_iter().eq(0..HOSTS));
    }
}
