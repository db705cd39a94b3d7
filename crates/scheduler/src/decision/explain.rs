//! Why a VM is where it is.

use std::fmt;

use godwit_types::{HostName, VmName};
use serde::{Deserialize, Serialize};

use super::Decision;
use crate::entitlement::Happiness;
use crate::planner::case::Case;
use crate::planner::model::Model;
use crate::planner::objective::shown;
use crate::planner::{Step, WhyNot, standing};
use crate::resource::{PerResource, Resource};

/// See the module. Amounts in the units of [`Resource`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Explanation {
    pub vm: VmName,
    pub host: Option<HostName>,
    /// What it wants, within its limits.
    pub demand: PerResource<u64>,
    /// What it is entitled to of the cluster.
    pub entitled: PerResource<u64>,
    /// What it receives where it is; none if it is nowhere, or nobody knows.
    pub received: Option<PerResource<u64>>,
    pub happiness: Option<Happiness>,
    /// Why it cannot be moved, or is not moved unless it must be.
    pub rests: Option<String>,
    /// What each host would give it, its own too.
    pub offers: Vec<Offer>,
    /// The plan's steps that concern it, by place.
    pub steps: Vec<(usize, Step)>,
    /// Why it stays although it should not.
    pub why_not: Option<WhyNot>,
}

/// What a VM would have on a host, with everybody else where they were before the plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Offer {
    pub host: HostName,
    pub received: PerResource<u64>,
    pub happiness: Happiness,
    /// By how much the cluster's score would be less, without what the move costs.
    pub gain: f64,
    /// What speaks against it; empty if it may run there.
    pub against: Vec<String>,
}

impl Explanation {
    pub(super) fn new(decision: &Decision, name: &VmName) -> Option<Self> {
        let case = Case::new(&decision.snapshot, &decision.policy, &decision.goal);
        let vm = case.vm(name)?;
        let model = Model::new(&case);
        let home = case.home[vm].filter(|home| case.gives(*home));
        let received = home.and_then(|home| received(&model, vm, home));
        let steps = decision.plan.steps.iter().enumerate();
        let concerns = |step: &Step| step.action.vm() == Some(name);
        Some(Self {
            vm: name.clone(),
            host: case.vms[vm].host.clone(),
            demand: case.demand[vm],
            entitled: case.entitled[vm],
            received,
            happiness: received.map(|received| Happiness::of(&received, &case.entitled[vm])),
            rests: case.stays[vm].clone().or_else(|| case.rests[vm].clone()),
            offers: offers(model, vm),
            steps: steps.filter(|(_, step)| concerns(step)).map(|(at, step)| (at, step.clone())).collect(),
            why_not: decision.plan.unmoved.iter().find(|why| why.vm == *name).cloned(),
        })
    }
}

/// What each host would give.
fn offers(mut model: Model<'_>, vm: usize) -> Vec<Offer> {
    let case = model.case;
    let unit = model.unit_of[vm] as usize;
    let (home, before) = (model.place[unit], model.score());
    let hosts = 0..case.hosts.len();
    let against = |host: usize| {
        if home == Some(host as u32) { Vec::new() } else { model.against(unit, host) }
    };
    let against: Vec<Vec<String>> = hosts.clone().map(against).collect();
    let offer = |(host, against): (usize, Vec<String>)| {
        if model.place[unit] != Some(host as u32) {
            model.go(unit, host);
        }
        let received = received(&model, vm, host).unwrap_or_default();
        Offer {
            host: case.hosts[host].name.clone(),
            received,
            happiness: Happiness::of(&received, &case.entitled[vm]),
            gain: shown(before - model.score()),
            against,
        }
    };
    hosts.zip(against).map(offer).collect()
}

fn received(model: &Model<'_>, vm: usize, host: usize) -> Option<PerResource<u64>> {
    let all = standing::received(model, host);
    all.into_iter().find(|(known, _)| *known == vm).map(|(_, received)| received)
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) => writeln!(f, "VM '{}' is on host '{host}'", self.vm)?,
            None => writeln!(f, "VM '{}' has no host", self.vm)?,
        }
        writeln!(f, "wants        {}", show(&self.demand))?;
        writeln!(f, "entitled to  {}", show(&self.entitled))?;
        if let (Some(received), Some(happiness)) = (&self.received, self.happiness) {
            writeln!(f, "receives     {}", show(received))?;
            writeln!(f, "happiness    {happiness}")?;
        }
        if let Some(rests) = &self.rests {
            writeln!(f, "is left alone: {rests}")?;
        }
        for Offer { host, happiness, gain, against, .. } in &self.offers {
            if against.is_empty() {
                let here = if self.host.as_ref() == Some(host) { ", where it is" } else { "" };
                writeln!(f, "host '{host}'{here}: happiness {happiness}, score better by {gain:.4}")?;
            } else {
                writeln!(f, "host '{host}': {}", against.join("; "))?;
            }
        }
        for (at, step) in &self.steps {
            writeln!(f, "step {at}: {}, {}", step.action, step.reason)?;
        }
        if let Some(why) = &self.why_not {
            writeln!(f, "stays although {}:", why.wrong)?;
            for (host, reason) in &why.reasons {
                match host {
                    Some(host) => writeln!(f, "  host '{host}': {reason}")?,
                    None => writeln!(f, "  {reason}")?,
                }
            }
        }
        Ok(())
    }
}

fn show(amounts: &PerResource<u64>) -> String {
    let some = Resource::ALL.into_iter().filter(|resource| amounts[*resource] > 0);
    let shown: Vec<String> =
        some.map(|resource| format!("{resource} {}", resource.show(amounts[resource]))).collect();
    if shown.is_empty() { "nothing".into() } else { shown.join(", ") }
}
