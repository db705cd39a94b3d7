//! A question of a VMM to the arbiter: asked until it is answered, and what the verdict means for the VM's taps.
//!
//! ```text
//!  commit --> ask --granted--> answer --> block the taps: frames for the guest leave this host
//!  claim  --> ask --granted--> open the taps, look at the images --> answer: the VM runs
//! ```

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use godwit_faults::Step;
use godwit_types::control::Question;
use godwit_types::ownership::{Verdict, Witness};
use tokio::time::{sleep, timeout};

use super::machine::{Machine, blocking};
use super::reached;
use crate::agent::Agent;
use crate::net;

/// Attempts to open the taps of a VM that is this host's, and the pause between them.
const OPEN_ATTEMPTS: u32 = 5;
const OPEN_PAUSE: Duration = Duration::from_millis(20);

/// How long the datastore may take to open the images, while the guest stands.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// Asks the arbiter, for as long as it takes, and does what must be done before its verdict is passed on.
pub(crate) async fn ask(agent: Arc<Agent>, machine: Arc<Machine>, question: Question) -> (Question, Verdict) {
    let name = &machine.config.name;
    let claim = matches!(question, Question::Claim { .. });
    let blind = matches!(question, Question::Claim { witness: Witness::Blind { .. }, .. });
    machine.state(|state| (state.claiming, state.blind) = (state.claiming | claim, blind));
    let waiting = |why: String| {
        if machine.state(|state| state.waiting.replace(why.clone())).is_none() {
            tracing::warn!("{name}: {why}; asking again until it does");
            agent.changed.notify_one();
        }
    };
    let (asks, answered) = if claim {
        (Step::DestinationAgentAskClaim, Step::DestinationAgentClaimAnswered)
    } else {
        (Step::SourceAgentAskCommit, Step::SourceAgentCommitAnswered)
    };
    reached(asks).await;
    let verdict = agent.manager.verdict(&question, waiting).await;
    if matches!(verdict, Verdict::Granted { .. }) {
        reached(answered).await;
    }
    machine.state(|state| {
        state.waiting = None;
        match (&question, &verdict) {
            (Question::Commit { .. }, Verdict::Granted { .. }) => state.handed_over = true,
            (Question::Claim { .. }, Verdict::Granted { epoch }) => {
                (state.claiming, state.claimed, state.epoch) = (false, true, *epoch);
            }
            (Question::Claim { .. }, Verdict::Refused { .. }) => state.claiming = false,
            _ => {}
        }
    });
    if claim && matches!(verdict, Verdict::Granted { .. }) {
        tokio::join!(open_taps(&machine), look_at_images(&machine));
    }
    (question, verdict)
}

/// Opens and closes the VM's images and locks. Its process holds them open from before, and some file systems of a network
/// look for what another host has written only when a file is opened.
async fn look_at_images(machine: &Arc<Machine>) {
    let disks = machine.disks();
    let looked = blocking(move || {
        for path in disks.iter().flat_map(|disk| [&disk.path, &disk.lock]) {
            // What cannot be opened any more is found out by the process, which says so.
            drop(File::open(path));
        }
    });
    if timeout(LOOK_TIMEOUT, looked).await.is_err() {
        tracing::warn!("{}: its datastore is slow to open the disks' images", machine.config.name);
    }
}

/// Opens the taps of a VM that is this host's: without its network it is still better off running.
pub(crate) async fn open_taps(machine: &Arc<Machine>) {
    for attempt in 1..=OPEN_ATTEMPTS {
        match machine.ports(net::open).await {
            Ok(()) => return,
            Err(error) if attempt == OPEN_ATTEMPTS => {
                tracing::error!("{} arrives without its network: {error}", machine.config.name);
            }
            Err(_) => sleep(OPEN_PAUSE).await,
        }
    }
}

/// Does what must be done after the verdict was passed on.
pub(crate) async fn after_answer(
    agent: &Arc<Agent>,
    machine: &Arc<Machine>,
    question: &Question,
    verdict: &Verdict,
) {
    match (question, verdict) {
        (_, Verdict::Undecided) => return,
        (Question::Commit { destination, .. }, Verdict::Granted { .. }) => {
            tracing::info!("{} is handed over to {destination}", machine.config.name);
            // Frames for the guest then leave this host instead of ending in a tap that nobody reads.
            if let Err(error) = machine.ports(net::block).await {
                tracing::warn!("{}: its network was not blocked: {error}", machine.config.name);
            }
        }
        (_, Verdict::Refused { reason }) => {
            tracing::info!("{}: the arbiter refused: {reason}", machine.config.name);
        }
        (Question::Claim { .. }, Verdict::Granted { .. }) => {}
    }
    agent.changed.notify_one();
}
