//! `events`.

use godwit_types::ApiError;
use godwit_types::event::Event;
use tokio::time::{Duration, timeout};

use super::{Session, task};

/// Without `--follow`, the backlog has been printed when nothing more arrives for this long.
const BACKLOG_QUIET: Duration = Duration::from_millis(300);

pub(crate) async fn run(session: &Session, follow: bool, after: u64) -> Result<(), ApiError> {
    let mut events = session.client.events("/v1/events", after);
    loop {
        let event = if follow {
            tokio::select! {
                event = events.next() => event?,
                _ = tokio::signal::ctrl_c() => return Ok(()),
            }
        } else {
            match timeout(BACKLOG_QUIET, events.next()).await {
                Ok(event) => event?,
                Err(_) => return Ok(()),
            }
        };
        session.format.print_line(&event, line)?;
    }
}

fn line(event: &Event) -> String {
    format!("{}  {:5}  {:16}  {}", task::time(event.unix_ms), event.sequence, event.kind, event.message)
}
