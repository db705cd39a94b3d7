//! The CPU that VMs see which are defined without a profile of their own.
//!
//! ```text
//!   a name, or what hosts have in common -> settled as features -> each new VM carries a copy
//! ```
//!
//! So a host that joins, or a baseline that is chosen anew, changes no VM: one that is there moves as it did.

use godwit_types::baseline::{BaselineOnHost, CpuBaseline, CpuBaselineReport, SetCpuBaseline};
use godwit_types::cpu::CpuFacts;
use godwit_types::vm::CpuProfile;
use godwit_types::{ApiError, ErrorCode, HostName};

use super::changed;
use crate::clock::now_unix_ms;
use crate::fit;
use crate::manager::unknown_host;
use crate::store::{HostRow, Tx};

/// What a VM sees whose maker has named no profile.
pub(crate) fn resolved(tx: &Tx<'_>, asked: CpuProfile) -> Result<CpuProfile, ApiError> {
    match asked {
        CpuProfile::Cluster => Ok(tx.cpu_baseline()?.map_or(CpuProfile::Host, |baseline| baseline.profile)),
        named => Ok(named),
    }
}

/// The baseline, and what hosts lack of it.
pub(crate) fn report(tx: &Tx<'_>) -> Result<CpuBaselineReport, ApiError> {
    let baseline = tx.cpu_baseline()?;
    let profile = baseline.as_ref().map(|baseline| &baseline.profile);
    let on = |host: HostRow| BaselineOnHost {
        findings: profile.map(|profile| fit::cpu(profile, &host)).unwrap_or_default(),
        host: host.name,
    };
    Ok(CpuBaselineReport { hosts: tx.hosts()?.into_iter().map(on).collect(), baseline })
}

/// Chooses it. Refused if no host offers it; those that do not are told of.
pub(crate) fn set(tx: &Tx<'_>, asked: SetCpuBaseline) -> Result<CpuBaselineReport, ApiError> {
    let (profile, of) = match asked {
        SetCpuBaseline::X86_64V2 => (CpuProfile::X86_64V2, Vec::new()),
        SetCpuBaseline::Hosts { hosts } => common(tx, hosts)?,
    };
    let told = format!("new VMs see {profile}, unless they are defined with another CPU profile");
    tx.put_cpu_baseline(&CpuBaseline { profile, of, since_unix_ms: now_unix_ms() })?;
    let report = report(tx)?;
    if !report.hosts.iter().any(|host| host.findings.is_empty()) {
        let reasons = report.hosts.iter().flat_map(|host| &host.findings).map(|found| found.reason.clone());
        let reasons: Vec<String> = reasons.collect();
        let why = if reasons.is_empty() { "there are no hosts".to_owned() } else { reasons.join("; ") };
        return Err(ApiError::new(ErrorCode::Refused, format!("no host offers this baseline: {why}"))
            .remedy("take what the hosts have in common: godwit cpu-baseline set hosts"));
    }
    changed(tx, told)?;
    Ok(report)
}

/// From now on new VMs see all that their host offers.
pub(crate) fn clear(tx: &Tx<'_>) -> Result<(), ApiError> {
    if tx.cpu_baseline()?.is_some() {
        tx.remove_cpu_baseline()?;
        changed(tx, "new VMs see all that the host offers on which they start".into())?;
    }
    Ok(())
}

/// What hosts have in common, and which they are: those named, or else all whose CPU is known.
fn common(tx: &Tx<'_>, named: Vec<HostName>) -> Result<(CpuProfile, Vec<HostName>), ApiError> {
    let hosts = tx.hosts()?;
    for name in &named {
        let host = hosts.iter().find(|host| host.name == *name).ok_or_else(|| unknown_host(name.as_str()))?;
        if host.facts.vmm.is_none() {
            let message = format!("{name} has not reported what its CPU offers");
            return Err(ApiError::new(ErrorCode::Refused, message)
                .remedy(format!("look at the log of the agent on {name}, or leave it out")));
        }
    }
    let wanted = |host: &&HostRow| named.is_empty() || named.contains(&host.name);
    let offer = |host: &'_ HostRow| -> Option<(HostName, CpuFacts)> {
        Some((host.name.clone(), host.facts.vmm.as_ref()?.cpu.clone()))
    };
    let offers: Vec<_> = hosts.iter().filter(wanted).filter_map(offer).collect();
    let common = CpuFacts::common(offers.iter().map(|(host, cpu)| (host, cpu))).map_err(|error| {
        ApiError::new(ErrorCode::Refused, error.to_string())
            .remedy("name hosts with CPUs of one maker: godwit cpu-baseline set hosts --of HOST,HOST")
    })?;
    Ok((CpuProfile::Baseline(Box::new(common)), offers.into_iter().map(|(host, _)| host).collect()))
}
