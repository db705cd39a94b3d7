//! Several VMs at once, on real processes: limits hold, everybody arrives, nobody's memory suffers.

use std::net::Ipv4Addr;
use std::time::Duration;

use godwit_lab::cluster::{Cluster, GuestOptions, GuestPlace};
use godwit_lab::fabric::FabricOptions;
use godwit_lab::{LabError, Result};
use godwit_tests::{VERB_LIMIT, assert_alive, assert_unnoticed, boot, ensure, hosts, load, on_fabric_with};
use godwit_types::event::Event;
use godwit_types::task::{Task, TaskState, VmMove};
use godwit_types::vm::Vm;
use godwit_types::{Bytes, HostName};

/// How long all moves together may take.
const LIMIT: Duration = Duration::from_secs(180);
/// Slow enough to look at a move, and to have the next one wait.
const SLOWLY: [&str; 2] = ["--max-bandwidth", "8MiB"];

#[test]
fn six_vms_move_two_at_a_time_and_all_arrive_unharmed() {
    on_fabric_with(allowing(2), |cluster, place| {
        let [here, there] = hosts(cluster);
        let guests = guests(6);
        boot_all(cluster, place, &guests, &here)?;
        let loads = guests.iter().map(|guest| load(cluster, guest)).collect::<Result<Vec<_>>>()?;
        let marks = loads.iter().map(|load| load.mark()).collect::<Result<Vec<_>>>()?;
        migrate_all(cluster, &names(&guests), &there, &[])?;
        for ((guest, load), mark) in guests.iter().zip(&loads).zip(&marks) {
            assert_unnoticed(load, mark, &guest.name)?;
            cluster.assert_runs_on(&guest.name, &there)?;
            assert_alive(cluster, guest.address)?;
        }
        let most = most_at_a_time(cluster)?;
        ensure(most == 2, format!("{most} moved at a time"))
    });
}

#[test]
fn one_that_waits_is_cancelled_and_stays_and_the_one_behind_it_moves() {
    on_fabric_with(allowing(1), |cluster, place| {
        let [here, there] = hosts(cluster);
        let guests = guests(3);
        boot_all(cluster, place, &guests, &here)?;
        let tasks = guests.iter().map(|guest| cluster.migrate_detached(&guest.name, &there, &SLOWLY));
        let tasks = tasks.collect::<Result<Vec<Task>>>()?;
        let at =
            |position| move |task: &Task| task.turn.as_ref().is_some_and(|turn| turn.position == position);
        cluster.await_task(&tasks[2], "the second position", VERB_LIMIT, at(2))?;
        cluster.cli().text(&["task", "cancel", &tasks[1].id.to_string()], VERB_LIMIT)?;
        let cancelled = cluster.await_task(&tasks[1], "its end", VERB_LIMIT, |task| task.state.is_final())?;
        ensure(cancelled.state == TaskState::Cancelled, format!("{cancelled:?}"))?;
        cluster.await_task(&tasks[2], "the first position", VERB_LIMIT, at(1))?;
        // Both need not be slow any more.
        for task in [&tasks[0], &tasks[2]] {
            cluster.cli().text(&["task", "set-bandwidth", &task.id.to_string(), "none"], VERB_LIMIT)?;
        }
        for (task, guest) in [(&tasks[0], &guests[0]), (&tasks[2], &guests[2])] {
            let ended = cluster.await_task(task, "its end", LIMIT, |task| task.state.is_final())?;
            ensure(ended.state == TaskState::Succeeded, format!("{ended:?}"))?;
            cluster.assert_runs_on(&guest.name, &there)?;
        }
        cluster.assert_runs_on(&guests[1].name, &here)?;
        guests.iter().try_for_each(|guest| assert_alive(cluster, guest.address))
    });
}

#[test]
fn two_hosts_exchange_vms_both_ways_at_once() {
    on_fabric_with(allowing(1), |cluster, place| {
        let [here, there] = hosts(cluster);
        let guests = guests(4);
        let (left, right) = guests.split_at(2);
        boot_all(cluster, place, left, &here)?;
        boot_all(cluster, place, right, &there)?;
        let ways = [(left, &there), (right, &here)];
        let all = std::thread::scope(|scope| {
            let moving = ways
                .map(|(guests, to)| scope.spawn(move || migrate_all(cluster, &names(guests), to, &SLOWLY)));
            moving.into_iter().try_for_each(|way| {
                way.join().map_err(|_| LabError::Broken("a thread of the test has panicked".into()))?
            })
        });
        all?;
        for (guests, to) in ways {
            guests.iter().try_for_each(|guest| cluster.assert_runs_on(&guest.name, to))?;
        }
        let most = most_at_a_time(cluster)?;
        ensure(most == 2, format!("{most} moved at a time: one each way should have"))?;
        guests.iter().try_for_each(|guest| assert_alive(cluster, guest.address))
    });
}

#[test]
fn a_cap_of_the_host_holds_for_all_of_its_moves_together_and_they_share_it() {
    let options = FabricOptions {
        agent_options: ["--max-migrations", "2", "--migration-bandwidth", "16MiB"].map(String::from).into(),
        ..FabricOptions::default()
    };
    on_fabric_with(options, |cluster, place| {
        let [here, there] = hosts(cluster);
        let guests = guests(2);
        boot_all(cluster, place, &guests, &here)?;
        let tasks = guests.iter().map(|guest| cluster.migrate_detached(&guest.name, &there, &[]));
        let tasks = tasks.collect::<Result<Vec<Task>>>()?;
        let sends =
            |task: &Task| task.progress.as_ref().is_some_and(|progress| progress.bytes_sent > 12 << 20);
        let mut seen = Vec::new();
        for task in &tasks {
            let seen_task = cluster.await_task(task, "12 MiB sent", LIMIT, sends)?;
            seen.extend(seen_task.progress);
        }
        let sent: u64 = seen.iter().map(|progress| progress.bytes_sent).sum();
        let longest_ms = seen.iter().map(|progress| progress.elapsed_ms).max().unwrap_or(0);
        let allowed = (longest_ms + 300) * (16 << 20) / 1000;
        ensure(sent <= allowed, format!("{sent} bytes in {longest_ms} ms: {seen:?}"))?;
        for task in &tasks {
            cluster.cli().text(&["task", "cancel", &task.id.to_string()], VERB_LIMIT)?;
            let ended = cluster.await_task(task, "its end", LIMIT, |task| task.state.is_final())?;
            ensure(ended.state == TaskState::Cancelled, format!("{ended:?}"))?;
        }
        guests.iter().try_for_each(|guest| assert_alive(cluster, guest.address))
    });
}

/// Two hosts that take part in so many moves at a time, each way.
fn allowing(moves: u32) -> FabricOptions {
    let agent_options = vec!["--max-migrations".to_owned(), moves.to_string()];
    FabricOptions { agent_options, ..FabricOptions::default() }
}

/// Small guests, each with an address of its own.
fn guests(count: u8) -> Vec<GuestOptions> {
    let guest = |number: u8| GuestOptions {
        memory: Bytes::mib(128),
        working_set: Bytes::mib(48),
        content: "random".into(),
        address: Ipv4Addr::new(10, 77, 0, 20 + number),
        ..GuestOptions::named(&format!("many{number}"))
    };
    (0..count).map(guest).collect()
}

fn names(guests: &[GuestOptions]) -> Vec<&str> {
    guests.iter().map(|guest| guest.name.as_str()).collect()
}

fn boot_all(
    cluster: &dyn Cluster,
    place: &GuestPlace,
    guests: &[GuestOptions],
    host: &HostName,
) -> Result<()> {
    guests.iter().try_for_each(|guest| boot(cluster, place, guest, host).map(drop))
}

/// One verb for all; fails unless all have moved.
fn migrate_all(cluster: &dyn Cluster, vms: &[&str], to: &HostName, more: &[&str]) -> Result<()> {
    let verb = [&["vm", "migrate"], vms, &["--to", to.as_str()], more].concat();
    let moved: Vec<VmMove> = cluster.cli().wait_for(&verb, LIMIT)?;
    ensure(moved.iter().map(|one| one.vm.as_str()).eq(vms.iter().copied()), format!("{moved:?}"))?;
    let succeeded = |one: &VmMove| one.task.as_ref().is_some_and(|task| task.state == TaskState::Succeeded);
    ensure(moved.iter().all(succeeded), format!("{moved:?}"))?;
    let shown: Vec<Vm> = cluster.cli().ask(&["vm", "ls"])?;
    ensure(shown.iter().all(|vm| vm.task.is_none() || !vms.contains(&vm.name.as_str())), format!("{shown:?}"))
}

/// How many moves were under way at a time, at most, as the events tell.
fn most_at_a_time(cluster: &dyn Cluster) -> Result<usize> {
    let text = cluster.cli().text(&["events"], VERB_LIMIT)?;
    let (mut moving, mut most) = (0, 0);
    for line in text.lines() {
        let event: Event = serde_json::from_str(line)
            .map_err(|error| LabError::Broken(format!("not an event: {error}: {line}")))?;
        match event.kind.as_str() {
            "vm.migrating" => moving += 1,
            "vm.migrated" => moving -= 1,
            _ => {}
        }
        most = most.max(moving);
    }
    ensure(moving == 0, format!("{moving} moves never ended: {text}"))?;
    Ok(most)
}
