//! Guest networks: bridges, uplinks, and the taps that plug guests into them.
//!
//! # Plugged, but blocked
//! ```text
//!          plug                    open                     unplug
//!  (none) ------> blocked <-----------------------> open ----------> (none)
//!                 a port of the bridge,  block      forwards,
//!                 administratively down             bridge knows the guest's MAC here
//! ```
//! A blocked tap is a port of its bridge that is administratively down. The bridge neither sends to such a port nor
//! takes frames from it, and a write to its file descriptor fails. The alternative, a port that is up in the bridge's
//! state "disabled", does not hold: the bridge puts a port to "forwarding" again whenever its carrier appears, which
//! for a tap is the moment when `godwit-vmm` opens it.
//!
//! Opening sets the tap up. On a bridge without spanning tree the port forwards from then on, and the entry of the
//! bridge's forwarding table that still leads to the uplink is replaced, so that frames from this host find the guest
//! before it has sent anything.

mod link;
mod message;
mod packet;
mod tap;

use std::fs;
use std::io;

use godwit_types::vm::MacAddress;

pub(crate) use link::{Link, Links};
pub(crate) use packet::{Capture, Sender};

use crate::config::NetworkConfig;

#[cfg(test)]
mod tests;

/// Why the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("cannot open a route netlink socket; check that the kernel has networking")]
    Socket { source: io::Error },
    #[error("the kernel refused to {action}{said}; run the agent as root or with CAP_NET_ADMIN")]
    Refused { action: String, said: String, source: io::Error },
    #[error("the kernel's answer about an interface cannot be read")]
    Malformed,
    #[error("there is no interface {name}; 'ip link' lists those that there are")]
    NoInterface { name: String },
    #[error("{name} exists and is not a bridge; name another one in --network")]
    NotABridge { name: String },
    #[error(
        "the uplink {uplink} is a port of another bridge; take it out with 'ip link set {uplink} nomaster', or name that bridge"
    )]
    UplinkTaken { uplink: String },
    #[error(
        "the uplink {uplink} has the address {address}, which would stop working inside the bridge {bridge}; \
         move it first: ip address del {address} dev {uplink}, then add it to {bridge}"
    )]
    UplinkInUse { uplink: String, bridge: String, address: std::net::IpAddr },
    #[error("the tap {name} is in use: another process on this machine runs the VM; stop it first")]
    TapInUse { name: String },
    #[error("cannot create the tap {name}; the agent needs /dev/net/tun (modprobe tun) and CAP_NET_ADMIN")]
    Tap { name: String, source: io::Error },
    #[error("cannot {action} on {interface}; the agent needs CAP_NET_RAW")]
    Packet { action: &'static str, interface: String, source: io::Error },
}

/// A tap of a guest's network card, as one plugs it in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) tap: String,
    pub(crate) mac: MacAddress,
    pub(crate) bridge: String,
    /// Where announcements leave the host; none sends them to all of the bridge.
    pub(crate) uplink: Option<String>,
}

/// Makes sure that a network's bridge exists, is up, and has its uplink as a port.
pub(crate) fn prepare(network: &NetworkConfig) -> Result<(), NetError> {
    let mut links = Links::open()?;
    let bridge = match links.find(&network.bridge)? {
        Some(found) => found,
        None => {
            links.create_bridge(&network.bridge)?;
            disable_ipv6(&network.bridge);
            tracing::info!("created the bridge {}", network.bridge);
            links.get(&network.bridge)?
        }
    };
    check_bridge(network, &bridge)?;
    if !bridge.up {
        links.set_up(bridge.index, true)?;
    }
    mention_firewall();
    match &network.uplink {
        Some(uplink) => attach_uplink(&mut links, network, uplink, &bridge),
        None => Ok(()),
    }
}

fn check_bridge(network: &NetworkConfig, bridge: &Link) -> Result<(), NetError> {
    if !bridge.is_bridge {
        return Err(NetError::NotABridge { name: network.bridge.clone() });
    }
    if bridge.spanning_tree {
        tracing::warn!(
            "the bridge {0} runs a spanning tree: a VM that arrives is cut off until its port forwards; \
             switch it off if {0} has one uplink: ip link set {0} type bridge stp_state 0",
            network.bridge
        );
    }
    Ok(())
}

/// With this switch on, as it is wherever br_netfilter is loaded, bridged frames pass the host's iptables.
fn mention_firewall() {
    if fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables")
        .is_ok_and(|value| value.trim() == "1")
    {
        tracing::info!(
            "guests' frames pass the host's iptables; if its rules drop them: sysctl net.bridge.bridge-nf-call-iptables=0"
        );
    }
}

fn attach_uplink(
    links: &mut Links,
    network: &NetworkConfig,
    name: &str,
    bridge: &Link,
) -> Result<(), NetError> {
    let uplink = links.get(name)?;
    match uplink.master {
        Some(master) if master != bridge.index => {
            return Err(NetError::UplinkTaken { uplink: name.to_owned() });
        }
        Some(_) => {}
        None => {
            if let Some(address) = address_of(name) {
                let (uplink, bridge) = (name.to_owned(), network.bridge.clone());
                return Err(NetError::UplinkInUse { uplink, bridge, address });
            }
            links.enslave(uplink.index, bridge.index)?;
            tracing::info!("plugged the uplink {name} into the bridge {}", network.bridge);
        }
    }
    if uplink.up { Ok(()) } else { links.set_up(uplink.index, true) }
}

/// An address by which somebody may reach this host through the interface.
fn address_of(interface: &str) -> Option<std::net::IpAddr> {
    let addresses = nix::ifaddrs::getifaddrs().ok()?;
    addresses.filter(|found| found.interface_name == interface).find_map(|found| {
        let address = found.address?;
        let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
        let v6 = address.as_sockaddr_in6().map(|v6| v6.ip()).filter(|v6| !v6.is_unicast_link_local());
        v4.or(v6.map(Into::into))
    })
}

/// Creates the tap as a blocked port of its bridge. A tap of that name that is left from before is taken over, unless
/// a process holds it open.
pub(crate) fn plug(port: &Port) -> Result<(), NetError> {
    let mut links = Links::open()?;
    let bridge = links.get(&port.bridge)?;
    tap::create(&port.tap)?;
    let plugged = (|| {
        disable_ipv6(&port.tap);
        let tap = links.get(&port.tap)?;
        links.set_up(tap.index, false)?;
        links.configure(tap.index, host_side_address(port.mac), bridge.mtu)?;
        links.enslave(tap.index, bridge.index)
    })();
    if plugged.is_err() {
        // The first error is the one to report.
        let _ = unplug(&port.tap);
    }
    plugged
}

/// Lets frames pass, in both directions, from now on.
pub(crate) fn open(port: &Port) -> Result<(), NetError> {
    let mut links = Links::open()?;
    let tap = links.get(&port.tap)?;
    links.set_up(tap.index, true)?;
    if let Err(error) = links.learn(tap.index, port.mac) {
        // The guest's first frame teaches the bridge as well.
        tracing::debug!("the bridge {} was not told where {} is: {error}", port.bridge, port.mac);
    }
    Ok(())
}

/// Lets no frame pass any more. The bridge forgets that the guest is here.
pub(crate) fn block(port: &Port) -> Result<(), NetError> {
    let mut links = Links::open()?;
    let tap = links.get(&port.tap)?;
    links.set_up(tap.index, false)
}

/// Removes the tap, if it is there.
pub(crate) fn unplug(tap: &str) -> Result<(), NetError> {
    let mut links = Links::open()?;
    match links.find(tap)? {
        Some(found) => links.delete(found.index),
        None => Ok(()),
    }
}

/// The tap's own address: the guest's with the first byte 0xfe, so that it is never the lowest of the bridge's ports,
/// whose address the bridge takes for its own.
fn host_side_address(mac: MacAddress) -> [u8; 6] {
    let mut address = mac.0;
    address[0] = 0xfe;
    address
}

/// Keeps the host itself out of a guest network. Kernels without IPv6 have nothing to switch off.
fn disable_ipv6(interface: &str) {
    if let Err(error) = fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1") {
        tracing::debug!("IPv6 stays as it is on {interface}: {error}");
    }
}
