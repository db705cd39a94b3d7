//! One move of storage, from its beginning to its end.

use std::time::Duration;

use godwit_types::agent::{BeginStorage, LocalState, LocalVm, NewDiskPlace};
use godwit_types::api::Empty;
use godwit_types::storage::{StorageProgress, StorageStatus};
use godwit_types::task::TaskState;
use godwit_types::vm::VmSpec;
use godwit_types::{ApiError, ErrorCode};
use tokio::time::Instant;

use super::judge::{Step, View, judge};
use super::{ASK_TIMEOUT, Word, path, tell};
use crate::manager::unknown_vm;
use crate::store::{Power, StorageMove, StorageState};
use crate::tasks::{Driver, Ending, Silence, cancelled_error, told};

/// How long an agent may take to make the new images.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(30);

/// One move on its way.
pub(super) struct Attempt<'a> {
    driver: &'a mut Driver,
    m: StorageMove,
    /// The datastore.
    to: String,
    silence: Silence,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(driver: &'a mut Driver, m: StorageMove, to: String) -> Self {
        Self { driver, m, to, silence: Silence::default() }
    }

    /// Drives it to its end.
    pub(super) async fn run(mut self, rate: Option<u64>) -> Result<Ending, ApiError> {
        if self.m.state == StorageState::Copying
            && let Err(error) = self.begin(rate).await?
            && let Some(ending) = self.abort(error).await?
        {
            return Ok(ending);
        }
        self.follow().await
    }

    /// Has the host begin, which it may have done before. The inner error is the reason to abort.
    async fn begin(&mut self, rate: Option<u64>) -> Result<Result<(), ApiError>, ApiError> {
        let StorageMove { id, vm, epoch, moving, at_rest, .. } = &self.m;
        let place = |index: &u32| NewDiskPlace {
            index: *index,
            image: moving.spec.disks[*index as usize].image.clone(),
        };
        let at_rest = if *at_rest { Some(self.resting_spec().await?) } else { None };
        let asked = BeginStorage {
            migration: *id,
            epoch: *epoch,
            disks: moving.disks.iter().map(place).collect(),
            at_rest,
            bandwidth_bytes_per_s_max: rate,
        };
        let agent = self.driver.agent(&self.m.host).await?.with_timeout(BEGIN_TIMEOUT);
        let path = path(*vm);
        let Some(begun) = self.driver.unless_cancelled(agent.post::<_, StorageStatus>(&path, &asked)).await?
        else {
            return Ok(Err(cancelled_error("the move")));
        };
        Ok(match begun {
            // Whether it began is seen by following it.
            Err(error) if error.code == ErrorCode::Unreachable => Ok(()),
            begun => begun.map(drop),
        })
    }

    /// Follows the move until it has ended one way or the other.
    async fn follow(mut self) -> Result<Ending, ApiError> {
        loop {
            let step = match self.m.state {
                StorageState::Copying if self.is_cancelling().await? => {
                    Step::Abort(cancelled_error("the move"))
                }
                StorageState::Copying => {
                    let view = self.look().await;
                    judge(&self.m.host, view)
                }
                StorageState::Aborted => Step::Abort(cancelled_error("the move")),
                StorageState::Switched => return self.switch().await,
            };
            match step {
                Step::Wait { message, progress } => self.wait(message, progress).await?,
                Step::Hold => {
                    if let Err(error) = self.hold().await?
                        && let Some(ending) = self.abort(error).await?
                    {
                        return Ok(ending);
                    }
                }
                Step::Abort(error) => {
                    if let Some(ending) = self.abort(error).await? {
                        return Ok(ending);
                    }
                }
            }
        }
    }

    /// Has the host hold both images in sync, then changes the record. The inner error is the reason to abort.
    async fn hold(&mut self) -> Result<Result<(), ApiError>, ApiError> {
        let agent = self.driver.agent(&self.m.host).await?.with_timeout(ASK_TIMEOUT);
        let path = format!("{}/{}/hold", path(self.m.vm), self.m.id);
        match agent.post::<_, StorageStatus>(&path, &Empty {}).await {
            // Whether it holds is asked again.
            Err(error) if error.code == ErrorCode::Unreachable => {
                self.driver.pause().await;
                return Ok(Ok(()));
            }
            Err(error) => return Ok(Err(error)),
            Ok(_) => {}
        }
        let id = self.m.id;
        let switched = self.driver.manager.store.write(move |tx| Ok(tx.switch_storage(id)?)).await?;
        self.reload().await?;
        Ok(if switched { Ok(()) } else { Err(cancelled_error("the move")) })
    }

    /// Tells the host that the record has changed, until it has heard, and has removed what is left.
    async fn switch(mut self) -> Result<Ending, ApiError> {
        let began = Instant::now();
        let StorageMove { id, vm, host, .. } = self.m.clone();
        while let Err(error) = tell(&self.driver.manager, &host, (vm, id), Word::Switch).await {
            if began.elapsed() >= self.driver.manager.limits.patience {
                return Ok(self.uncertain(error));
            }
            self.wait(format!("waiting for {host} to use the new images: {}", error.message), None).await?;
        }
        let local = self.local().await;
        if self.m.at_rest || matches!(local, Some(LocalState::Running | LocalState::Outgoing)) {
            self.driver.remove_left(&host, id).await?;
        }
        let (name, to) = (&self.driver.name, &self.to);
        let count = match self.m.moving.disks.len() {
            1 => "its disk has".to_owned(),
            count => format!("{count} disks have"),
        };
        Ok(Ending {
            state: TaskState::Succeeded,
            message: format!("{name}: {count} moved to '{to}'"),
            event: "vm.storage_moved",
            power: ended(local),
            report: None,
            error: None,
        })
    }

    /// Aborts in the store, then tells the host. `None`: the record has changed already.
    async fn abort(&mut self, error: ApiError) -> Result<Option<Ending>, ApiError> {
        let id = self.m.id;
        let aborted = self.driver.manager.store.write(move |tx| Ok(tx.abort_storage(id)?)).await?;
        if !aborted {
            self.reload().await?;
            return Ok(None);
        }
        let (vm, host) = (self.m.vm, self.m.host.clone());
        if let Err(error) = tell(&self.driver.manager, &host, (vm, id), Word::Cancel).await {
            // It reports what it has made, and is told then.
            tracing::info!("{host} was not told that the move {id} is aborted: {error}");
        }
        let power = ended(self.local().await);
        let name = &self.driver.name;
        let message = match power {
            Some(Power::Crashed) => {
                format!("{name} crashed on {host}, and its disks are where they were: {}", told(&error))
            }
            Some(_) => format!("{name} ended on {host}, and its disks are where they were: {}", told(&error)),
            None => format!("the disks of {name} stay where they are: {}", told(&error)),
        };
        let cancelled = error.code == ErrorCode::Cancelled;
        let event = if cancelled { "vm.storage_move_cancelled" } else { "vm.storage_move_failed" };
        Ok(Some(Ending { power, ..Ending::failed(event, message, error) }))
    }

    /// The record has changed, and the host does not answer.
    fn uncertain(&self, error: ApiError) -> Ending {
        let (name, host, to) = (&self.driver.name, &self.m.host, &self.to);
        let message = format!(
            "the disks of {name} are those in '{to}', and {host}, which has both images, has not been told: {}; it will be when it is heard from",
            told(&error)
        );
        Ending::failed("vm.storage_move_failed", message, error)
    }

    async fn look(&mut self) -> View {
        let ask = async || -> Result<StorageStatus, ApiError> {
            let agent = self.driver.agent(&self.m.host).await?.with_timeout(ASK_TIMEOUT);
            agent.get(&format!("{}/{}", path(self.m.vm), self.m.id)).await
        };
        let answer = ask().await;
        self.silence.heard(&answer);
        match answer {
            Ok(status) => View::Status(status),
            Err(error) if error.code == ErrorCode::NotFound => View::Absent,
            Err(error) => {
                let out_of_patience = self.silence.outlasts(self.driver.manager.limits.patience);
                View::Silent { error, out_of_patience }
            }
        }
    }

    /// The VM as it is defined while its disks move: with these where they were.
    async fn resting_spec(&self) -> Result<VmSpec, ApiError> {
        let vm = self.m.vm.to_string();
        let row = self.driver.manager.store.read(move |tx| Ok(tx.vm(&vm)?)).await?;
        Ok(row.ok_or_else(|| unknown_vm(self.driver.name.as_str()))?.spec)
    }

    /// How the VM's process is, if there was one at the beginning.
    async fn local(&self) -> Option<LocalState> {
        if self.m.at_rest {
            return None;
        }
        let agent = self.driver.agent(&self.m.host).await.ok()?.with_timeout(ASK_TIMEOUT);
        let local: LocalVm = agent.get(&format!("/v1/vms/{}", self.m.vm)).await.ok()?;
        (local.epoch == self.m.epoch).then_some(local.state)
    }

    async fn is_cancelling(&self) -> Result<bool, ApiError> {
        let id = self.m.task;
        let task = self.driver.manager.store.read(move |tx| Ok(tx.task(id)?)).await?;
        Ok(task.is_some_and(|task| task.state == TaskState::Cancelling))
    }

    async fn reload(&mut self) -> Result<(), ApiError> {
        let id = self.m.id;
        if let Some(m) = self.driver.manager.store.read(move |tx| Ok(tx.storage_move(id)?)).await? {
            self.m = m;
        }
        Ok(())
    }

    /// Shows how it gets on, and waits for the next poll.
    async fn wait(&mut self, message: String, progress: Option<StorageProgress>) -> Result<(), ApiError> {
        self.driver.say(message).await?;
        if let Some(progress) = progress {
            let id = self.m.task;
            self.driver.manager.store.note(move |tx| Ok(tx.set_task_storage(id, &progress)?)).await?;
        }
        self.driver.pause().await;
        Ok(())
    }
}

/// What the VM is known to be, if it has ended.
fn ended(local: Option<LocalState>) -> Option<Power> {
    match local {
        Some(LocalState::Crashed) => Some(Power::Crashed),
        Some(LocalState::Stopped) => Some(Power::Stopped),
        _ => None,
    }
}
