//! The verbs of `scheduler`.

use std::path::Path;

use godwit_scheduler::decision::{Explanation, Replay};
use godwit_scheduler::planner::{Goal, KeptOn, Plan, Standing, Step};
use godwit_scheduler::policy::{Automation, Policy};
use godwit_scheduler::record::{
    AskReplay, AskWhatIf, DecisionRecord, Imagined, NameSteps, Ran, RunScheduler, SchedulerStatus,
    StepRecord, StepState, WholeDecision,
};
use godwit_types::{ApiError, ErrorCode};

use super::maintenance::why_not;
use super::{Session, failed, task};
use crate::cli::scheduler::SchedulerVerb;
use crate::output::{fields, table};

/// Decisions in which recommendations are looked for: those before were dropped long ago.
const LOOKED_THROUGH: u32 = 50;

pub(crate) async fn run(session: &Session, verb: SchedulerVerb) -> Result<(), ApiError> {
    let (client, format) = (&session.client, session.format);
    match verb {
        SchedulerVerb::Status => {
            let status: SchedulerStatus = client.get("/v1/scheduler").await?;
            format.print(&status, describe_status)
        }
        SchedulerVerb::Run { goal, dry_run } => {
            let ran: Ran = client.post("/v1/scheduler/run", &RunScheduler { goal, dry_run }).await?;
            format.print(&ran, describe_run)
        }
        SchedulerVerb::Recommendations => recommendations(session).await,
        SchedulerVerb::Apply { decision, steps } => {
            let path = format!("/v1/scheduler/decisions/{decision}/apply");
            let record: DecisionRecord = client.post(&path, &NameSteps { steps }).await?;
            format.print(&record, describe_record)
        }
        SchedulerVerb::Reject { decision, steps } => {
            let path = format!("/v1/scheduler/decisions/{decision}/reject");
            let record: DecisionRecord = client.post(&path, &NameSteps { steps }).await?;
            format.print(&record, describe_record)
        }
        SchedulerVerb::Decisions { limit } => {
            let records: Vec<DecisionRecord> =
                client.get(&format!("/v1/scheduler/decisions?limit={limit}")).await?;
            format.print(&records, |records| list(records))
        }
        SchedulerVerb::Show { decision } => {
            let whole: WholeDecision = client.get(&format!("/v1/scheduler/decisions/{decision}")).await?;
            format.print(&whole, |whole| describe_record(&whole.record))
        }
        SchedulerVerb::Replay { decision, policy, as_of } => {
            let policy = policy.as_deref().map(read_policy).transpose()?;
            replay(session, decision, AskReplay { policy, as_of_unix_ms: as_of }).await
        }
        SchedulerVerb::Explain { vm } => {
            let told: Explanation = client.get(&format!("/v1/scheduler/explain/{vm}")).await?;
            format.print(&told, |told| told.to_string().trim_end().to_owned())
        }
        SchedulerVerb::WhatIf(asked) => {
            let policy = asked.policy.as_deref().map(read_policy).transpose()?;
            let asked = AskWhatIf { changes: asked.changes(), policy };
            let told: Imagined = client.post("/v1/scheduler/what-if", &asked).await?;
            format
                .print(&told, |told| format!("now  {}\n\n{}", standing(&told.now), describe_plan(&told.plan)))
        }
    }
}

async fn recommendations(session: &Session) -> Result<(), ApiError> {
    let path = format!("/v1/scheduler/decisions?limit={LOOKED_THROUGH}");
    let mut records: Vec<DecisionRecord> = session.client.get(&path).await?;
    records.retain(|record| record.steps.iter().any(|step| step.state == StepState::Recommended));
    session.format.print(&records, |records| {
        if records.is_empty() {
            return "nothing waits to be applied".to_owned();
        }
        let rows = records.iter().flat_map(|record| {
            let steps =
                record.steps.iter().enumerate().filter(|(_, step)| step.state == StepState::Recommended);
            steps.map(|(index, StepRecord { step, .. })| {
                let (action, reason) = (step.action.to_string(), step.reason.to_string());
                vec![record.id.to_string(), index.to_string(), step.priority.to_string(), action, reason]
            })
        });
        table(&["DECISION", "STEP", "PRIORITY", "WHAT", "WHY"], rows)
    })
}

async fn replay(session: &Session, decision: u64, asked: AskReplay) -> Result<(), ApiError> {
    let again: Replay =
        session.client.post(&format!("/v1/scheduler/decisions/{decision}/replay"), &asked).await?;
    session.format.print(&again, ToString::to_string)?;
    if again.difference.is_none() {
        return Ok(());
    }
    Err(ApiError::new(ErrorCode::Failed, format!("decision {decision} would be another now")))
}

fn read_policy(path: &Path) -> Result<Policy, ApiError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        ApiError::new(ErrorCode::Invalid, format!("cannot read {}: {error}", path.display()))
    })?;
    serde_json::from_str(&text).map_err(|error| {
        let error = failed(ErrorCode::Invalid, &error);
        ApiError { message: format!("{} is no policy: {}", path.display(), error.message), ..error }
    })
}

fn describe_status(status: &SchedulerStatus) -> String {
    let automation = match status.automation {
        Automation::Manual => "manual: it recommends",
        Automation::Inherit | Automation::Partial => {
            "partial: it places VMs that start, and recommends moves"
        }
        Automation::Full => "full: it places and moves",
    };
    let looked = status.looked_unix_ms.map_or_else(|| "not since the manager started".to_owned(), task::time);
    let mut rows = vec![
        ("automation", automation.to_owned()),
        ("threshold", format!("priority {} of 1 (what must be) to 5 (whatever helps)", status.threshold)),
        ("last look", looked),
        (
            "steps",
            format!(
                "{} recommended, {} to be done, {} under way",
                status.recommended, status.approved, status.running
            ),
        ),
    ];
    if let Some(record) = &status.decision {
        rows.push((
            "last decision",
            format!("{} at {}: {}", record.id, task::time(record.unix_ms), record.cause),
        ));
        rows.push(("cluster", standing(&record.outline.before)));
        rows.extend(record.outline.findings.iter().map(|finding| ("finding", finding.clone())));
    }
    let alone = status.left_alone.iter().map(|alone| {
        ("left alone", format!("{} until {}: {}", alone.vm, task::time(alone.until_unix_ms), alone.reason))
    });
    rows.extend(alone);
    fields(&rows)
}

fn standing(standing: &Standing) -> String {
    let worst = standing.unhappiest.as_ref().map(|(vm, happiness)| format!(", worst {vm} with {happiness}"));
    let broken = standing.broken.iter().map(|rule| format!(", rule {rule} is broken"));
    let broken: String = broken.collect();
    format!("happiness {}{}{broken}", standing.happiness, worst.unwrap_or_default())
}

fn describe_run(ran: &Ran) -> String {
    let head = match ran.decision {
        Some(id) => format!("decision {id}"),
        None => "nothing was recorded".to_owned(),
    };
    format!("{head}\n\n{}", describe_plan(&ran.plan))
}

fn describe_plan(plan: &Plan) -> String {
    let mut parts = vec![match plan.steps.is_empty() {
        true => "nothing to do".to_owned(),
        false => steps(plan.steps.iter().map(|step| (step, None))),
    }];
    parts.extend((!plan.unmoved.is_empty()).then(|| why_not(&plan.unmoved)));
    parts.push(change(&plan.before, &plan.after));
    parts.extend((!plan.findings.is_empty()).then(|| plan.findings.join("\n")));
    parts.join("\n\n")
}

fn change(before: &Standing, after: &Standing) -> String {
    fields(&[
        ("before", standing(before)),
        ("after", standing(after)),
        ("score", format!("{:.4} -> {:.4}", before.score, after.score)),
    ])
}

fn describe_record(record: &DecisionRecord) -> String {
    let rows = [
        ("decision", record.id.to_string()),
        ("made", task::time(record.unix_ms)),
        ("since", record.cause.clone()),
        ("goal", goal(&record.goal)),
    ];
    let mut parts = vec![fields(&rows)];
    if !record.steps.is_empty() {
        parts.push(steps(record.steps.iter().map(|one| (&one.step, Some(one)))));
    }
    parts.extend((!record.outline.unmoved.is_empty()).then(|| why_not(&record.outline.unmoved)));
    parts.push(change(&record.outline.before, &record.outline.after));
    parts.extend((!record.outline.findings.is_empty()).then(|| record.outline.findings.join("\n")));
    parts.extend((!record.outline.kept_on.is_empty()).then(|| kept_on(&record.outline.kept_on)));
    parts.join("\n\n")
}

/// Why hosts are not switched off.
fn kept_on(hosts: &[KeptOn]) -> String {
    let lines = hosts.iter().map(|kept| format!("host '{}' is kept on: {}", kept.host, kept.why));
    lines.collect::<Vec<_>>().join("\n")
}

/// A line for each step, with what became of it if that is known.
pub(super) fn steps<'a>(steps: impl Iterator<Item = (&'a Step, Option<&'a StepRecord>)>) -> String {
    let rows = steps.enumerate().map(|(index, (step, record))| {
        let after: Vec<String> = step.after.iter().map(ToString::to_string).collect();
        let became = record.map_or_else(String::new, |record| match &record.detail {
            Some(detail) => format!("{}: {detail}", state(record.state)),
            None => state(record.state).to_owned(),
        });
        let (action, reason) = (step.action.to_string(), step.reason.to_string());
        vec![index.to_string(), step.priority.to_string(), action, reason, after.join(","), became]
    });
    table(&["STEP", "PRIORITY", "WHAT", "WHY", "AFTER", "STATE"], rows)
}

fn list(records: &[DecisionRecord]) -> String {
    let row = |record: &DecisionRecord| {
        let done = record.steps.iter().filter(|step| step.state == StepState::Done).count();
        let (id, made) = (record.id.to_string(), task::time(record.unix_ms));
        vec![
            id,
            made,
            goal(&record.goal),
            format!("{done} of {} done", record.steps.len()),
            record.cause.clone(),
        ]
    };
    table(&["DECISION", "MADE", "GOAL", "STEPS", "SINCE"], records.iter().map(row))
}

fn goal(goal: &Goal) -> String {
    match goal {
        Goal::Balance => "balance".to_owned(),
        Goal::Place => "place".to_owned(),
        Goal::Evacuate { hosts } => {
            let hosts: Vec<&str> = hosts.iter().map(|host| host.as_str()).collect();
            format!("evacuate {}", hosts.join(", "))
        }
        Goal::MakeRoom { vm } => format!("make room for {vm}"),
    }
}

const fn state(state: StepState) -> &'static str {
    match state {
        StepState::Recommended => "recommended",
        StepState::Approved => "to be done",
        StepState::Running => "under way",
        StepState::Done => "done",
        StepState::Failed => "failed",
        StepState::Rejected => "rejected",
        StepState::Dropped => "dropped",
    }
}
