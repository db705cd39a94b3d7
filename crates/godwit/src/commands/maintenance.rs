//! `host maintenance`.

use godwit_scheduler::planner::WhyNot;
use godwit_scheduler::record::Emptying;
use godwit_types::task::Task;
use godwit_types::{ApiError, ErrorCode, HostName};
use serde_json::{Value, json};

use super::{Session, scheduler, task};
use crate::cli::scheduler::MaintenanceVerb;
use crate::output::table;

pub(crate) async fn run(session: &Session, verb: MaintenanceVerb) -> Result<(), ApiError> {
    match verb {
        MaintenanceVerb::Enter { host, dry_run: true, move_disks, .. } => {
            dry_run(session, &host, move_disks).await
        }
        MaintenanceVerb::Enter { host, no_wait, move_disks, .. } => {
            enter(session, &host, move_disks, no_wait).await
        }
        MaintenanceVerb::Exit { host } => {
            let done: Value = session.client.delete(&path(&host)).await?;
            session.format.print(&done, |_| format!("{host} takes VMs again"))
        }
    }
}

fn path(host: &HostName) -> String {
    format!("/v1/hosts/{host}/maintenance")
}

fn asked(host: &HostName, move_disks: bool) -> String {
    format!("{}?move_disks={move_disks}", path(host))
}

async fn enter(session: &Session, host: &HostName, move_disks: bool, no_wait: bool) -> Result<(), ApiError> {
    let begun: Task = session.client.post(&asked(host, move_disks), &json!({})).await?;
    if no_wait {
        return session.format.print(&begun, |task| format!("task {} empties {host}", task.id));
    }
    task::follow(session, begun, task::new_messages(session)).await
}

async fn dry_run(session: &Session, host: &HostName, move_disks: bool) -> Result<(), ApiError> {
    let told: Emptying = session.client.get(&asked(host, move_disks)).await?;
    session.format.print(&told, describe)?;
    let stuck: Vec<&str> = told.plan.unmoved.iter().map(|why| why.vm.as_str()).collect();
    if stuck.is_empty() {
        return Ok(());
    }
    let message =
        format!("{} of {} VMs cannot leave {host} now: {}", stuck.len(), told.vms.len(), stuck.join(", "));
    Err(ApiError::new(ErrorCode::Failed, message).remedy("do what the reasons call for, then ask again"))
}

fn describe(told: &Emptying) -> String {
    let mut parts = vec![format!("{}: {} VMs run on it, nothing moves yet", told.host, told.vms.len())];
    if !told.plan.steps.is_empty() {
        parts.push(scheduler::steps(told.plan.steps.iter().map(|step| (step, None))));
    }
    if !told.plan.unmoved.is_empty() {
        parts.push(why_not(&told.plan.unmoved));
    }
    parts.extend(told.plan.findings.iter().cloned());
    parts.join("\n\n")
}

/// Who stays, and what speaks against each host.
pub(super) fn why_not(unmoved: &[WhyNot]) -> String {
    let rows = unmoved.iter().flat_map(|why| {
        why.reasons.iter().map(|(host, reason)| {
            let host = host.as_ref().map_or_else(|| "any".to_owned(), ToString::to_string);
            vec![why.vm.to_string(), host, reason.clone()]
        })
    });
    table(&["STAYS", "HOST", "WHAT SPEAKS AGAINST IT"], rows)
}
