//! A network that breaks on request.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

/// What happens once so many bytes, of all connections together, have gone from the source to the destination.
#[derive(Debug, Clone)]
pub enum Break {
    Never,
    /// All connections close.
    Cut {
        after: u64,
    },
    /// All connections close when this is set.
    CutWhen(Arc<AtomicBool>),
    /// The byte at this place is changed.
    Corrupt {
        at: u64,
    },
    /// Nothing more gets through, in either direction, and nothing closes.
    Silence {
        after: u64,
    },
    /// The same for the page connections only.
    SilentPages {
        after: u64,
    },
}

struct Network {
    passed: AtomicU64,
    trouble: Break,
}

/// Forwards connections to `target`; the address to connect to, and a counter of the bytes from source to destination.
pub fn start(target: SocketAddr, trouble: Break) -> (SocketAddr, impl Fn() -> u64) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let network = Arc::new(Network { passed: AtomicU64::new(0), trouble });
    let counter = Arc::clone(&network);
    thread::spawn(move || {
        // The streams of one migration are few; the thread goes when the test's process does.
        // The one page connection comes before that for control.
        for (index, source) in listener.incoming().take(8).map_while(Result::ok).enumerate() {
            let Ok(destination) = TcpStream::connect(target) else { return };
            for (from, to, counted) in [(&source, &destination, true), (&destination, &source, false)] {
                from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let network = Arc::clone(&network);
                thread::spawn(move || network.forward(from, to, counted, index == 0));
            }
        }
    });
    (address, move || counter.passed.load(SeqCst))
}

impl Network {
    fn forward(&self, mut from: TcpStream, mut to: TcpStream, counted: bool, pages: bool) {
        let mut buffer = vec![0; 64 << 10];
        for _ in 0..2000 {
            let passed = self.passed.load(SeqCst);
            match &self.trouble {
                Break::Cut { after } if passed >= *after => break,
                Break::CutWhen(now) if now.load(SeqCst) => break,
                Break::Silence { after } | Break::SilentPages { after }
                    if passed >= *after && (pages || matches!(self.trouble, Break::Silence { .. })) =>
                {
                    thread::sleep(Duration::from_millis(20));
                    continue;
                }
                _ => {}
            }
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(_) => break,
            };
            let mut pass = count;
            if counted {
                let before = self.passed.fetch_add(count as u64, SeqCst);
                match &self.trouble {
                    Break::Cut { after } | Break::Silence { after } => {
                        pass = pass.min(after.saturating_sub(before) as usize);
                    }
                    Break::Corrupt { at } if (before..before + count as u64).contains(at) => {
                        buffer[(at - before) as usize] ^= 0x10;
                    }
                    _ => {}
                }
            }
            if to.write_all(&buffer[..pass]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
