//! A `godwit-vmm` process, started by this agent or by one before it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use godwit_types::control::{Descriptors, SANDBOX_EXIT_CODE, VmmConfig};
use tokio::io::unix::AsyncFd;

use super::dir::VmDir;

/// A process that may or may not be a child of this one. Dropping it leaves the process running.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    /// Becomes readable when the process ends; never means another process, even after the pid is used again.
    pidfd: AsyncFd<OwnedFd>,
    /// Only of a process that this agent started, and until it is reaped.
    child: Mutex<Option<Child>>,
}

impl Process {
    /// Starts `vmm --config FILE` in a process group of its own, so that signals to the agent's do not reach it, with
    /// nothing of the agent's but the descriptors, whose numbers go into the configuration.
    pub(crate) fn spawn(
        vmm: &Path,
        dir: &VmDir,
        config: &mut VmmConfig,
        descriptors: Descriptors<OwnedFd>,
    ) -> io::Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(dir.log())?;
        let mut command = Command::new(vmm);
        config.descriptors = Some(godwit_provision::hand_to(&mut command, descriptors));
        dir.write_config(config)?;
        command.env_clear();
        command.envs(std::env::var_os(godwit_faults::FILE).map(|file| (godwit_faults::FILE, file)));
        let child = command
            .arg("--config")
            .arg(dir.config())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        Self::of(child)
    }

    /// A child of this process, which is not reaped yet, so that the pid is still its own.
    pub(crate) fn of(mut child: Child) -> io::Result<Self> {
        let pid = child.id();
        match pidfd_open(pid) {
            Ok(pidfd) => Ok(Self { pid, pidfd, child: Mutex::new(Some(child)) }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// Watches a process that an earlier agent started.
    pub(crate) fn adopt(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, pidfd: pidfd_open(pid)?, child: Mutex::new(None) })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns when the process has ended, with how it ended if it was this agent's child. Safe to cancel and repeat.
    pub(crate) async fn ended(&self) -> Option<ExitStatus> {
        if let Err(error) = self.pidfd.readable().await {
            tracing::error!("cannot watch the process {}: {error}", self.pid);
        }
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// Ends the process at once. It may already be gone.
    pub(crate) fn kill(&self) {
        // SAFETY: the arguments are an open pidfd, a signal number, no siginfo and no flags.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if result != 0 {
            tracing::debug!("the process {} was not killed: {}", self.pid, io::Error::last_os_error());
        }
    }
}

fn pidfd_open(pid: u32) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the arguments are a pid and flags.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it. Descriptors fit in an i32.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // SAFETY: an OwnedFd names the same open descriptor until it is dropped.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// How a process ended, in words.
pub(crate) fn describe(status: Option<ExitStatus>) -> String {
    match status {
        None => "ended".to_owned(),
        Some(status) => match (status.code(), status.signal()) {
            (Some(SANDBOX_EXIT_CODE), _) => "was stopped by its sandbox".to_owned(),
            (Some(code), _) => format!("ended with exit code {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_its_sandbox_has_stopped_is_told_from_one_that_failed() {
        let exited = |code: i32| describe(Some(ExitStatus::from_raw(code << 8)));
        assert_eq!(exited(SANDBOX_EXIT_CODE), "was stopped by its sandbox");
        assert_eq!(exited(1), "ended with exit code 1");
        assert_eq!(describe(Some(ExitStatus::from_raw(libc::SIGKILL))), "was ended by signal 9");
    }
}
