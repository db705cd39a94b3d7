//! What must hold.

use godwit_manager::Power;

use super::manager::Ending;
use super::{FIRST, NEXT, Side, World};
use crate::rules::Commit;

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("the VM runs on both hosts")]
    TwoRunners,
    #[error("the {0:?} started the VM without owning it in the arbiter's record")]
    RunsWithoutOwning(Side),
    #[error("the source runs the VM at an epoch that is older than one at which it has run")]
    OlderEpochRuns,
    #[error("a machine that does not stand still was resumed")]
    RanAgain,
    #[error("the guest's memory at the resume is not what it was at the stop")]
    MemoryLost,
    #[error("a write that the disk had acknowledged is lost")]
    DiskWriteLost,
    #[error("the attempt failed before the handover, and the VM stands still at the source")]
    FailedAndStopped,
    #[error("the source has handed the VM over, and the arbiter has not granted it")]
    HandedOverUngranted,
    #[error("no commit was granted and nothing killed the source, but the VM does not run there")]
    SourceGaveUp,
    #[error("nobody runs the VM, and the process that owned it was not killed")]
    Lost,
    #[error("the commit was granted and the destination lives, but nobody runs the VM since its source died")]
    GrantForgotten,
    #[error("the source died when the destination had everything, and the VM was not taken over")]
    NotTakenOver,
    #[error("the manager's record is wrong: {0}")]
    WrongClaim(String),
    #[error("the VM runs at the destination, its source lives, and part of its memory has not followed")]
    NeverWhole,
    #[error("a vCPU was slowed by more than the user's bound")]
    SlowedTooMuch,
    #[error("a vCPU that hardly writes was slowed")]
    ReaderSlowed,
    #[error("a vCPU that stands was slowed, and would be so wherever it runs next")]
    SlowedInBlackout,
    #[error("the VM runs on at the source without a migration, and its vCPUs are still slowed")]
    SlowedForGood,
    #[error("something waits for ever: {0}")]
    Stuck(String),
}

impl World {
    /// A machine has just started to run.
    pub(crate) fn starts(&self, side: Side) -> Result<(), Violation> {
        if side == Side::Source && self.ran {
            return Err(Violation::OlderEpochRuns);
        }
        if self.disk.content != self.guest.acknowledged {
            return Err(Violation::DiskWriteLost);
        }
        self.check()
    }

    /// What must hold after every step.
    pub(crate) fn check(&self) -> Result<(), Violation> {
        let (at_source, at_destination) = (self.runs(Side::Source), self.runs(Side::Destination));
        if at_source && at_destination {
            return Err(Violation::TwoRunners);
        }
        // An intent's record may be behind the grant, which is what makes it interesting.
        if self.rules.commit != Commit::Durable {
            return Ok(());
        }
        let owned = &self.manager.rows.owned;
        let owns = |side: Side, epoch| owned.epoch == epoch && owned.owner == side.host();
        if at_source && !owns(Side::Source, FIRST) {
            return Err(Violation::RunsWithoutOwning(Side::Source));
        }
        if at_destination && !owns(Side::Destination, NEXT) {
            return Err(Violation::RunsWithoutOwning(Side::Destination));
        }
        let handed_over = self.source.as_ref().is_some_and(|source| source.life == super::Life::HandedOver);
        if handed_over && !self.manager.is_committed() {
            return Err(Violation::HandedOverUngranted);
        }
        Ok(())
    }

    /// What must hold in the end, when no fault is left and everybody has done what they can.
    pub(crate) fn check_end(&self) -> Result<(), Violation> {
        let (at_source, at_destination) = (self.runs(Side::Source), self.runs(Side::Destination));
        let committed = self.manager.is_committed();
        let owner = if committed { Side::Destination } else { Side::Source };
        let nobody = !at_source && !at_destination;
        if nobody && !self.granted && !committed && !self.killed[0] {
            return Err(Violation::SourceGaveUp);
        }
        if nobody && !self.killed[owner.index()] {
            return Err(Violation::Lost);
        }
        if nobody && self.rules.grants_outlive_sources && self.granted && !self.killed[1] {
            return Err(Violation::GrantForgotten);
        }
        let excused =
            self.forsaken || self.manager.rows.cancelling || !self.rules.shared_locks || self.killed[1];
        if nobody && self.heir && !excused {
            return Err(Violation::NotTakenOver);
        }
        if self.lacks_memory() && !self.killed[0] {
            return Err(Violation::NeverWhole);
        }
        if let Some(source) = self.source.as_ref().filter(|source| !source.runs())
            && !self.granted
        {
            return Err(Violation::Stuck(format!("the source is {:?}", source.life)));
        }
        self.check_claims(at_source, at_destination)
    }

    /// Whether what the manager's rows say is so.
    fn check_claims(&self, at_source: bool, at_destination: bool) -> Result<(), Violation> {
        let rows = &self.manager.rows;
        let wrong = |what: &str| Err(Violation::WrongClaim(what.to_owned()));
        let owner_runs = if rows.owned.owner == Side::Source.host() { at_source } else { at_destination };
        if (at_source || at_destination) && !owner_runs {
            return wrong("the VM runs on a host that does not own it");
        }
        match (owner_runs, rows.power) {
            (true, Power::Running) | (false, Power::Crashed) => {}
            (true, _) => return wrong("the VM runs, and is said not to"),
            (false, _) => return wrong("the VM does not run, and is said to"),
        }
        match rows.ending {
            None => wrong("the task never ended"),
            Some(Ending::Lost) if owner_runs => wrong("the VM was said to be lost, and runs"),
            Some(Ending::Moved) if !self.ran => wrong("the VM was said to have moved, and never ran there"),
            Some(Ending::Stayed) if self.ran => wrong("the VM was said to stay, and has run elsewhere"),
            _ => Ok(()),
        }
    }
}
