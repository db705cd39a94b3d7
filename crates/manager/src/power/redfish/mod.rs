//! Redfish: the host's management controller switches it, by HTTPS and JSON (DMTF DSP0266 and DSP2046).
//!
//! ```text
//!   GET /redfish/v1/ --> POST Links.Sessions --> GET its system --> POST #ComputerSystem.Reset --> DELETE the session
//!    where things are      the password, once      PowerState          On, GracefulShutdown
//! ```

mod trust;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use godwit_types::power::{Fingerprint, PowerState};
use hyper::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Driver, PowerError, secret};
use trust::Roots;
pub(super) use trust::of_machine;
use wire::Wire;

/// The service root, which every controller has there.
const ROOT: &str = "/redfish/v1/";
/// How long all that is asked of a controller may take together: some need seconds for each answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A host's management controller.
pub(super) struct Redfish {
    pub address: String,
    pub port: u16,
    pub user: String,
    /// The file with the password.
    pub password: PathBuf,
    /// The computer's id, if the controller has several.
    pub system: Option<String>,
    /// The certificate that the controller must have; none if whoever the machine trusts has to have signed it.
    pub fingerprint: Option<Fingerprint>,
    /// Whether it is switched off as if the power were cut.
    pub force_off: bool,
    pub roots: Roots,
}

/// Why a controller has not done what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum RedfishError {
    #[error("{at} cannot be reached: {source}")]
    Reach { at: String, source: std::io::Error },
    #[error("the certificate of {at} is not to be trusted: {why}")]
    Certificate { at: String, why: String, seen: Option<Fingerprint>, pinned: bool },
    #[error("{at} has not answered within {} s", TIMEOUT.as_secs())]
    Slow { at: String },
    #[error("{at} breaks off: {why}")]
    Broken { at: String, why: String },
    #[error("{at} does not let '{user}' in: {said}")]
    Login { at: String, user: String, said: String },
    #[error("{at} refuses to {deed} ({status}): {said}")]
    Refused { at: String, deed: String, status: u16, said: String },
    #[error("{at} says what Redfish does not: {what}")]
    Strange { at: String, what: String },
    #[error("{at} has the computers {}, and it is not said which of them this host is", .known.join(", "))]
    Which { at: String, known: Vec<String> },
    #[error("{at} cannot reset it by {wanted}, but by {}", .offered.join(", "))]
    Reset { at: String, wanted: &'static str, offered: Vec<String> },
}

impl RedfishError {
    pub(super) fn remedy(&self, host: &str) -> String {
        let set = format!("godwit host set {host} --power-driver redfish ..");
        match self {
            Self::Reach { .. } | Self::Slow { .. } | Self::Broken { .. } => {
                "check its address and port, and that the manager's machine reaches it".into()
            }
            Self::Certificate { seen: Some(seen), pinned: false, .. } => format!(
                "let the manager's machine trust whoever has signed it, or, if it is the controller's own, pin it: {set} \
                 --redfish-fingerprint {seen}"
            ),
            Self::Certificate { seen: Some(seen), .. } => {
                format!("if it was given a new one, pin that: {set} --redfish-fingerprint {seen}")
            }
            Self::Certificate { .. } => "check that HTTPS is spoken at that port".into(),
            Self::Login { .. } => "check the user, and the password in its file in power/".into(),
            Self::Refused { .. } => "do what it says, in its own web pages".into(),
            Self::Strange { .. } => "bring its firmware up to date, or use another driver".into(),
            Self::Which { .. } => format!("name it: {set} --redfish-system ID"),
            Self::Reset { wanted: "GracefulShutdown", .. } => {
                format!(
                    "let it be switched off at once, which is safe once it is empty: {set} --redfish-force-off"
                )
            }
            Self::Reset { .. } => "bring its firmware up to date, or use another driver".into(),
        }
    }
}

impl Driver for Redfish {
    async fn wake(&self) -> Result<(), PowerError> {
        self.session(Some((PowerState::On, "On"))).await.map(drop)
    }

    /// As by its power button, unless it is to be cut off.
    async fn standby(&self) -> Result<(), PowerError> {
        let how = if self.force_off { "ForceOff" } else { "GracefulShutdown" };
        self.session(Some((PowerState::Off, how))).await.map(drop)
    }

    async fn state(&self) -> Result<PowerState, PowerError> {
        self.session(None).await
    }
}

/// What a computer is to be, and the kind of reset that makes it so.
type Wanted = Option<(PowerState, &'static str)>;

impl Redfish {
    /// What the computer is, and has it become what is wanted. In a session of its own, which is ended whatever comes of it: controllers
    /// have few.
    async fn session(&self, wanted: Wanted) -> Result<PowerState, PowerError> {
        let password = secret::read(&self.password).await?;
        let mut wire = Wire::new(&self.address, self.port, self.fingerprint, self.roots.clone());
        let at = wire.at();
        let work = async {
            let root = wire.get(ROOT).await?;
            let session = self.log_in(&mut wire, &root, &password).await?;
            let done = self.act(&mut wire, &root, wanted).await;
            if let Err(error) = wire.ask(Method::DELETE, &session, None, "end the session").await {
                tracing::debug!("a session was not ended: {error}");
            }
            done
        };
        let done = timeout(TIMEOUT, work).await.unwrap_or(Err(RedfishError::Slow { at }));
        Ok(done?)
    }

    async fn act(&self, wire: &mut Wire, root: &Value, wanted: Wanted) -> Result<PowerState, RedfishError> {
        let system = self.system(wire, root).await?;
        let is = match system["PowerState"].as_str() {
            // On its way there or back it draws power, and is not to be taken for off.
            Some("On" | "PoweringOn" | "PoweringOff" | "Paused") => PowerState::On,
            Some("Off") => PowerState::Off,
            other => return Err(wire.strange(format!("the power state {other:?}"))),
        };
        match wanted {
            // Some refuse to do what is done already.
            Some((wanted, how)) if wanted != is => reset(wire, &system, how).await?,
            _ => {}
        }
        Ok(is)
    }

    /// Opens a session, and gives where it is.
    async fn log_in(&self, wire: &mut Wire, root: &Value, password: &str) -> Result<String, RedfishError> {
        let sessions = wire.link(&root["Links"]["Sessions"])?;
        let login = json!({"UserName": self.user, "Password": password});
        wire.open_session(&sessions, login, &self.user).await
    }

    /// The computer that this host is.
    async fn system(&self, wire: &mut Wire, root: &Value) -> Result<Value, RedfishError> {
        let systems = wire.link(&root["Systems"])?;
        let path = match &self.system {
            Some(id) => format!("{}/{id}", systems.trim_end_matches('/')),
            None => {
                let all = wire.get(&systems).await?;
                let members = all["Members"].as_array().map(Vec::as_slice).unwrap_or_default();
                let paths = members.iter().map(|member| wire.link(member));
                let mut paths: Vec<String> = paths.collect::<Result<_, _>>()?;
                match (paths.pop(), paths.is_empty()) {
                    (Some(only), true) => only,
                    (last, _) => {
                        let ids = paths.iter().chain(&last).map(|path| id_of(path));
                        return Err(RedfishError::Which { at: wire.at(), known: ids.collect() });
                    }
                }
            }
        };
        wire.get(&path).await
    }
}

async fn reset(wire: &mut Wire, system: &Value, how: &'static str) -> Result<(), RedfishError> {
    let reset = &system["Actions"]["#ComputerSystem.Reset"];
    let Some(target) = reset["target"].as_str().filter(|target| target.starts_with('/')) else {
        return Err(wire.strange("a computer that cannot be reset".into()));
    };
    // Where it does not list them here, it says so when it is asked.
    if let Some(offered) = reset["ResetType@Redfish.AllowableValues"].as_array() {
        let offered: Vec<String> =
            offered.iter().filter_map(|kind| kind.as_str().map(str::to_owned)).collect();
        if !offered.iter().any(|kind| kind == how) {
            return Err(RedfishError::Reset { at: wire.at(), wanted: how, offered });
        }
    }
    let deed = format!("reset it by {how}");
    wire.ask(Method::POST, target, Some(json!({"ResetType": how})), &deed).await.map(drop)
}

/// The last part of where a resource is.
fn id_of(path: &str) -> String {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
#[path = "../redfish_tests.rs"]
mod tests;
