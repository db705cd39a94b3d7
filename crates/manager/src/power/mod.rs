//! Switching hosts off and on.
//!
//! ```text
//!   host's settings --> driver:  ipmi         ipmitool asks the host's management controller
//!                                redfish      the same, by HTTPS
//!                                wake_on_lan  a magic packet wakes it; its agent switches it off
//!                                simulated    a program does whatever it does
//! ```
//!
//! A driver asks for a change and does not wait for it: that is `tasks::power`'s. Passwords and
//! programs lie in the directory `power` of the manager's state, where only who administers its machine can put them.

mod command;
mod ipmi;
mod redfish;
mod secret;
mod simulated;
mod wake_on_lan;

use std::path::PathBuf;

use godwit_types::agent::LocalState;
use godwit_types::power::{PowerDriver, PowerState};
use godwit_types::task::TaskKind;
use godwit_types::{ApiError, ErrorCode, HostName};

use crate::manager::{Manager, unknown_host};
use crate::store::{Power, Tx};
use command::CommandError;
use ipmi::Ipmi;
use redfish::{Redfish, RedfishError};
use simulated::Simulated;
use wake_on_lan::WakeOnLan;

/// What can switch one host. Every call ends within seconds.
trait Driver {
    /// Switches it on; one that is on stays on.
    async fn wake(&self) -> Result<(), PowerError>;
    /// Has it shut itself down and stay off, until it is woken.
    async fn standby(&self) -> Result<(), PowerError>;
    /// Whether it is on now.
    async fn state(&self) -> Result<PowerState, PowerError>;
}

/// Why a host was not switched.
#[derive(Debug, thiserror::Error)]
enum PowerError {
    #[error("nothing is known that could switch it")]
    NoDriver,
    #[error("the password file {path} cannot be used: {why}")]
    Password { path: PathBuf, why: String },
    #[error("{0}")]
    Command(#[from] CommandError),
    #[error("{0}")]
    Redfish(#[from] RedfishError),
    #[error("{program} says '{said}', which is neither 'on' nor 'off'")]
    Unclear { program: String, said: String },
    #[error("the magic packet was not sent: {0}")]
    Packet(std::io::Error),
    #[error("its agent does not switch it off: {0}")]
    Agent(ApiError),
}

impl PowerError {
    /// What the person who runs the cluster can do.
    fn remedy(&self, host: &HostName) -> String {
        match self {
            Self::NoDriver => {
                format!("name a driver: godwit host set {host} --power-driver redfish|ipmi|wake-on-lan")
            }
            Self::Password { path, .. } => {
                format!(
                    "write the password into {} and let only its owner read it: chmod 600",
                    path.display()
                )
            }
            Self::Command(error) => error.remedy().into(),
            Self::Redfish(error) => error.remedy(host.as_str()),
            Self::Unclear { .. } => "let it print 'on' or 'off' when it is called with 'state'".into(),
            Self::Packet(_) => {
                format!("check the manager's network, or where the packet goes: godwit host show {host}")
            }
            Self::Agent(error) => error.remedy.clone().unwrap_or_else(|| "look at its agent's log".into()),
        }
    }

    fn told(self, host: &HostName, deed: &str) -> ApiError {
        let code = match &self {
            Self::NoDriver => ErrorCode::Refused,
            Self::Agent(error) => error.code,
            _ => ErrorCode::Failed,
        };
        let remedy = self.remedy(host);
        ApiError::new(code, format!("{host} {deed}: {self}")).remedy(remedy)
    }
}

/// Why nothing can be done with a host that has no driver.
pub(crate) fn no_driver(host: &HostName) -> ApiError {
    PowerError::NoDriver.told(host, "is not switched by itself")
}

/// Wakes a host. It is there once its agent reports.
pub(crate) async fn wake(manager: &Manager, host: &HostName) -> Result<(), ApiError> {
    let driver = driver(manager, host).await?;
    driver.wake().await.map_err(|error| error.told(host, "was not woken"))
}

/// Sends a host to standby. It must be empty.
pub(crate) async fn standby(manager: &Manager, host: &HostName) -> Result<(), ApiError> {
    let driver = driver(manager, host).await?;
    let empty = host.clone();
    manager.store.read(move |tx| require_empty(tx, &empty)).await?;
    driver.standby().await.map_err(|error| error.told(host, "was not sent to standby"))
}

/// Whether a host is on, by its driver and not by its reports.
pub(crate) async fn state(manager: &Manager, host: &HostName) -> Result<PowerState, ApiError> {
    let driver = driver(manager, host).await?;
    driver.state().await.map_err(|error| error.told(host, "does not tell whether it is on"))
}

/// Refuses if a VM is on the host, or a task may bring one there.
pub(crate) fn require_empty(tx: &Tx<'_>, host: &HostName) -> Result<(), ApiError> {
    let row = tx.host(host)?.ok_or_else(|| unknown_host(host.as_str()))?;
    let is_here =
        |state| !matches!(state, LocalState::Stopped | LocalState::Crashed | LocalState::HandedOver);
    let mut here: Vec<_> =
        row.vms.into_iter().filter(|local| is_here(local.state)).map(|local| local.name).collect();
    for vm in tx.vms()? {
        let owned = tx.ownership(vm.id)?.is_some_and(|(owned, _)| owned.owner == *host);
        let comes = tx.open_task(vm.id)?.is_some_and(|task| match task.kind {
            TaskKind::StartVm { host: to } | TaskKind::MigrateVm { to, .. } => to == *host,
            _ => false,
        });
        if owned && vm.power == Power::Running || comes {
            here.push(vm.name);
        }
    }
    here.sort();
    here.dedup();
    let Some(first) = here.first() else { return Ok(()) };
    let message = match here.len() {
        1 => format!("{host} is not empty: {first} is on it, or on its way"),
        count => format!("{host} is not empty: {first} and {} others are on it, or on their way", count - 1),
    };
    Err(ApiError::new(ErrorCode::Refused, message)
        .remedy("move them to other hosts first: godwit vm migrate"))
}

/// Whichever driver the host's settings name.
enum Any {
    Ipmi(Ipmi),
    Redfish(Redfish),
    WakeOnLan(WakeOnLan),
    Simulated(Simulated),
}

async fn driver(manager: &Manager, host: &HostName) -> Result<Any, ApiError> {
    let name = host.clone();
    let settings = manager.store.read(move |tx| {
        tx.host(&name)?.ok_or_else(|| unknown_host(name.as_str()))?;
        Ok(tx.host_settings(&name)?)
    });
    let file = |name: &godwit_types::Name| manager.power_dir.join(name.as_str());
    Ok(match settings.await?.driver {
        PowerDriver::None => return Err(no_driver(host)),
        PowerDriver::Ipmi { address, user, password } => {
            Any::Ipmi(Ipmi { tool: ipmi::TOOL.into(), address, user, password: file(&password) })
        }
        PowerDriver::Redfish { address, port, user, password, system, fingerprint, force_off } => {
            let (password, roots) = (file(&password), redfish::of_machine());
            Any::Redfish(Redfish { address, port, user, password, system, fingerprint, force_off, roots })
        }
        PowerDriver::WakeOnLan { mac, to } => {
            Any::WakeOnLan(WakeOnLan { mac, to, agent: manager.agent(host).await? })
        }
        PowerDriver::Simulated { program } => {
            Any::Simulated(Simulated { program: file(&program), host: host.clone() })
        }
    })
}

impl Driver for Any {
    async fn wake(&self) -> Result<(), PowerError> {
        match self {
            Self::Ipmi(driver) => driver.wake().await,
            Self::Redfish(driver) => driver.wake().await,
            Self::WakeOnLan(driver) => driver.wake().await,
            Self::Simulated(driver) => driver.wake().await,
        }
    }

    async fn standby(&self) -> Result<(), PowerError> {
        match self {
            Self::Ipmi(driver) => driver.standby().await,
            Self::Redfish(driver) => driver.standby().await,
            Self::WakeOnLan(driver) => driver.standby().await,
            Self::Simulated(driver) => driver.standby().await,
        }
    }

    async fn state(&self) -> Result<PowerState, PowerError> {
        match self {
            Self::Ipmi(driver) => driver.state().await,
            Self::Redfish(driver) => driver.state().await,
            Self::WakeOnLan(driver) => driver.state().await,
            Self::Simulated(driver) => driver.state().await,
        }
    }
}
