//! The life of a machine.
//!
//! ```text
//!              start
//!     built ----------------------+
//!                                 v     pause              hand over
//!                       +---- running ----------> paused ------------> handed over
//!                 reset |      ^  ^ ^               |
//!                       +------+  | +---------------+
//!               load          run |      resume
//!  incoming -----------> loaded --+
//!
//!     all but handed over ---- stop ----> stopped
//! ```

use godwit_types::control::VmmState;

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Built to boot here.
    Built,
    /// Built to receive a migration.
    Incoming,
    /// All state has arrived; waits for the arbiter.
    Loaded,
    Running,
    /// vCPUs and devices stand still.
    Paused,
    /// Belongs to another host. There is no way back.
    HandedOver,
    Stopped,
}

/// What can be done with a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Start,
    Load,
    Run,
    Pause,
    Resume,
    Reset,
    HandOver,
    Stop,
}

/// A step that the machine's state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a machine that is {from:?} cannot do the step {step:?}")]
pub struct Illegal {
    pub from: Life,
    pub step: Step,
}

impl Life {
    /// The state after a step, if the step is allowed.
    pub fn after(self, step: Step) -> Result<Self, Illegal> {
        match (self, step) {
            (Self::Built, Step::Start)
            | (Self::Loaded, Step::Run)
            | (Self::Paused, Step::Resume)
            | (Self::Running, Step::Reset) => Ok(Self::Running),
            (Self::Incoming, Step::Load) => Ok(Self::Loaded),
            (Self::Running, Step::Pause) => Ok(Self::Paused),
            (Self::Paused, Step::HandOver) => Ok(Self::HandedOver),
            (Self::HandedOver, Step::Stop) => Err(Illegal { from: self, step }),
            (_, Step::Stop) => Ok(Self::Stopped),
            (from, step) => Err(Illegal { from, step }),
        }
    }

    /// The state as the control socket names it.
    pub fn as_told(self) -> VmmState {
        match self {
            Self::Incoming => VmmState::Incoming,
            Self::Running => VmmState::Running,
            Self::Built | Self::Loaded | Self::Paused => VmmState::Paused,
            Self::HandedOver => VmmState::HandedOver,
            Self::Stopped => VmmState::Stopped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Life; 7] = [
        Life::Built,
        Life::Incoming,
        Life::Loaded,
        Life::Running,
        Life::Paused,
        Life::HandedOver,
        Life::Stopped,
    ];
    const STEPS: [Step; 8] = [
        Step::Start,
        Step::Load,
        Step::Run,
        Step::Pause,
        Step::Resume,
        Step::Reset,
        Step::HandOver,
        Step::Stop,
    ];

    #[test]
    fn nothing_leads_back_from_a_machine_that_was_handed_over_or_stopped() {
        for step in STEPS {
            assert!(Life::HandedOver.after(step).is_err(), "{step:?}");
            assert!(matches!(Life::Stopped.after(step), Err(_) | Ok(Life::Stopped)), "{step:?}");
        }
    }

    #[test]
    fn a_machine_runs_only_from_where_the_drawing_says() {
        let from =
            |step: Step| ALL.into_iter().filter(move |life| life.after(step).is_ok()).collect::<Vec<_>>();
        assert_eq!(from(Step::Start), [Life::Built]);
        assert_eq!(from(Step::Run), [Life::Loaded]);
        assert_eq!(from(Step::Resume), [Life::Paused]);
        assert_eq!(from(Step::Reset), [Life::Running]);
        assert_eq!(from(Step::HandOver), [Life::Paused]);
    }
}
