//! What the process may still do once a guest has taken it over: next to nothing.
//!
//! ```text
//!  one thread, root                                              every thread, as it starts
//!    take its place in the cgroup                                   |
//!    limits: no core, few descriptors, nothing to gain by exec      |
//!    user: one of its own, no groups, no capabilities               |
//!    Landlock: no file and no network, not even by a path           |
//!    seccomp: what some thread needs  ----- inherited by all -----> seccomp: what this kind of thread needs
//! ```
//!
//! All that the process works with was opened by its agent. A system call that a thread has no need for stops the whole
//! process with a word on what was tried; see [`trap`].

mod ioctls;
mod landlock;
mod rules;
mod seccomp;
mod trap;
mod user;

use std::io::{self, Write};
use std::os::fd::OwnedFd;

pub use landlock::restrict as forbid_files_and_network;
pub use rules::Kind;

/// Why the process cannot be confined. It does not run any guest then.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("cannot enter the VM's cgroup")]
    Cgroup(#[source] io::Error),
    #[error("cannot {0}")]
    Limit(&'static str, #[source] io::Error),
    #[error(
        "cannot become user {0}; name users that exist in this namespace with godwit host run --vm-users"
    )]
    User(u32, #[source] io::Error),
    #[error("cannot set up Landlock")]
    Landlock(#[from] ::landlock::RulesetError),
    #[error("cannot write a seccomp filter")]
    Filter(#[source] seccompiler::BackendError),
    #[error("cannot install a seccomp filter")]
    Install(#[source] seccompiler::Error),
}

/// Confines the process, once and for ever. To be called while it has one thread, which may still build the machine.
pub fn confine(user: Option<u32>, cgroup: Option<OwnedFd>) -> Result<(), SandboxError> {
    if let Some(members) = cgroup {
        std::fs::File::from(members).write_all(b"0").map_err(SandboxError::Cgroup)?;
    }
    user::limit()?;
    user::leave(user)?;
    landlock::restrict()?;
    trap::install().map_err(|error| SandboxError::Limit("catch SIGSYS", error))?;
    // The allocator opens files in /sys and /proc before it makes another arena, or gives back memory of one.
    // SAFETY: the call sets a number.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    // A backtrace reads the program's file; the default hook would try.
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        eprintln!("thread '{}' panicked: {panic}", thread.name().unwrap_or("?"));
    }));
    seccomp::confine()
}

/// Narrows the thread that calls it to what its kind needs; threads that it starts inherit that. Without effect in a
/// process that is not confined, such as a test.
pub fn enter(kind: Kind) {
    if let Err(error) = seccomp::enter(kind) {
        // Without it, the thread may still do no more than the process.
        tracing::error!("a thread keeps the rights of the whole process: {}", crate::kvm::chain(&error));
    }
}
