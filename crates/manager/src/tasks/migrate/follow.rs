//! From a source that has begun to the migration's end.

use godwit_faults::Step as At;
use godwit_types::agent::{LocalVm, Outgoing};
use godwit_types::migration::MigrationProgress;
use godwit_types::task::TaskState;
use godwit_types::{ApiError, ErrorCode, HostName};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::settle::{self, DestinationView, SourceView, Step, Waited};
use super::{ASK_TIMEOUT, Attempt, Side};
use crate::arbiter::MigrationState;
use crate::reached;
use crate::store::Power;
use crate::tasks::{Ending, Silence, cancelled_error};

impl Attempt<'_> {
    /// Follows the migration until it has ended one way or the other.
    pub(super) async fn follow(mut self) -> Result<Ending, ApiError> {
        let (mut source_silence, mut destination_silence) = (Silence::default(), Silence::default());
        let mut committed = None;
        let mut heir_polls = 0;
        let mut too_late = false;
        loop {
            if !too_late && self.is_cancelling().await? {
                match self.abort(cancelled_error("the migration")).await? {
                    Some(ending) => return Ok(ending),
                    None => too_late = true,
                }
            }
            // In this order: the record must be newer than the source's word.
            let source = self.ask_source(&mut source_silence).await;
            self.reload().await?;
            let mut step = if self.m.state == MigrationState::Aborted {
                Step::Abort(cancelled_error("the migration"))
            } else {
                settle::by_source(&self.m, &source)
            };
            if step == Step::AskDestination {
                let destination = self.ask_destination(&mut destination_silence).await;
                let (seen, polls) = committed.get_or_insert((Instant::now(), 0));
                let out_of_patience = seen.elapsed() >= self.driver.manager.limits.patience;
                let waited = Waited { polls: *polls, out_of_patience };
                step = settle::after_commit(&self.m, &source, &destination, waited);
                *polls += 1;
            }
            if let Step::AskHeir(gone) = &step {
                let destination = self.ask_destination(&mut destination_silence).await;
                step = settle::heir(&self.m, gone, &destination, heir_polls);
                heir_polls += 1;
            }
            match step {
                Step::Wait { message, progress } => self.wait(message, progress).await?,
                Step::Abort(error) => {
                    if let Some(ending) = self.abort(error).await? {
                        return Ok(ending);
                    }
                }
                Step::AskDestination | Step::AskHeir(_) => {}
                Step::Moved { report, runs } => {
                    reached(At::ManagerSettled).await;
                    if runs {
                        self.driver.remove_left(&self.m.source, self.m.id).await?;
                    }
                    return Ok(self.moved(report.map(|report| *report), runs));
                }
                Step::Lost(error) => {
                    let power = Some(Power::Crashed);
                    return Ok(Ending { power, ..self.failed(error, power) });
                }
                Step::Uncertain(error) => return Ok(self.failed(error, None)),
            }
        }
    }

    async fn is_cancelling(&self) -> Result<bool, ApiError> {
        let id = self.m.task;
        let task = self.driver.manager.store.read(move |tx| Ok(tx.task(id)?)).await?;
        Ok(task.is_some_and(|task| task.state == TaskState::Cancelling))
    }

    pub(super) async fn reload(&mut self) -> Result<(), ApiError> {
        let id = self.m.id;
        if let Some(m) = self.driver.manager.store.read(move |tx| Ok(tx.migration(id)?)).await? {
            self.m = m;
        }
        Ok(())
    }

    async fn ask_source(&self, silence: &mut Silence) -> SourceView {
        let path = format!("{}/{}", self.path(Side::Outgoing), self.m.id);
        let answer = self.ask::<Outgoing>(&self.m.source, &path).await;
        silence.heard(&answer);
        match answer {
            Ok(Outgoing { outcome: Some(outcome), .. }) => SourceView::Ended(outcome),
            Ok(Outgoing { progress, .. }) => SourceView::Working(progress),
            Err(error) if error.code == ErrorCode::NotFound => SourceView::Unknown,
            Err(error) => SourceView::Silent { error, out_of_patience: self.out_of_patience(silence) },
        }
    }

    async fn ask_destination(&self, silence: &mut Silence) -> DestinationView {
        let answer = self.ask::<LocalVm>(&self.m.destination, &format!("/v1/vms/{}", self.m.vm)).await;
        silence.heard(&answer);
        match answer {
            Ok(local) if local.epoch == self.m.epoch.next() => DestinationView::State(local.state),
            Ok(_) => DestinationView::Absent,
            Err(error) if error.code == ErrorCode::NotFound => DestinationView::Absent,
            Err(error) => DestinationView::Silent { error, out_of_patience: self.out_of_patience(silence) },
        }
    }

    fn out_of_patience(&self, silence: &Silence) -> bool {
        silence.outlasts(self.driver.manager.limits.patience)
    }

    async fn ask<R: DeserializeOwned>(&self, host: &HostName, path: &str) -> Result<R, ApiError> {
        self.driver.agent(host).await?.with_timeout(ASK_TIMEOUT).get(path).await
    }

    /// Shows how it gets on, and waits for the next poll or a cancel.
    async fn wait(&mut self, message: String, progress: Option<MigrationProgress>) -> Result<(), ApiError> {
        self.driver.say(message).await?;
        self.tell_bandwidth().await?;
        if let Some(progress) = progress {
            let id = self.m.task;
            self.driver.manager.store.note(move |tx| Ok(tx.set_task_progress(id, &progress)?)).await?;
        }
        self.driver.pause().await;
        Ok(())
    }
}
