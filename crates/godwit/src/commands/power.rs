//! `host power`, `host wake` and `host standby`.

use std::time::Duration;

use godwit_types::power::{PowerDeed, PowerOrder, PowerReport, PowerState};
use godwit_types::{ApiError, HostName};
use serde_json::{Value, json};

use super::{Session, task};

/// How long the manager may take: a management controller that is slow to answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(40);

pub(crate) async fn show(session: &Session, host: &HostName) -> Result<(), ApiError> {
    let client = session.client.with_timeout(TIMEOUT);
    let power: PowerReport = client.get(&format!("/v1/hosts/{host}/power")).await?;
    session.format.print(&power, |PowerReport { state, order }| {
        let state = match state {
            PowerState::On => format!("{host} is on"),
            PowerState::Off => format!("{host} is off"),
            PowerState::Unknown => format!("{host} is silent: nothing tells whether it is off"),
        };
        let told = order.map(|PowerOrder { deed, at_unix_ms }| {
            let deed = if deed == PowerDeed::Wake { "woken" } else { "sent to standby" };
            format!("; it was {deed} at {}", task::time(at_unix_ms))
        });
        state + &told.unwrap_or_default()
    })
}

pub(crate) async fn wake(session: &Session, host: &HostName) -> Result<(), ApiError> {
    let woken = order(session, host, "wake").await?;
    session.format.print(&woken, |_| format!("{host} was woken; it is there once its agent reports"))
}

pub(crate) async fn standby(session: &Session, host: &HostName) -> Result<(), ApiError> {
    let sent = order(session, host, "standby").await?;
    session
        .format
        .print(&sent, |_| format!("{host} was sent to standby; wake it with: godwit host wake {host}"))
}

async fn order(session: &Session, host: &HostName, verb: &str) -> Result<Value, ApiError> {
    session.client.with_timeout(TIMEOUT).post(&format!("/v1/hosts/{host}/{verb}"), &json!({})).await
}
