//! Whether a VM can move to a host: a pure function of what is recorded, what the hosts reported, and what their agents
//! say now. Every check is made, whatever the others come to.
//!
//! ```text
//!   records: VM, owner, task --+
//!   reports: facts of hosts  --+--> judge --> one list of findings: the preflight refuses by it, the API shows it
//!   answers: guest, admission -+
//! ```

mod clock;
mod disks;
mod pair;
mod passed;
mod sides;

use godwit_types::ApiError;
use godwit_types::capability::{GuestFacts, VmmOffer};
use godwit_types::check::{Check, Finding, HostCheck, Verdict};
use godwit_types::ownership::Ownership;
use godwit_types::task::Task;

pub(crate) use clock::Skew;
pub(crate) use sides::{down, unconfirmed};

use crate::moving::{Moving, Wish};
use crate::store::{HostRow, Power, VmRow};

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case<'a> {
    pub vm: &'a VmRow,
    pub owned: Option<&'a Ownership>,
    /// The task that is busy with the VM.
    pub busy: Option<&'a Task>,
    /// The host that owns the VM.
    pub source: Option<&'a HostRow>,
    pub destination: &'a HostRow,
    pub wish: &'a Wish,
    /// Disks that move along, or would have to.
    pub moving: &'a Moving,
    pub answers: &'a Answers,
}

/// What the agents say now; none where they were not asked, since there is nobody to answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answers {
    /// The source's, of the VM's process.
    pub guest: Option<Result<GuestFacts, ApiError>>,
    /// The destination's: all that keeps the VM from arriving.
    pub admission: Option<Result<Vec<Finding>, ApiError>>,
    pub skew: Skew,
}

/// Makes every check.
pub(crate) fn judge(case: &Case<'_>) -> HostCheck {
    let mut findings = sides::vm(case);
    if case.is_there_already() {
        let (name, host) = (&case.vm.name, &case.destination.name);
        findings.push(Finding::blocked(
            Check::Vm,
            format!("{name} is on {host} already"),
            "name another host",
        ));
    } else {
        findings.extend(sides::source(case));
        findings.extend(sides::destination(case));
        findings.extend(pair::findings(case));
        findings.extend(disks::findings(case));
        findings.extend(clock::findings(case));
        let asked = |check: &Check| *check != Check::PostCopy || case.wish.budget.post_copy;
        for check in Check::ALL.into_iter().filter(asked) {
            if findings.iter().all(|finding| finding.check != check) {
                findings.push(passed::finding(check, case));
            }
        }
    }
    findings.sort_by_key(|finding| finding.check);
    // Several disks in one datastore that is missing say the same.
    findings.dedup();
    let verdict = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok);
    HostCheck { host: case.destination.name.clone(), verdict, findings }
}

impl<'a> Case<'a> {
    fn is_there_already(&self) -> bool {
        let there = self.source.is_some_and(|source| source.name == self.destination.name);
        there && self.vm.power == Power::Running
    }

    /// What the VM's process says of itself, if it said something.
    fn guest(&self) -> Option<&'a GuestFacts> {
        self.answers.guest.as_ref()?.as_ref().ok()
    }

    /// What the destination's VMM can run, if that is known.
    fn offer(&self) -> Option<&'a VmmOffer> {
        self.destination.facts.vmm.as_ref()
    }
}

#[cfg(test)]
#[path = "../check_tests.rs"]
mod tests;
