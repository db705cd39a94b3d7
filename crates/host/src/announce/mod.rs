//! Telling the network where a guest is: RARP for the switches, gratuitous ARP and unsolicited neighbour advertisements
//! for whatever keeps addresses (an EVPN fabric, a proxy, a firewall).
//!
//! The agent learns a guest's addresses where it runs, from the guest's own ARP and neighbour discovery. They travel in
//! the host's report to the manager and from there to the next destination, which so can announce them at once.

pub(crate) mod frame;
mod learn;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use godwit_types::agent::GuestAddress;
use godwit_types::vm::MacAddress;
use tokio::time::{Instant, sleep_until};

use crate::net::{Capture, NetError, Port, Sender};
use learn::Seen;

/// When announcements are sent, in milliseconds after the guest runs. Repeated, because a frame may be lost, and because
/// some switch ports forward late.
const ANNOUNCE_AT_MS: [u64; 6] = [0, 50, 150, 300, 550, 1000];
/// Pause before looking at a tap again after that failed.
const CAPTURE_RETRY: Duration = Duration::from_secs(1);

/// The addresses seen behind one network card.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    mac: MacAddress,
    seen: Arc<Mutex<Seen>>,
}

impl Addresses {
    /// Begins with what another host has seen.
    pub(crate) fn new(mac: MacAddress, known: &[GuestAddress]) -> Self {
        let mut seen = Seen::default();
        known.iter().filter(|address| address.mac == mac).for_each(|address| {
            seen.note(address.ip);
        });
        Self { mac, seen: Arc::new(Mutex::new(seen)) }
    }

    pub(crate) fn all(&self) -> Vec<GuestAddress> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.all().map(|ip| GuestAddress { mac: self.mac, ip }).collect()
    }

    /// Looks at the tap's frames until it is aborted. Calls `changed` for every new address.
    pub(crate) async fn learn(self, tap: String, changed: impl Fn()) {
        loop {
            match self.learn_once(&tap, &changed).await {
                Ok(never) => match never {},
                Err(error) => tracing::debug!("cannot look at the addresses on {tap}: {error}"),
            }
            tokio::time::sleep(CAPTURE_RETRY).await;
        }
    }

    async fn learn_once(&self, tap: &str, changed: &impl Fn()) -> Result<std::convert::Infallible, NetError> {
        let capture = Capture::open(tap)?;
        loop {
            let frame = capture.next().await.map_err(|source| NetError::Packet {
                action: "look at addresses",
                interface: tap.to_owned(),
                source,
            })?;
            let Some(ip) = learn::address_in(&frame, self.mac) else { continue };
            if self.seen.lock().unwrap_or_else(PoisonError::into_inner).note(ip) {
                tracing::debug!("{} on {tap} has the address {ip}", self.mac);
                changed();
            }
        }
    }
}

/// Announces one network card of a guest that runs here now, several times, as long as it `is_here`: a late word from
/// a host that it has left would send its frames astray.
pub(crate) async fn announce(port: Port, addresses: Vec<GuestAddress>, is_here: impl Fn() -> bool) {
    let interface = port.uplink.as_deref().unwrap_or(&port.bridge);
    let sender = match Sender::open(interface) {
        Ok(sender) => sender,
        Err(error) => return tracing::warn!("cannot announce {}: {error}", port.mac),
    };
    let frames = frames(port.mac, &addresses);
    let start = Instant::now();
    for at_ms in ANNOUNCE_AT_MS {
        sleep_until(start + Duration::from_millis(at_ms)).await;
        if !is_here() {
            return;
        }
        for frame in &frames {
            if let Err(error) = sender.send(frame) {
                // The next repetition may succeed: the uplink may just be coming up.
                tracing::warn!("cannot announce {}: {error}", port.mac);
            }
        }
    }
}

fn frames(mac: MacAddress, addresses: &[GuestAddress]) -> Vec<Vec<u8>> {
    let known = addresses.iter().filter(|address| address.mac == mac).map(|address| match address.ip {
        IpAddr::V4(ip) => frame::gratuitous_arp(mac, ip),
        IpAddr::V6(ip) => frame::unsolicited_advertisement(mac, ip),
    });
    std::iter::once(frame::rarp(mac)).chain(known).collect()
}
