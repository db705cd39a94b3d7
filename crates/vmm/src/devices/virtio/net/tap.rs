//! A tap device of the host, with the virtio header in front of every frame.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use godwit_types::control::TAP_HEADER_BYTES;

use crate::devices::virtio::Buffer;

/// Bytes of `virtio_net_hdr_v1`.
pub(super) const HEADER_BYTES: usize = TAP_HEADER_BYTES as usize;
/// Longest frame with its header: a coalesced segment of 64 KiB.
pub(super) const FRAME_BYTES_MAX: usize = HEADER_BYTES + (64 << 10) + 18;

/// What the kernel may leave to the reader of the tap (`TUN_F_*`).
pub(super) const OFFLOAD_CHECKSUM: u32 = 0x01;
pub(super) const OFFLOAD_TSO4: u32 = 0x02;
pub(super) const OFFLOAD_TSO6: u32 = 0x04;
pub(super) const OFFLOAD_ECN: u32 = 0x08;

// `_IOW('T', number, int)`, from <linux/if_tun.h>.
pub(crate) const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54D0;

/// An attached tap; reads and writes do not block.
pub struct Tap {
    file: File,
}

impl Tap {
    /// A tap that the process is given: attached, not blocking, with a header of [`HEADER_BYTES`].
    pub fn new(attached: OwnedFd) -> Self {
        Self { file: attached.into() }
    }

    /// Sets what the kernel may leave undone in frames read from here.
    pub fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
    }

    /// Reads one frame with its header; `WouldBlock` if there is none.
    pub fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(frame)
    }

    /// Writes one frame with its header; `WouldBlock` if the kernel has no room for it now.
    pub fn send(&self, frame: &[Buffer<'_>]) -> io::Result<()> {
        let guards: Vec<_> = frame.iter().map(Buffer::ptr_guard).collect();
        let parts: Vec<libc::iovec> = guards
            .iter()
            .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() })
            .collect();
        // SAFETY: every part is guest memory that its guard keeps mapped; writev only reads it.
        let sent = unsafe { libc::writev(self.file.as_raw_fd(), parts.as_ptr(), parts.len() as libc::c_int) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn check(outcome: libc::c_int) -> io::Result<()> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
