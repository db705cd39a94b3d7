//! From any state to the end: no fault comes any more, and everybody does what they can.

use std::time::Duration;

use super::choice::{Choice, Fault};
use super::manager::Drive;
use super::{Side, Violation, World};

/// Steps in which everything must have come to rest.
const STEPS_MAX: usize = 3000;
/// Heartbeats of each host after that.
const REPORTS: usize = 3;
/// The engines' own heartbeat, and a time in which every bound has passed.
const HEARTBEAT: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);

impl World {
    /// Lets everybody go on until nothing happens any more, then checks what must hold in the end. `seen` is told each
    /// step before it happens.
    pub fn finish(&mut self, mut seen: impl FnMut(&Self, Choice)) -> Result<(), Violation> {
        let mut idle = 0;
        for step in 0..STEPS_MAX {
            if self.is_settled() {
                self.reports_come()?;
                // A heartbeat may have led to one more call.
                if self.is_settled() {
                    return self.check_end();
                }
            }
            let choice = self.next(step, &mut idle);
            seen(self, choice);
            self.apply(choice)?;
        }
        Err(Violation::Stuck(format!("after {STEPS_MAX} more steps without a fault, {}", self.condition())))
    }

    fn next(&self, step: usize, idle: &mut usize) -> Choice {
        let mut open = self.choices();
        open.retain(|choice| !matches!(choice, Choice::Poll { .. }));
        if !open.is_empty() {
            return open[step % open.len()];
        }
        let waits = matches!(self.manager.drive, Drive::Preparing | Drive::Starting);
        if waits && self.net.calls.is_empty() {
            return Choice::Fault(Fault::CallTimesOut);
        }
        *idle += 1;
        // An heir that could still turn out to have everything would have done so by now.
        let late = self.manager.drive == Drive::AskHeir;
        if self.manager.drive.asks() && *idle % 2 == 1 { Choice::Poll { late } } else { self.next_tick() }
    }

    /// As much time as may pass before something happens by itself. Heartbeats see to it that live sides hear each other.
    fn next_tick(&self) -> Choice {
        let waits = self.destination.as_ref().is_some_and(|it| !it.greeted);
        let beats = !self.net.silent && !self.net.to_destination.closed;
        let wait = Side::BOTH.into_iter().filter_map(|side| self.deadline(side)).min();
        let wait = if waits { LONGEST } else { wait.unwrap_or(LONGEST) };
        let wait = if beats && !waits { wait.min(HEARTBEAT) } else { wait };
        Choice::Tick { ms: wait.as_millis() as u16 }
    }

    /// The last heartbeats, which nobody needs to be told of.
    fn reports_come(&mut self) -> Result<(), Violation> {
        for _ in 0..2 * REPORTS {
            let open: Vec<Choice> = self.reports().collect();
            for choice in open {
                self.apply(choice)?;
            }
        }
        Ok(())
    }

    fn condition(&self) -> String {
        let life = |runs: bool, exists: bool| match (exists, runs) {
            (false, _) => "is gone",
            (true, true) => "runs",
            (true, false) => "stands",
        };
        format!(
            "the source {}, the destination {}, the task {:?}, open: {:?}",
            life(self.runs(Side::Source), self.source.is_some()),
            life(self.runs(Side::Destination), self.destination.is_some()),
            self.manager.drive,
            self.choices()
        )
    }
}
