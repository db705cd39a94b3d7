//! The ownership record without a manager.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use godwit_migration::driver::Arbiter;
use godwit_types::control::Question;
use godwit_types::ownership::Verdict;
use godwit_types::{Epoch, MigrationId};

#[derive(Default)]
struct Record {
    committed: Option<(MigrationId, Epoch)>,
    closed: Vec<MigrationId>,
}

/// Grants a commit once, and claims only after it.
#[derive(Default)]
pub struct ModelArbiter {
    record: Mutex<Record>,
    pub refuse_commits: AtomicBool,
    /// Answers that are dropped before one is given.
    pub unanswered: AtomicU64,
    pub delay_ms: AtomicU64,
    pub claims: AtomicU64,
    /// Set, and the answer held back for a while, when a commit is asked for.
    pub on_commit: Mutex<Option<Arc<AtomicBool>>>,
}

impl ModelArbiter {
    /// What the manager does once it knows that an attempt has failed: its commit can no longer come.
    pub fn close(&self, migration: u128) {
        self.record.lock().unwrap().closed.push(MigrationId(uuid::Uuid::from_u128(migration)));
    }

    pub fn is_committed(&self) -> bool {
        self.record.lock().unwrap().committed.is_some()
    }

    /// The next migration starts from a new owner.
    pub fn settle(&self) {
        self.record.lock().unwrap().committed = None;
    }

    fn decide(&self, question: &Question) -> Verdict {
        let mut record = self.record.lock().unwrap();
        if record.closed.contains(&question.migration()) {
            return Verdict::Refused { reason: "the migration has ended".into() };
        }
        match question {
            Question::Commit { .. } if self.refuse_commits.load(SeqCst) => {
                Verdict::Refused { reason: "the destination is in maintenance".into() }
            }
            Question::Commit { migration, epoch, .. } => {
                record.committed = Some((*migration, epoch.next()));
                Verdict::Granted { epoch: epoch.next() }
            }
            Question::Claim { migration, .. } => match record.committed {
                Some((committed, epoch)) if committed == *migration => Verdict::Granted { epoch },
                _ => Verdict::Undecided,
            },
        }
    }
}

impl Arbiter for ModelArbiter {
    fn ask(&self, question: Question, answer: Box<dyn FnOnce(Verdict) + Send>) {
        if matches!(question, Question::Claim { .. }) {
            self.claims.fetch_add(1, SeqCst);
        }
        if self.unanswered.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            return;
        }
        let mut delay = Duration::from_millis(self.delay_ms.load(SeqCst));
        let event = self.on_commit.lock().unwrap().take_if(|_| matches!(question, Question::Commit { .. }));
        if let Some(event) = event {
            event.store(true, SeqCst);
            delay = Duration::from_millis(150);
        }
        let verdict = self.decide(&question);
        thread::spawn(move || {
            thread::sleep(delay);
            answer(verdict);
        });
    }
}
