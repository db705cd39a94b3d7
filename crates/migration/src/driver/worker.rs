//! Calls a destination's slower methods, one after the other, so that the engine hears of everything else meanwhile: they
//! may wait for pages that only arrive if it does.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use godwit_types::{ApiError, Epoch, MigrationId};

use super::incoming::Event;
use super::threads::spawn;
use crate::destination::{Input, Ran};
use crate::machine::{Destination, MachineError, Section};
use crate::proof::Tally;

/// Calls that may wait for their turn: the engine waits for the answer to one before it wants another.
const WORK_MAX: usize = 4;
/// The guest runs, and so nobody waits but the source's process, which is of no use any more.
const FIRST_PACKET_MAX: Duration = Duration::from_millis(100);

/// See the module.
pub(super) struct Worker {
    work: SyncSender<Work>,
    thread: JoinHandle<()>,
}

/// What the machine is asked for.
pub(super) enum Work {
    Load(Vec<Section>),
    TakeOver,
    /// With `follows`, a part of memory is still to come.
    Run {
        epoch: Epoch,
        follows: bool,
    },
}

impl Worker {
    pub(super) fn start(
        machine: &Arc<dyn Destination>,
        migration: MigrationId,
        tally: Option<Arc<Tally>>,
        events: &SyncSender<Event>,
    ) -> Result<Self, ApiError> {
        let (work, queue) = sync_channel(WORK_MAX);
        let (machine, events) = (Arc::clone(machine), events.clone());
        let thread = spawn("mig-machine", move || {
            for work in queue {
                let input = match work {
                    Work::Load(sections) => Input::Loaded(machine.load(sections)),
                    Work::TakeOver => Input::TookOver(machine.take_over(migration)),
                    Work::Run { epoch, follows } => {
                        Input::Ran(run(&*machine, (epoch, follows), tally.as_deref()))
                    }
                };
                if events.send(Event::Input(input)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { work, thread })
    }

    /// The engine waits for the answer before it wants anything else.
    pub(super) fn give(&self, work: Work) {
        let _ = self.work.send(work);
    }

    /// Lets the thread end.
    pub(super) fn finish(self) -> JoinHandle<()> {
        self.thread
    }
}

fn run(
    machine: &dyn Destination,
    (epoch, follows): (Epoch, bool),
    tally: Option<&Tally>,
) -> Result<Ran, MachineError> {
    let ran = machine.run(epoch);
    if let Err(error) = &ran {
        tracing::warn!("the VM is this host's and does not run yet: {error}");
    }
    let (locks, running) = (ran?, Instant::now());
    // A source whose pages follow begins to send them when it hears that the guest runs.
    let first_packet = if follows { None } else { machine.first_packet(FIRST_PACKET_MAX) };
    let ago = running.elapsed();
    // What it was when it was put there: that the guest writes it by now does not matter.
    Ok(Ran { locks, ago, first_packet, memory: tally.map(Tally::sum) })
}
