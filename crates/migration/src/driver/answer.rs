//! The arbiter's answer on its way to an engine.

use std::sync::{Arc, Mutex, PoisonError};

use godwit_types::ownership::Verdict;

/// Where an answer waits for its engine. An engine has one question open at a time.
#[derive(Default)]
pub(super) struct AnswerSlot {
    verdict: Mutex<Option<Verdict>>,
}

impl AnswerSlot {
    pub(super) fn take(&self) -> Option<Verdict> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Fills the slot once: with the verdict, or, if it is dropped without one, with [`Verdict::Undecided`].
struct Answer<W: Fn()> {
    slot: Arc<AnswerSlot>,
    verdict: Option<Verdict>,
    wake: W,
}

impl<W: Fn()> Answer<W> {
    fn give(mut self, verdict: Verdict) {
        self.verdict = Some(verdict);
    }
}

impl<W: Fn()> Drop for Answer<W> {
    fn drop(&mut self) {
        let verdict = self.verdict.take().unwrap_or(Verdict::Undecided);
        *self.slot.verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
        (self.wake)();
    }
}

/// The callback for one question; `wake` makes the engine look into the slot, and never blocks.
pub(super) fn callback(
    slot: &Arc<AnswerSlot>,
    wake: impl Fn() + Send + 'static,
) -> Box<dyn FnOnce(Verdict) + Send> {
    let answer = Answer { slot: Arc::clone(slot), verdict: None, wake };
    Box::new(move |verdict| answer.give(verdict))
}

#[cfg(test)]
mod tests {
    use godwit_types::Epoch;

    use super::*;

    #[test]
    fn a_question_that_is_dropped_unanswered_is_undecided() {
        let slot = Arc::new(AnswerSlot::default());
        drop(callback(&slot, || ()));
        assert_eq!(slot.take(), Some(Verdict::Undecided));
        callback(&slot, || ())(Verdict::Granted { epoch: Epoch(2) });
        assert_eq!(slot.take(), Some(Verdict::Granted { epoch: Epoch(2) }));
        assert_eq!(slot.take(), None);
    }
}
