//! Bytes with descriptors, over a Unix socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use godwit_types::control::MIGRATION_CONNECTIONS_MAX;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Writes the beginning of `bytes` and, with its first byte, the descriptors; returns how many bytes were written.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[impl AsFd]) -> io::Result<usize> {
    let descriptors: Vec<RawFd> = descriptors.iter().map(|fd| fd.as_fd().as_raw_fd()).collect();
    let control = [ControlMessage::ScmRights(&descriptors)];
    let control = if descriptors.is_empty() { &[][..] } else { &control[..] };
    let socket = socket.as_fd().as_raw_fd();
    Ok(sendmsg::<()>(socket, &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// Reads bytes, as `read` does, and the descriptors that come with them: at most [`MIGRATION_CONNECTIONS_MAX`], beyond
/// which it fails.
pub fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MIGRATION_CONNECTIONS_MAX]);
    let (mut parts, flags) = ([IoSliceMut::new(bytes)], MsgFlags::MSG_CMSG_CLOEXEC);
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made them for this process, and nobody else knows them.
            descriptors.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    // The space is rounded up, so that one more may have come through.
    if message.flags.contains(MsgFlags::MSG_CTRUNC) || descriptors.len() > MIGRATION_CONNECTIONS_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "more descriptors than any request may bring",
        ));
    }
    Ok((message.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_arrive_with_their_bytes_and_too_many_of_them_are_refused() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut passed, mut kept) = UnixStream::pair().unwrap();
        assert_eq!(send(&here, b"take", &[&passed]).unwrap(), 4);
        let mut bytes = [0; 16];
        let (length, mut descriptors) = receive(&there, &mut bytes).unwrap();
        assert_eq!((&bytes[..length], descriptors.len()), (&b"take"[..], 1));
        passed.write_all(b"x").unwrap();
        drop(passed);
        UnixStream::from(descriptors.remove(0)).write_all(b"y").unwrap();
        let mut text = String::new();
        kept.read_to_string(&mut text).unwrap();
        assert_eq!(text, "xy");
        let many = vec![&kept; MIGRATION_CONNECTIONS_MAX + 1];
        send(&here, b"take", &many).unwrap();
        assert_eq!(receive(&there, &mut bytes).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
