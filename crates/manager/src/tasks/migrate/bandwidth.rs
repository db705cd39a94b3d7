//! What a migration may send: as much as was asked for, and no more than its part of what its destination takes in. The
//! source's agent sees to what its own host may send.

use std::time::Duration;

use godwit_types::api::Empty;
use godwit_types::migration::Budget;
use godwit_types::task::{SetBandwidth, TaskKind};
use tokio::time::Instant;

use super::{ASK_TIMEOUT, Attempt, Side};
use crate::arbiter::Migration;
use crate::store::{StoreError, Tx};

/// It is said again after so long: the source's agent may have been restarted.
const SAY_AGAIN: Duration = Duration::from_secs(5);

/// What the source's agent was last told, and when.
pub(super) type Told = Option<(Option<u64>, Instant)>;

/// In bytes per second; none is no cap.
pub(super) fn allowed(tx: &Tx<'_>, m: &Migration) -> Result<Option<u64>, StoreError> {
    let asked = tx.task_request::<Budget>(m.task)?.bandwidth_bytes_per_s_max;
    let taken_in = tx.host(&m.destination)?.and_then(|host| host.facts.migration.bandwidth_bytes_per_s_max);
    let part = match taken_in {
        Some(all) => Some((all / arriving(tx, m)?.max(1)).max(1)),
        None => None,
    };
    Ok(asked.into_iter().chain(part).min())
}

/// Migrations under way to the same destination, this one included.
fn arriving(tx: &Tx<'_>, m: &Migration) -> Result<u64, StoreError> {
    let to_there = |kind: &TaskKind| matches!(kind, TaskKind::MigrateVm { to, .. } if *to == m.destination);
    let open = tx.open_migrations()?;
    Ok(open.iter().filter(|(task, begun)| *begun && to_there(&task.kind)).count() as u64)
}

impl Attempt<'_> {
    /// Tells the source's agent, if there is news or it may have forgotten.
    pub(super) async fn tell_bandwidth(&mut self) -> Result<(), godwit_types::ApiError> {
        let m = self.m.clone();
        let allowed = self.driver.manager.store.read(move |tx| Ok(allowed(tx, &m)?)).await?;
        if self.told.is_some_and(|(told, at)| told == allowed && at.elapsed() < SAY_AGAIN) {
            return Ok(());
        }
        let path = format!("{}/{}/bandwidth", self.path(Side::Outgoing), self.m.id);
        let agent = self.driver.agent(&self.m.source).await?.with_timeout(ASK_TIMEOUT);
        match agent.post::<_, Empty>(&path, &SetBandwidth { bytes_per_s_max: allowed }).await {
            Ok(_) => self.told = Some((allowed, Instant::now())),
            // It may just have ended, or be out of reach, which whoever follows it sees.
            Err(error) => tracing::debug!("{} was not told its bandwidth: {error}", self.m.source),
        }
        Ok(())
    }
}
