//! What hosts give and draw, and how content their VMs are.

use std::num::NonZeroU64;

use godwit_scheduler::entitlement::{Claim, Happiness, Member, Tree, divide, mean};
use godwit_scheduler::snapshot::{HostState, PowerModel};
use godwit_scheduler::{PerResource, Resource};

use crate::cluster::Cluster;
use crate::report::Spread;
use crate::trace::Trace;

/// What a host does for as long as nothing changes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rate {
    pub(crate) wanted_mhz: f64,
    pub(crate) given_mhz: f64,
    pub(crate) watts: f64,
    /// Whether more CPU or memory is wanted than it has.
    pub(crate) overloaded: bool,
    pub(crate) on: bool,
}

impl Rate {
    /// Of a host, by what its guests want.
    pub(crate) fn of(cluster: &Cluster, trace: &Trace, demand: &[PerResource<u64>], host: usize) -> Self {
        let (machine, record) = (&cluster.hosts[host], &trace.hosts[host]);
        let sum =
            |resource: Resource| machine.guests.iter().map(|guest| demand[*guest][resource]).sum::<u64>();
        let (cpu, memory) = (sum(Resource::Cpu), sum(Resource::Memory));
        let given = cpu.min(record.cpu_mhz) as f64;
        let on = matches!(machine.state, HostState::On | HostState::Maintenance);
        let watts = match (machine.state, record.power()) {
            (_, None) | (HostState::Lost, _) => 0.0,
            (HostState::Standby, Some(power)) => f64::from(power.standby_watts),
            (HostState::Waking, Some(power)) => drawn(&power, 0.0),
            (HostState::On | HostState::Maintenance, Some(power)) => {
                drawn(&power, given / record.cpu_mhz.max(1) as f64)
            }
        };
        Self {
            wanted_mhz: cpu as f64,
            given_mhz: given,
            watts,
            overloaded: cpu > record.cpu_mhz || memory > record.memory,
            on,
        }
    }
}

/// On the line between the two points that are next to the part of the CPU that is used.
fn drawn(power: &PowerModel, used: f64) -> f64 {
    let pieces = power.watts.len().saturating_sub(1);
    let along = used.clamp(0.0, 1.0) * pieces as f64;
    let below = (along as usize).min(pieces.saturating_sub(1));
    let at = |index: usize| power.watts.get(index).copied().map_or(0.0, f64::from);
    at(below) + (at(below + 1) - at(below)) * (along - below as f64)
}

/// How content the VMs are: what each receives of its host, of what it is entitled to of all hosts that are on. One that runs
/// nowhere receives nothing.
pub(crate) fn happiness(
    cluster: &Cluster,
    trace: &Trace,
    demand: &[PerResource<u64>],
    tree: &Tree,
) -> Spread {
    let on = (0..trace.hosts.len()).filter(|host| cluster.hosts[*host].state == HostState::On);
    let on: Vec<usize> = on.collect();
    let capacity = PerResource::from_fn(|resource| {
        on.iter().fold(0u64, |sum, host| sum.saturating_add(trace.hosts[*host].capacity()[resource]))
    });
    // By name, as the tree has them.
    let entitled = tree.entitle(&capacity).vms;
    let mut by_guest = vec![PerResource::default(); trace.vms.len()];
    for (guest, vm) in trace.vms.iter().enumerate() {
        if let Ok(at) = entitled.binary_search_by(|(name, _)| name.cmp(&vm.name)) {
            by_guest[guest] = entitled[at].1;
        }
    }
    let mut received = vec![PerResource::default(); trace.vms.len()];
    for host in on {
        receive(cluster, trace, demand, &by_guest, host, &mut received);
    }
    let members: Vec<Member> = received
        .iter()
        .zip(&by_guest)
        .zip(&trace.vms)
        .map(|((received, entitled), vm)| Member {
            happiness: Happiness::of(received, entitled),
            shares: PerResource::from_fn(|resource| vm.controls[resource].shares),
        })
        .collect();
    let mut sorted: Vec<Happiness> = members.iter().map(|member| member.happiness).collect();
    sorted.sort_unstable();
    // The nearest rank.
    let percentile = |percent: usize| {
        let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted.get(rank).map_or(100.0, |happiness| percent_of(*happiness))
    };
    Spread { mean: percent_of(mean(&members)), p5: percentile(5), p1: percentile(1) }
}

fn percent_of(happiness: Happiness) -> f64 {
    f64::from(happiness.0) / f64::from(Happiness::FULL.0) * 100.0
}

/// A host is divided by what its guests are entitled to: reservations first, nobody more than it wants.
fn receive(
    cluster: &Cluster,
    trace: &Trace,
    demand: &[PerResource<u64>],
    entitled: &[PerResource<u64>],
    host: usize,
    received: &mut [PerResource<u64>],
) {
    let capacity = trace.hosts[host].capacity();
    let mut guests = cluster.hosts[host].guests.clone();
    guests.sort_unstable();
    for resource in Resource::ALL {
        let claim = |guest: &usize| Claim {
            floor: trace.vms[*guest].controls[resource].reservation,
            ceiling: demand[*guest][resource],
            shares: NonZeroU64::new(entitled[*guest][resource]).unwrap_or(NonZeroU64::MIN),
        };
        let given = divide(capacity[resource], &guests.iter().map(claim).collect::<Vec<_>>());
        guests.iter().zip(given).for_each(|(guest, given)| received[*guest][resource] = given);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_is_linear_between_its_points() {
        let power = PowerModel { watts: vec![90, 110, 150], standby_watts: 5, wake_ms: 0 };
        assert_eq!(
            [0.0, 0.25, 0.5, 0.75, 1.0, 2.0].map(|used| drawn(&power, used)),
            [90.0, 100.0, 110.0, 130.0, 150.0, 150.0]
        );
    }
}
