//! Switching hosts off and on.
//!
//! ```text
//!   host's settings --> driver:  ipmi         ipmitool asks the host's management controller
//!                                wake_on_lan  a magic packet wakes it; its agent switches it off
//!                                simulated    a program does whatever it does
//! ```
//!
//! A driver asks for a change and does not wait for it: a host that was woken is there once its agent reports. Passwords and
//! programs lie in the directory `power` of the manager's state, where only who administers its machine can put them.

mod command;
mod ipmi;
mod simulated;
mod wake_on_lan;

use std::path::PathBuf;

use godwit_types::agent::LocalState;
use godwit_types::power::{PowerDeed, PowerDriver, PowerOrder, PowerReport, PowerState};
use godwit_types::task::TaskKind;
use godwit_types::{ApiError, ErrorCode, HostName};

use crate::clock::now_unix_ms;
use crate::manager::{Manager, unknown_host};
use crate::store::{HostRow, NewEvent, Power, StoreError, Tx};
use command::CommandError;
use ipmi::Ipmi;
use simulated::Simulated;
use wake_on_lan::WakeOnLan;

/// How long a host that was sent to standby may take to be off. One that reports after that was switched on by people.
const LEAVING_MS: u64 = 120_000;

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
                format!("name a driver: godwit host set {host} --power-driver ipmi|wake-on-lan")
            }
            Self::Password { path, .. } => {
                format!(
                    "write the password into {} and let only its owner read it: chmod 600",
                    path.display()
                )
            }
            Self::Command(error) => error.remedy().into(),
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

/// Wakes a host. It is there once its agent reports.
pub(crate) async fn wake(manager: &Manager, host: &HostName) -> Result<(), ApiError> {
    let driver = driver(manager, host).await?;
    driver.wake().await.map_err(|error| error.told(host, "was not woken"))?;
    let host = host.clone();
    let told = move |tx: &Tx<'_>| {
        tx.put_power_order(&host, &PowerOrder { deed: PowerDeed::Wake, at_unix_ms: now_unix_ms() })?;
        Ok(tx.add_event(NewEvent::new("host.woken", format!("{host} was woken")).host(&host))?)
    };
    manager.store.write(told).await
}

/// Sends a host to standby. It must be empty, and counts as down from then on, so that nothing is placed on it meanwhile.
pub(crate) async fn standby(manager: &Manager, host: &HostName) -> Result<(), ApiError> {
    let driver = driver(manager, host).await?;
    let leaving = host.clone();
    manager.store.write(move |tx| leave(tx, &leaving)).await?;
    let Err(error) = driver.standby().await else { return Ok(()) };
    let error = error.told(host, "was not sent to standby");
    let (staying, why) = (host.clone(), error.message.clone());
    let stay = move |tx: &Tx<'_>| {
        // Its next report says that it is up.
        tx.remove_power_order(&staying)?;
        Ok(tx.add_event(NewEvent::new("host.not-switched", why).host(&staying))?)
    };
    manager.store.write(stay).await?;
    Err(error)
}

/// Whether a host is on, by its driver, and what it was told last.
pub(crate) async fn report(manager: &Manager, host: &HostName) -> Result<PowerReport, ApiError> {
    let driver = driver(manager, host).await?;
    let state = driver.state().await.map_err(|error| error.told(host, "does not tell whether it is on"))?;
    let host = host.clone();
    let order = manager.store.read(move |tx| Ok(tx.power_order(&host)?)).await?;
    Ok(PowerReport { state, order })
}

/// Whether the host, whose agent has just reported, is about to go off as it was told. If not, that it was told is forgotten.
pub(crate) fn is_leaving(tx: &Tx<'_>, host: &HostName) -> Result<bool, StoreError> {
    let told = tx.power_order(host)?.filter(|order| order.deed == PowerDeed::Standby);
    let Some(order) = told else { return Ok(false) };
    let leaves = goes_off(order, now_unix_ms());
    if !leaves {
        tx.remove_power_order(host)?;
    }
    Ok(leaves)
}

fn goes_off(order: PowerOrder, now_unix_ms: u64) -> bool {
    now_unix_ms < order.at_unix_ms.saturating_add(LEAVING_MS)
}

fn leave(tx: &Tx<'_>, host: &HostName) -> Result<(), ApiError> {
    let row = require_empty(tx, host)?;
    tx.put_host(&HostRow { up: false, ..row })?;
    tx.put_power_order(host, &PowerOrder { deed: PowerDeed::Standby, at_unix_ms: now_unix_ms() })?;
    Ok(tx.add_event(NewEvent::new("host.standby", format!("{host} is sent to standby")).host(host))?)
}

/// Refuses if a VM is on the host, or a task may bring one there.
fn require_empty(tx: &Tx<'_>, host: &HostName) -> Result<HostRow, ApiError> {
    let row = tx.host(host)?.ok_or_else(|| unknown_host(host.as_str()))?;
    let is_here =
        |state| !matches!(state, LocalState::Stopped | LocalState::Crashed | LocalState::HandedOver);
    let mut here: Vec<_> =
        row.vms.iter().filter(|local| is_here(local.state)).map(|local| local.name.clone()).collect();
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
    let Some(first) = here.first() else { return Ok(row) };
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
        PowerDriver::None => return Err(PowerError::NoDriver.told(host, "is not switched by itself")),
        PowerDriver::Ipmi { address, user, password } => {
            Any::Ipmi(Ipmi { tool: ipmi::TOOL.into(), address, user, password: file(&password) })
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
            Self::WakeOnLan(driver) => driver.wake().await,
            Self::Simulated(driver) => driver.wake().await,
        }
    }

    async fn standby(&self) -> Result<(), PowerError> {
        match self {
            Self::Ipmi(driver) => driver.standby().await,
            Self::WakeOnLan(driver) => driver.standby().await,
            Self::Simulated(driver) => driver.standby().await,
        }
    }

    async fn state(&self) -> Result<PowerState, PowerError> {
        match self {
            Self::Ipmi(driver) => driver.state().await,
            Self::WakeOnLan(driver) => driver.state().await,
            Self::Simulated(driver) => driver.state().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_still_reports_when_it_should_be_off_was_switched_on_by_people() {
        let order = PowerOrder { deed: PowerDeed::Standby, at_unix_ms: 1000 };
        assert!(goes_off(order, 1000 + LEAVING_MS - 1));
        assert!(!goes_off(order, 1000 + LEAVING_MS));
    }
}
