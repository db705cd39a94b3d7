//! `vm migrate --plan`: what a move would cost, and what speaks against it.

use std::time::Duration;

use godwit_types::check::Verdict;
use godwit_types::forecast::{MigrationPlan, PlanMigration};
use godwit_types::migration::MigrateVm;
use godwit_types::{ApiError, ErrorCode, VmName};

use super::{Session, check};
use crate::forecast;
use crate::output::table;

/// How long the manager may take beside the survey.
const PLAN_TIMEOUT: Duration = Duration::from_secs(20);

/// Shows the plan; an error, and so exit code 1, unless the VM can move and is expected to keep to its budget.
pub(crate) async fn run(
    session: &Session,
    vm: &VmName,
    MigrateVm { to, budget, move_disks }: MigrateVm,
    sample_ms: u32,
) -> Result<(), ApiError> {
    let client = session.client.with_timeout(PLAN_TIMEOUT + Duration::from_millis(sample_ms.into()));
    let asked = PlanMigration { to, budget, move_disks, sample_ms };
    let plan: MigrationPlan = client.post(&format!("/v1/vms/{vm}/plan-migration"), &asked).await?;
    session.format.print(&plan, describe)?;
    if plan.can_be_met() {
        return Ok(());
    }
    let why = match &plan.error {
        _ if plan.check.verdict == Verdict::Blocked => format!("{vm} cannot move to {} now", asked.to),
        Some(error) => format!("it cannot be said what moving {vm} would cost: {error}"),
        None => format!("{vm} is not expected to keep to this budget"),
    };
    let error = ApiError::new(ErrorCode::Failed, why);
    Err(ApiError { remedy: plan.error.and_then(|error| error.remedy), ..error })
}

fn describe(plan: &MigrationPlan) -> String {
    let from = plan.from.as_ref().map_or("-", |from| from.as_str());
    let mut parts = vec![format!("{}: {from} -> {}, nothing moves yet", plan.vm, plan.check.host)];
    parts.extend(plan.forecast.as_ref().map(|told| forecast::describe(told, &plan.budget)));
    let against = plan.check.findings.iter().filter(|finding| finding.verdict > Verdict::Ok);
    let against: Vec<Vec<String>> = against.map(check::row).collect();
    if !against.is_empty() {
        parts.push(table(&["AGAINST IT", "REASON", "REMEDY"], against));
    }
    parts.join("\n\n")
}
