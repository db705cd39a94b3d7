//! Whether a rule says anything that can be kept, whatever the cluster is.

use std::collections::BTreeSet;

use godwit_types::VmName;

use super::{Hosts, Rule, RuleKind};

/// Why a rule says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleFinding {
    #[error("the rule is about {vms} VMs, and needs at least {least}")]
    FewVms { vms: usize, least: usize },
    #[error("the rule allows 0 VMs on a host, so none of them could run")]
    NonePerHost,
    #[error("the rule spreads over {0} failure domains")]
    FewDomains(u32),
    #[error("the rule names no host and no label")]
    NoHosts,
}

impl RuleFinding {
    /// What the person who has written it can do.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::FewVms { .. } => "name more VMs",
            Self::NonePerHost => "allow at least 1 on each host",
            Self::FewDomains(_) => "name 2 or more",
            Self::NoHosts => "name hosts, or labels that hosts have",
        }
    }
}

/// The VMs of a rule's kind, as it is given: to be read or to be changed.
macro_rules! vms_of {
    ($kind:expr) => {
        match $kind {
            RuleKind::Together { vms }
            | RuleKind::Apart { vms }
            | RuleKind::MaxPerHost { vms, .. }
            | RuleKind::Spread { vms, .. }
            | RuleKind::RunOn { vms, .. }
            | RuleKind::NotOn { vms, .. } => vms,
        }
    };
}

impl Rule {
    /// Why it says nothing, if so.
    pub fn findings(&self) -> Vec<RuleFinding> {
        let mut findings = Vec::new();
        let (vms, mut least) = (self.vms().len(), 1);
        match &self.kind {
            RuleKind::Together { .. } | RuleKind::Apart { .. } => least = 2,
            RuleKind::MaxPerHost { most, .. } => {
                findings.extend((*most == 0).then_some(RuleFinding::NonePerHost))
            }
            RuleKind::Spread { domains, .. } => {
                least = *domains as usize;
                findings.extend((*domains < 2).then_some(RuleFinding::FewDomains(*domains)));
            }
            RuleKind::RunOn { .. } | RuleKind::NotOn { .. } => {
                let named =
                    self.hosts().is_some_and(|hosts| !hosts.names.is_empty() || !hosts.labels.is_empty());
                findings.extend((!named).then_some(RuleFinding::NoHosts));
            }
        }
        findings.extend((vms < least.max(1)).then_some(RuleFinding::FewVms { vms, least: least.max(1) }));
        findings
    }

    /// The VMs that it is about.
    pub fn vms(&self) -> &BTreeSet<VmName> {
        vms_of!(&self.kind)
    }

    /// The hosts that it names, if it is about hosts.
    pub fn hosts(&self) -> Option<&Hosts> {
        match &self.kind {
            RuleKind::RunOn { hosts, .. } | RuleKind::NotOn { hosts, .. } => Some(hosts),
            _ => None,
        }
    }

    /// The rule without a VM that is gone; none if it was about no other.
    #[must_use]
    pub fn without(mut self, vm: &VmName) -> Option<Self> {
        let vms = vms_of!(&mut self.kind);
        vms.remove(vm);
        (!vms.is_empty()).then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vms<const N: usize>(names: [&str; N]) -> BTreeSet<VmName> {
        names.map(|name| name.parse().unwrap()).into()
    }

    fn found(kind: RuleKind) -> Vec<RuleFinding> {
        Rule { name: "rule".parse().unwrap(), must: true, kind }.findings()
    }

    #[test]
    fn a_rule_that_says_nothing_is_found() {
        let hosts = Hosts::default();
        let few = |vms, least| RuleFinding::FewVms { vms, least };
        assert_eq!(found(RuleKind::Apart { vms: vms(["a"]) }), [few(1, 2)]);
        assert_eq!(found(RuleKind::Together { vms: vms([]) }), [few(0, 2)]);
        assert_eq!(found(RuleKind::MaxPerHost { vms: vms(["a"]), most: 0 }), [RuleFinding::NonePerHost]);
        assert_eq!(found(RuleKind::Spread { vms: vms(["a", "b"]), domains: 3 }), [few(2, 3)]);
        assert_eq!(found(RuleKind::Spread { vms: vms(["a"]), domains: 1 }), [RuleFinding::FewDomains(1)]);
        assert_eq!(found(RuleKind::RunOn { vms: vms(["a"]), hosts }), [RuleFinding::NoHosts]);
    }

    #[test]
    fn a_rule_that_says_something_is_well() {
        let hosts = Hosts { labels: vms(["ssd"]), ..Hosts::default() };
        assert_eq!(found(RuleKind::Apart { vms: vms(["a", "b"]) }), []);
        assert_eq!(found(RuleKind::Spread { vms: vms(["a", "b"]), domains: 2 }), []);
        assert_eq!(found(RuleKind::NotOn { vms: vms(["a"]), hosts }), []);
    }

    #[test]
    fn a_rule_ends_with_its_last_vm() {
        let rule =
            Rule { name: "r".parse().unwrap(), must: true, kind: RuleKind::Apart { vms: vms(["a", "b"]) } };
        let rule = rule.without(&"a".parse().unwrap()).unwrap();
        assert_eq!(rule.vms(), &vms(["b"]));
        assert_eq!(rule.without(&"b".parse().unwrap()), None);
    }
}
