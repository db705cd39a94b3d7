//! The cables between emulated hosts.
//!
//! ```text
//!   manager ns              switch ns                                          client ns
//!   godwit manager run      QEMU host-a            QEMU host-b                 load
//!        | mgmt0               m0  g0  s0             m1  g1  s1                  | guest0
//!   =====+=====================+===|===|==============+===|===|==== bridge mgmt   |  10.76.0.0/24
//!                                  +===|==================+===|==== bridge guest =+  10.77.0.0/24
//!                                      +======================+==== bridge service   10.78.0.0/24
//! ```
//!
//! The service network carries commands from outside, also to a host that is cut off the management network.

use std::net::{Ipv4Addr, SocketAddr};

use godwit_linux_guest::remote;

use crate::Result;
use crate::cluster::{CLIENT_ADDRESS, NETWORK_PREFIX_BITS};
use crate::namespace::{self, Namespace};

pub(super) const MANAGER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 76, 0, 1);
/// The host's card on the guest network, which its agent puts into a bridge.
pub(super) const UPLINK: &str = "uplink0";

const SERVICE_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
const PREFIX_BITS: u8 = 24;
const FIRST_HOST_ADDRESS: u8 = 11;

/// A network card of an emulated host, in the order in which the host finds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Card {
    Management,
    Guest,
    Service,
}

impl Card {
    pub(super) const ALL: [Self; 3] = [Self::Management, Self::Guest, Self::Service];

    const fn bridge(self) -> &'static str {
        match self {
            Self::Management => "mgmt",
            Self::Guest => "guest",
            Self::Service => "service",
        }
    }

    /// The tap of a host's card.
    pub(super) fn tap(self, host: u8) -> String {
        format!("{}{host}", &self.bridge()[..1])
    }

    /// A locally administered address, different for every card.
    pub(super) fn mac(self, host: u8) -> String {
        format!("52:54:00:6c:{:02x}:{:02x}", self as u8, host)
    }
}

/// The namespaces of one lab.
#[derive(Debug, Clone)]
pub(super) struct Network {
    pub(super) switch: Namespace,
    pub(super) manager: Namespace,
    pub(super) client: Namespace,
}

impl Network {
    /// Those that were made with this prefix before.
    pub(super) fn existing(prefix: &str) -> Self {
        let existing = |name: &str| Namespace::existing(&format!("{prefix}-{name}"));
        Self { switch: existing("switch"), manager: existing("manager"), client: existing("client") }
    }

    /// Makes everything. What exists after an error has the prefix in its name.
    pub(super) fn create(prefix: &str, hosts: u8) -> Result<Self> {
        let network = Self::existing(prefix);
        for namespace in [&network.switch, &network.manager, &network.client] {
            Namespace::create(namespace.name())?;
        }
        for card in Card::ALL {
            // Snooping would hold back the first multicast frames, spanning tree the first seconds.
            let bare = ["type", "bridge", "mcast_snooping", "0", "stp_state", "0", "forward_delay", "0"];
            network.switch.ip(&[&["link", "add", card.bridge()], &bare[..]].concat())?;
            network.switch.ip(&["link", "set", card.bridge(), "up"])?;
            for host in 0..hosts {
                network.add_tap(card, host)?;
            }
        }
        let service = format!("{SERVICE_GATEWAY}/{PREFIX_BITS}");
        network.switch.ip(&["addr", "add", &service, "dev", Card::Service.bridge()])?;
        let manager = format!("{MANAGER_ADDRESS}/{PREFIX_BITS}");
        network.connect(&network.manager, "mgmt0", &manager, Card::Management, "manager")?;
        let client = format!("{CLIENT_ADDRESS}/{NETWORK_PREFIX_BITS}");
        network.connect(&network.client, "guest0", &client, Card::Guest, "client")?;
        Ok(network)
    }

    /// Removes the namespaces of this prefix, and all that runs in them. What resists is named on standard error.
    pub(super) fn remove(prefix: &str) {
        for namespace in namespace::named(&format!("{prefix}-")) {
            if let Err(error) = namespace.destroy() {
                eprintln!("warning: {}; remove it with `ip netns del`", error.chain());
            }
        }
    }

    /// Switches the port of a host's card on or off.
    pub(super) fn set_port(&self, card: Card, host: u8, state: &str) -> Result<()> {
        self.switch.ip(&["link", "set", &card.tap(host), state])
    }

    fn add_tap(&self, card: Card, host: u8) -> Result<()> {
        let tap = card.tap(host);
        self.switch.ip(&["tuntap", "add", "dev", &tap, "mode", "tap", "vnet_hdr"])?;
        self.switch.ip(&["link", "set", &tap, "master", card.bridge(), "up"])
    }

    /// A cable from `interface` inside to a port of a bridge.
    fn connect(
        &self,
        inside: &Namespace,
        interface: &str,
        address: &str,
        to: Card,
        port: &str,
    ) -> Result<()> {
        let peer = ["type", "veth", "peer", "name", interface, "netns", inside.name()];
        self.switch.ip(&[&["link", "add", port], &peer[..]].concat())?;
        self.switch.ip(&["link", "set", port, "master", to.bridge(), "up"])?;
        inside.ip(&["addr", "add", address, "dev", interface])?;
        inside.ip(&["link", "set", interface, "up"])
    }
}

/// A host's address on the management network.
pub(super) const fn management(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 76, 0, FIRST_HOST_ADDRESS + host)
}

/// Where a host takes commands from outside.
pub(super) const fn service(host: u8) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 78, 0, FIRST_HOST_ADDRESS + host)), remote::PORT)
}

/// Who a host is, on its kernel's command line.
pub(super) fn identity(name: &str, host: u8) -> String {
    let (management, service) = (management(host), service(host).ip());
    format!("lab.name={name} lab.management={management}/{PREFIX_BITS} lab.service={service}/{PREFIX_BITS}")
}
