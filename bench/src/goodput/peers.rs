//! Bytes of no meaning over as many connections: the kernel's TCP alone, and rustls on it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use godwit_migration::GuestMemory;
use godwit_tls::Session;
use godwit_types::{Bytes, Gfn, PAGE_SIZE_BYTES};
use godwit_vmm::memory::Ram;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection, StreamOwned};

use crate::error::{BenchError, Result};

const WRITE_BYTES: usize = 1 << 20;
const IO_LIMIT: Duration = Duration::from_secs(30);

/// Where the bytes end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Into {
    /// In one small buffer, again and again.
    Buffer,
    /// Each in its own place, in memory that is touched for the first time.
    FreshMemory,
}

/// Carries `memory` bytes in all over `streams` connections, each with a thread at either end.
pub(super) fn carry(memory: Bytes, streams: u32, session: Option<&Session>, into: Into) -> Result<()> {
    let each = memory.0 / u64::from(streams);
    std::thread::scope(|scope| {
        let mut ends = Vec::new();
        for _ in 0..streams {
            let (here, there) = pair()?;
            ends.push(scope.spawn(move || match session {
                None => send(here, each),
                Some(session) => {
                    let name = ServerName::try_from("destination").map_err(secure)?;
                    let client = ClientConnection::new(session.configs().0, name).map_err(secure)?;
                    send(StreamOwned::new(client, here), each)
                }
            }));
            ends.push(scope.spawn(move || match session {
                None => receive(there, each, into),
                Some(session) => {
                    let server = ServerConnection::new(session.configs().1).map_err(secure)?;
                    receive(StreamOwned::new(server, there), each, into)
                }
            }));
        }
        ends.into_iter()
            .try_for_each(|end| end.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn pair() -> Result<(TcpStream, TcpStream)> {
    let failed = || BenchError::io("connect to ourselves over TCP");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
    let here = TcpStream::connect(listener.local_addr().map_err(failed())?).map_err(failed())?;
    let (there, _) = listener.accept().map_err(failed())?;
    // The peers get what Godwit takes.
    godwit_provision::unpace(&here).map_err(failed())?;
    for stream in [&here, &there] {
        stream.set_nodelay(true).map_err(failed())?;
        stream.set_read_timeout(Some(IO_LIMIT)).map_err(failed())?;
        stream.set_write_timeout(Some(IO_LIMIT)).map_err(failed())?;
    }
    Ok((here, there))
}

fn send(mut to: impl Write, bytes: u64) -> Result<()> {
    let block = vec![0x5a; WRITE_BYTES];
    let mut left = bytes;
    while left > 0 {
        let part = left.min(WRITE_BYTES as u64);
        to.write_all(&block[..part as usize]).map_err(BenchError::io("send"))?;
        left -= part;
    }
    to.flush().map_err(BenchError::io("send"))
}

fn receive(from: impl Read, bytes: u64, into: Into) -> Result<()> {
    match into {
        Into::Buffer => receive_into_buffer(from, bytes),
        Into::FreshMemory => receive_into_memory(from, bytes),
    }
}

fn receive_into_buffer(mut from: impl Read, bytes: u64) -> Result<()> {
    let mut block = vec![0; WRITE_BYTES];
    let mut left = bytes;
    while left > 0 {
        let most = left.min(WRITE_BYTES as u64) as usize;
        left -= from.read(&mut block[..most]).map_err(BenchError::io("receive"))? as u64;
    }
    Ok(())
}

fn receive_into_memory(mut from: impl Read, bytes: u64) -> Result<()> {
    let ram = Ram::new(Bytes(bytes)).map_err(|error| BenchError::Memory(error.to_string()))?;
    let mut block = vec![0; WRITE_BYTES];
    for range in ram.ranges() {
        let mut gfn = range.start.0;
        while gfn < range.end() {
            let pages = (range.end() - gfn).min(Bytes(WRITE_BYTES as u64).pages());
            let part = &mut block[..(pages * PAGE_SIZE_BYTES) as usize];
            from.read_exact(part).map_err(BenchError::io("receive"))?;
            ram.write(Gfn(gfn), part).map_err(|error| BenchError::Memory(error.to_string()))?;
            gfn += pages;
        }
    }
    Ok(())
}

fn secure(error: impl std::fmt::Display) -> BenchError {
    BenchError::Secure(error.to_string())
}
