//! The host's agent: runs VMs as processes, plugs them into networks, relays the arbiter's word, announces arrivals,
//! and tells the manager how the host is.
//!
//! ```text
//!   manager --HTTP--> http --> vm::launch, vm::orders --+--> godwit-vmm (one process per VM)
//!      ^                                                |      ^ control socket
//!      +-- heartbeat, arbiter <-- manager <-- vm::supervise ---+
//!                                                |
//!                                                +--> net (taps), announce (RARP, ARP, NA)
//! ```
//!
//! VMs outlive their agent: it starts them in process groups of their own and does not end them when it ends. The next
//! agent with the same state directory adopts them. (A systemd unit for the agent needs `KillMode=process` for that.)

mod agent;
mod announce;
mod config;
mod facts;
mod heartbeat;
mod http;
mod manager;
mod net;
mod usage;
mod vm;

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use godwit_api::{Token, TokenError, server};
use nix::fcntl::{Flock, FlockArg};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

pub use config::{DatastoreConfig, HostConfig, KeepConfig, NetworkConfig};
pub use net::NetError;

use crate::agent::Agent;
use crate::manager::Manager;

/// Longest path of a state directory, in bytes: what the longest path of a Unix socket (108 bytes with its closing zero)
/// leaves beside `/vms/ID/control.sock`.
const STATE_BYTES_MAX: usize = 107 - "/vms//control.sock".len() - 36;

/// Why the agent ended, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(
        "cannot use the state directory {path}; check that it is on a disk that is not full, and who owns it"
    )]
    State { path: PathBuf, source: io::Error },
    #[error(
        "the state directory {path} has a name too long for the sockets in it; name a shorter one with --state, of at most {STATE_BYTES_MAX} bytes"
    )]
    StateTooLong { path: PathBuf },
    #[error("another agent uses the state directory {path}; stop it, or name another one with --state")]
    StateTaken { path: PathBuf },
    #[error("the agent has no token")]
    Token(#[from] TokenError),
    #[error("there is no godwit-vmm at {path}; install it beside godwit, or name it with --vmm")]
    NoVmm { path: PathBuf },
    #[error("cannot set up the network {network}")]
    Network { network: godwit_types::Name, source: NetError },
    #[error(
        "cannot listen on {address}; check that no other agent runs there, or name another address with --listen"
    )]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot catch SIGINT and SIGTERM")]
    Signals(#[source] io::Error),
}

/// Runs the agent until SIGINT or SIGTERM. The VMs run on.
pub async fn run(config: HostConfig) -> Result<(), HostError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(HostError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(HostError::Signals)?;
    run_until(config, async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
    .await
}

/// Runs the agent until `shutdown` completes. The VMs run on.
pub async fn run_until(
    mut config: HostConfig,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), HostError> {
    let _lock = lock_state(&mut config.state_dir)?;
    let token = Token::read(&config.token_file)?;
    let vmm = find_vmm(config.vmm.as_deref())?;
    for network in &config.networks {
        let failed = |source| HostError::Network { network: network.name.clone(), source };
        net::prepare(network).map_err(failed)?;
    }
    let address = config.listen;
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|source| HostError::Listen { address, source })?;

    if !nix::unistd::geteuid().is_root() {
        tracing::warn!(
            "the agent is not root: VMs run as its own user, and one that is taken over can reach all that user can"
        );
    }
    let manager = Manager::new(config.name.clone(), config.manager.clone(), token.clone());
    let agent = Arc::new(Agent::new(config, vmm, manager));
    let adopted = vm::adopt::adopt_all(&agent).await;
    adopted.map_err(|source| HostError::State { path: agent.config.state_dir.clone(), source })?;
    agent.spawn(heartbeat::report_forever(Arc::clone(&agent)));
    agent.spawn(vm::traffic::share_forever(Arc::clone(&agent)));
    agent.spawn(usage::measure_forever(Arc::clone(&agent)));
    tracing::info!("the agent of {} listens on {address}", agent.config.name);
    server::serve(listener, http::router(Arc::clone(&agent), token), shutdown).await;
    agent.shut_down().await;
    Ok(())
}

/// Makes the state directory if it is missing, and holds it for this agent alone.
fn lock_state(path: &mut PathBuf) -> Result<Flock<File>, HostError> {
    let failed = |source| HostError::State { path: path.clone(), source };
    fs::create_dir_all(&path).map_err(failed)?;
    let absolute = path.canonicalize().map_err(failed)?;
    if absolute.as_os_str().len() > STATE_BYTES_MAX {
        return Err(HostError::StateTooLong { path: absolute });
    }
    let failed = |source| HostError::State { path: absolute.clone(), source };
    let file = File::create(absolute.join("lock")).map_err(failed)?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => HostError::StateTaken { path: absolute.clone() },
        other => failed(other.into()),
    })?;
    *path = absolute;
    Ok(lock)
}

fn find_vmm(named: Option<&Path>) -> Result<PathBuf, HostError> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => std::env::current_exe().unwrap_or_default().with_file_name("godwit-vmm"),
    };
    if path.is_file() { Ok(path) } else { Err(HostError::NoVmm { path }) }
}
