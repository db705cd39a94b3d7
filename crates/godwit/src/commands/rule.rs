//! The verbs of `rule`.

use godwit_scheduler::rules::{Hosts, Rule, RuleKind};
use godwit_types::ApiError;
use serde_json::Value;

use super::Session;
use crate::cli::{RuleAdd, RuleVerb};
use crate::output::{fields, table};
use crate::parse::HostOption;

pub(crate) async fn run(session: &Session, verb: RuleVerb) -> Result<(), ApiError> {
    match verb {
        RuleVerb::Add(options) => {
            let rule: Rule = session.client.post("/v1/rules", &rule(*options)).await?;
            session.format.print(&rule, |rule| format!("the rule {} holds: {}", rule.name, says(rule)))
        }
        RuleVerb::Ls => {
            let rules: Vec<Rule> = session.client.get("/v1/rules").await?;
            session.format.print(&rules, |rules| {
                let row = |rule: &Rule| vec![rule.name.to_string(), strictness(rule).into(), says(rule)];
                table(&["RULE", "STRICT", "SAYS"], rules.iter().map(row))
            })
        }
        RuleVerb::Show { rule } => {
            let rule: Rule = session.client.get(&format!("/v1/rules/{rule}")).await?;
            session.format.print(&rule, |rule| {
                fields(&[
                    ("rule", rule.name.to_string()),
                    ("strict", strictness(rule).into()),
                    ("says", says(rule)),
                ])
            })
        }
        RuleVerb::Rm { rule } => {
            let removed: Value = session.client.delete(&format!("/v1/rules/{rule}")).await?;
            session.format.print(&removed, |_| format!("the rule {rule} is removed"))
        }
    }
}

/// The command line sees to it that exactly one kind is given.
fn rule(options: RuleAdd) -> Rule {
    let RuleAdd { name, apart, together, max_per_host, spread, run_on, not_on, vms, should } = options;
    let vms = vms.into_iter().collect();
    let kind = if let Some(most) = max_per_host {
        RuleKind::MaxPerHost { vms, most }
    } else if let Some(domains) = spread {
        RuleKind::Spread { vms, domains }
    } else if !run_on.is_empty() {
        RuleKind::RunOn { vms, hosts: hosts(run_on) }
    } else if !not_on.is_empty() {
        RuleKind::NotOn { vms, hosts: hosts(not_on) }
    } else if !apart.is_empty() {
        RuleKind::Apart { vms: apart.into_iter().collect() }
    } else {
        RuleKind::Together { vms: together.into_iter().collect() }
    };
    Rule { name, must: !should, kind }
}

fn hosts(options: Vec<HostOption>) -> Hosts {
    let mut hosts = Hosts::default();
    for option in options {
        match option {
            HostOption::Host(name) => hosts.names.insert(name),
            HostOption::Label(label) => hosts.labels.insert(label),
        };
    }
    hosts
}

fn strictness(rule: &Rule) -> &'static str {
    if rule.must { "must" } else { "should" }
}

/// A rule as a sentence.
fn says(rule: &Rule) -> String {
    let vms = list(rule.vms());
    match &rule.kind {
        RuleKind::Together { .. } => format!("{vms} on one host"),
        RuleKind::Apart { .. } => format!("no two of {vms} on one host"),
        RuleKind::MaxPerHost { most, .. } => format!("at most {most} of {vms} on one host"),
        RuleKind::Spread { domains, .. } => format!("{vms} over at least {domains} failure domains"),
        RuleKind::RunOn { hosts, .. } => format!("{vms} only on {}", which(hosts)),
        RuleKind::NotOn { hosts, .. } => format!("{vms} not on {}", which(hosts)),
    }
}

fn which(hosts: &Hosts) -> String {
    let names = hosts.names.iter().map(ToString::to_string);
    let labels = hosts.labels.iter().map(|label| format!("label:{label}"));
    list(names.chain(labels))
}

fn list(items: impl IntoIterator<Item = impl ToString>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Verb};

    #[test]
    fn what_is_typed_is_what_the_rule_says() {
        for (options, said) in [
            ("--apart b,a", "must: no two of a, b on one host"),
            ("--together a,b --should", "should: a, b on one host"),
            ("--max-per-host 2 --vms a,b,c", "must: at most 2 of a, b, c on one host"),
            ("--spread 3 --vms a,b,c", "must: a, b, c over at least 3 failure domains"),
            ("--run-on h,label:l --vms a", "must: a only on h, label:l"),
            ("--not-on h --vms a", "must: a not on h"),
        ] {
            let line = format!("godwit rule add r {options}");
            let Verb::Rule(RuleVerb::Add(options)) = Cli::parse_from(line.split_whitespace()).verb else {
                panic!("{line} is another verb");
            };
            let rule = rule(*options);
            assert_eq!(format!("{}: {}", strictness(&rule), says(&rule)), said);
            assert_eq!(rule.findings(), []);
        }
    }
}
