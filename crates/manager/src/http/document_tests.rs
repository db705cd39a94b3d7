//! That the API's description is OpenAPI, and that it is true of the documents that the scheduler gives.

use std::collections::BTreeSet;

use godwit_scheduler::PerResource;
use godwit_scheduler::decision::Decision;
use godwit_scheduler::planner::Goal;
use godwit_scheduler::policy::{Automation, Policy};
use godwit_scheduler::record::{
    AskReplay, AskWhatIf, DecisionRecord, Emptying, Imagined, LeftAlone, NameSteps, Outline, Ran,
    RunScheduler, SchedulerStatus, StepRecord, StepState, WholeDecision,
};
use godwit_scheduler::rules::{Rule, RuleKind};
use godwit_scheduler::snapshot::{Disk, Host, HostState, MigrationRoom, Needs, Room, Snapshot, Vm, Writes};
use godwit_scheduler::what_if::Change;
use godwit_types::{Name, TaskId};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::openapi;

#[path = "schema_tests.rs"]
mod schema;

const SCHEMAS: &str = "#/components/schemas/";
/// Fields of a path that are operations, by OpenAPI 3.1, "Path Item Object".
const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

fn document() -> Value {
    serde_json::to_value(openapi()).unwrap()
}

/// Every operation with its path.
fn operations(document: &Value) -> Vec<(String, &Value)> {
    let paths = document["paths"].as_object().unwrap().iter();
    let of = |(path, item): (&String, _)| -> Vec<(String, &Value)> {
        let item: &serde_json::Map<String, Value> = item;
        let is_operation = |(key, _): &(&String, &Value)| METHODS.contains(&key.as_str());
        item.iter().filter(is_operation).map(|(key, value)| (format!("{key} {path}"), value)).collect()
    };
    paths.flat_map(|(path, item)| of((path, item.as_object().unwrap()))).collect()
}

/// Everything that is said with `key` anywhere in `value`.
fn said<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get(key));
            fields.values().for_each(|value| said(value, key, found));
        }
        Value::Array(items) => items.iter().for_each(|value| said(value, key, found)),
        _ => {}
    }
}

/// Schemas of what an operation takes and gives.
fn bodies(operation: &Value) -> Vec<&Value> {
    let mut contents = Vec::new();
    said(operation, "content", &mut contents);
    let schemas = contents.into_iter().flat_map(|content| content.as_object().unwrap().values());
    schemas.map(|media| &media["schema"]).collect()
}

#[test]
fn the_description_is_what_openapi_3_1_asks_for() {
    let document = document();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    for required in ["title", "version"] {
        assert!(document["info"][required].is_string(), "info.{required}");
    }
    let schemes = document["components"]["securitySchemes"].as_object().unwrap();
    for (at, operation) in operations(&document) {
        assert!(operation["responses"].as_object().is_some_and(|answers| !answers.is_empty()), "{at}");
        let (_, path) = at.split_once(' ').unwrap();
        assert!(path.starts_with('/'), "{path}");
        let templated: BTreeSet<&str> =
            path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let in_path = parameters.filter(|parameter| parameter["in"] == "path");
        let named: BTreeSet<&str> = in_path
            .map(|parameter| {
                assert_eq!(parameter["required"], true, "{at}: {parameter}");
                assert!(parameter["schema"].is_object() || parameter["content"].is_object(), "{at}");
                parameter["name"].as_str().unwrap()
            })
            .collect();
        assert_eq!(templated, named, "{at}");
        for requirement in operation["security"].as_array().into_iter().flatten() {
            assert!(requirement.as_object().unwrap().keys().all(|name| schemes.contains_key(name)), "{at}");
        }
    }
}

#[test]
fn every_schema_is_one_and_every_reference_leads_to_one() {
    let document = document();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for (name, schema) in schemas {
        assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)), "{name}");
        let wrong = schema::unsound(schema);
        assert!(wrong.is_empty(), "{name} is no schema: {}", wrong.join("; "));
    }
    let mut references = Vec::new();
    said(&document, "$ref", &mut references);
    for reference in references {
        let name = reference.as_str().and_then(|reference| reference.strip_prefix(SCHEMAS));
        assert!(name.is_some_and(|name| schemas.contains_key(name)), "{reference} leads nowhere");
    }
}

#[test]
fn whatever_is_taken_or_given_has_a_type() {
    let document = document();
    for (at, operation) in operations(&document) {
        for schema in bodies(operation) {
            let is_said =
                ["$ref", "type", "oneOf", "allOf", "anyOf"].iter().any(|key| !schema[key].is_null());
            let of_items = schema["type"] != "array" || !schema["items"]["$ref"].is_null();
            assert!(is_said && of_items || at == "get /v1/openapi.json", "{at}: {schema}");
        }
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn host(text: &str, state: HostState) -> Host {
    Host {
        name: name(text),
        state,
        since_unix_ms: 0,
        seen_unix_ms: 1_000,
        capacity: PerResource { cpu: 20_000, memory: 64 << 30, network: 1 << 30, storage: 100_000 },
        cpu_class: Some(name("epyc")),
        networks: [name("lan")].into(),
        datastores: [name("shared")].into(),
        rooms: [(name("shared"), Room { storage: name("shared"), free: 1 << 40 })].into(),
        move_disks: true,
        domain: Some(name("rack-1")),
        labels: [name("gpu")].into(),
        migration: MigrationRoom { moves_max: 2, bytes_per_s: 1 << 30, is_assumed: false },
        power: Some(Default::default()),
    }
}

fn vm(text: &str, on: Option<&str>) -> Vm {
    Vm {
        name: name(text),
        host: on.map(name),
        pool: None,
        controls: PerResource::default(),
        demand: PerResource { cpu: 1_000, memory: 1 << 30, network: 9, storage: 9 },
        expected: PerResource::default(),
        demand_long: PerResource::default(),
        recent_mhz: Vec::new(),
        ahead_mhz: Vec::new(),
        measured_unix_ms: Some(1_000),
        vcpus: 2,
        memory: 2 << 30,
        needs: Needs { cpu_classes: Some([name("epyc")].into()), ..Needs::default() },
        disks: vec![Disk { datastore: name("fast"), storage: name("fast.a"), bytes: 1 << 30 }],
        pinned: None,
        automation: Automation::Full,
        writes: Writes { used: 1 << 30, hot: 1 << 20, bytes_per_s: 1 << 20 },
        moved_unix_ms: vec![5],
    }
}

/// A host is to be emptied, and one of its two VMs cannot leave.
fn decision() -> Decision {
    let hosts = vec![host("a", HostState::Maintenance), host("b", HostState::On)];
    let mut vms = vec![vm("web1", Some("a")), vm("web2", Some("a"))];
    vms[1].pinned = Some("a disk that nobody else reaches".into());
    let rules = vec![Rule {
        name: name("apart"),
        must: false,
        kind: RuleKind::Apart { vms: [name("web1"), name("web2")].into() },
    }];
    let snapshot = Snapshot { at_unix_ms: 1_000, hosts, vms, pools: Vec::new(), rules };
    Decision::make(snapshot, Policy::default(), Goal::Balance, 1)
}

fn record(decision: &Decision) -> DecisionRecord {
    let steps = decision.plan.steps.iter().map(|step| StepRecord {
        step: step.clone(),
        state: StepState::Failed,
        applied: true,
        changed_unix_ms: 1_000,
        task: Some(TaskId(Uuid::nil())),
        detail: Some("no room".into()),
    });
    DecisionRecord {
        id: 1,
        unix_ms: 1_000,
        cause: "a host is to be emptied".into(),
        goal: decision.goal.clone(),
        outline: Outline::from(&decision.plan),
        steps: steps.collect(),
    }
}

#[test]
fn the_schedulers_documents_are_as_their_schemas_say() {
    let document = document();
    let faults = |schema: &str, given: Value| -> Vec<String> {
        let reference = json!({"$ref": format!("{SCHEMAS}{schema}")});
        schema::faults(&document, &reference, &given)
            .into_iter()
            .map(|fault| format!("{schema}{fault}"))
            .collect()
    };
    fn shown(given: impl Serialize) -> Value {
        serde_json::to_value(given).unwrap()
    }
    let decision = decision();
    assert_eq!((decision.plan.steps.len(), decision.plan.unmoved.len()), (1, 1), "{:?}", decision.plan);
    let (plan, record) = (decision.plan.clone(), record(&decision));
    let policy = Policy { threshold: 0, ..Policy::default() };
    let status = SchedulerStatus {
        automation: Automation::Full,
        threshold: 3,
        engine: 1,
        looked_unix_ms: None,
        decision: Some(record.clone()),
        recommended: 1,
        approved: 0,
        running: 0,
        left_alone: vec![LeftAlone { vm: name("web2"), reason: "it has moved".into(), until_unix_ms: 9 }],
    };
    let changes = vec![
        Change::AddHosts { like: name("a"), count: 1 },
        Change::ScaleDemand { permille: 2_000, vms: [name("web1")].into() },
        Change::LoseHost { host: name("b") },
    ];
    let evacuate = Goal::Evacuate { hosts: vec![name("a")] };
    let replay = decision.replay(Some(&policy));
    assert!(replay.difference.is_some());
    let documents = [
        ("SchedulerStatus", shown(status)),
        ("Ran", shown(Ran { decision: None, plan: plan.clone() })),
        ("Imagined", shown(Imagined { now: plan.before.clone(), plan: plan.clone() })),
        ("Emptying", shown(Emptying { host: name("a"), vms: vec![name("web1")], plan })),
        ("WholeDecision", shown(WholeDecision { record: record.clone(), decision: decision.clone() })),
        ("DecisionRecord", shown(record)),
        ("Explanation", shown(decision.explain(&name("web1")).unwrap())),
        ("Replay", shown(replay)),
        ("RunScheduler", shown(RunScheduler { goal: evacuate, dry_run: true })),
        ("NameSteps", shown(NameSteps { steps: vec![0] })),
        ("AskReplay", shown(AskReplay { policy: Some(policy.clone()), as_of_unix_ms: Some(1) })),
        ("AskWhatIf", shown(AskWhatIf { changes, policy: Some(policy) })),
    ];
    let found: Vec<String> =
        documents.into_iter().flat_map(|(schema, given)| faults(schema, given)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
    for wrong in [json!({"goal": "evacuate"}), json!({"goal": "rest"}), json!({})] {
        assert!(!faults("RunScheduler", wrong).is_empty(), "what is wrong is found");
    }
}
