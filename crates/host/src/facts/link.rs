//! The interface that migrations use.

use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

use super::read;

/// The speed in bits per second of the interface that has an address. None where the kernel does not say: of many virtual
/// interfaces it does not, of a cable that is pulled neither.
pub(super) fn bits_per_s(address: IpAddr) -> Option<u64> {
    let has_address = |storage: &nix::sys::socket::SockaddrStorage| match address {
        IpAddr::V4(address) => storage.as_sockaddr_in().is_some_and(|found| found.ip() == address),
        IpAddr::V6(address) => storage.as_sockaddr_in6().is_some_and(|found| found.ip() == address),
    };
    let interface =
        getifaddrs().ok()?.find(|interface| interface.address.as_ref().is_some_and(has_address))?;
    let megabits = read(format!("/sys/class/net/{}/speed", interface.interface_name));
    let megabits: u64 = megabits.trim().parse().ok().filter(|megabits| *megabits > 0)?;
    megabits.checked_mul(1_000_000)
}
