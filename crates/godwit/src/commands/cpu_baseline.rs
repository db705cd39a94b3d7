//! The verbs of `cpu-baseline`.

use godwit_types::baseline::{BaselineOnHost, CpuBaseline, CpuBaselineReport, SetCpuBaseline};
use godwit_types::{ApiError, ErrorCode, HostName};
use serde_json::Value;

use super::Session;
use crate::cli::{CpuBaselineVerb, CpuBaselineWord};
use crate::output::table;

const PATH: &str = "/v1/cpu-baseline";

pub(crate) async fn run(session: &Session, verb: CpuBaselineVerb) -> Result<(), ApiError> {
    let report: CpuBaselineReport = match verb {
        CpuBaselineVerb::Show => session.client.get(PATH).await?,
        CpuBaselineVerb::Set { what, of } => session.client.post(PATH, &chosen(what, of)?).await?,
        CpuBaselineVerb::Clear => {
            let done: Value = session.client.delete(PATH).await?;
            return session.format.print(&done, |_| describe_none());
        }
    };
    session.format.print(&report, describe)
}

/// What a host lacks of the baseline, in words; none if there is no baseline.
pub(super) async fn of_host(session: &Session, host: &HostName) -> Result<Option<String>, ApiError> {
    let report: CpuBaselineReport = session.client.get(PATH).await?;
    let on = report.hosts.into_iter().find(|known| known.host == *host);
    Ok(report
        .baseline
        .and(on)
        .map(|on| if on.findings.is_empty() { "offered".to_owned() } else { lacks(&on) }))
}

fn chosen(what: CpuBaselineWord, hosts: Vec<HostName>) -> Result<SetCpuBaseline, ApiError> {
    match what {
        CpuBaselineWord::Hosts => Ok(SetCpuBaseline::Hosts { hosts }),
        CpuBaselineWord::X86_64V2 if hosts.is_empty() => Ok(SetCpuBaseline::X86_64V2),
        CpuBaselineWord::X86_64V2 => {
            let message = "x86-64-v2 is the same on all hosts, and is taken of none";
            Err(ApiError::new(ErrorCode::Invalid, message).remedy("leave --of out, or name 'hosts' instead"))
        }
    }
}

fn lacks(on: &BaselineOnHost) -> String {
    let reasons: Vec<&str> = on.findings.iter().map(|finding| finding.reason.as_str()).collect();
    reasons.join("; ")
}

fn describe(report: &CpuBaselineReport) -> String {
    let Some(CpuBaseline { profile, of, .. }) = &report.baseline else { return describe_none() };
    let of: Vec<&str> = of.iter().map(|host| host.as_str()).collect();
    let of = if of.is_empty() { String::new() } else { format!(", which {} have in common", of.join(", ")) };
    let said = format!("new VMs see {profile}{of}");
    let short = report.hosts.iter().filter(|on| !on.findings.is_empty());
    let rows: Vec<_> = short.map(|on| vec![on.host.to_string(), lacks(on)]).collect();
    match rows.is_empty() {
        true => format!("{said}; all hosts offer it"),
        false => format!("{said}\n\n{}", table(&["NOT ON", "WHAT IT LACKS"], rows)),
    }
}

fn describe_none() -> String {
    "there is no baseline: new VMs see all that the host offers on which they start".to_owned()
}
