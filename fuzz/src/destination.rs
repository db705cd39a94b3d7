//! The destination's state machine, and what it must never do.

use std::collections::VecDeque;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use godwit_migration::destination::{Action, Engine, Input, Ran, Setup};
use godwit_migration::wire::{Ack, Committed, Control, Done};
use godwit_migration::{Loaded, Tuning};
use godwit_types::ownership::{Verdict, Witness};
use godwit_types::{Epoch, MigrationId};
use uuid::Uuid;

use crate::message;

/// Most actions that one input may lead to.
const ACTIONS_MAX: usize = 8;

/// See the module.
pub struct Checked {
    engine: Engine,
    asked: bool,
    granted: Option<Epoch>,
    /// Part of memory is still at the source.
    lacks: bool,
    ended: bool,
    /// What would come next if all went well: most inputs, or a run never gets as far as a claim.
    expected: VecDeque<Input>,
}

impl Checked {
    pub fn new() -> Self {
        let setup = Setup {
            migration: MigrationId(Uuid::nil()),
            epoch: Epoch(2),
            unix: Duration::ZERO,
            tuning: Tuning::default(),
        };
        let expected = [Input::Hello(message::healthy_hello())].into();
        Self { engine: Engine::new(setup), asked: false, granted: None, lacks: false, ended: false, expected }
    }

    /// Tells it one thing and looks at what it does.
    pub fn step(&mut self, now: Duration, bytes: &mut Unstructured<'_>) -> Result<()> {
        let input = match self.expected.pop_front() {
            Some(expected) if !bytes.ratio(1, 8)? => expected,
            _ => input(bytes)?,
        };
        if let Input::Verdict(verdict) = &input
            && std::mem::take(&mut self.asked)
            && let Verdict::Granted { epoch } = verdict
        {
            self.granted = Some(*epoch);
        }
        let named = matches!(input, Input::State { rest: true, .. });
        let whole = matches!(input, Input::Whole(_));
        let actions = self.engine.handle(now, input);
        let goes_on = !actions.iter().any(|action| matches!(action, Action::End(_)));
        self.lacks = (self.lacks || (named && goes_on)) && !whole;
        assert!(actions.len() <= ACTIONS_MAX, "{actions:?}");
        for action in actions {
            assert!(!self.ended, "{action:?} after the end");
            self.expect(&action, bytes)?;
            match action {
                Action::AskClaim { .. } => (self.asked, self.granted) = (true, None),
                Action::Run { epoch } => assert_eq!(Some(epoch), self.granted, "it runs without a grant"),
                Action::TakeOver => assert!(!self.lacks, "it takes over without all of its memory"),
                Action::End(result) => {
                    assert!(result.is_err() || result.ok() == self.granted);
                    self.ended = true;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Default for Checked {
    fn default() -> Self {
        Self::new()
    }
}

impl Checked {
    /// What a machine, an arbiter and a source would say to an action.
    fn expect(&mut self, action: &Action, bytes: &mut Unstructured<'_>) -> Result<()> {
        match action {
            Action::Admit { .. } => self.expected.push_back(Input::Admitted(Ok(()))),
            Action::AcceptStreams { count } => {
                self.expected.extend((0..*count).map(|_| Input::StreamOpened));
            }
            Action::Send(Control::Ready(_)) => {
                let ack = |stream| Input::Received(Ack { stream, wire_bytes: 16, pages: 0, round: 1 });
                self.expected.extend((0..message::STREAMS).map(ack));
                self.expected.push_back(Input::State { last_round: 1, rest: bytes.arbitrary()? });
            }
            Action::Load => {
                self.expected.push_back(Input::Loaded(message::outcome(bytes)?.map(|()| Loaded::default())))
            }
            Action::Send(Control::Prepared(_)) => {
                self.expected.push_back(Input::Control(Control::Committed(Committed { epoch: 2 })));
            }
            Action::AskClaim { .. } => self.expected.push_back(Input::Verdict(verdict(bytes)?)),
            Action::TakeOver => self.expected.push_back(Input::TookOver(witness(bytes)?)),
            Action::Run { .. } => self
                .expected
                .push_back(Input::Ran(message::timed(bytes)?.map(|locks| Ran { locks, ..Ran::default() }))),
            Action::Send(Control::Resumed(_)) => {
                self.expected.push_back(Input::Whole(message::whole(bytes)?))
            }
            Action::Send(Control::Whole(_)) => {
                self.expected.push_back(Input::Control(Control::Done(Done {})));
            }
            _ => {}
        }
        Ok(())
    }
}

fn input(bytes: &mut Unstructured<'_>) -> Result<Input> {
    Ok(match bytes.int_in_range(0..=15)? {
        0 => Input::Hello(message::hello(bytes)?),
        1 => Input::Admitted(if bytes.ratio(1, 8)? { Err(vec!["it does not fit".into()]) } else { Ok(()) }),
        2 => Input::StreamOpened,
        3 => Input::Received(message::ack(bytes)?),
        4 => Input::State { last_round: bytes.int_in_range(0..=4)?, rest: bytes.arbitrary()? },
        5 | 6 => Input::Control(message::control(bytes)?),
        7 => Input::Loaded(message::outcome(bytes)?.map(|()| Loaded::default())),
        8 => Input::Verdict(verdict(bytes)?),
        9 => Input::TookOver(witness(bytes)?),
        10 => Input::Ran(message::timed(bytes)?.map(|locks| Ran { locks, ..Ran::default() })),
        12 => Input::Touched(vec![bytes.int_in_range(0..=20)?]),
        13 => Input::Whole(message::whole(bytes)?),
        14 => Input::Rejoined,
        11 => Input::Lost { link: message::link(bytes)?, error: message::lost() },
        _ => Input::Tick,
    })
}

fn witness(bytes: &mut Unstructured<'_>) -> Result<Witness> {
    Ok(match bytes.int_in_range(0..=2)? {
        0 => Witness::None,
        1 => Witness::SourceDead,
        _ => Witness::Blind { reason: "nothing is seen".into() },
    })
}

/// Any word of the arbiter.
pub fn verdict(bytes: &mut Unstructured<'_>) -> Result<Verdict> {
    Ok(match bytes.int_in_range(0..=2)? {
        0 => Verdict::Granted { epoch: Epoch(bytes.arbitrary()?) },
        1 => Verdict::Undecided,
        _ => Verdict::Refused { reason: "it has moved on".into() },
    })
}
