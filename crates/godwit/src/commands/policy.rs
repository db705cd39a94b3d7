//! The verbs of `policy`.

use std::path::Path;

use godwit_scheduler::policy::{Policy, PowerPolicy};
use godwit_types::{ApiError, ErrorCode};
use serde_json::{Map, Value, json};

use super::Session;
use super::settings::automation;
use crate::cli::{PolicySet, PolicyVerb};
use crate::output::fields;
use crate::parse::{Duration, Switch};

pub(crate) async fn run(session: &Session, verb: PolicyVerb) -> Result<(), ApiError> {
    let policy: Policy = match verb {
        PolicyVerb::Show => session.client.get("/v1/policy").await?,
        PolicyVerb::Set(options) => {
            let written = options.file.as_deref().map(read).transpose()?;
            session.client.post("/v1/policy", &changes(&options, written)?).await?
        }
    };
    session.format.print(&policy, describe)
}

/// A whole policy from a file.
fn read(path: &Path) -> Result<Policy, ApiError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        ApiError::new(ErrorCode::Invalid, format!("{} cannot be read: {error}", path.display()))
    })?;
    serde_json::from_str(&text).map_err(|error| {
        ApiError::new(ErrorCode::Invalid, format!("{} is no policy: {error}", path.display()))
            .remedy("write one to begin with: godwit policy show --json")
    })
}

fn changes(options: &PolicySet, written: Option<Policy>) -> Result<Value, ApiError> {
    let mut whole = match written {
        Some(policy) => serde_json::to_value(policy)
            .map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?,
        None => json!({}),
    };
    let ms = |span: Option<Duration>| span.map(|span| json!(span.ms));
    let number = |number: Option<u32>| number.map(Value::from);
    let named = [
        ("automation", options.automation.map(|automation| json!(automation))),
        ("threshold", options.threshold.map(Value::from)),
        ("stale_ms", ms(options.stale)),
        ("moved_max_permille", number(options.moved_max)),
        ("cooldown_ms", ms(options.cooldown)),
        ("failures_to_tolerate", number(options.failures_to_tolerate)),
        ("stable_ms", ms(options.stable)),
        ("proposals_per_vm", number(options.proposals)),
        ("move_disks", options.move_disks.map(|along| json!(along == Switch::On))),
    ];
    let of_power = [
        ("enabled", options.power.map(|power| json!(power == Switch::On))),
        ("target_percent", number(options.power_target)),
        ("band_percent", number(options.power_band)),
        ("hosts_on_min", number(options.power_hosts_on)),
        ("uptime_min_ms", ms(options.power_uptime)),
        ("benefit_ratio", number(options.power_benefit)),
    ];
    for (name, value) in named.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        whole[name] = value;
    }
    let of_power: Vec<_> = of_power.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    if !of_power.is_empty() && whole.get("power").is_none() {
        whole["power"] = Map::new().into();
    }
    for (name, value) in of_power {
        whole["power"][name] = value;
    }
    Ok(whole)
}

fn describe(policy: &Policy) -> String {
    let span = |ms| Duration { ms }.to_string();
    let Policy { threshold, moved_max_permille, failures_to_tolerate, proposals_per_vm, .. } = policy;
    let mut rows = vec![
        ("automation", automation(policy.automation).to_owned()),
        ("threshold", format!("{threshold} of 1, only what must be, to 5, whatever helps")),
        ("stale", format!("a host that was not heard of for {}", span(policy.stale_ms))),
        ("moved at once", format!("up to {moved_max_permille} of 1000 VMs")),
        ("cool-down", format!("{}, doubled with each move within a day", span(policy.cooldown_ms))),
        ("prepared for", format!("the loss of {failures_to_tolerate} hosts")),
        ("stable", format!("demand is taken to last {}", span(policy.stable_ms))),
        ("search", format!("{proposals_per_vm} proposals for each VM")),
    ];
    let disks = if policy.move_disks { "move along" } else { "stay, and so do their VMs" };
    rows.push(("local disks", disks.to_owned()));
    rows.push(("power", power(&policy.power)));
    fields(&rows)
}

fn power(policy: &PowerPolicy) -> String {
    if !policy.enabled {
        return "hosts stay on".into();
    }
    let PowerPolicy { target_percent, band_percent, hosts_on_min, uptime_min_ms, benefit_ratio, .. } = policy;
    format!(
        "hosts are used for {target_percent} %, give or take {band_percent} %; {hosts_on_min} always on, for {} once \
         woken; savings worth {benefit_ratio} times their cost",
        Duration { ms: *uptime_min_ms }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_is_changed() {
        let options = PolicySet { threshold: Some(4), power: Some(Switch::On), ..PolicySet::default() };
        assert_eq!(changes(&options, None).unwrap(), json!({"threshold": 4, "power": {"enabled": true}}));
        assert_eq!(changes(&PolicySet::default(), None).unwrap(), json!({}));
    }

    #[test]
    fn a_file_is_a_whole_policy_and_options_come_on_top() {
        let options = PolicySet { power_target: Some(50), ..PolicySet::default() };
        let written = Policy { threshold: 5, ..Policy::default() };
        let whole: Policy =
            serde_json::from_value(changes(&options, Some(written.clone())).unwrap()).unwrap();
        let power = PowerPolicy { target_percent: 50, ..written.power.clone() };
        assert_eq!(whole, Policy { power, ..written });
    }
}
