//! The scheduler on real VMs: a host is emptied under load and gets no VM, a rule moves a VM, and what one host has too much of
//! goes to another without being asked.

use std::time::Duration;

use godwit_lab::cluster::{Cluster, GuestOptions};
use godwit_lab::{LabError, Result, exec};
use godwit_tests::{
    VERB_LIMIT, assert_alive, assert_unnoticed, boot, ensure, load, on_fabric_with, owner, small_guest,
    three_hosts,
};
use godwit_types::host::Host;
use godwit_types::task::{Task, TaskState};
use godwit_types::{Bytes, ErrorCode, HostName};
use serde_json::Value;

/// How long a host may take to become empty, and how long the scheduler to see what is to be seen.
const LIMIT: Duration = Duration::from_secs(240);

#[test]
fn a_host_put_in_maintenance_empties_unnoticed_and_gets_no_vm_until_it_leaves() {
    on_fabric_with(three_hosts(), |cluster, place| {
        let [a, _, _] = three(cluster);
        let guests = guests(4, "500");
        guests.iter().try_for_each(|guest| boot(cluster, place, guest, &a).map(drop))?;
        let loads = guests.iter().map(|guest| load(cluster, guest)).collect::<Result<Vec<_>>>()?;
        let marks = loads.iter().map(|load| load.mark()).collect::<Result<Vec<_>>>()?;
        let told: Value = cluster.cli().ask(&["host", "maintenance", "enter", a.as_str(), "--dry-run"])?;
        ensure(told["plan"]["steps"].as_array().is_some_and(|steps| steps.len() == 4), format!("{told:#}"))?;
        let task: Task = cluster.cli().wait_for(&["host", "maintenance", "enter", a.as_str()], LIMIT)?;
        ensure(task.state == TaskState::Succeeded, format!("{task:?}"))?;
        for ((guest, load), mark) in guests.iter().zip(&loads).zip(&marks) {
            assert_unnoticed(load, mark, &guest.name)?;
            assert_alive(cluster, guest.address)?;
            ensure(owner(cluster, &guest.name)? != a, format!("{} is still on {a}", guest.name))?;
        }
        let hosts: Vec<Host> = cluster.cli().ask(&["host", "ls"])?;
        let shown = hosts.iter().find(|host| host.name == a).and_then(|host| host.maintenance);
        ensure(shown.is_some_and(|maintenance| maintenance.empty), format!("{hosts:?}"))?;
        refused(cluster, &["vm", "migrate", &guests[0].name, "--to", a.as_str()])?;
        cluster.stop(&guests[1].name)?;
        refused(cluster, &["vm", "start", &guests[1].name, "--host", a.as_str()])?;
        cluster.cli().text(&["vm", "start", &guests[1].name], VERB_LIMIT)?;
        ensure(owner(cluster, &guests[1].name)? != a, "a host in maintenance was given a VM")?;
        cluster.cli().text(&["host", "maintenance", "exit", a.as_str()], VERB_LIMIT)?;
        cluster.migrate(&guests[0].name, &a, &[]).map(drop)
    });
}

#[test]
fn a_rule_that_is_broken_when_it_is_laid_down_moves_one_vm_and_why_can_be_told() {
    on_fabric_with(three_hosts(), |cluster, place| {
        let [a, _, _] = three(cluster);
        let guests = guests(2, "500");
        guests.iter().try_for_each(|guest| boot(cluster, place, guest, &a).map(drop))?;
        cluster.cli().text(&["policy", "set", "--automation", "full"], VERB_LIMIT)?;
        let vms = format!("{},{}", guests[0].name, guests[1].name);
        cluster.cli().text(&["rule", "add", "web-apart", "--apart", &vms], VERB_LIMIT)?;
        await_apart(cluster, &guests)?;
        let decisions: Vec<Value> = cluster.cli().ask(&["scheduler", "decisions"])?;
        let by_rule = |step: &Value| step["reason"]["rule"] == "web-apart";
        let decided = decisions
            .iter()
            .find(|one| one["steps"].as_array().is_some_and(|steps| steps.iter().any(by_rule)));
        let id = decided.and_then(|one| one["id"].as_u64()).ok_or_else(|| broken(&decisions))?.to_string();
        // Ends with another exit code if the plan is not the same to the bit.
        cluster.cli().text(&["scheduler", "replay", &id], VERB_LIMIT)?;
        let told: Value = cluster.cli().ask(&["scheduler", "explain", &guests[0].name])?;
        ensure(told["offers"].as_array().is_some_and(|offers| offers.len() == 3), format!("{told:#}"))?;
        guests.iter().try_for_each(|guest| assert_alive(cluster, guest.address))
    });
}

#[test]
fn vms_that_want_more_than_their_host_has_are_separated_without_being_asked() {
    on_fabric_with(three_hosts(), |cluster, place| {
        let [a, _, _] = three(cluster);
        cluster.cli().text(&["policy", "set", "--automation", "full", "--threshold", "4"], VERB_LIMIT)?;
        // One that writes as fast as it can, and one that holds memory.
        let mut guests = guests(2, "0");
        guests[1].memory = Bytes::mib(512);
        guests[1].working_set = Bytes::mib(384);
        guests.iter().try_for_each(|guest| boot(cluster, place, guest, &a).map(drop))?;
        await_apart(cluster, &guests)?;
        guests.iter().try_for_each(|guest| assert_alive(cluster, guest.address))
    });
}

fn three(cluster: &dyn Cluster) -> [HostName; 3] {
    cluster.hosts().to_vec().try_into().expect("it was made of three hosts")
}

fn guests(count: u8, rate: &str) -> Vec<GuestOptions> {
    (0..count).map(|number| small_guest(number, rate)).collect()
}

fn await_apart(cluster: &dyn Cluster, guests: &[GuestOptions]) -> Result<()> {
    let apart = exec::poll(LIMIT, exec::POLL_COMMAND, || {
        let owners = guests.iter().map(|guest| owner(cluster, &guest.name)).collect::<Result<Vec<_>>>()?;
        Ok((owners[0] != owners[1]).then_some(()))
    })?;
    apart.ok_or_else(|| {
        let status = cluster.cli().text(&["scheduler", "status"], VERB_LIMIT);
        broken(&status)
    })
}

fn refused(cluster: &dyn Cluster, verb: &[&str]) -> Result<()> {
    match cluster.cli().text(verb, VERB_LIMIT) {
        Err(LabError::Cli(error))
            if error.is(ErrorCode::Refused) && error.stderr.contains("in maintenance") =>
        {
            Ok(())
        }
        other => Err(broken(&other)),
    }
}

fn broken(what: &impl std::fmt::Debug) -> LabError {
    LabError::Broken(format!("{what:#?}"))
}
