//! Unix sockets that another process will listen on.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_to, listen as listen_on, socket,
};

/// Binds a socket at `path`. One that a dead process has left is replaced, one in use is not.
pub(crate) fn bind(path: &Path) -> io::Result<OwnedFd> {
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves this socket"));
    }
    let _ = std::fs::remove_file(path);
    let bound = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind_to(bound.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(bound)
}

/// Listens on a bound socket. From now on, clients see this process as its owner (`SO_PEERCRED`).
pub fn listen(bound: OwnedFd) -> io::Result<UnixListener> {
    listen_on(&bound, Backlog::MAXCONN)?;
    Ok(bound.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_in_use_is_not_taken_over_and_a_dead_one_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let served = UnixListener::bind(&path).unwrap();
        assert!(bind(&path).is_err());
        drop(served);
        assert!(bind(&path).is_ok());
    }
}
