//! Attaching to a tap: the one thing about it that needs a privilege.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use godwit_types::control::TAP_HEADER_BYTES;
use nix::net::if_::if_nametoindex;

nix::ioctl_write_ptr_bad!(tun_set_interface, libc::TUNSETIFF, libc::ifreq);
nix::ioctl_write_ptr_bad!(tun_set_header_bytes, libc::TUNSETVNETHDRSZ, libc::c_int);

/// A queue of the tap called `name`, which exists; reads and writes do not block, and frames have a virtio header of
/// [`TAP_HEADER_BYTES`] in front.
pub fn attach(name: &str) -> io::Result<OwnedFd> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "that is not the name of a network interface",
        ));
    }
    // Attaching to one that is not there would make a new one, plugged in nowhere.
    if_nametoindex(name)?;
    let mut ifr_name = [0; libc::IFNAMSIZ];
    ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let request = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    let device =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: `request` is a complete ifreq that outlives the call.
    unsafe { tun_set_interface(device.as_raw_fd(), &request) }?;
    // SAFETY: the call reads one int that outlives it.
    unsafe { tun_set_header_bytes(device.as_raw_fd(), &TAP_HEADER_BYTES) }?;
    Ok(device.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_that_does_not_exist_is_refused_rather_than_made() {
        for (name, refused) in
            [("", libc::EINVAL), ("a-name-longer-than-any", libc::EINVAL), ("gw-no-such-tap", libc::ENODEV)]
        {
            assert_eq!(
                attach(name).unwrap_err().kind(),
                io::Error::from_raw_os_error(refused).kind(),
                "{name}"
            );
        }
    }
}
