//! A plan in the making: who goes where and why, before anybody asks in which order.

use std::collections::BTreeMap;

use godwit_types::HostName;

use super::case::Case;
use super::model::Model;
use super::{Reason, WhyNot};

/// See the module.
pub(super) struct Work<'a> {
    pub(super) case: &'a Case<'a>,
    /// Everybody where the plan has them.
    pub(super) model: Model<'a>,
    /// Of each unit that goes, why, and how much it matters.
    pub(super) why: BTreeMap<usize, (Reason, u8)>,
    pub(super) unmoved: Vec<WhyNot>,
    pub(super) findings: Vec<String>,
}

impl<'a> Work<'a> {
    pub(super) fn new(case: &'a Case<'a>) -> Self {
        let findings = case.findings.clone();
        Self { case, model: Model::new(case), why: BTreeMap::new(), unmoved: Vec::new(), findings }
    }

    /// Why a unit cannot be moved, whatever for.
    pub(super) fn stays(&self, unit: usize) -> Option<&str> {
        let mut vms = self.model.units[unit].vms.iter();
        vms.find_map(|vm| self.case.stays[*vm as usize].as_deref())
    }

    /// Why a unit is not moved unless it must be.
    pub(super) fn rests(&self, unit: usize) -> Option<&str> {
        let mut vms = self.model.units[unit].vms.iter();
        let rests = vms.find_map(|vm| self.case.rests[*vm as usize].as_deref());
        self.stays(unit).or(rests)
    }

    /// Whether a unit may be moved since its host does not give what is wanted of it: having moved lately does not hold then.
    pub(super) fn may_flee(&self, unit: usize) -> bool {
        let mut vms = self.model.units[unit].vms.iter().map(|vm| *vm as usize);
        self.stays(unit).is_none() && vms.all(|vm| self.case.rests[vm].is_none() || self.case.cools[vm])
    }

    /// Notes that a unit goes; the first reason stays.
    pub(super) fn note(&mut self, unit: usize, reason: Reason, priority: u8) {
        self.why.entry(unit).or_insert((reason, priority));
    }

    /// Notes that a unit stays although it should not: why it cannot be moved, or what speaks against each host.
    pub(super) fn why_not(&mut self, unit: usize, wrong: &str) {
        let reasons = match self.stays(unit) {
            Some(stays) => vec![(None, stays.to_owned())],
            None => self.against(unit),
        };
        for vm in &self.model.units[unit].vms {
            let vm = self.case.vms[*vm as usize].name.clone();
            self.unmoved.push(WhyNot { vm, wrong: wrong.into(), reasons: reasons.clone() });
        }
    }

    fn against(&self, unit: usize) -> Vec<(Option<HostName>, String)> {
        let here = self.model.place[unit].map(|host| host as usize);
        let hosts = (0..self.case.hosts.len()).filter(|host| Some(*host) != here);
        let name = |host: usize| Some(self.case.hosts[host].name.clone());
        let against =
            |host: usize| self.model.against(unit, host).into_iter().map(move |why| (name(host), why));
        let reasons: Vec<_> = hosts.flat_map(against).collect();
        if reasons.is_empty() { vec![(None, "there is no other host".into())] } else { reasons }
    }

    /// Names of the first VM of a unit, for reasons.
    pub(super) fn name(&self, unit: usize) -> godwit_types::VmName {
        self.case.vms[self.model.units[unit].vms[0] as usize].name.clone()
    }
}
