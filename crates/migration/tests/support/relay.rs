//! A network that breaks and comes back.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

pub struct Relay {
    pub address: SocketAddr,
    target: SocketAddr,
    /// Nobody gets through.
    blocked: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Relay {
    pub fn start(target: SocketAddr) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let relay =
            Arc::new(Self { address, target, blocked: AtomicBool::new(false), streams: Mutex::default() });
        let theirs = Arc::clone(&relay);
        // The thread goes when the test's process does.
        thread::spawn(move || {
            listener.incoming().map_while(Result::ok).for_each(|stream| theirs.carry(stream))
        });
        relay
    }

    /// Breaks all connections and lets no other through.
    pub fn block(&self) {
        self.blocked.store(true, SeqCst);
        self.streams.lock().unwrap().drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }

    /// Breaks what the source sees; the destination sees nothing.
    pub fn half_open(&self) {
        let streams = self.streams.lock().unwrap();
        streams.iter().step_by(2).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }

    pub fn mend(&self) {
        self.blocked.store(false, SeqCst);
    }

    fn carry(&self, source: TcpStream) {
        if self.blocked.load(SeqCst) {
            return;
        }
        let Ok(destination) = TcpStream::connect(self.target) else { return };
        for (from, to) in [(&source, &destination), (&destination, &source)] {
            let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            thread::spawn(move || {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    if to.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                // A peer that is not told keeps its connection.
                thread::sleep(Duration::from_secs(3));
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        self.streams.lock().unwrap().extend([source, destination]);
    }
}
