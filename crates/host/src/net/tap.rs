//! Persistent taps.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

use super::NetError;

/// Longest name of an interface, in bytes, without the closing zero.
const NAME_BYTES_MAX: usize = libc::IFNAMSIZ - 1;

nix::ioctl_write_ptr_bad!(tun_set_interface, libc::TUNSETIFF, libc::ifreq);
nix::ioctl_write_int_bad!(tun_set_persistent, libc::TUNSETPERSIST);

/// Creates a tap that outlives its file descriptors: administratively down, without packet information, with a virtio
/// header before each frame. A tap of that name that nobody holds open is taken over as it is; one that somebody does
/// is an error.
pub(crate) fn create(name: &str) -> Result<(), NetError> {
    let failed = |source: io::Error| NetError::Tap { name: name.to_owned(), source };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let request = interface_request(name, flags).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(failed)?;
    // SAFETY: `request` is a complete ifreq that outlives the call; TUNSETIFF reads its name and flags.
    unsafe { tun_set_interface(device.as_raw_fd(), &request) }.map_err(|errno| match errno {
        nix::errno::Errno::EBUSY => NetError::TapInUse { name: name.to_owned() },
        other => failed(other.into()),
    })?;
    // SAFETY: TUNSETPERSIST takes a number and no pointer.
    unsafe { tun_set_persistent(device.as_raw_fd(), 1) }.map_err(|errno| failed(errno.into()))?;
    Ok(())
}

pub(super) fn interface_request(name: &str, flags: i32) -> Option<libc::ifreq> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return None;
    }
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let ifr_ifru =
        libc::__c_anonymous_ifr_ifru { ifru_flags: i16::from_ne_bytes((flags as u16).to_ne_bytes()) };
    Some(libc::ifreq { ifr_name, ifr_ifru })
}
