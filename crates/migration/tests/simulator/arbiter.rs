//! The ownership record and the questions that are open.

use godwit_types::migration::MigrationOutcome;
use godwit_types::ownership::Verdict;

#[derive(Default)]
pub(crate) struct Arbiter {
    pub(crate) refuse: bool,
    /// The next answer is lost on its way, which the driver turns into `Undecided`.
    pub(crate) lose_next: bool,
    pub(crate) commit_asked: bool,
    granted: bool,
    claimed: bool,
    /// The manager knows that the attempt is over.
    closed: bool,
    commit_open: bool,
    claim_open: bool,
}

impl Arbiter {
    pub(crate) fn is_granted(&self) -> bool {
        self.granted
    }

    pub(crate) fn is_claimed(&self) -> bool {
        self.claimed
    }

    pub(crate) fn ask_commit(&mut self) {
        assert!(!self.commit_open, "asked twice at once");
        (self.commit_asked, self.commit_open) = (true, true);
    }

    pub(crate) fn ask_claim(&mut self) {
        assert!(!self.claim_open, "asked twice at once");
        self.claim_open = true;
    }

    /// What the source's agent reports about its end, or its death.
    pub(crate) fn learn(&mut self, outcome: &Option<MigrationOutcome>, alive: bool) {
        self.closed |= !alive || matches!(outcome, Some(MigrationOutcome::Failed { .. }));
    }

    pub(crate) fn commit_answer(&mut self) -> Option<Verdict> {
        if !std::mem::take(&mut self.commit_open) {
            return None;
        }
        if self.refuse || self.closed {
            return Some(Verdict::Refused { reason: "no".into() });
        }
        self.granted = true;
        Some(self.deliver(super::granted()))
    }

    pub(crate) fn claim_answer(&mut self) -> Option<Verdict> {
        if !std::mem::take(&mut self.claim_open) {
            return None;
        }
        let verdict = match (self.granted, self.closed) {
            (true, _) => super::granted(),
            (false, true) => Verdict::Refused { reason: "over".into() },
            (false, false) => Verdict::Undecided,
        };
        self.claimed |= self.granted;
        Some(self.deliver(verdict))
    }

    fn deliver(&mut self, verdict: Verdict) -> Verdict {
        if std::mem::take(&mut self.lose_next) { Verdict::Undecided } else { verdict }
    }
}
