//! Disks of VMs that do not run, on their way to another datastore of this host. Each move is a process, `godwit-vmm --copy`,
//! which has the disks' locks and ends with this agent; see [`godwit_types::control::CopyDisks`].
//!
//! ```text
//!  begin --> copying --in sync, ended, locks let go--> in sync --hold--> held --the manager's word--> forgotten
//!               '------ failed, ended ------------> why not
//! ```

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Socket;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use godwit_types::control::{CopyDisks, DiskDescriptors, LINE_BYTES_MAX};
use godwit_types::storage::{StoragePhase, StorageStatus};
use godwit_types::{ApiError, ErrorCode, MigrationId, VmId};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::process::{Process, describe};

/// How long a process may take to confine itself and lock the disks, which waits a few seconds for a last owner.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a killed process may take to end: storage that hangs keeps it.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Copies(Mutex<BTreeMap<VmId, Arc<Copying>>>);

/// One move.
#[derive(Debug)]
pub(crate) struct Copying {
    process: Process,
    status: watch::Sender<StorageStatus>,
}

/// An image and the one that it is copied to, open.
pub(super) type Files = (DiskDescriptors<OwnedFd>, DiskDescriptors<OwnedFd>);

impl Copies {
    /// Starts the process. Its words come over the socket.
    pub(super) fn start(
        &self,
        vmm: &Path,
        order: &CopyDisks,
        files: &[Files],
    ) -> std::io::Result<(Arc<Copying>, Socket)> {
        let (ours, its) = Socket::pair()?;
        let mut command = Command::new(vmm);
        command.env_clear().arg("--copy").stdin(Stdio::from(OwnedFd::from(its))).stdout(Stdio::null());
        let process = Process::of(command.spawn()?)?;
        // Closed by dropping it, whatever fails: the process ends.
        drop(command);
        godwit_provision::send_copy(&ours, order, files)?;
        ours.set_nonblocking(true)?;
        let status = watch::Sender::new(StorageStatus::begins(order.migration));
        let copying = Arc::new(Copying { process, status });
        self.copies().insert(order.vm, Arc::clone(&copying));
        Ok((copying, ours))
    }

    /// The move of the VM's disks, if it is this one.
    pub(crate) fn find(&self, vm: VmId, migration: MigrationId) -> Option<Arc<Copying>> {
        self.copies().get(&vm).filter(|copying| copying.status.borrow().migration == migration).cloned()
    }

    /// Ends what copies disks of the VM, whichever move it is, and forgets it.
    pub(crate) async fn end(&self, vm: VmId) -> Result<(), ApiError> {
        let Some(copying) = self.copies().get(&vm).cloned() else { return Ok(()) };
        copying.process.kill();
        timeout(END_TIMEOUT, copying.process.ended()).await.map_err(|_| {
            let message = format!("the process that copies disks of VM {vm} has not ended yet");
            ApiError::new(ErrorCode::Failed, message).remedy("check the storage behind the datastores")
        })?;
        self.copies().remove(&vm);
        Ok(())
    }

    /// Whether any disks are on their way.
    pub(crate) fn is_empty(&self) -> bool {
        self.copies().is_empty()
    }

    fn copies(&self) -> MutexGuard<'_, BTreeMap<VmId, Arc<Copying>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Copying {
    pub(crate) fn status(&self) -> StorageStatus {
        self.status.borrow().clone()
    }

    /// Waits until it copies, or has ended. To be called before it is followed.
    pub(super) fn begun(&self) -> impl Future<Output = Result<StorageStatus, ApiError>> {
        let mut told = self.status.subscribe();
        async move {
            if timeout(BEGIN_TIMEOUT, told.changed()).await.is_err() {
                self.process.kill();
                let message = format!("the copy did not begin within {} s", BEGIN_TIMEOUT.as_secs());
                return Err(
                    ApiError::new(ErrorCode::Failed, message).remedy("check the storage behind the disks")
                );
            }
            let status = self.status();
            status.ended.clone().map_or(Ok(status), Err)
        }
    }

    /// Nobody changes the disks any more: what is in sync stays so.
    pub(crate) fn hold(&self) -> Result<StorageStatus, ApiError> {
        if self.status.borrow().progress.phase < StoragePhase::InSync {
            return Err(ApiError::conflict("the disks are not in sync"));
        }
        self.status.send_modify(|status| status.progress.phase = StoragePhase::Held);
        Ok(self.status())
    }

    /// Takes in what the process tells, to its end.
    pub(super) async fn follow(self: Arc<Self>, socket: Socket) {
        let mut last = self.status();
        if let Ok(socket) = UnixStream::from_std(socket) {
            let mut words = BufReader::new(socket);
            while let Some(status) = next(&mut words).await {
                last = status;
                // That all is copied is known once the process is gone, and with it the locks.
                if last.progress.phase < StoragePhase::InSync {
                    self.status.send_replace(last.clone());
                }
            }
        }
        // It has nothing more to say, or says what nobody can read.
        self.process.kill();
        let ended = self.process.ended().await;
        if last.progress.phase < StoragePhase::InSync && last.ended.is_none() {
            let message = format!("the process that copies the disks {}", describe(ended));
            last.ended = Some(ApiError::new(ErrorCode::Failed, message));
        }
        self.status.send_replace(last);
    }
}

/// The next status; none at the end, or if it is none.
async fn next(words: &mut BufReader<UnixStream>) -> Option<StorageStatus> {
    let mut line = Vec::new();
    words.take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line).await.ok()?;
    serde_json::from_slice(&line).ok()
}
