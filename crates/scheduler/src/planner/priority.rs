//! Why a move that nobody must make is worth it, and how much it matters.
//!
//! VMs that get less than they are entitled to come first. For evenness the priority is DRS 1's, 6 - ceil(I * sqrt(hosts) / 0.1), 2 to 5
//! (VMware KB 1007485), where I is the standard deviation of what part of hosts is used: a single host that is out by a given part
//! gives the same priority in a cluster of any size.

use super::Reason;
use super::model::Model;
use super::standing;
use crate::entitlement::Happiness;
use crate::resource::Resource;

/// VMs together must become happier by this to speak of it, in millionths of one VM's happiness.
const NOTICED: i64 = 1_000;
/// From here on it is urgent.
const URGENT: i64 = 50_000;
/// The priority of a soft rule that is mended.
const SOFT: u8 = 3;

/// The reason for a move and its priority, before it is made.
pub(super) fn of(model: &Model<'_>, unit: usize, to: usize) -> (Reason, u8) {
    let Some(from) = model.place[unit].map(|from| from as usize) else { return (Reason::Start, 1) };
    let mut after = model.clone();
    after.go(unit, to);
    let happier = content(&after, [from, to]) - content(model, [from, to]);
    if happier >= NOTICED {
        let resource = scarcest(model, from);
        return (Reason::Entitlement { resource }, if happier >= URGENT { 2 } else { 3 });
    }
    let softer = model.softer(unit, to);
    if softer < 0
        && softer <= model.dearer(unit, to) - softer
        && let Some(rule) = model.softened(unit, to)
    {
        return (Reason::Rule { rule: model.case.table.entries[rule].name.clone() }, SOFT);
    }
    (Reason::Evenness { resource: evened(model, &after, unit, from) }, evenness(model))
}

/// How much evenness matters as things are.
fn evenness(model: &Model<'_>) -> u8 {
    let imbalance = model.objective.imbalance(&model.load);
    let hosts = (0..model.case.hosts.len()).filter(|host| model.case.gives(*host)).count();
    let steps = (imbalance * (hosts as f64).sqrt() / 0.1).ceil();
    // A float that is too large becomes the largest number.
    6u8.saturating_sub(steps.min(6.0) as u8).clamp(2, 5)
}

/// The happiness of the VMs of two hosts, summed up.
fn content(model: &Model<'_>, hosts: [usize; 2]) -> i64 {
    let each = hosts.into_iter().flat_map(|host| standing::happiness(model, host));
    each.map(|(_, Happiness(millionths))| i64::from(millionths)).sum()
}

/// What is most used of a host.
fn scarcest(model: &Model<'_>, host: usize) -> Resource {
    let part = |at: usize| model.objective.part(host, at, model.load[host][at]);
    let most = (0..4).fold(0, |most, at| if part(at) > part(most) { at } else { most });
    Resource::ALL[most]
}

/// What becomes more even, most of all; or what the unit uses most, if no resource by itself does.
fn evened(model: &Model<'_>, after: &Model<'_>, unit: usize, from: usize) -> Resource {
    let gain =
        |at: usize| model.objective.deviation(at, &model.load) - model.objective.deviation(at, &after.load);
    let most = (0..4).fold(0, |most, at| if gain(at) > gain(most) { at } else { most });
    if gain(most) > 1e-9 {
        return Resource::ALL[most];
    }
    let part = |at: usize| model.objective.part(from, at, model.units[unit].load[at]);
    Resource::ALL[(0..4).fold(0, |most, at| if part(at) > part(most) { at } else { most })]
}
