//! Many runs of pages dropped with few calls.
//!
//! Each `madvise` makes the processors that run this process forget its pages, and waits until they have. `process_madvise` does so once
//! for as many runs as a call takes, where the kernel lets a process give any advice on itself: 6.18 does, 6.1 does not.

use std::io;

use libc::{MADV_DONTNEED, SYS_process_madvise, UIO_MAXIOV, c_int, iovec};

/// The process that calls: `PIDFD_SELF` of `linux/pidfd.h`, which stands for a descriptor.
pub(crate) const PIDFD_SELF: c_int = -10_000;

/// Gives what these runs hold back to the kernel: they are not here any more.
///
/// # Safety
///
/// They are whole pages of private anonymous mappings, and nobody needs their contents any more.
pub(super) unsafe fn drop_all(runs: &[iovec]) -> io::Result<()> {
    for runs in runs.chunks(UIO_MAXIOV as usize) {
        let bytes: usize = runs.iter().map(|run| run.iov_len).sum();
        // SAFETY: the kernel reads the list and no more of this process's memory; the caller has vouched for what is listed.
        let dropped = unsafe {
            libc::syscall(SYS_process_madvise, PIDFD_SELF, runs.as_ptr(), runs.len(), MADV_DONTNEED, 0)
        };
        if usize::try_from(dropped) != Ok(bytes) {
            // SAFETY: as above. What is dropped already holds nothing.
            runs.iter().try_for_each(|run| unsafe { drop_one(run) })?;
        }
    }
    Ok(())
}

/// The same for one run.
///
/// # Safety
///
/// As for [`drop_all`].
pub(super) unsafe fn drop_one(run: &iovec) -> io::Result<()> {
    // SAFETY: the caller has vouched for it.
    match unsafe { libc::madvise(run.iov_base, run.iov_len, MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
