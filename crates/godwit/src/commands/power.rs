//! `host power`, `host wake` and `host standby`.

use std::time::Duration;

use godwit_types::power::{PowerReport, PowerState};
use godwit_types::task::Task;
use godwit_types::{ApiError, HostName};
use serde_json::json;

use super::{Session, task};
use crate::cli::HostSwitch;

/// How long the manager may take: a management controller that is slow to answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(40);

pub(crate) async fn show(session: &Session, host: &HostName) -> Result<(), ApiError> {
    let client = session.client.with_timeout(TIMEOUT);
    let power: PowerReport = client.get(&format!("/v1/hosts/{host}/power")).await?;
    session.format.print(&power, |power| match power.state {
        PowerState::On => format!("{host} is on"),
        PowerState::Off => format!("{host} is off"),
        PowerState::Unknown => format!("{host} is silent: nothing tells whether it is off"),
    })
}

pub(crate) async fn wake(session: &Session, options: &HostSwitch) -> Result<(), ApiError> {
    order(session, options, "wake").await
}

pub(crate) async fn standby(session: &Session, options: &HostSwitch) -> Result<(), ApiError> {
    order(session, options, "standby").await
}

async fn order(session: &Session, options: &HostSwitch, verb: &str) -> Result<(), ApiError> {
    let begun: Task = session.client.post(&format!("/v1/hosts/{}/{verb}", options.host), &json!({})).await?;
    if options.no_wait {
        return session.format.print(&begun, |task| format!("{}: task {}", task.message, task.id));
    }
    task::follow(session, begun, task::new_messages(session)).await
}
