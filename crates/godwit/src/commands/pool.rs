//! The verbs of `pool`.

use std::collections::BTreeMap;

use godwit_scheduler::entitlement::Pool;
use godwit_scheduler::settings::PoolMembers;
use godwit_scheduler::{PerResource, Resource};
use godwit_types::{ApiError, Name};
use serde::Serialize;
use serde_json::{Value, json};

use super::Session;
use super::settings::{self, changed_controls, controls};
use crate::cli::{PoolSet, PoolVerb};
use crate::output::{fields, table};

pub(crate) async fn run(session: &Session, verb: PoolVerb) -> Result<(), ApiError> {
    match verb {
        PoolVerb::Set(options) => {
            let path = format!("/v1/pools/{}", options.name);
            let pool: Pool = session.client.post(&path, &changes(&options)).await?;
            session.format.print(&pool, |pool| fields(&describe(pool)))
        }
        PoolVerb::Ls => {
            let pools: Vec<Pool> = session.client.get("/v1/pools").await?;
            session.format.print(&pools, |pools| tree(pools))
        }
        PoolVerb::Show { pool } => show(session, &pool).await,
        PoolVerb::Rm { pool } => {
            let removed: Value = session.client.delete(&format!("/v1/pools/{pool}")).await?;
            session.format.print(&removed, |_| format!("the pool {pool} is removed"))
        }
    }
}

/// A pool with what is in it.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    pool: Pool,
    members: PoolMembers,
}

async fn show(session: &Session, name: &Name) -> Result<(), ApiError> {
    let pool: Pool = session.client.get(&format!("/v1/pools/{name}")).await?;
    let members: PoolMembers = session.client.get(&format!("/v1/pools/{name}/members")).await?;
    session.format.print(&Shown { pool, members }, |Shown { pool, members }| {
        let mut rows = describe(pool);
        rows.push(("pools in it", list(&members.pools)));
        rows.push(("VMs in it", list(&members.vms)));
        fields(&rows)
    })
}

fn changes(options: &PoolSet) -> Value {
    let mut changes = json!({ "controls": changed_controls(&options.controls) });
    if options.no_parent {
        changes["parent"] = Value::Null;
    } else if let Some(parent) = &options.parent {
        changes["parent"] = json!(parent);
    }
    if options.expandable || options.not_expandable {
        changes["expandable"] = json!(PerResource::from_fn(|_| options.expandable));
    }
    if options.scalable_shares || options.no_scalable_shares {
        changes["scalable_shares"] = json!(options.scalable_shares);
    }
    changes
}

fn describe(pool: &Pool) -> Vec<(&'static str, String)> {
    let parent = pool.parent.as_ref().map_or_else(|| "the cluster".to_owned(), ToString::to_string);
    let mut rows = vec![("pool", pool.name.to_string()), ("in", parent)];
    rows.extend(controls(&pool.controls));
    rows.push(("expandable", expandable(pool)));
    rows.push(("shares scale", if pool.scalable_shares { "yes" } else { "no" }.into()));
    rows
}

fn expandable(pool: &Pool) -> String {
    let (may, may_not): (Vec<_>, Vec<_>) =
        Resource::ALL.into_iter().partition(|resource| pool.expandable[*resource]);
    match (may.is_empty(), may_not.is_empty()) {
        (_, true) => "yes".into(),
        (true, _) => "no".into(),
        _ => list(&may),
    }
}

/// The pools, each below the one that it is in, and indented.
fn tree(pools: &[Pool]) -> String {
    let mut children: BTreeMap<Option<&Name>, Vec<&Pool>> = BTreeMap::new();
    for pool in pools.iter().rev() {
        children.entry(pool.parent.as_ref()).or_default().push(pool);
    }
    let mut rows = Vec::new();
    let mut next: Vec<(usize, &Pool)> = roots(&mut children, None, 0);
    while let Some((depth, pool)) = next.pop() {
        rows.push(row(depth, pool));
        next.extend(roots(&mut children, Some(&pool.name), depth + 1));
    }
    table(&["POOL", "CPU", "MEMORY", "EXPANDABLE"], rows)
}

/// Each is taken out once, so that no cycle could keep the printing busy.
fn roots<'a>(
    children: &mut BTreeMap<Option<&'a Name>, Vec<&'a Pool>>,
    of: Option<&'a Name>,
    depth: usize,
) -> Vec<(usize, &'a Pool)> {
    children.remove(&of).unwrap_or_default().into_iter().map(|pool| (depth, pool)).collect()
}

fn row(depth: usize, pool: &Pool) -> Vec<String> {
    // A no-break space: tables trim others.
    let name = format!("{}{}", "\u{a0}\u{a0}".repeat(depth), pool.name);
    vec![name, control(pool, Resource::Cpu), control(pool, Resource::Memory), expandable(pool)]
}

fn control(pool: &Pool, resource: Resource) -> String {
    settings::control(resource, &pool.controls[resource])
}

fn list(items: &[impl ToString]) -> String {
    if items.is_empty() {
        return "-".into();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Verb};

    fn pool(name: &str, parent: Option<&str>) -> Pool {
        Pool {
            name: name.parse().unwrap(),
            parent: parent.map(|parent| parent.parse().unwrap()),
            controls: PerResource::default(),
            expandable: PerResource::from_fn(|_| true),
            scalable_shares: false,
        }
    }

    #[test]
    fn each_pool_stands_below_the_one_that_it_is_in() {
        let pools = [pool("a", Some("z")), pool("b", None), pool("c", Some("a")), pool("z", None)];
        let shown = tree(&pools).replace('\u{a0}', ".");
        let names: Vec<_> =
            shown.lines().skip(1).map(|line| line.split_whitespace().next().unwrap()).collect();
        assert_eq!(names, ["b", "z", "..a", "....c"]);
    }

    #[test]
    fn only_what_is_named_is_changed() {
        let asked = |options: &str| {
            let line = format!("godwit pool set p {options}");
            match Cli::parse_from(line.split_whitespace()).verb {
                Verb::Pool(PoolVerb::Set(options)) => changes(&options),
                _ => panic!("{line} is another verb"),
            }
        };
        assert_eq!(asked(""), json!({"controls": {}}));
        assert_eq!(
            asked("--no-parent --cpu-limit none --memory-shares 7"),
            json!({"parent": null, "controls": {"cpu": {"limit": null}, "memory": {"shares": 7}}})
        );
        assert_eq!(asked("--not-expandable")["expandable"]["storage"], json!(false));
        assert_eq!(
            asked("--parent q --scalable-shares"),
            json!({"parent": "q", "scalable_shares": true, "controls": {}})
        );
    }
}
