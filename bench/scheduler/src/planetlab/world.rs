//! The data centre, by the rules of CloudSim 3.0.3: who gets how much, what it draws, how VMs move.
//!
//! ```text
//!   round, every 300 s:  all hosts share out their CPU -> VMs that want nothing go -> the policy plans -> migrations begin
//!   migrations end:      all hosts share out their CPU -> VMs that want nothing go -> the VMs arrive   -> all hosts again
//! ```
//!
//! A migration takes the VM's memory over half of 1 Gbit/s. Meanwhile the VM has 90 % of what it wants at the source, and
//! the destination is charged 10 % of it. A host that is asked for more than it has gives everybody the same part, in whole MIPS.
//! Sums are made in the simulator's order, since it compares them exactly: some count as violations by their last bit.

use super::day::{Day, INTERVAL_S, OFFSET_S};
use super::kinds::{HOST_MEMORY_MB, HostKind, VmKind};
use super::measure::Measures;

/// Hosts of the benchmark.
pub(super) const HOSTS: usize = 800;
/// What a VM keeps while it is moved, and what its destination is charged.
const KEPT: f64 = 0.9;
const CHARGED: f64 = 0.1;
/// Half of 1 Gbit/s, in MB/s as the simulator counts them.
const MEMORY_MB_PER_S: f64 = 62.5;
/// How much of the past policies see.
pub(super) const HISTORY: usize = 30;

/// Which rules hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    /// The simulator's: memory matters only at the start, and a VM that wants nothing for a moment is gone for good.
    CloudSim,
    /// Memory always matters, VMs stay, and a migration takes as long as mVM's model says of an idle guest.
    Honest,
}

#[derive(Debug)]
pub(super) struct Vm {
    pub(super) kind: VmKind,
    pub(super) host: usize,
    pub(super) alive: bool,
    /// What it wants now, in MIPS.
    pub(super) demand: f64,
    /// What it used at each round as a part of its CPU, the latest first.
    pub(super) history: Vec<f64>,
    moving: bool,
}

#[derive(Debug)]
pub(super) struct Host {
    pub(super) kind: &'static HostKind,
    /// In the order in which they came; those that are on their way here, too.
    pub(super) vms: Vec<usize>,
    arriving: Vec<usize>,
    /// What it gives, in MIPS.
    pub(super) given: f64,
}

impl Host {
    /// A part of what it has.
    pub(super) fn utilization(&self) -> f64 {
        let utilization = self.given / self.kind.mips();
        if utilization > 1.0 && utilization < 1.01 { 1.0 } else { utilization }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct World<'a> {
    pub(super) day: &'a Day,
    pub(super) rules: Rules,
    pub(super) now_s: f64,
    pub(super) hosts: Vec<Host>,
    pub(super) vms: Vec<Vm>,
    pub(super) measures: Measures,
}

/// A VM and the host it goes to.
pub(super) type Migration = (usize, usize);

impl<'a> World<'a> {
    /// VMs where they are to begin, before they work.
    pub(super) fn new(day: &'a Day, rules: Rules, places: &[usize]) -> Self {
        let host = |host: usize| Host {
            kind: HostKind::of(host),
            vms: (0..places.len()).filter(|vm| places[*vm] == host).collect(),
            arriving: Vec::new(),
            given: 0.0,
        };
        let vm = |(vm, host): (usize, &usize)| Vm {
            kind: day.kind(vm),
            host: *host,
            alive: true,
            demand: 0.0,
            history: Vec::new(),
            moving: false,
        };
        Self {
            day,
            rules,
            now_s: 0.0,
            hosts: (0..HOSTS).map(host).collect(),
            vms: places.iter().enumerate().map(vm).collect(),
            measures: Measures::new(HOSTS, places.len()),
        }
    }

    /// Goes on to that second: energy is counted, demand is what it is then, and everybody gets a part.
    pub(super) fn advance(&mut self, to_s: f64) {
        let before: Vec<f64> = self.hosts.iter().map(Host::utilization).collect();
        let passed_s = to_s - self.now_s;
        self.now_s = to_s;
        for (index, vm) in self.vms.iter_mut().enumerate().filter(|(_, vm)| vm.alive) {
            vm.demand = self.day.demand(index, to_s);
        }
        self.share_out();
        for (host, before) in self.hosts.iter().zip(before).filter(|(_, before)| *before > 0.0) {
            let watts = (host.kind.watts(before) + host.kind.watts(host.utilization())) / 2.0;
            self.measures.joules += watts * passed_s;
        }
        self.remove_idle();
    }

    /// What VMs used is remembered, as it is in rounds.
    pub(super) fn remember(&mut self) {
        // The simulator's own test of whether this is a round, with what rounding makes of it.
        if (self.now_s - OFFSET_S) % INTERVAL_S != 0.0 {
            return;
        }
        for vm in self.vms.iter_mut().filter(|vm| vm.alive) {
            vm.history.insert(0, vm.demand / vm.kind.mips);
            vm.history.truncate(HISTORY);
        }
    }

    /// Begins migrations, and says when each of them ends, in seconds from now.
    pub(super) fn begin(&mut self, migrations: &[Migration]) -> Vec<f64> {
        for (vm, to) in migrations {
            self.vms[*vm].moving = true;
            self.hosts[*to].vms.push(*vm);
            self.hosts[*to].arriving.push(*vm);
        }
        self.measures.migrations += migrations.len() as u64;
        self.share_out();
        migrations.iter().map(|(vm, _)| self.duration_s(*vm)).collect()
    }

    /// The VMs are where they were to go.
    pub(super) fn arrive(&mut self, migrations: &[Migration]) {
        for (vm, to) in migrations {
            let from = self.vms[*vm].host;
            self.hosts[from].vms.retain(|other| other != vm);
            self.hosts[*to].vms.retain(|other| other != vm);
            self.hosts[*to].arriving.retain(|other| other != vm);
            self.hosts[*to].vms.push(*vm);
            self.vms[*vm].host = *to;
            self.vms[*vm].moving = false;
        }
        self.share_out();
        self.remove_idle();
    }

    fn duration_s(&self, vm: usize) -> f64 {
        /// What an idle guest writes over and over, and how long it takes to.
        const HOT_MB: f64 = 5.0;
        const HOT_S: f64 = 2.0;
        let once = f64::from(self.vms[vm].kind.memory_mb) / MEMORY_MB_PER_S;
        match self.rules {
            Rules::CloudSim => once,
            Rules::Honest => {
                let rate = HOT_MB / HOT_S;
                once + HOT_MB / MEMORY_MB_PER_S * (1.0 + rate / (MEMORY_MB_PER_S - rate))
            }
        }
    }

    fn share_out(&mut self) {
        for index in 0..self.hosts.len() {
            let gifts = self.gifts(index);
            let host = &mut self.hosts[index];
            let (mut given, mut wanted) = (0.0, 0.0);
            for (vm, gift) in host.vms.iter().zip(gifts) {
                let Vm { demand, moving, .. } = self.vms[*vm];
                let arriving = host.arriving.contains(vm);
                if !arriving {
                    self.measures.of_vms[*vm].note(self.now_s, gift, demand, moving);
                }
                given += if moving && !arriving { gift / KEPT } else { gift };
                wanted += demand;
            }
            host.given = given;
            self.measures.of_hosts[index].note(self.now_s, given, wanted, given > 0.0);
        }
    }

    /// What each of a host's VMs gets, in MIPS.
    fn gifts(&self, host: usize) -> Vec<f64> {
        let Host { kind, vms, arriving, .. } = &self.hosts[host];
        // The part of what it is given that it is charged for, and the part that it gets.
        let parts = |vm: &usize| match (arriving.contains(vm), self.vms[*vm].moving) {
            (true, _) => (CHARGED, CHARGED),
            (false, true) => (1.0, KEPT),
            (false, false) => (1.0, 1.0),
        };
        // One virtual CPU runs on one core.
        let wanted = |vm: &usize| self.vms[*vm].demand.min(kind.core_mips);
        let mut left = kind.mips();
        let mut fits = true;
        for vm in vms {
            let charge = wanted(vm) * parts(vm).0;
            fits &= left >= charge;
            left -= charge;
        }
        if fits {
            return vms.iter().map(|vm| wanted(vm) * parts(vm).1).collect();
        }
        let scale = kind.mips() / vms.iter().map(|vm| wanted(vm) * parts(vm).0).sum::<f64>();
        vms.iter().map(|vm| (wanted(vm) * scale * parts(vm).1).floor()).collect()
    }

    fn remove_idle(&mut self) {
        if self.rules == Rules::Honest {
            return;
        }
        for (index, vm) in self.vms.iter_mut().enumerate() {
            if vm.alive && !vm.moving && vm.demand == 0.0 {
                vm.alive = false;
                self.hosts[vm.host].vms.retain(|other| *other != index);
            }
        }
    }

    /// Whether each VM that is there is on exactly one host, and that one is its own.
    pub(super) fn is_whole(&self) -> bool {
        let mut seen = vec![0; self.vms.len()];
        for (index, host) in self.hosts.iter().enumerate() {
            for vm in host.vms.iter().filter(|vm| self.vms[**vm].host == index) {
                seen[*vm] += 1;
            }
        }
        seen.iter().zip(&self.vms).all(|(seen, vm)| *seen == u32::from(vm.alive))
    }

    /// Whether the VM's memory fits, which only the honest rules ask once VMs run.
    pub(super) fn has_memory(&self, used_mb: u32, vm: usize) -> bool {
        self.rules == Rules::CloudSim || used_mb + self.vms[vm].kind.memory_mb <= HOST_MEMORY_MB
    }
}

#[cfg(test)]
mod tests {
    use super::super::day::tests::day;
    use super::*;

    /// To the second after the first sample, so demand is what that sample says.
    const FIRST_S: f64 = 300.0;

    #[test]
    fn a_host_draws_by_what_it_gives_and_nothing_before_its_vms_work() {
        // 50 % of 2500 MIPS on a G5 of 5320, at 600 s as at 300 s.
        let day = day(&[&[50]]);
        let mut world = World::new(&day, Rules::CloudSim, &[1]);
        world.advance(FIRST_S);
        assert_eq!((world.measures.joules, world.hosts[1].given), (0.0, 1250.0));
        world.advance(2.0 * FIRST_S);
        let watts = HostKind::of(1).watts(1250.0 / 5320.0);
        assert!((world.measures.joules - watts * 300.0).abs() < 1e-6);
        assert_eq!(world.measures.overload(), 0.0);
    }

    #[test]
    fn a_moving_vm_keeps_nine_tenths_and_its_destination_is_charged_one() {
        let day = day(&[&[40]]);
        let mut world = World::new(&day, Rules::CloudSim, &[1]);
        world.advance(FIRST_S);
        let seconds = world.begin(&[(0, 3)]);
        assert_eq!(seconds, [870.0 / 62.5]);
        assert!((world.hosts[1].given - 1000.0).abs() < 1e-9 && (world.hosts[3].given - 100.0).abs() < 1e-9);
        world.advance(FIRST_S + seconds[0]);
        world.arrive(&[(0, 3)]);
        assert_eq!((world.hosts[1].given, world.hosts[3].given), (0.0, 1000.0));
        assert!(world.is_whole() && world.vms[0].host == 3);
        world.advance(FIRST_S + 2.0 * seconds[0]);
        // A tenth for half of the time; the destination alone counts as overloaded, while it is charged less than is wanted of it.
        assert!((world.measures.lost_to_migrations() - 0.05).abs() < 1e-9);
        assert!(world.measures.overload() > 0.3, "{}", world.measures.overload());
    }

    #[test]
    fn a_host_that_has_too_little_gives_everybody_the_same_part_in_whole_mips() {
        // 2500 + 2000 + 1000 + 500 of 3720, and no VM more than a core of 1860.
        let day = day(&[&[100], &[100], &[100], &[100]]);
        let mut world = World::new(&day, Rules::CloudSim, &[0; 4]);
        world.advance(FIRST_S);
        let scale = 3720.0 / (1860.0 + 1860.0 + 1000.0 + 500.0);
        let parts = [1860.0_f64, 1860.0, 1000.0, 500.0].map(|wanted| (wanted * scale).floor());
        assert_eq!(world.hosts[0].given, parts.iter().sum::<f64>());
        world.advance(2.0 * FIRST_S);
        assert_eq!(world.measures.overload(), 1.0);
        assert!((world.measures.lost() - (1.0 - parts.iter().sum::<f64>() / 6000.0)).abs() < 1e-9);
    }

    #[test]
    fn a_destination_is_not_overloaded_by_what_is_only_on_its_way() {
        // 3500 of 5320 are used, and 2500 would be too much; a tenth of it is not.
        let day = day(&[&[100], &[100], &[100], &[100]]);
        let mut world = World::new(&day, Rules::CloudSim, &[1, 3, 3, 3]);
        world.advance(FIRST_S);
        world.begin(&[(0, 3)]);
        assert_eq!((world.hosts[1].given, world.hosts[3].given), (2500.0, 3750.0));
    }

    #[test]
    fn a_vm_that_wants_nothing_goes_for_good_but_not_by_the_honest_rules() {
        let day = day(&[&[10, 0, 0, 50]]);
        for (rules, alive) in [(Rules::CloudSim, false), (Rules::Honest, true)] {
            let mut world = World::new(&day, rules, &[1]);
            for round in 1..4 {
                world.advance(FIRST_S * f64::from(round));
            }
            assert_eq!(world.vms[0].alive, alive);
            assert!(world.is_whole() && (world.hosts[1].given > 0.0) == alive);
        }
    }
}
