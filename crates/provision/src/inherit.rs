//! The process's side: taking what it was given, and nothing else.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use godwit_types::control::Descriptors;

use crate::FIRST;

/// Why a process cannot take what its configuration says it was given.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    #[error(
        "the configuration names the descriptor {0}, which was not inherited: start VMs through their host's agent"
    )]
    Missing(RawFd),
    #[error("the configuration names the descriptor {0} twice: start VMs through their host's agent")]
    Twice(RawFd),
    #[error("cannot close what was inherited by mistake")]
    Close(#[source] io::Error),
}

/// Takes the numbered descriptors and closes all others but the standard streams.
///
/// # Safety
///
/// Nothing else in the process may own a descriptor: to be called before anything that is kept is opened.
pub unsafe fn inherit(numbers: Descriptors<RawFd>) -> Result<Descriptors<OwnedFd>, InheritError> {
    let mut taken = Vec::new();
    let descriptors = numbers.map(|number| {
        if taken.contains(&number) {
            return Err(InheritError::Twice(number));
        }
        // SAFETY: the call looks at a number.
        if number < FIRST || unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(InheritError::Missing(number));
        }
        taken.push(number);
        // SAFETY: it is open, and by the caller's word and the check above nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    })?;
    taken.sort_unstable();
    let starts = std::iter::once(FIRST).chain(taken.iter().map(|number| number + 1));
    let ends = taken.iter().map(|number| number - 1).chain([RawFd::MAX]);
    for (first, last) in starts.zip(ends).filter(|(first, last)| first <= last) {
        // SAFETY: by the caller's word nobody owns a descriptor between those taken.
        if unsafe { libc::close_range(first as u32, last as u32, 0) } < 0 {
            return Err(InheritError::Close(io::Error::last_os_error()));
        }
    }
    Ok(descriptors)
}
