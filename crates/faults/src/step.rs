//! The steps, in the order in which an undisturbed migration takes them.

/// Defines the enum, all of it as a list, and the names, so that none can be forgotten in one of them.
macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident = $name:literal,)*) => {
        /// A named step of the handoff. The first part of its name says who takes it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Step { $($(#[$doc])* $step,)* }

        impl Step {
            /// Every step.
            pub const ALL: &'static [Self] = &[$(Self::$step,)*];

            /// Such as `source-pause`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$step => $name,)* }
            }
        }
    };
}

steps! {
    /// The plan is recorded; nobody has been told.
    ManagerPlanned = "manager-planned",
    /// Before the destination's machine is built.
    DestinationAgentPrepare = "destination-agent-prepare",
    /// The destination waits for its source, which has not been told.
    ManagerPrepared = "manager-prepared",
    /// Before the source's VMM is told to begin.
    SourceAgentBegin = "source-agent-begin",
    /// The source has begun.
    ManagerBegun = "manager-begun",
    SourceGreet = "source-greet",
    DestinationAdmit = "destination-admit",
    DestinationAcceptStreams = "destination-accept-streams",
    DestinationSendWelcome = "destination-send-welcome",
    SourceOpenStreams = "source-open-streams",
    DestinationSendReady = "destination-send-ready",
    SourceStartLog = "source-start-log",
    SourceSendRound = "source-send-round",
    SourceHarvest = "source-harvest",
    /// The guest runs until here.
    SourcePause = "source-pause",
    SourceSave = "source-save",
    SourceSendState = "source-send-state",
    DestinationLoad = "destination-load",
    DestinationSendPrepared = "destination-send-prepared",
    SourceAskCommit = "source-ask-commit",
    SourceAgentAskCommit = "source-agent-ask-commit",
    /// The commit was asked for, and nothing is decided.
    ManagerCommit = "manager-commit",
    /// The commit is durable, and nobody has heard of it.
    ManagerCommitted = "manager-committed",
    SourceAgentCommitAnswered = "source-agent-commit-answered",
    SourceHandOver = "source-hand-over",
    SourceSendCommitted = "source-send-committed",
    DestinationAskClaim = "destination-ask-claim",
    DestinationAgentAskClaim = "destination-agent-ask-claim",
    ManagerClaim = "manager-claim",
    ManagerClaimed = "manager-claimed",
    DestinationAgentClaimAnswered = "destination-agent-claim-answered",
    /// The guest stands until here.
    DestinationRun = "destination-run",
    DestinationSendResumed = "destination-send-resumed",
    /// Of post-copy alone: the guest runs, or is about to, and nothing was pushed after it.
    SourcePushRest = "source-push-rest",
    DestinationEnd = "destination-end",
    SourceEnd = "source-end",
    /// Both sides have told how it ended, and the task has not.
    ManagerSettled = "manager-settled",
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Step;

    #[test]
    fn every_step_has_a_name_of_its_own_that_is_a_file_name() {
        let names: BTreeSet<&str> = Step::ALL.iter().map(|step| step.name()).collect();
        assert_eq!(names.len(), Step::ALL.len());
        for name in names {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{name}");
        }
    }
}
