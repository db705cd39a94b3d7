//! The handshake of each connection of a migration.

use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use godwit_migration::secure::{
    Duplex, End, Halves, RECORD_BYTES_MAX, RECORD_HEADER_BYTES, Secure, SecureError,
};
use godwit_types::MigrationKey;
use rustls::client::{AlwaysResolvesClientRawPublicKeys, UnbufferedClientConnection};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256};
use rustls::pki_types::ServerName;
use rustls::server::{AlwaysResolvesServerRawPublicKeys, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, InsufficientSizeError, UnbufferedStatus};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

use crate::identity::{SameKey, certified};
use crate::record::{Keys, Opener, Sealer};

/// Bytes of a handshake that may wait for the rest of a record or message.
const HANDSHAKE_BYTES_MAX: usize = 4 * RECORD_BYTES_MAX;

/// Encrypts the connections of one migration.
#[derive(Debug)]
pub struct Session {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Session {
    /// For the migration whose key this is. The cipher is the one that this CPU is fastest at, if the peer agrees.
    pub fn new(key: &MigrationKey) -> Result<Self, SecureError> {
        Self::of(key).map_err(|error| SecureError(error.to_string()))
    }

    fn of(key: &MigrationKey) -> Result<Self, rustls::Error> {
        let provider = Arc::new(provider());
        let (certified, peer) = (certified(key)?, Arc::new(SameKey::new(key, Arc::clone(&provider))?));
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&peer) as _)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::clone(
                &certified,
            ))));
        client.resumption = rustls::client::Resumption::disabled();
        client.enable_secret_extraction = true;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(peer)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified)));
        server.send_tls13_tickets = 0;
        server.enable_secret_extraction = true;
        // A side without AES instructions would be slowed down by the other's choice more than the other by its own.
        server.ignore_client_order = !has_aes();
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }

    /// How the two sides shake hands, for a peer that leaves the records to rustls as well.
    pub fn configs(&self) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
        (Arc::clone(&self.client), Arc::clone(&self.server))
    }
}

impl Secure for Session {
    fn shake_hands(&self, end: End, connection: &mut dyn Duplex) -> io::Result<Result<Halves, SecureError>> {
        match end {
            End::Source => {
                // Nobody looks at the name: the peer is known by its key.
                let name = ServerName::try_from("destination").map_err(io::Error::other)?;
                match UnbufferedClientConnection::new(Arc::clone(&self.client), name) {
                    Ok(client) => drive(client, connection),
                    Err(error) => Ok(Err(refused(&error))),
                }
            }
            End::Destination => match UnbufferedServerConnection::new(Arc::clone(&self.server)) {
                Ok(server) => drive(server, connection),
                Err(error) => Ok(Err(refused(&error))),
            },
        }
    }
}

/// What the two kinds of connection have in common, for which rustls has no name.
trait Side {
    /// How it goes on with `incoming`, of which it removes what it has used up.
    fn step(&mut self, incoming: &mut Vec<u8>, outgoing: &mut Vec<u8>) -> Result<Next, rustls::Error>;

    fn halves(self) -> Result<Halves, rustls::Error>;
}

/// What a handshake waits for.
enum Next {
    /// To be called again.
    Again,
    Send,
    Receive,
    Done,
}

macro_rules! side {
    ($connection:ty) => {
        impl Side for $connection {
            fn step(
                &mut self,
                incoming: &mut Vec<u8>,
                outgoing: &mut Vec<u8>,
            ) -> Result<Next, rustls::Error> {
                let UnbufferedStatus { discard, state, .. } = self.process_tls_records(incoming);
                let next = state.and_then(|state| match state {
                    ConnectionState::EncodeTlsData(mut message) => {
                        encode(outgoing, |into| message.encode(into)).map(|()| Next::Again)
                    }
                    ConnectionState::TransmitTlsData(transmit) => {
                        transmit.done();
                        Ok(Next::Send)
                    }
                    ConnectionState::BlockedHandshake => Ok(Next::Receive),
                    ConnectionState::WriteTraffic(_) => Ok(Next::Done),
                    state => Err(rustls::Error::General(format!("{state:?} in the handshake"))),
                });
                incoming.drain(..discard);
                next
            }

            fn halves(self) -> Result<Halves, rustls::Error> {
                let (secrets, renewal) = self.dangerous_into_kernel_connection()?;
                let renewal: Arc<Mutex<dyn Keys>> = Arc::new(Mutex::new(renewal));
                let seal = Box::new(Sealer::new(secrets.tx, Arc::clone(&renewal))?);
                Ok(Halves { seal, open: Box::new(Opener::new(secrets.rx, renewal)?) })
            }
        }
    };
}

side!(UnbufferedClientConnection);
side!(UnbufferedServerConnection);

fn drive(mut side: impl Side, mut connection: &mut dyn Duplex) -> io::Result<Result<Halves, SecureError>> {
    let (mut incoming, mut outgoing) = (Vec::new(), Vec::new());
    loop {
        let next = match side.step(&mut incoming, &mut outgoing) {
            Ok(next) => next,
            // Without an alert to the peer: rustls panics if it is asked for anything after bytes that it cannot read.
            Err(error) => return Ok(Err(refused(&error))),
        };
        match next {
            Next::Again => {}
            Next::Send => {
                connection.write_all(&outgoing)?;
                outgoing.clear();
            }
            Next::Receive if incoming.len() > HANDSHAKE_BYTES_MAX => {
                return Ok(Err(SecureError("the peer's handshake has no end".into())));
            }
            Next::Receive => receive_record(&mut connection, &mut incoming)?,
            Next::Done => return Ok(side.halves().map_err(|error| refused(&error))),
        }
    }
}

/// Reads one record and nothing of the next, which may belong to the halves already.
fn receive_record(connection: &mut impl Read, incoming: &mut Vec<u8>) -> io::Result<()> {
    let mut header = [0; RECORD_HEADER_BYTES];
    connection.read_exact(&mut header)?;
    let start = incoming.len();
    incoming.extend_from_slice(&header);
    // Not a record of TLS: rustls says so, and there is nothing to wait for.
    if !(20..=23).contains(&header[0]) || header[1] != 3 {
        return Ok(());
    }
    let length = usize::from(u16::from_be_bytes([header[3], header[4]])).min(RECORD_BYTES_MAX);
    incoming.resize(start + RECORD_HEADER_BYTES + length, 0);
    connection.read_exact(&mut incoming[start + RECORD_HEADER_BYTES..])
}

/// Appends what rustls encodes, giving it the room that it asks for.
fn encode(
    outgoing: &mut Vec<u8>,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), rustls::Error> {
    let start = outgoing.len();
    let written = match encode(&mut []) {
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
            outgoing.resize(start + required_size, 0);
            encode(&mut outgoing[start..])
        }
        other => other,
    };
    let written = written.map_err(|error| rustls::Error::General(error.to_string()))?;
    outgoing.truncate(start + written);
    Ok(())
}

fn refused(error: &rustls::Error) -> SecureError {
    SecureError(format!("{error} (both sides must have been given the same migration's key)"))
}

/// Ciphers in the order in which this CPU prefers them.
fn provider() -> CryptoProvider {
    let mut suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256];
    if !has_aes() {
        suites.reverse();
    }
    CryptoProvider { cipher_suites: suites, ..rustls::crypto::ring::default_provider() }
}

/// Whether the CPU has instructions for AES and for GCM's multiplication.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use godwit_migration::secure::{Open, RECORD_PLAIN_BYTES_MAX, Seal};
    use rustls::{ClientConnection, StreamOwned};

    use super::*;

    fn session(byte: u8) -> Session {
        Session::new(&MigrationKey::from_bytes([byte; 32])).unwrap()
    }

    fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (here, listener.accept().unwrap().0)
    }

    /// The halves of a source and of a destination, or why there are none.
    fn meet(source: u8, destination: u8) -> [Result<Halves, SecureError>; 2] {
        let (mut here, mut there) = sockets();
        let far = thread::spawn(move || talk(session(destination), End::Destination, &mut there));
        let near = talk(session(source), End::Source, &mut here);
        drop(here);
        [near, far.join().unwrap()]
    }

    fn talk(session: Session, end: End, stream: &mut TcpStream) -> Result<Halves, SecureError> {
        let lost = |error: io::Error| Err(SecureError(error.to_string()));
        session.shake_hands(end, stream).unwrap_or_else(lost)
    }

    fn seal(seal: &mut dyn Seal, parts: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        seal.seal(&mut parts.iter().copied(), &mut out).unwrap();
        out
    }

    /// The plaintext of all records in `sealed`.
    fn open(open: &mut dyn Open, mut sealed: &mut [u8]) -> Result<Vec<u8>, SecureError> {
        let mut plain = Vec::new();
        while let Some(header) = sealed.first_chunk() {
            let (record, rest) = sealed.split_at_mut(open.record_bytes(*header)?);
            sealed = rest;
            let at = open.open(record)?.unwrap();
            plain.extend_from_slice(&record[at]);
        }
        Ok(plain)
    }

    #[test]
    fn what_one_side_seals_the_other_opens_and_nobody_reads_on_the_way() {
        let [near, far] = meet(1, 1);
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        for round in 0..3u8 {
            let page = vec![round + 7; RECORD_PLAIN_BYTES_MAX - 3];
            let mut sealed = seal(&mut *near.seal, &[b"abc", &page]);
            assert!(!sealed.windows(16).any(|window| window == &page[..16]));
            assert_eq!(open(&mut *far.open, &mut sealed).unwrap(), [b"abc", &page[..]].concat());
            let mut sealed = seal(&mut *far.seal, &[b"", b"back"]);
            assert_eq!(open(&mut *near.open, &mut sealed).unwrap(), b"back");
        }
    }

    #[test]
    fn a_peer_with_another_key_is_refused_by_whoever_learns_of_it_first() {
        let [near, far] = meet(1, 2);
        assert!(near.is_err() && far.is_err());
        assert!(near.err().unwrap().0.contains("the same migration's key"));
    }

    #[test]
    fn a_changed_repeated_or_missing_record_is_found() {
        let [near, far] = meet(3, 3);
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        let first = seal(&mut *near.seal, &[b"first"]);
        assert_eq!(open(&mut *far.open, &mut first.clone()).unwrap(), b"first");
        for at in [0, 4, 5, 27] {
            let [near, far] = meet(3, 3);
            let (mut near, mut far) = (near.unwrap(), far.unwrap());
            let mut whole = seal(&mut *near.seal, &[b"second"]);
            whole[at] ^= 1;
            assert!(open(&mut *far.open, &mut whole).is_err(), "byte {at}");
        }
        assert!(open(&mut *far.open, &mut first.clone()).is_err());
    }

    #[test]
    fn a_peer_that_does_not_speak_tls_is_an_error_and_never_waited_for_without_end() {
        let (mut here, mut there) = sockets();
        let far = thread::spawn(move || {
            there.write_all(b"GODWITMV and then something else").unwrap();
            there
        });
        assert!(session(1).shake_hands(End::Destination, &mut here).unwrap().is_err());
        drop(far.join().unwrap());
        let (mut here, there) = sockets();
        drop(there);
        assert!(session(1).shake_hands(End::Destination, &mut here).is_err());
    }

    /// The records are TLS's own: the other side is rustls as it comes.
    #[test]
    fn rustls_itself_reads_and_writes_these_records() {
        let (mut here, there) = sockets();
        let far = thread::spawn(move || {
            let name = ServerName::try_from("destination").unwrap();
            let client = ClientConnection::new(Arc::clone(&session(5).client), name).unwrap();
            let mut stream = StreamOwned::new(client, there);
            stream.write_all(b"from rustls").unwrap();
            stream.flush().unwrap();
            let mut answer = vec![0; 40_000];
            stream.read_exact(&mut answer).unwrap();
            answer
        });
        let mut halves = session(5).shake_hands(End::Destination, &mut here).unwrap().unwrap();
        let mut record = Vec::new();
        receive_record(&mut here, &mut record).unwrap();
        assert_eq!(open(&mut *halves.open, &mut record).unwrap(), b"from rustls");
        let answer: Vec<u8> = (0..40_000u32).map(|index| (index % 251) as u8).collect();
        for part in answer.chunks(10_000) {
            here.write_all(&seal(&mut *halves.seal, &[part])).unwrap();
        }
        assert_eq!(far.join().unwrap(), answer);
    }
}
