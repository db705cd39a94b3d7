//! The names under which tests know the state machines' actions: one for each that an undisturbed migration performs.

use godwit_faults::Step;

use crate::destination::Action as ToDo;
use crate::source::Action;
use crate::wire::Control;

/// Of the source's actions.
pub(super) fn source(action: &Action) -> Option<Step> {
    Some(match action {
        Action::Greet => Step::SourceGreet,
        Action::OpenStreams => Step::SourceOpenStreams,
        Action::StartLog => Step::SourceStartLog,
        Action::SendRound { .. } => Step::SourceSendRound,
        Action::Harvest => Step::SourceHarvest,
        Action::Pause => Step::SourcePause,
        Action::Save { .. } => Step::SourceSave,
        Action::SendState { .. } => Step::SourceSendState,
        Action::AskCommit => Step::SourceAskCommit,
        Action::HandOver => Step::SourceHandOver,
        Action::Send(Control::Committed(_)) => Step::SourceSendCommitted,
        Action::End(_) => Step::SourceEnd,
        Action::Send(_) | Action::StopLog | Action::Slow { .. } | Action::Progress(_) => return None,
        Action::PushRest => Step::SourcePushRest,
        Action::LetGo | Action::Reclaim | Action::Resume | Action::Digest => return None,
        Action::Serve { .. } | Action::Disconnect | Action::Reconnect { .. } => return None,
    })
}

/// Of the destination's actions.
pub(super) fn destination(action: &ToDo) -> Option<Step> {
    Some(match action {
        ToDo::Admit { .. } => Step::DestinationAdmit,
        ToDo::AcceptStreams { .. } => Step::DestinationAcceptStreams,
        ToDo::Send(Control::Welcome(_)) => Step::DestinationSendWelcome,
        ToDo::Send(Control::Ready(_)) => Step::DestinationSendReady,
        ToDo::Load => Step::DestinationLoad,
        ToDo::Send(Control::Prepared(_)) => Step::DestinationSendPrepared,
        ToDo::AskClaim { .. } => Step::DestinationAskClaim,
        ToDo::Run { .. } => Step::DestinationRun,
        ToDo::Send(Control::Resumed(_)) => Step::DestinationSendResumed,
        ToDo::End(_) => Step::DestinationEnd,
        ToDo::Send(_) | ToDo::TakeOver => return None,
        ToDo::SendMissing | ToDo::Disconnect => return None,
    })
}
