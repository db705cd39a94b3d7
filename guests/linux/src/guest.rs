//! The Linux test guest: what runs in it, each on its own thread.
//!
//! ```text
//!   heartbeat   beats every millisecond, and notes the largest gap
//!   memory      rewrites and verifies its working set        ---+
//!   disk        writes, flushes and reads back records       ---+--> State --> http: GET /report
//!   http, echo  answer on the network
//!   service     runs what is on the second disk, if asked to
//!   button      powers off when the power button is pressed
//! ```

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;

use godwit_guest_contract::params::Parameters;

use crate::boot;

mod button;
mod disk;
mod heartbeat;
mod http;
mod memory;
mod network;
pub mod service;
mod state;

pub use state::State;

/// The first virtio disk, where the records go.
const DISK: &str = "/dev/vda";
const CARD: &str = "eth0";

/// Starts everything that the kernel's command line asks for, and says on the console that the guest is ready.
pub fn run() -> io::Result<()> {
    let command_line = fs::read_to_string("/proc/cmdline")?;
    // The defaults are less wrong than a guest that does not come up; the console says what was not understood.
    let parameters = Parameters::parse(&command_line).unwrap_or_else(|error| {
        eprintln!("guest: {error}");
        Parameters::default()
    });
    boot::load_modules()?;
    boot::run(&["--install", "-s", "/bin"])?;
    button::watch();
    boot::configure_interface("lo", None)?;

    let state = Arc::new(State::default());
    spawn("heartbeat", &state, heartbeat::run);
    spawn("memory", &state, move |state| memory::run(state, &parameters));
    if parameters.disk && boot::await_path(DISK) {
        spawn("disk", &state, |state| state.disk.end(disk::run(DISK, &state.disk)));
    }
    if let Some(address) = parameters.ip {
        boot::await_path(format!("/sys/class/net/{CARD}"));
        boot::configure_interface(CARD, Some(address))?;
        spawn("echo", &state, |_| network::echo());
        http::listen(&state)?;
    }
    if parameters.service {
        spawn("service", &state, |_| {
            service::run().unwrap_or_else(|error| eprintln!("guest: the service: {error}"));
        });
    }
    eprintln!("guest: ready, {} vCPUs, {}", state::vcpus(), memory_line());
    boot::console_shells();
    loop {
        thread::park();
    }
}

fn spawn(name: &str, state: &Arc<State>, work: impl FnOnce(&State) + Send + 'static) {
    let state = Arc::clone(state);
    let started = thread::Builder::new().name(name.to_owned()).spawn(move || work(&state));
    if let Err(error) = started {
        eprintln!("guest: {name}: {error}");
    }
}

fn memory_line() -> String {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines().next().unwrap_or_default().split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// Adds one, and returns the sum.
fn count(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1
}
