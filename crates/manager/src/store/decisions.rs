//! What the scheduler has decided, and what became of it.

use godwit_scheduler::decision::Decision;
use godwit_scheduler::planner::{Goal, Step};
use godwit_scheduler::policy::Policy;
use godwit_scheduler::record::{DecisionRecord, Outline, StepRecord, StepState};
use godwit_types::TaskId;
use rusqlite::{OptionalExtension, Row, ToSql, params};

use super::codec::{Doc, Text, Word};
use super::{StoreError, Tx};
use crate::clock::now_unix_ms;

/// Decisions kept; older ones go.
const DECISIONS_MAX: u32 = 1_000;
/// A level of zstd that takes less than a millisecond for a snapshot of a hundred VMs.
const PACKING_LEVEL: i32 = 3;

/// What becomes of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StepChange {
    pub decision: u64,
    pub step: usize,
    pub state: StepState,
    pub task: Option<TaskId>,
    pub detail: Option<String>,
}

impl Tx<'_> {
    /// Adds a decision whose steps are in these states; its id.
    pub(crate) fn add_decision(
        &self,
        cause: &str,
        decision: &Decision,
        states: &[StepState],
    ) -> Result<u64, StoreError> {
        let now = now_unix_ms();
        let (goal, outline) = (&decision.goal, Outline::from(&decision.plan));
        self.sql
            .prepare_cached(
                "INSERT INTO decisions (unix_ms, cause, goal, outline, decision) VALUES (?, ?, ?, ?, ?)",
            )?
            .execute(params![now, cause, Doc(goal), Doc(&outline), packed(decision)?])?;
        let id = self.sql.last_insert_rowid();
        let mut add = self.sql.prepare_cached(
            "INSERT INTO decision_steps (decision, step, step_doc, state, applied, changed_unix_ms) VALUES (?, ?, ?, ?, 0, ?)",
        )?;
        for (index, (step, state)) in decision.plan.steps.iter().zip(states).enumerate() {
            add.execute(params![id, index, Doc(step), Word(state), now])?;
        }
        self.sql
            .prepare_cached("DELETE FROM decisions WHERE id <= ?")?
            .execute([id - i64::from(DECISIONS_MAX)])?;
        Ok(id.unsigned_abs())
    }

    /// At most `count` decisions before the one with the id `before`, if one is named; newest first.
    pub(crate) fn decisions(
        &self,
        before: Option<u64>,
        count: u32,
    ) -> Result<Vec<DecisionRecord>, StoreError> {
        let before = before.unwrap_or(u64::MAX).min(i64::MAX as u64);
        self.decisions_where("id < ? ORDER BY id DESC LIMIT ?", params![before, count])
    }

    pub(crate) fn decision_record(&self, id: u64) -> Result<Option<DecisionRecord>, StoreError> {
        Ok(self.decisions_where("id = ?", params![id])?.pop())
    }

    /// The last decision about the whole cluster.
    pub(crate) fn last_balance(&self) -> Result<Option<DecisionRecord>, StoreError> {
        let condition = "json_extract(goal, '$.goal') = 'balance' ORDER BY id DESC LIMIT 1";
        Ok(self.decisions_where(condition, params![])?.pop())
    }

    /// The decisions of which something is still to be done, oldest first.
    pub(crate) fn open_decisions(&self) -> Result<Vec<DecisionRecord>, StoreError> {
        let condition =
            "id IN (SELECT decision FROM decision_steps WHERE state IN ('approved', 'running')) ORDER BY id";
        self.decisions_where(condition, params![])
    }

    /// The steps that failed or were rejected since, newest last.
    pub(crate) fn setbacks_since(&self, unix_ms: u64) -> Result<Vec<StepRecord>, StoreError> {
        let mut query = self.sql.prepare_cached(&format!(
            "SELECT {STEP} FROM decision_steps WHERE state IN ('failed', 'rejected') AND changed_unix_ms >= ?
             ORDER BY changed_unix_ms, decision, step"
        ))?;
        let steps = query.query_map([unix_ms], step)?;
        Ok(steps.collect::<Result<_, _>>()?)
    }

    fn decisions_where(
        &self,
        condition: &str,
        values: &[&dyn ToSql],
    ) -> Result<Vec<DecisionRecord>, StoreError> {
        let mut query = self.sql.prepare_cached(&format!(
            "SELECT id, unix_ms, cause, goal, outline FROM decisions WHERE {condition}"
        ))?;
        let found = query.query_map(values, record)?;
        let mut found: Vec<DecisionRecord> = found.collect::<Result<_, _>>()?;
        let mut query = self
            .sql
            .prepare_cached(&format!("SELECT {STEP} FROM decision_steps WHERE decision = ? ORDER BY step"))?;
        for record in &mut found {
            let steps = query.query_map([record.id], step)?;
            record.steps = steps.collect::<Result<_, _>>()?;
        }
        Ok(found)
    }

    /// The decision with all that it was concluded from.
    pub(crate) fn decision(&self, id: u64) -> Result<Option<Decision>, StoreError> {
        let mut query = self.sql.prepare_cached("SELECT decision FROM decisions WHERE id = ?")?;
        let packed = query.query_row([id], |row| row.get::<_, Vec<u8>>(0)).optional()?;
        packed.map(|packed| unpacked(&packed)).transpose()
    }

    /// The policy under which the last decision at that time, or before, was made.
    pub(crate) fn policy_as_of(&self, unix_ms: u64) -> Result<Option<Policy>, StoreError> {
        let mut query = self
            .sql
            .prepare_cached("SELECT id FROM decisions WHERE unix_ms <= ? ORDER BY id DESC LIMIT 1")?;
        let id = query.query_row([unix_ms.min(i64::MAX as u64)], |row| row.get::<_, u64>(0)).optional()?;
        let decision = id.map(|id| self.decision(id)).transpose()?.flatten();
        Ok(decision.map(|decision| decision.policy))
    }

    /// Writes what becomes of a step. A task that is known stays.
    pub(crate) fn change_step(&self, change: &StepChange) -> Result<(), StoreError> {
        let StepChange { decision, step, state, task, detail } = change;
        self.sql
            .prepare_cached(
                "UPDATE decision_steps SET state = ?, task = coalesce(?, task), detail = ?, changed_unix_ms = ?
                 WHERE decision = ? AND step = ?",
            )?
            .execute(params![
                Word(state),
                task.as_ref().map(Text),
                detail,
                now_unix_ms(),
                decision,
                step
            ])?;
        Ok(())
    }

    /// Has people apply a step that waits for them.
    pub(crate) fn apply_step(&self, decision: u64, step: usize) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "UPDATE decision_steps SET state = 'approved', applied = 1, changed_unix_ms = ?
                 WHERE decision = ? AND step = ? AND state = 'recommended'",
            )?
            .execute(params![now_unix_ms(), decision, step])?;
        Ok(())
    }

    /// Drops what earlier decisions have left open, but for what people have applied: those about the whole cluster, or those
    /// that people have asked for besides.
    pub(crate) fn drop_open_steps(&self, about_all: bool, detail: &str) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "UPDATE decision_steps SET state = 'dropped', detail = ?, changed_unix_ms = ?
                 WHERE state IN ('recommended', 'approved') AND applied = 0 AND decision IN
                 (SELECT id FROM decisions WHERE json_extract(goal, '$.goal') <> 'place'
                  AND (json_extract(goal, '$.goal') = 'balance') = ?)",
            )?
            .execute(params![detail, now_unix_ms(), about_all])?;
        Ok(())
    }
}

const STEP: &str = "step_doc, state, applied, changed_unix_ms, task, detail";

fn step(row: &Row<'_>) -> rusqlite::Result<StepRecord> {
    Ok(StepRecord {
        step: row.get::<_, Doc<Step>>(0)?.0,
        state: row.get::<_, Word<_>>(1)?.0,
        applied: row.get(2)?,
        changed_unix_ms: row.get(3)?,
        task: row.get::<_, Option<Text<_>>>(4)?.map(|task| task.0),
        detail: row.get(5)?,
    })
}

/// Without its steps.
fn record(row: &Row<'_>) -> rusqlite::Result<DecisionRecord> {
    Ok(DecisionRecord {
        id: row.get(0)?,
        unix_ms: row.get(1)?,
        cause: row.get(2)?,
        goal: row.get::<_, Doc<Goal>>(3)?.0,
        outline: row.get::<_, Doc<_>>(4)?.0,
        steps: Vec::new(),
    })
}

fn packed(decision: &Decision) -> Result<Vec<u8>, StoreError> {
    let text = serde_json::to_vec(decision).map_err(std::io::Error::other);
    text.and_then(|text| zstd::encode_all(text.as_slice(), PACKING_LEVEL))
        .map_err(|source| StoreError::Packing { source })
}

fn unpacked(packed: &[u8]) -> Result<Decision, StoreError> {
    let text = zstd::decode_all(packed).map_err(|source| StoreError::Packing { source })?;
    serde_json::from_slice(&text).map_err(|source| StoreError::Packing { source: source.into() })
}
