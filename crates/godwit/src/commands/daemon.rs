//! `manager run` and `host run`: the long-running parts.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration as StdDuration;

use godwit_host::{DatastoreConfig, HostConfig, KeepConfig, NetworkConfig};
use godwit_manager::ManagerConfig;
use godwit_types::{ApiError, ErrorCode};

use super::{TOKEN_FILE_DEFAULT, failed};
use crate::cli::{Global, HostRun};

/// Runs the manager until a signal ends it.
pub(crate) async fn manager(
    listen: SocketAddr,
    state_dir: PathBuf,
    token_file: Option<PathBuf>,
) -> Result<(), ApiError> {
    log_to_stderr();
    let token_file = token_file.unwrap_or_else(|| state_dir.join("token"));
    godwit_manager::run(ManagerConfig { listen, state_dir, token_file })
        .await
        .map_err(|error| failed(ErrorCode::Failed, &error))
}

/// Runs this machine's agent until a signal ends it.
pub(crate) async fn host(options: HostRun, global: Global) -> Result<(), ApiError> {
    log_to_stderr();
    let networks = options
        .networks
        .into_iter()
        .map(|network| NetworkConfig { name: network.name, bridge: network.bridge, uplink: network.uplink })
        .collect();
    let datastores = options
        .datastores
        .into_iter()
        .map(|datastore| DatastoreConfig { name: datastore.name, path: datastore.path })
        .collect();
    let age = StdDuration::from_millis(options.keep_memory.ms);
    let keep = (!age.is_zero()).then_some(KeepConfig { age, max: options.keep_memory_max });
    let config = HostConfig {
        name: options.name,
        manager: global.manager,
        token_file: global.token_file.unwrap_or_else(|| PathBuf::from(TOKEN_FILE_DEFAULT)),
        listen: options.listen,
        advertise: options.advertise,
        migration_address: options.migration_address.unwrap_or(options.advertise.ip()),
        state_dir: options.state,
        networks,
        datastores,
        vm_users: options.vm_users.0,
        cgroup: options.cgroup,
        moves_max: options.max_migrations,
        bandwidth_bytes_per_s_max: options.migration_bandwidth.map(|rate| rate.0),
        keep,
        standby: options.standby_command.split_whitespace().map(str::to_owned).collect(),
        vmm: options.vmm,
    };
    godwit_host::run(config).await.map_err(|error| failed(ErrorCode::Failed, &error))
}

fn log_to_stderr() {
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(ansi).with_target(false).init();
}
