//! The UDP echo probe, which sees how long the network is silent.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{LoadOptions, Silence};
use crate::{LabError, Result};

const ECHO_PORT: u16 = 7;
/// `recv` refuses a time-out of zero.
const RECEIVE_MIN: Duration = Duration::from_micros(100);

/// Starts the probe.
pub(super) fn spawn(
    options: &LoadOptions,
    stop: Arc<AtomicBool>,
    silence: Arc<Mutex<Silence>>,
) -> Result<JoinHandle<()>> {
    let socket = options.client.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    let socket = socket.map_err(LabError::io("open a UDP socket"))?;
    let guest = SocketAddrV4::new(options.guest, ECHO_PORT);
    socket.connect(guest).map_err(LabError::io(format!("connect a UDP socket to {guest}")))?;
    let interval = options.echo_interval;
    let probe = move || {
        let mut sequence = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            sequence += 1;
            // An unreachable guest is silence, which is what is measured.
            let _ = socket.send(&sequence.to_le_bytes());
            receive_until(&socket, Instant::now() + interval, &silence);
        }
    };
    std::thread::Builder::new().name("load-echo".into()).spawn(probe).map_err(LabError::io("start a thread"))
}

fn receive_until(socket: &UdpSocket, deadline: Instant, silence: &Mutex<Silence>) {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let mut reply = [0; 64];
        let timed = socket.set_read_timeout(Some(left.max(RECEIVE_MIN)));
        match timed.and_then(|()| socket.recv(&mut reply)) {
            Ok(_) => heard(&mut silence.lock().unwrap_or_else(PoisonError::into_inner)),
            // Refused by the guest's stack, say: no reply, but no reason to spin either.
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(left);
            }
            Err(_) => {}
        }
    }
}

fn heard(silence: &mut Silence) {
    let now = Instant::now();
    silence.longest = silence.longest.max(now - silence.last_reply);
    silence.last_reply = now;
    silence.replies += 1;
}
