//! The source's state machine, and what it must never do.

use std::collections::VecDeque;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use godwit_migration::proof::MemoryDigest;
use godwit_migration::source::{Action, Engine, Harvest, Input, Sent, Setup};
use godwit_migration::wire::{Ack, Control, Prepared, Ready, Resumed, Welcome};
use godwit_migration::{MachineError, Reclaimed, Tuning, VcpuActivity};
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
    /// The most that a vCPU may lose, in permille.
    slowdown_max: u16,
    /// What would come next if all went well: most inputs, or a run never gets as far as a commit.
    expected: VecDeque<Input>,
}

impl Checked {
    pub fn new(bytes: &mut Unstructured<'_>) -> Result<Self> {
        let host = |name: &str| name.parse().expect("it is a host's name");
        let on_deadline = if bytes.arbitrary()? { OnDeadline::Switch } else { OnDeadline::Cancel };
        let (post_copy, verify) = (bytes.arbitrary()?, bytes.arbitrary()?);
        let slowdown_percent_max = bytes.int_in_range(0..=99)?;
        let blackout_ms_max = if post_copy { 0 } else { Budget::default().blackout_ms_max };
        let setup = Setup {
            migration: MigrationId(Uuid::nil()),
            source: host("a"),
            destination: host("b"),
            budget: Budget {
                on_deadline,
                post_copy,
                verify,
                blackout_ms_max,
                slowdown_percent_max,
                ..Budget::default()
            },
            ram_pages: 8,
            disk_pages: 0,
            unix: Duration::ZERO,
            tuning: Tuning { page_streams: message::STREAMS, ..Tuning::default() },
        };
        let mut engine = Engine::new(setup);
        engine.handle(Duration::ZERO, Input::Start);
        let welcome = Welcome { post_copy, verify: true, ..Welcome::default() };
        let (asked, granted, given) = (false, false, false);
        let expected = [Input::Control(Control::Welcome(welcome))].into();
        let (reclaiming, handed_over, ended) = (false, false, false);
        let slowdown_max = u16::from(slowdown_percent_max) * 10;
        Ok(Self { engine, asked, granted, given, reclaiming, handed_over, ended, slowdown_max, expected })
    }

    /// Tells it one thing and looks at what it does.
    pub fn step(&mut self, now: Duration, bytes: &mut Unstructured<'_>) -> Result<()> {
        let input = match self.expected.pop_front() {
            Some(expected) if !bytes.ratio(1, 8)? => expected,
            _ => input(bytes)?,
        };
        match &input {
            // The answer to any of its questions, however late, is the arbiter's word.
            Input::Verdict(verdict) if self.asked => {
                self.granted |= matches!(verdict, Verdict::Granted { .. });
            }
            Input::Reclaimed(answer) if self.reclaiming => {
                self.given &= !matches!(answer, Ok(Reclaimed::Ours));
                // The VM was granted to another, by a word that has not come.
                self.granted |= matches!(answer, Ok(Reclaimed::Lost(_)));
            }
            _ => {}
        }
        let actions = self.engine.handle(now, input);
        assert!(actions.len() <= ACTIONS_MAX, "{actions:?}");
        for action in actions {
            assert!(!self.ended, "{action:?} after the end");
            self.expect(&action, bytes)?;
            match action {
                Action::SendState { .. } => self.given = true,
                Action::AskCommit => self.asked = true,
                Action::PushRest | Action::Reconnect { .. } => {
                    assert!(self.handed_over, "it lets memory follow a guest that may still run here");
                }
                Action::Reclaim => self.reclaiming = true,
                Action::HandOver => {
                    assert!(self.granted, "it hands over without a grant");
                    self.handed_over = true;
                }
                Action::Resume => assert!(!self.given && !self.handed_over, "it may run in two places"),
                Action::End(_) => self.ended = true,
                Action::Slow { shares } => {
                    assert!(shares.iter().all(|share| *share <= self.slowdown_max), "{shares:?}");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Checked {
    /// What a machine, an arbiter and a destination would say to an action.
    fn expect(&mut self, action: &Action, bytes: &mut Unstructured<'_>) -> Result<()> {
        let mut say = |input| self.expected.push_back(input);
        match action {
            Action::OpenStreams => {
                say(Input::StreamsOpened(Ok(())));
                say(Input::Control(Control::Ready(Ready {})));
            }
            Action::StartLog => say(Input::LogStarted(message::outcome(bytes)?)),
            Action::Harvest => say(Input::Harvested(harvest(bytes)?)),
            Action::SendRound { round } => {
                for stream in 0..message::STREAMS {
                    say(Input::RoundSent { stream, round: *round });
                    let ack = Ack { stream, wire_bytes: 1 << 20, pages: 8, round: *round };
                    say(Input::Control(Control::Ack(ack)));
                }
            }
            Action::Pause => say(Input::Paused(message::timed(bytes)?)),
            Action::Save { .. } => say(Input::Saved(message::outcome(bytes)?)),
            Action::SendState { .. } => say(Input::Control(Control::Prepared(Prepared::default()))),
            Action::AskCommit => say(Input::Verdict(destination::verdict(bytes)?)),
            Action::Reclaim => say(Input::Reclaimed(message::outcome(bytes)?.map(|()| Reclaimed::Ours))),
            Action::Resume => say(Input::Resumed(message::outcome(bytes)?)),
            Action::HandOver => {
                say(Input::HandedOver);
                say(Input::Control(Control::Resumed(Resumed { took_us: 7, ..Resumed::default() })));
            }
            Action::Reconnect { .. } => {
                say(Input::Reconnected(if bytes.ratio(1, 4)? { Err(message::lost()) } else { Ok(()) }));
                say(Input::Missing);
            }
            Action::Digest => {
                say(Input::Digested(message::outcome(bytes)?.map(|()| MemoryDigest::default())))
            }
            Action::PushRest => say(Input::Control(Control::Whole(message::whole(bytes)?))),
            _ => {}
        }
        Ok(())
    }
}

/// A reading of the dirty log.
fn harvest(bytes: &mut Unstructured<'_>) -> Result<std::result::Result<Harvest, MachineError>> {
    let (pages, took_ms) = (bytes.int_in_range(0..=8)?, bytes.int_in_range(0..=20)?);
    let (written_pages, held_ms) = (bytes.arbitrary()?, bytes.arbitrary::<u16>()?);
    let vcpu = VcpuActivity { written_pages, held: Duration::from_millis(held_ms.into()) };
    let vcpus = vec![vcpu; bytes.int_in_range(0..=3)?];
    Ok(message::outcome(bytes)?.map(|()| Harvest { pages, took: Duration::from_millis(took_ms), vcpus }))
}

fn input(bytes: &mut Unstructured<'_>) -> Result<Input> {
    Ok(match bytes.int_in_range(0..=18)? {
        0..=2 => Input::Control(message::control(bytes)?),
        3 => Input::StreamsOpened(if bytes.ratio(1, 8)? { Err(message::lost()) } else { Ok(()) }),
        4 => Input::LogStarted(message::outcome(bytes)?),
        5 | 6 => Input::Harvested(harvest(bytes)?),
        7 => Input::RoundSent { stream: bytes.int_in_range(0..=1)?, round: bytes.int_in_range(0..=4)? },
        8 => Input::Sent(Sent {
            page_stream_bytes: bytes.arbitrary::<u32>()?.into(),
            raw_pages: bytes.int_in_range(0..=100)?,
            zero_pages: bytes.int_in_range(0..=100)?,
            reused_pages: bytes.int_in_range(0..=100)?,
            packed_bytes: bytes.int_in_range(0..=100)?,
            ..Sent::default()
        }),
        9 => Input::Paused(message::timed(bytes)?),
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
        16 => Input::Missing,
        17 => Input::Reconnected(if bytes.arbitrary()? { Err(message::lost()) } else { Ok(()) }),
        15 => Input::Lost { link: message::link(bytes)?, error: message::lost() },
        _ => Input::Tick,
    })
}
