//! Why a move that nobody must make is worth it, and how much it matters.
//!
//! VMs that get less than they are entitled to come first. For evenness the priority is DRS 1's, 6 - ceil(I * sqrt(hosts) / 0.1), 2 to 5
//! (VMware KB 1007485), where I is the standard deviation of what part of hosts is used: a single host that is out by a given part
//! gives the same priority in a cluster of any size.

use super::Reason;
use super::model::Model;
use super::power::RELIEF;
use super::standing;
use crate::entitlement::Happiness;
use crate::resource::Resource;

/// VMs together must become happier by this to speak of it, in millionths of one VM's happiness.
const NOTICED: i64 = 1_000;
/// From here on it is urgent.
const URGENT: i64 = 50_000;
/// The priority of a soft rule that is mended.
const SOFT: u8 = 3;

/// The reason for a unit's being on one host and not on the other, and its priority. The model is the same afterwards.
pub(super) fn of(model: &mut Model<'_>, unit: usize, without: usize, with: usize) -> (Reason, u8) {
    let place = model.place[unit];
    model.go(unit, without);
    let (softer, dearer) = (model.softer(unit, with), model.dearer(unit, with));
    let softened = model.softened(unit, with).filter(|_| softer < 0 && softer <= dearer - softer);
    let (matters, scarcest) = (evenness(model), scarcest(model, without));
    let (content_without, uneven_without) = (content(model, [without, with]), deviations(model));
    model.go(unit, with);
    let (happier, uneven) = (content(model, [without, with]) - content_without, deviations(model));
    place.into_iter().for_each(|place| model.go(unit, place as usize));
    if happier >= NOTICED {
        return (Reason::Entitlement { resource: scarcest }, if happier >= URGENT { 2 } else { 3 });
    }
    if let Some(rule) = softened {
        return (Reason::Rule { rule: model.case.table.entries[rule].name.clone() }, SOFT);
    }
    if model.case.saves {
        return (Reason::Band { resource: scarcest }, RELIEF);
    }
    let gains = std::array::from_fn(|at| uneven_without[at] - uneven[at]);
    (Reason::Evenness { resource: evened(model, gains, unit, without) }, matters)
}

/// How much evenness matters as things are.
fn evenness(model: &Model<'_>) -> u8 {
    let imbalance = model.objective.imbalance(&model.load);
    let hosts = (0..model.case.hosts.len()).filter(|host| model.case.gets(*host)).count();
    let steps = (imbalance * (hosts as f64).sqrt() / 0.1).ceil();
    // A float that is too large becomes the largest number.
    6u8.saturating_sub(steps.min(6.0) as u8).clamp(2, 5)
}

/// The happiness of the VMs of two hosts, summed up.
fn content(model: &Model<'_>, hosts: [usize; 2]) -> i64 {
    let each = hosts.into_iter().flat_map(|host| standing::happiness(model, host));
    each.map(|(_, Happiness(millionths))| i64::from(millionths)).sum()
}

fn deviations(model: &Model<'_>) -> [f64; 4] {
    std::array::from_fn(|at| model.objective.deviation(at, &model.load))
}

/// What is most used of a host.
fn scarcest(model: &Model<'_>, host: usize) -> Resource {
    most(std::array::from_fn(|at| model.objective.part(host, at, model.load[host][at])))
}

/// What becomes more even, most of all; or what the unit uses most, if no resource by itself does.
fn evened(model: &Model<'_>, gains: [f64; 4], unit: usize, from: usize) -> Resource {
    if gains.iter().any(|gain| *gain > 1e-9) {
        return most(gains);
    }
    most(std::array::from_fn(|at| model.objective.part(from, at, model.units[unit].load[at])))
}

fn most(amounts: [f64; 4]) -> Resource {
    Resource::ALL[(0..4).fold(0, |most, at| if amounts[at] > amounts[most] { at } else { most })]
}
