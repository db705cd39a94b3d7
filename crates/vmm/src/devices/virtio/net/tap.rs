//! A tap device of the host, with the virtio header in front of every frame.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::devices::virtio::Buffer;

/// Bytes of `virtio_net_hdr_v1`.
pub(super) const HEADER_BYTES: usize = 12;
/// Longest frame with its header: a coalesced segment of 64 KiB.
pub(super) const FRAME_BYTES_MAX: usize = HEADER_BYTES + (64 << 10) + 18;

const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;

/// What the kernel may leave to the reader of the tap (`TUN_F_*`).
pub(super) const OFFLOAD_CHECKSUM: u32 = 0x01;
pub(super) const OFFLOAD_TSO4: u32 = 0x02;
pub(super) const OFFLOAD_TSO6: u32 = 0x04;
pub(super) const OFFLOAD_ECN: u32 = 0x08;

// `_IOW('T', number, int)`, from <linux/if_tun.h>.
const TUNSETIFF: libc::c_ulong = 0x4004_54CA;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54D0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54D8;

/// An attached tap; reads and writes do not block.
pub struct Tap {
    file: File,
}

#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    /// The kernel copies a whole `struct ifreq`, whose largest member has 24 bytes.
    rest: [u8; 22],
}

impl Tap {
    /// Attaches to the tap called `name`, which exists.
    pub fn open(name: &str) -> io::Result<Self> {
        let mut request = InterfaceRequest {
            name: [0; libc::IFNAMSIZ],
            flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
            rest: [0; 22],
        };
        if name.is_empty() || name.len() >= libc::IFNAMSIZ {
            let message = format!("'{name}' is not the name of a network interface");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: the name is shorter than its buffer and so ends with a zero byte.
        if unsafe { libc::if_nametoindex(request.name.as_ptr().cast()) } == 0 {
            // Attaching would make a new one, plugged in nowhere.
            return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such interface"));
        }
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `request` is as large as.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
        let header: libc::c_int = HEADER_BYTES as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const header) })?;
        Ok(Self { file })
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
