//! The namespaces, and the two bridges between them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use godwit_types::HostName;

use crate::Result;
use crate::cluster::{CLIENT_ADDRESS, NETWORK_PREFIX_BITS};
use crate::namespace::Namespace;

/// The manager's address on the management network, 10.76.0.0/24.
pub(super) const MANAGER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 76, 0, 1);
/// A host's interface on the guest network, without an address; the agent puts it into its bridge.
pub(super) const UPLINK: &str = "uplink0";

/// The interface on the management network, in every namespace that has one.
pub const MANAGEMENT_INTERFACE: &str = "mgmt0";

const MANAGEMENT: &str = "mgmt";
const GUEST: &str = "guest";
const FIRST_HOST_ADDRESS: u8 = 11;

/// The namespaces of one fabric.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) manager: Namespace,
    pub(super) client: Namespace,
    pub(super) hosts: BTreeMap<HostName, Namespace>,
    addresses: BTreeMap<HostName, Ipv4Addr>,
    switch: Namespace,
}

impl Network {
    /// Makes everything. What exists after an error has the prefix in its name.
    pub(super) fn create(prefix: &str, hosts: &[HostName]) -> Result<Self> {
        let switch = Namespace::create(&format!("{prefix}-switch"))?;
        for bridge in [MANAGEMENT, GUEST] {
            // Snooping would hold back the first multicast frames, spanning tree the first seconds.
            let bare = ["mcast_snooping", "0", "stp_state", "0", "forward_delay", "0"];
            switch.ip(&[&["link", "add", bridge, "type", "bridge"], &bare[..]].concat())?;
            switch.ip(&["link", "set", bridge, "up"])?;
        }
        let mut network = Self {
            manager: Namespace::create(&format!("{prefix}-manager"))?,
            client: Namespace::create(&format!("{prefix}-client"))?,
            hosts: BTreeMap::new(),
            addresses: BTreeMap::new(),
            switch,
        };
        network.connect(&network.manager, MANAGEMENT_INTERFACE, MANAGEMENT, "manager")?;
        network.manager.ip(&[
            "addr",
            "add",
            &format!("{MANAGER_ADDRESS}/24"),
            "dev",
            MANAGEMENT_INTERFACE,
        ])?;
        network.connect(&network.client, "guest0", GUEST, "client")?;
        let client_address = format!("{CLIENT_ADDRESS}/{NETWORK_PREFIX_BITS}");
        network.client.ip(&["addr", "add", &client_address, "dev", "guest0"])?;
        for (index, host) in (0..).zip(hosts) {
            network.add_host(prefix, index, host)?;
        }
        Ok(network)
    }

    /// The host's address on the management network.
    pub(super) fn address(&self, host: &HostName) -> Option<Ipv4Addr> {
        self.addresses.get(host).copied()
    }

    /// Takes the host off the management network, as a pulled cable would.
    pub(super) fn cut(&self, host: &HostName) -> Result<()> {
        self.switch.ip(&["link", "set", &self.management_port(host), "down"])
    }

    pub(super) fn mend(&self, host: &HostName) -> Result<()> {
        self.switch.ip(&["link", "set", &self.management_port(host), "up"])
    }

    fn add_host(&mut self, prefix: &str, index: u8, host: &HostName) -> Result<()> {
        let namespace = Namespace::create(&format!("{prefix}-{host}"))?;
        let address = Ipv4Addr::new(10, 76, 0, FIRST_HOST_ADDRESS + index);
        self.connect(&namespace, MANAGEMENT_INTERFACE, MANAGEMENT, &format!("m{index}"))?;
        namespace.ip(&["addr", "add", &format!("{address}/24"), "dev", MANAGEMENT_INTERFACE])?;
        self.connect(&namespace, UPLINK, GUEST, &format!("g{index}"))?;
        self.hosts.insert(host.clone(), namespace);
        self.addresses.insert(host.clone(), address);
        Ok(())
    }

    /// A cable from `interface` inside to a port of a bridge.
    fn connect(&self, inside: &Namespace, interface: &str, bridge: &str, port: &str) -> Result<()> {
        let (switch, inside_name) = (&self.switch, inside.name());
        switch.ip(&["link", "add", port, "type", "veth", "peer", "name", interface, "netns", inside_name])?;
        switch.ip(&["link", "set", port, "master", bridge, "up"])?;
        inside.ip(&["link", "set", interface, "up"])
    }

    fn management_port(&self, host: &HostName) -> String {
        let index = self.address(host).map_or(0, |address| address.octets()[3] - FIRST_HOST_ADDRESS);
        format!("m{index}")
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::cleanup::Cleanup;
    use crate::exec;
    use crate::namespace::named;

    const PORT: u16 = 7999;
    const MEND_LIMIT: Duration = Duration::from_secs(20);

    fn reaches_manager(network: &Network, host: &HostName) -> bool {
        let manager = SocketAddr::from((MANAGER_ADDRESS, PORT));
        let connect = || TcpStream::connect_timeout(&manager, Duration::from_secs(2));
        network.hosts[host].within(connect).unwrap().is_ok()
    }

    #[test]
    fn a_cut_host_reaches_nobody_until_it_is_mended_and_nothing_is_left_behind() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: network namespaces need root");
            return;
        }
        let prefix = format!("gw{}n99", std::process::id());
        let hosts: [HostName; 2] = ["host-a", "host-b"].map(|name| name.parse().unwrap());
        let cleanup = Cleanup::new({
            let prefix = format!("{prefix}-");
            move || named(&prefix).iter().for_each(|namespace| namespace.destroy().unwrap())
        });
        let network = Network::create(&prefix, &hosts).unwrap();
        let _listener =
            network.manager.within(|| TcpListener::bind((MANAGER_ADDRESS, PORT))).unwrap().unwrap();
        assert!(reaches_manager(&network, &hosts[0]) && reaches_manager(&network, &hosts[1]));
        network.cut(&hosts[0]).unwrap();
        assert!(!reaches_manager(&network, &hosts[0]));
        assert!(reaches_manager(&network, &hosts[1]));
        network.mend(&hosts[0]).unwrap();
        // The kernel takes a moment to see the carrier again.
        let mended =
            exec::poll(MEND_LIMIT, exec::POLL, || Ok(reaches_manager(&network, &hosts[0]).then_some(())));
        assert!(mended.unwrap().is_some());
        drop(cleanup);
        assert_eq!(named(&prefix), []);
    }
}
