//! What the machine can do without any engine: plain TCP, so that a goodput can be read as a part of it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use godwit_lab::namespace::Namespace;

use crate::engine::Bed;
use crate::error::{BenchError, Result};
use crate::row::Row;

const CASE: &str = "machine";
/// As many as QEMU's multifd uses, and one.
const STREAMS: [usize; 2] = [1, 4];
const WRITE_BYTES: usize = 1 << 20;
const DURATION: Duration = Duration::from_secs(1);
const IO_LIMIT: Duration = Duration::from_secs(10);

/// One row for each number of streams: over the loopback, and between the hosts.
pub(crate) fn rows(bed: &Bed) -> Result<Vec<Row>> {
    let [source, destination] = [&bed.source, &bed.destination].map(|host| bed.fabric.host_namespace(host));
    let (source, destination) = (source?, destination?);
    let address = bed.fabric.host_address(&bed.destination)?;
    let mut rows = Vec::new();
    for streams in STREAMS {
        let loopback = Way { from: source, to: source, address: Ipv4Addr::LOCALHOST };
        let hosts = Way { from: source, to: destination, address };
        for (name, way) in [("tcp-loopback", loopback), ("tcp-hosts", hosts)] {
            let goodput = way.goodput(streams)?;
            rows.push(Row::machine(CASE, &format!("{name}-{streams}"), goodput));
        }
    }
    Ok(rows)
}

/// Memory that processes can still have, in bytes; `None` if the kernel does not say.
pub(crate) fn available_bytes() -> Option<u64> {
    parse_available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// From one namespace to another.
struct Way<'a> {
    from: &'a Namespace,
    to: &'a Namespace,
    address: Ipv4Addr,
}

impl Way<'_> {
    /// Bytes received a second over all streams.
    fn goodput(&self, streams: usize) -> Result<f64> {
        let pairs = (0..streams).map(|_| self.connect()).collect::<Result<Vec<_>>>()?;
        let begun = Instant::now();
        let (mut senders, mut receivers) = (Vec::new(), Vec::new());
        for (send, receive) in pairs {
            senders.push(std::thread::spawn(move || send_all(send, begun)));
            receivers.push(std::thread::spawn(move || count_all(receive)));
        }
        let mut received = 0;
        for sender in senders {
            sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        for receiver in receivers {
            received += receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(received as f64 / begun.elapsed().as_secs_f64())
    }

    fn connect(&self) -> Result<(TcpStream, TcpStream)> {
        let failed = || BenchError::io("connect to ourselves over TCP");
        let listener = self.to.within(|| TcpListener::bind((self.address, 0)))?.map_err(failed())?;
        let at: SocketAddr = listener.local_addr().map_err(failed())?;
        let send = self.from.within(|| TcpStream::connect_timeout(&at, IO_LIMIT))?.map_err(failed())?;
        let (receive, _) = listener.accept().map_err(failed())?;
        for stream in [&send, &receive] {
            stream.set_read_timeout(Some(IO_LIMIT)).map_err(failed())?;
            stream.set_write_timeout(Some(IO_LIMIT)).map_err(failed())?;
        }
        Ok((send, receive))
    }
}

fn send_all(mut stream: TcpStream, begun: Instant) -> Result<()> {
    let block = vec![0x5a; WRITE_BYTES];
    while begun.elapsed() < DURATION {
        stream.write_all(&block).map_err(BenchError::io("send over TCP"))?;
    }
    Ok(())
}

fn count_all(mut stream: TcpStream) -> Result<u64> {
    let mut block = vec![0; WRITE_BYTES];
    let mut received = 0;
    loop {
        match stream.read(&mut block).map_err(BenchError::io("receive over TCP"))? {
            0 => return Ok(received),
            count => received += count as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read() {
        let meminfo = "MemTotal:       24689764 kB\nMemFree:         123 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(parse_available(meminfo), Some(20_000_000 << 10));
        assert_eq!(parse_available("MemTotal: 1 kB\n"), None);
    }
}
