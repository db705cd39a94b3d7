//! The source's state machine, and what it must never do.

use std::time::Duration;

use arbitrary::{Result, Unstructured};
use godwit_migration::source::{Action, Engine, Harvest, Input, Sent, Setup};
use godwit_migration::{Reclaimed, Tuning};
use godwit_types::MigrationId;
use godwit_types::migration::{Budget, OnDeadline};
use godwit_types::ownership::Verdict;
use uuid::Uuid;

use crate::{destination, message};

/// Most actions that one input may lead to.
const ACTIONS_MAX: usize = 12;

/// See the module.
pub struct Checked {
    engine: Engine,
    asked: bool,
    granted: bool,
    /// The destination may have everything, and the VM was not reclaimed since.
    given: bool,
    reclaiming: bool,
    handed_over: bool,
    ended: bool,
}

impl Checked {
    pub fn new(bytes: &mut Unstructured<'_>) -> Result<Self> {
        let host = |name: &str| name.parse().expect("it is a host's name");
        let on_deadline = if bytes.arbitrary()? { OnDeadline::Switch } else { OnDeadline::Cancel };
        let setup = Setup {
            migration: MigrationId(Uuid::nil()),
            source: host("a"),
            destination: host("b"),
            budget: Budget { on_deadline, ..Budget::default() },
            ram_pages: 8,
            tuning: Tuning { page_streams: 2, ..Tuning::default() },
        };
        let mut engine = Engine::new(setup);
        engine.handle(Duration::ZERO, Input::Start);
        let (asked, granted, given) = (false, false, false);
        Ok(Self { engine, asked, granted, given, reclaiming: false, handed_over: false, ended: false })
    }

    /// Tells it one thing and looks at what it does.
    pub fn step(&mut self, now: Duration, bytes: &mut Unstructured<'_>) -> Result<()> {
        let input = input(bytes)?;
        match &input {
            Input::Verdict(verdict) if std::mem::take(&mut self.asked) => {
                self.granted |= matches!(verdict, Verdict::Granted { .. });
            }
            Input::Reclaimed(answer) if std::mem::take(&mut self.reclaiming) => {
                self.given &= !matches!(answer, Ok(Reclaimed::Ours));
            }
            _ => {}
        }
        let actions = self.engine.handle(now, input);
        assert!(actions.len() <= ACTIONS_MAX, "{actions:?}");
        for action in actions {
            assert!(!self.ended, "{action:?} after the end");
            match action {
                Action::SendState { .. } => self.given = true,
                Action::AskCommit => self.asked = true,
                Action::Reclaim => self.reclaiming = true,
                Action::HandOver => {
                    assert!(self.granted, "it hands over without a grant");
                    self.handed_over = true;
                }
                Action::Resume => assert!(!self.given && !self.handed_over, "it may run in two places"),
                Action::End(_) => self.ended = true,
                _ => {}
            }
        }
        Ok(())
    }
}

fn input(bytes: &mut Unstructured<'_>) -> Result<Input> {
    Ok(match bytes.int_in_range(0..=16)? {
        0..=2 => Input::Control(message::control(bytes)?),
        3 => Input::StreamsOpened(if bytes.ratio(1, 8)? { Err(message::lost()) } else { Ok(()) }),
        4 => Input::LogStarted(message::outcome(bytes)?),
        5 | 6 => {
            let harvest = Harvest {
                pages: bytes.int_in_range(0..=8)?,
                took: Duration::from_millis(bytes.int_in_range(0..=20)?),
            };
            Input::Harvested(message::outcome(bytes)?.map(|()| harvest))
        }
        7 => Input::RoundSent { stream: bytes.int_in_range(0..=1)?, round: bytes.int_in_range(0..=4)? },
        8 => Input::Sent(Sent {
            page_stream_bytes: bytes.arbitrary::<u32>()?.into(),
            raw_pages: bytes.int_in_range(0..=100)?,
            zero_pages: bytes.int_in_range(0..=100)?,
            ..Sent::default()
        }),
        9 => Input::Paused(message::outcome(bytes)?),
        10 => Input::Saved(message::outcome(bytes)?),
        11 => Input::Reclaimed(if bytes.arbitrary()? {
            message::outcome(bytes)?.map(|()| Reclaimed::Ours)
        } else {
            Ok(Reclaimed::Lost("it has moved on".into()))
        }),
        12 => Input::Resumed(message::outcome(bytes)?),
        13 => Input::Verdict(destination::verdict(bytes)?),
        14 if bytes.ratio(1, 4)? => Input::HandedOver,
        14 => Input::Cancel,
        15 => Input::Lost { link: message::link(bytes)?, error: message::lost() },
        _ => Input::Tick,
    })
}
