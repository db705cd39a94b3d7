//! Leaving root behind.

use std::io;

use super::SandboxError;

/// Descriptors that the process may have: some thirty per device, and the clients of its sockets.
const DESCRIPTORS_MAX: libc::rlim_t = 1024;
/// `_LINUX_CAPABILITY_VERSION_3`, from <linux/capability.h>.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// No core dump, which would hold the guest's memory; few descriptors.
pub(super) fn limit() -> Result<(), SandboxError> {
    for (resource, max) in [(libc::RLIMIT_CORE, 0), (libc::RLIMIT_NOFILE, DESCRIPTORS_MAX)] {
        let limit = libc::rlimit { rlim_cur: max, rlim_max: max };
        // SAFETY: the call reads one live rlimit.
        done(unsafe { libc::setrlimit(resource, &raw const limit) }, "set its limits")?;
    }
    Ok(())
}

/// Becomes `user`, if there is one, and gives up everything that root could do: for good, since nothing that is executed
/// gains anything, and nobody of the same user may trace the process.
pub(super) fn leave(user: Option<u32>) -> Result<(), SandboxError> {
    if let Some(user) = user {
        forget_capabilities()?;
        let failed = |result| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        // SAFETY: the calls take numbers, and an empty list.
        let left = failed(unsafe { libc::setgroups(0, std::ptr::null()) })
            .and_then(|()| failed(unsafe { libc::setresgid(user, user, user) }))
            // SAFETY: as above.
            .and_then(|()| failed(unsafe { libc::setresuid(user, user, user) }));
        left.map_err(|error| SandboxError::User(user, error))?;
    }
    clear_capabilities()?;
    // SAFETY: these calls take numbers alone.
    done(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, "refuse new privileges")?;
    // SAFETY: as above.
    done(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }, "refuse to be traced")
}

/// Empties the bounding set, while the process may.
fn forget_capabilities() -> Result<(), SandboxError> {
    // SAFETY: the calls take numbers alone.
    let known =
        |capability: libc::c_int| unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) } >= 0;
    for capability in (0..64).take_while(|capability| known(*capability)) {
        // SAFETY: as above.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        done(dropped, "drop a capability")?;
    }
    Ok(())
}

fn clear_capabilities() -> Result<(), SandboxError> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let (header, none) = (Header { version: CAPABILITY_VERSION, pid: 0 }, [0u32; 6]);
    // SAFETY: the header is live, and this version reads two sets of three 32-bit words.
    let cleared = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    done(cleared as libc::c_int, "give up its capabilities")
}

fn done(result: libc::c_int, what: &'static str) -> Result<(), SandboxError> {
    if result < 0 { Err(SandboxError::Limit(what, io::Error::last_os_error())) } else { Ok(()) }
}
