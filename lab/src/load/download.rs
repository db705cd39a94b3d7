//! A download that never ends: one TCP connection, through all moves, on which every byte is foretold.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::http::record;
use super::{LoadOptions, Requests, web};
use crate::{LabError, Result};

/// End of the answer's head, after which the numbers begin.
const HEAD_END: &[u8] = b"\r\n\r\n";
/// Longest head, in bytes.
const HEAD_BYTES_MAX: usize = 4096;

/// Starts it. It is one request, and fails once: it is not begun again.
pub(super) fn spawn(
    options: &LoadOptions,
    stop: Arc<AtomicBool>,
    requests: Arc<Mutex<Requests>>,
) -> Result<JoinHandle<()>> {
    let options = options.clone();
    let download = move || {
        let entered = options.client.enter().map_err(|error| error.chain());
        let outcome = entered.and_then(|()| {
            download(&options, &stop, &requests).map_err(|error| format!("the download: {error}"))
        });
        if let Err(failure) = outcome {
            record(&requests, Err(failure));
        }
    };
    std::thread::Builder::new()
        .name("load-download".into())
        .spawn(download)
        .map_err(LabError::io("start a thread"))
}

fn download(options: &LoadOptions, stop: &AtomicBool, requests: &Mutex<Requests>) -> io::Result<()> {
    let address = SocketAddr::V4(web(options.guest));
    let mut stream = TcpStream::connect_timeout(&address, options.request_limit)?;
    stream.set_read_timeout(Some(options.request_limit))?;
    stream.write_all(b"GET /download HTTP/1.1\r\nHost: guest\r\n\r\n")?;
    let mut reader = io::BufReader::new(stream);
    read_head(&mut reader)?;
    for expected in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut number = [0; 8];
        reader.read_exact(&mut number)?;
        let number = u64::from_le_bytes(number);
        if number != expected {
            let message = format!("the number {number} where {expected} should be");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        requests.lock().unwrap_or_else(PoisonError::into_inner).downloaded += 8;
    }
    Ok(())
}

fn read_head(reader: &mut impl Read) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(HEAD_END) {
        let mut byte = [0];
        reader.read_exact(&mut byte)?;
        head.push(byte[0]);
        if head.len() > HEAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a head that never ends"));
        }
    }
    if head.starts_with(b"HTTP/1.1 200 ") {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()))
}
