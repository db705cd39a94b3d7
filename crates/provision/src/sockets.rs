//! Unix sockets that another process will listen on, and connections that the kernel is to watch.

use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;
use std::{io, mem, ptr};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_to, getsockopt, listen as listen_on,
    setsockopt, socket, sockopt,
};

/// As long as a migration waits for a silent peer while the guest runs.
const GONE_SECONDS: u32 = 10;
/// An idle connection asks its peer's kernel for a sign of life after this long, and then this often.
const PROBE_AFTER_SECONDS: u32 = 2;
const PROBE_EVERY_SECONDS: u32 = 1;
/// A peer in the same place: no further than a few switches.
const NEAR: Duration = Duration::from_millis(2);
/// The congestion control that paces by a timer, and Linux's own.
const PACED: &str = "bbr";
const UNPACED: &str = "cubic";

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

/// Lets the kernel break a migration's connection whose peer acknowledges neither a segment nor a probe for
/// [`GONE_SECONDS`], idle or not. Those that a listener accepts are as the listener is.
pub fn watch(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &PROBE_AFTER_SECONDS)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &PROBE_EVERY_SECONDS)?;
    Ok(setsockopt(socket, sockopt::TcpUserTimeout, &(GONE_SECONDS * 1000))?)
}

/// Lets a connection to a near peer send as fast as both sides can. BBR paces what it sends by a timer, which on a fast
/// link lets half of it idle, and what that is good for is found on long ways alone. Any other choice of the
/// administrator's stands.
pub fn unpace(connected: &TcpStream) -> io::Result<()> {
    let algorithm = getsockopt(connected, sockopt::TcpCongestion)?;
    if algorithm == PACED && round_trip(connected)? <= NEAR {
        // A kernel without the other one goes on with what it has.
        let _ = setsockopt(connected, sockopt::TcpCongestion, &UNPACED.into());
    }
    Ok(())
}

/// What the kernel has measured since the connection began.
fn round_trip(connected: &TcpStream) -> io::Result<Duration> {
    // SAFETY: plain data.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    let into = ptr::from_mut(&mut info).cast();
    // SAFETY: the kernel writes no more than `length` bytes, which the structure has.
    let got = unsafe {
        libc::getsockopt(connected.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, into, &mut length)
    };
    if got == 0 { Ok(Duration::from_micros(info.tcpi_rtt.into())) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn accepted_connections_are_watched_as_their_listener_is() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        watch(&listener).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        watch(&client).unwrap();
        for watched in [client, listener.accept().unwrap().0] {
            assert!(getsockopt(&watched, sockopt::KeepAlive).unwrap());
            assert_eq!(getsockopt(&watched, sockopt::TcpUserTimeout).unwrap(), GONE_SECONDS * 1000);
        }
    }

    #[test]
    fn bbr_gives_way_to_a_near_peer_and_nothing_else_does() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(round_trip(&client).unwrap() > Duration::ZERO);
        for (chosen, becomes) in [(PACED, UNPACED), ("reno", "reno")] {
            // Not every kernel has them all.
            if setsockopt(&client, sockopt::TcpCongestion, &chosen.into()).is_ok() {
                unpace(&client).unwrap();
                assert_eq!(getsockopt(&client, sockopt::TcpCongestion).unwrap(), becomes);
            }
        }
    }

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
