//! `vm check-migration`: where a VM could move, and all that is against it.

use std::time::Duration;

use godwit_types::check::{Check, Finding, HostCheck, MigrationCheck, Verdict};
use godwit_types::{ApiError, ErrorCode, HostName, Name, VmName};

use super::Session;
use crate::output::table;

/// The manager asks every host's agent first.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) async fn run(
    session: &Session,
    vm: &VmName,
    to: Option<&HostName>,
    (post_copy, move_disks): (bool, Option<Option<Name>>),
    all: bool,
) -> Result<(), ApiError> {
    let to_query = to.map(|to| format!("&to={to}")).unwrap_or_default();
    let disks_query = match &move_disks {
        None => String::new(),
        Some(None) => "&move_disks=true".to_owned(),
        Some(Some(datastore)) => format!("&move_disks=true&datastore={datastore}"),
    };
    let query = format!("?post_copy={post_copy}{to_query}{disks_query}");
    let client = session.client.with_timeout(CHECK_TIMEOUT);
    let check: MigrationCheck = client.get(&format!("/v1/vms/{vm}/migration-check{query}")).await?;
    session.format.print(&check, |check| describe(check, all))?;
    if check.can_move() {
        return Ok(());
    }
    let whither = to.map_or_else(|| "to any host".to_owned(), |to| format!("to {to}"));
    Err(ApiError::new(ErrorCode::Failed, format!("{vm} cannot move {whither} now")))
}

fn describe(check: &MigrationCheck, all: bool) -> String {
    if check.hosts.is_empty() {
        return "there are no hosts".to_owned();
    }
    table(
        &["HOST", "VERDICT", "CHECK", "REASON", "REMEDY"],
        check.hosts.iter().flat_map(|host| rows(host, all)),
    )
}

/// One row for each finding that is told; the host and its verdict stand in the first.
fn rows(host: &HostCheck, all: bool) -> Vec<Vec<String>> {
    let told = |finding: &&Finding| all || finding.verdict > Verdict::Ok;
    let mut rows: Vec<Vec<String>> = host.findings.iter().filter(told).map(row).collect();
    if rows.is_empty() {
        rows.push(vec!["-".into(), format!("all {} checks passed", host.findings.len()), "-".into()]);
    }
    for (index, row) in rows.iter_mut().enumerate() {
        let (name, overall) = match index {
            0 => (host.host.to_string(), verdict(host.verdict).to_owned()),
            _ => (String::new(), String::new()),
        };
        row.splice(0..0, [name, overall]);
    }
    rows
}

pub(super) fn row(finding: &Finding) -> Vec<String> {
    let mark = match finding.verdict {
        Verdict::Ok | Verdict::Blocked => "",
        Verdict::Warning => "warning: ",
    };
    let remedy = finding.remedy.clone().unwrap_or_else(|| "-".to_owned());
    vec![name(finding.check), format!("{mark}{}", finding.reason), remedy]
}

const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Blocked => "blocked",
    }
}

/// As in the documents.
fn name(check: Check) -> String {
    match serde_json::to_value(check) {
        Ok(serde_json::Value::String(name)) => name,
        _ => format!("{check:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, findings: Vec<Finding>) -> HostCheck {
        let verdict = findings.iter().map(|finding| finding.verdict).max().unwrap();
        HostCheck { host: name.parse().unwrap(), verdict, findings }
    }

    #[test]
    fn the_table_tells_each_host_its_verdict_and_every_reason_and_hides_what_is_well() {
        let hosts = vec![
            host("host-a", vec![Finding::ok(Check::Vm, "it runs")]),
            host(
                "host-b",
                vec![
                    Finding::blocked(Check::FeatureMsrs, "it lacks taa-no", "update microcode"),
                    Finding::warning(Check::Clock, "a wrong clock", "set it"),
                    Finding::ok(Check::Vm, "it runs"),
                ],
            ),
        ];
        let check = MigrationCheck { vm: "web1".parse().unwrap(), from: None, hosts };
        let text = describe(&check, false);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[1], ["host-a", "ok", "-", "all", "1", "checks", "passed", "-"]);
        assert_eq!(words[2][..5], ["host-b", "blocked", "feature_msrs", "it", "lacks"]);
        assert_eq!(words[3][..3], ["clock", "warning:", "a"]);
        assert_eq!(words.len(), 4);
        assert!(describe(&check, true).contains("it runs"));
    }
}
