//! Bytes with descriptors, over a Unix socket.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use godwit_types::control::{CopyDisks, DiskDescriptors, MIGRATION_CONNECTIONS_MAX};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// The kernel lets no message bring more (`SCM_MAX_FD`). There is room for all of them, or some would come in unowned.
const MESSAGE_DESCRIPTORS_MAX: usize = 253;

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
    let mut space = nix::cmsg_space!([RawFd; MESSAGE_DESCRIPTORS_MAX]);
    let (mut parts, flags) = ([IoSliceMut::new(bytes)], MsgFlags::MSG_CMSG_CLOEXEC);
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made them for this process, and nobody else knows them.
            descriptors.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if descriptors.len() > MIGRATION_CONNECTIONS_MAX {
        let message = "more descriptors than any request may bring";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok((message.bytes, descriptors))
}

/// Orders a copy of disks, each with the files of its image and of its new one.
pub fn send_copy(
    mut socket: &UnixStream,
    order: &CopyDisks,
    files: &[(DiskDescriptors<OwnedFd>, DiskDescriptors<OwnedFd>)],
) -> io::Result<()> {
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    socket.write_all(&line)?;
    for (from, to) in files {
        let all: Vec<&OwnedFd> = [from, to]
            .into_iter()
            .flat_map(|files| files.images.iter().map(|(_, image)| image).chain(&files.lock))
            .collect();
        send(socket, b"\n", &all)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

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
        for many in [MIGRATION_CONNECTIONS_MAX + 1, MESSAGE_DESCRIPTORS_MAX] {
            let many = vec![&kept; many];
            send(&here, b"take", &many).unwrap();
            assert_eq!(receive(&there, &mut bytes).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
