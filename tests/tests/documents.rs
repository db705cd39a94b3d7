//! Every verb that reads prints a document with `--json`.

use std::collections::BTreeSet;

use godwit_lab::Result;
use godwit_lab::cluster::{Cluster, GuestOptions};
use godwit_tests::{VERB_LIMIT, boot, ensure, hosts, migrate, on_fabric};
use godwit_types::task::Task;
use serde_json::Value;

/// Verbs that read, with what they are asked here: a VM `read` that runs on HOST, a rule, a pool, a decision.
const READS: [(&str, &[&str]); 22] = [
    ("host ls", &[]),
    ("host show", &["HOST"]),
    ("vm ls", &[]),
    ("vm show", &["read"]),
    ("vm check-migration", &["read"]),
    ("task ls", &[]),
    ("task show", &["TASK"]),
    ("rule ls", &[]),
    ("rule show", &["away"]),
    ("pool ls", &[]),
    ("pool show", &["gold"]),
    ("policy show", &[]),
    ("cpu-baseline show", &[]),
    ("scheduler status", &[]),
    ("scheduler recommendations", &[]),
    ("scheduler decisions", &[]),
    ("scheduler show", &["1"]),
    ("scheduler replay", &["1"]),
    ("scheduler explain", &["read"]),
    ("scheduler what-if", &["--maintenance", "HOST"]),
    ("scheduler run", &["--dry-run"]),
    ("events", &[]),
];

/// Verbs that change something, or go on until they are ended, and one that reads what only a host with a power switch has.
const OTHERS: [&str; 29] = [
    "cpu-baseline clear",
    "cpu-baseline set",
    "export",
    "host maintenance enter",
    "host maintenance exit",
    "host power",
    "host run",
    "host set",
    "host standby",
    "host wake",
    "manager run",
    "policy set",
    "pool rm",
    "pool set",
    "rule add",
    "rule rm",
    "scheduler apply",
    "scheduler reject",
    "simulate",
    "task cancel",
    "task set-bandwidth",
    "vm console",
    "vm create",
    "vm migrate",
    "vm move-storage",
    "vm rm",
    "vm set",
    "vm start",
    "vm stop",
];

#[test]
fn every_verb_that_reads_prints_a_document_if_asked_to() {
    on_fabric(|cluster, place| {
        let [here, there] = hosts(cluster);
        boot(cluster, place, &GuestOptions::named("read"), &here)?;
        migrate(cluster, "read", &there, &[])?;
        change(cluster, &["pool", "set", "gold", "--cpu-reservation", "100"])?;
        change(cluster, &["rule", "add", "away", "--not-on", here.as_str(), "--vms", "read"])?;
        change(cluster, &["scheduler", "run"])?;
        let tasks: Vec<Task> = cluster.cli().ask(&["task", "ls"])?;
        let task = tasks[0].id.to_string();
        for (verb, arguments) in READS {
            let named = |argument: &&'static str| match *argument {
                "HOST" => there.to_string(),
                "TASK" => task.clone(),
                other => other.to_owned(),
            };
            let arguments: Vec<String> = arguments.iter().map(named).collect();
            let words: Vec<&str> = verb.split(' ').chain(arguments.iter().map(String::as_str)).collect();
            // With --json, as all that tests run.
            let json = cluster.cli().text(&words, VERB_LIMIT)?;
            let documents: Vec<_> = serde_json::Deserializer::from_str(&json).into_iter::<Value>().collect();
            let is_document = !documents.is_empty() && documents.iter().all(std::result::Result::is_ok);
            ensure(is_document, format!("`{verb} --json` prints no document: {json}"))?;
        }
        let known: BTreeSet<String> =
            READS.iter().map(|(verb, _)| *verb).chain(OTHERS).map(str::to_owned).collect();
        let mut there_are = BTreeSet::new();
        find_verbs(cluster, &[], &mut there_are)?;
        ensure(
            known == there_are,
            format!("not the same verbs: {:?}", known.symmetric_difference(&there_are)),
        )
    });
}

fn change(cluster: &dyn Cluster, words: &[&str]) -> Result<()> {
    cluster.cli().text(words, VERB_LIMIT).map(drop)
}

/// All verbs that the help tells of, below those words.
fn find_verbs(cluster: &dyn Cluster, words: &[&str], found: &mut BTreeSet<String>) -> Result<()> {
    let help = cluster.cli().text(&[words, &["--help"]].concat(), VERB_LIMIT)?;
    let listed =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let mut verbs =
        listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).filter(|verb| !verb.is_empty());
    let first = verbs.next();
    if first.is_none() {
        found.insert(words.join(" "));
    }
    for verb in first.into_iter().chain(verbs).filter(|verb| *verb != "help") {
        find_verbs(cluster, &[words, &[verb]].concat(), found)?;
    }
    Ok(())
}
