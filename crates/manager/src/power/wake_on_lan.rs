//! Wake-on-LAN: a magic packet wakes the host, and its agent switches it off.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use godwit_api::Client;
use godwit_types::ErrorCode;
use godwit_types::agent::Standby;
use godwit_types::api::{Empty, Health};
use godwit_types::power::PowerState;
use godwit_types::vm::MacAddress;
use tokio::net::UdpSocket;

use super::{Driver, PowerError};

/// Packets can get lost, and one more does nothing to a host that is on.
const PACKETS: usize = 3;
/// How often a magic packet repeats the address.
const REPEATS: usize = 16;

/// One host's network card, and its agent.
pub(super) struct WakeOnLan {
    pub mac: MacAddress,
    pub to: SocketAddr,
    pub agent: Client,
}

impl Driver for WakeOnLan {
    async fn wake(&self) -> Result<(), PowerError> {
        let any: IpAddr = match self.to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let send = async {
            let socket = UdpSocket::bind((any, 0)).await?;
            socket.set_broadcast(true)?;
            for _ in 0..PACKETS {
                socket.send_to(&magic(self.mac), self.to).await?;
            }
            Ok(())
        };
        send.await.map_err(PowerError::Packet)
    }

    async fn standby(&self) -> Result<(), PowerError> {
        let ordered = self.agent.post::<_, Empty>("/v1/host/standby", &Standby {}).await;
        ordered.map(drop).map_err(PowerError::Agent)
    }

    /// A host that answers is on. One that does not may be off, or cut off.
    async fn state(&self) -> Result<PowerState, PowerError> {
        match self.agent.get::<Health>("/v1/health").await {
            Err(error) if error.code == ErrorCode::Unreachable => Ok(PowerState::Unknown),
            // Whatever it answers, it does.
            _ => Ok(PowerState::On),
        }
    }
}

/// Six bytes of ones, and the address sixteen times.
fn magic(mac: MacAddress) -> Vec<u8> {
    [&[0xff; 6][..], &mac.0.repeat(REPEATS)].concat()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    async fn driver(to: SocketAddr) -> WakeOnLan {
        // A port at which nobody listens any more.
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        WakeOnLan { mac: MacAddress([0x52, 0x54, 0, 1, 2, 3]), to, agent: Client::new(nobody, None) }
    }

    #[tokio::test]
    async fn the_packet_that_arrives_is_the_one_that_cards_wait_for() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let socket = UdpSocket::bind(address).await.unwrap();
            driver(socket.local_addr().unwrap()).await.wake().await.unwrap();
            let mut packet = [0; 1500];
            let length = timeout(Duration::from_secs(20), socket.recv(&mut packet)).await.unwrap().unwrap();
            assert_eq!(length, 6 + 16 * 6);
            assert_eq!(packet[..6], [0xff; 6]);
            assert!(packet[6..length].chunks(6).all(|part| part == [0x52, 0x54, 0, 1, 2, 3]), "{packet:?}");
        }
    }

    #[tokio::test]
    async fn of_a_host_that_is_silent_nobody_knows_whether_it_is_off() {
        let driver = driver("127.0.0.1:9".parse().unwrap()).await;
        assert_eq!(driver.state().await.unwrap(), PowerState::Unknown);
        assert!(matches!(driver.standby().await.unwrap_err(), PowerError::Agent(_)));
    }
}
