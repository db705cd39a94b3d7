//! `/v1/arbiter`: the decision and its record in one transaction, written before it is told.
//!
//! What changes the owner is on the disk first. A claim after a commit need not be: it changes none, a destination that
//! lost its grant in the manager's power cut is granted it again, and its reports say that it runs. The guest waits for
//! both.

use axum::extract::State;
use godwit_api::server::Json;
use godwit_faults::Step;
use godwit_types::ownership::{ClaimRequest, CommitRequest, Verdict, Witness};
use godwit_types::{ApiError, MigrationId};

use super::{Answer, Shared};
use crate::arbiter::{self, Decision};
use crate::reached;
use crate::store::Tx;

/// The source of a migration hands the VM over. Safe to repeat.
#[utoipa::path(post, path = "/v1/arbiter/commit", operation_id = "commit_migration", tag = "agents", request_body = CommitRequest,
    responses((status = 200, body = Verdict), (status = "default", body = ApiError)))]
pub(super) async fn commit(State(manager): Shared, Json(asked): Json<CommitRequest>) -> Answer<Verdict> {
    reached(Step::ManagerCommit).await;
    let verdict = manager.store.write(move |tx| {
        let owned = tx.ownership(asked.vm)?.map(|(owned, _)| owned);
        let migration = tx.migration(asked.migration)?;
        record(tx, asked.migration, arbiter::commit(owned.as_ref(), migration.as_ref(), &asked))
    });
    let verdict = verdict.await?;
    reached(Step::ManagerCommitted).await;
    Ok(Json(verdict))
}

/// The destination of a migration asks whether it may run the VM. Safe to repeat.
#[utoipa::path(post, path = "/v1/arbiter/claim", operation_id = "claim_migration", tag = "agents", request_body = ClaimRequest,
    responses((status = 200, body = Verdict), (status = "default", body = ApiError)))]
pub(super) async fn claim(State(manager): Shared, Json(asked): Json<ClaimRequest>) -> Answer<Verdict> {
    reached(Step::ManagerClaim).await;
    let takes_over = asked.witness == Witness::SourceDead;
    let decide = move |tx: &Tx<'_>| {
        let owned = tx.ownership(asked.vm)?.map(|(owned, _)| owned);
        let migration = tx.migration(asked.migration)?;
        record(tx, asked.migration, arbiter::claim(owned.as_ref(), migration.as_ref(), &asked))
    };
    let store = &manager.store;
    let verdict = if takes_over { store.write(decide).await? } else { store.note(decide).await? };
    if matches!(verdict, Verdict::Granted { .. }) {
        reached(Step::ManagerClaimed).await;
    }
    Ok(Json(verdict))
}

fn record(tx: &Tx<'_>, migration: MigrationId, decision: Decision) -> Result<Verdict, ApiError> {
    if let Some(change) = &decision.change {
        tx.apply_change(migration, change)?;
    }
    if let Verdict::Refused { reason } = &decision.verdict {
        tracing::warn!("the arbiter refused: {reason}");
    }
    Ok(decision.verdict)
}
