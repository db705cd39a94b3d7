//! The manager of a cluster: what there is (hosts, VMs), who may run what (the arbiter), what is being done (tasks),
//! what happened (events), and an API for all of it.
//!
//! ```text
//!   CLI, agents --HTTP--> http --> define, tasks::request_* --+--> store (SQLite)
//!                           |                                 |       ^
//!                           +----> arbiter, heartbeat --------+       |
//!                                                                     |
//!   agents <--HTTP-- tasks: one driver for each open task ------------+
//! ```
//!
//! `arbiter`, `admission`, `fit`, `moving`, `relocating`, `preflight`, `link`, `news` and `settle` decide, as pure functions; the rest asks them and writes down
//! what they said. The manager holds no state that is not in its store: a new one takes up where the last one stopped.

pub mod admission;
pub mod arbiter;
mod check;
mod clock;
mod define;
mod fit;
#[cfg(test)]
mod fixtures;
mod heartbeat;
mod http;
mod link;
mod manager;
mod moving;
pub mod news;
mod plan;
mod preflight;
mod relocating;
mod rulebook;
mod store;
mod tasks;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use godwit_api::{Token, TokenError};
use godwit_types::ApiError;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

pub use http::openapi;
pub use manager::Limits;
pub use store::{Power, StoreError};
pub use tasks::settle;

use crate::manager::Manager;
use crate::store::Store;

/// What `godwit manager run` is given.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    pub listen: SocketAddr,
    /// Where the store lies; created when missing.
    pub state_dir: PathBuf,
    /// The token of this API and of the agents'; created when missing.
    pub token_file: PathBuf,
}

/// Why the manager ended.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    #[error("cannot open the manager's store")]
    Store(#[from] StoreError),
    #[error("the manager has no token")]
    Token(#[from] TokenError),
    #[error(
        "cannot listen on {address}; check that no other manager runs there, or name another address with --listen"
    )]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot take up the tasks that were under way")]
    Resume(#[source] ApiError),
    #[error("cannot catch SIGINT and SIGTERM")]
    Signals(#[source] std::io::Error),
}

/// Waits while a test holds the step; see [`godwit_faults`].
async fn reached(step: godwit_faults::Step) {
    while godwit_faults::is_held(step) {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

/// Runs the manager until SIGINT or SIGTERM.
pub async fn run(config: ManagerConfig) -> Result<(), ManagerError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ManagerError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ManagerError::Signals)?;
    let address = config.listen;
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|source| ManagerError::Listen { address, source })?;
    let told = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    serve(listener, &config, Limits::default(), told).await
}

/// Serves on `listener` until `shutdown` completes, then ends everything: a task under way stays as it is in the
/// store, for the next manager.
pub async fn serve(
    listener: TcpListener,
    config: &ManagerConfig,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ManagerError> {
    let (store, thread) = Store::open(&config.state_dir)?;
    let token = Token::read_or_create(&config.token_file)?;
    let manager = Arc::new(Manager::new(store, token, limits));
    tasks::resume(&manager).await.map_err(ManagerError::Resume)?;
    let watcher = Arc::clone(&manager);
    manager.spawn(async move { watcher.watch_hosts().await });
    manager.spawn(tasks::usher(Arc::clone(&manager)));
    tracing::info!("the manager serves on http://{}", listener.local_addr().unwrap_or(config.listen));
    let router = http::router(Arc::clone(&manager));
    let told = async {
        shutdown.await;
        manager.stop.send_replace(());
    };
    godwit_api::server::serve(listener, router, told).await;
    manager.end_background().await;
    manager.store.close().await;
    // Only when a job panicked, which the panic's own message has told.
    let _ = tokio::task::spawn_blocking(|| thread.join()).await;
    tracing::info!("the manager has ended");
    Ok(())
}
