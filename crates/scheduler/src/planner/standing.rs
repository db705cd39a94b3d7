//! How a cluster is: what its VMs receive, which rules are broken, what it draws.

use std::num::NonZeroU64;

use super::Standing;
use super::model::Model;
use super::objective::shown;
use crate::entitlement::{Claim, Happiness, Member, divide, mean};
use crate::resource::{PerResource, Resource};
use crate::snapshot::{HostState, PowerModel};

/// As the VMs are placed in the model.
pub(super) fn of(model: &Model<'_>) -> Standing {
    let case = model.case;
    let mut members = Vec::new();
    let mut unhappiest: Option<(usize, Happiness)> = None;
    for host in (0..case.hosts.len()).filter(|host| case.gives(*host)) {
        for (vm, received) in received(model, host) {
            let happiness = Happiness::of(&received, &case.entitled[vm]);
            let shares = PerResource::from_fn(|resource| case.vms[vm].controls[resource].shares.max(1));
            members.push(Member { happiness, shares });
            let least = unhappiest.is_none_or(|(first, least)| (happiness, vm) < (least, first));
            if least && happiness < Happiness::FULL {
                unhappiest = Some((vm, happiness));
            }
        }
    }
    let entries = case.table.entries.iter().enumerate();
    Standing {
        score: shown(model.score()),
        happiness: mean(&members),
        unhappiest: unhappiest.map(|(vm, happiness)| (case.vms[vm].name.clone(), happiness)),
        broken: entries
            .filter(|(at, _)| model.broken(*at) > 0)
            .map(|(_, entry)| entry.name.clone())
            .collect(),
        watts: (0..case.hosts.len()).fold(0u64, |sum, host| sum.saturating_add(watts(model, host))),
    }
}

/// What each VM of a host receives: its reservation first, then in proportion to what it is entitled to, up to its demand.
pub(crate) fn received(model: &Model<'_>, host: usize) -> Vec<(usize, PerResource<u64>)> {
    let case = model.case;
    let mut vms: Vec<usize> = model
        .guests(host)
        .iter()
        .flat_map(|unit| model.units[*unit as usize].vms.iter().map(|vm| *vm as usize))
        .collect();
    vms.sort_unstable();
    let mut received: Vec<_> = vms.iter().map(|vm| (*vm, PerResource::default())).collect();
    for resource in Resource::ALL {
        let claims: Vec<Claim> = vms
            .iter()
            .map(|vm| Claim {
                floor: case.vms[*vm].controls[resource].reservation,
                ceiling: case.demand[*vm][resource],
                shares: NonZeroU64::new(case.entitled[*vm][resource]).unwrap_or(NonZeroU64::MIN),
            })
            .collect();
        let given = divide(case.hosts[host].capacity[resource], &claims);
        given.into_iter().zip(&mut received).for_each(|(given, vm)| vm.1[resource] = given);
    }
    received
}

/// How content each VM of a host is, by place.
pub(super) fn happiness(model: &Model<'_>, host: usize) -> Vec<(usize, Happiness)> {
    let each = received(model, host).into_iter();
    each.map(|(vm, received)| (vm, Happiness::of(&received, &model.case.entitled[vm]))).collect()
}

/// What a host draws; 0 without a model.
pub(super) fn watts(model: &Model<'_>, host: usize) -> u64 {
    let described = model.case.hosts[host];
    let Some(power) = &described.power else { return 0 };
    match described.state {
        HostState::On | HostState::Maintenance => {
            let used = model.load[host][0].min(described.capacity.cpu);
            drawn(power, used, described.capacity.cpu)
        }
        HostState::Standby => power.standby_watts.into(),
        HostState::Waking => power.watts.first().copied().unwrap_or(0).into(),
        HostState::Lost => 0,
    }
}

/// On the line between the two points that are next to what is used, rounded down.
pub(super) fn drawn(power: &PowerModel, used: u64, whole: u64) -> u64 {
    let watts: Vec<i128> = power.watts.iter().map(|watts| i128::from(*watts)).collect();
    let (Some(first), whole) = (watts.first(), i128::from(whole.max(1))) else { return 0 };
    let pieces = watts.len() as i128 - 1;
    let along = i128::from(used).min(whole) * pieces;
    let (at, rest) = ((along / whole) as usize, along % whole);
    let from = watts.get(at).unwrap_or(first);
    let to = watts.get(at + 1).unwrap_or(from);
    // Between two amounts that are not negative.
    (from + (to - from) * rest / whole) as u64
}

#[cfg(test)]
mod tests {
    use super::drawn;
    use crate::snapshot::PowerModel;

    #[test]
    fn power_is_read_off_the_line_between_two_points() {
        let model = |watts: &[u32]| PowerModel { watts: watts.to_vec(), standby_watts: 5, wake_ms: 0 };
        let three = model(&[90, 100, 140]);
        let drawn_at = [0, 25, 50, 75, 100, 200].map(|used| drawn(&three, used, 100));
        assert_eq!(drawn_at, [90, 95, 100, 120, 140, 140]);
        assert_eq!((drawn(&model(&[]), 1, 2), drawn(&model(&[70]), 1, 2)), (0, 70));
    }
}
