//! A failure before the commit leaves the VM running at the source, and the next attempt succeeds.

use std::time::{Duration, Instant};

use godwit_faults::Step;
use godwit_lab::cluster::{Cluster, GuestOptions};
use godwit_lab::fabric::{Fabric, FabricOptions};
use godwit_lab::load::Load;
use godwit_lab::{LabError, Result};
use godwit_tests::{
    assert_alive, assert_unnoticed, boot, ensure, hosts, load, migrate, on_fabric, on_fabric_with,
    on_one_fabric, succeeded,
};
use godwit_types::host::{Host, HostState};
use godwit_types::migration::Phase;
use godwit_types::task::{Task, TaskState};
use godwit_types::{Bytes, HostName};
use nix::sys::signal::{Signal, kill};

/// How long a migration may take to reach pre-copy, and to notice that its other side is gone.
const LIMIT: Duration = Duration::from_secs(90);
/// Longer than either side's patience with a silent peer.
const HANG: Duration = Duration::from_secs(12);
/// Shorter than anybody's patience; as long as it; far beyond it.
const SHORT_CUT: Duration = Duration::from_secs(1);
const LONG_CUT: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_secs(60);
/// Between two looks at whether everybody answers.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Slow enough that the move is still in pre-copy when it is disturbed: 192 MiB take 12 s and more.
const SLOWLY: [&str; 2] = ["--max-bandwidth", "16MiB"];

#[test]
fn a_destination_killed_in_pre_copy_leaves_the_vm_running_at_the_source() {
    disturbed(TaskState::Failed, |cluster, _, there| {
        let killed = cluster.kill_vmms(there)?;
        ensure(killed == 1, format!("the destination should have one VMM, not {killed}"))
    });
}

#[test]
fn a_link_cut_in_pre_copy_leaves_the_vm_running_at_the_source() {
    disturbed(TaskState::Failed, |cluster, task, there| {
        cluster.cut(there)?;
        cluster.await_task(task, "notices the cut link", LIMIT, |task| task.state.is_final())?;
        cluster.mend(there)?;
        cluster.await_hosts(LIMIT)
    });
}

#[test]
fn a_link_cut_for_a_while_or_a_hundredth_of_the_bandwidth_in_pre_copy_loses_nothing() {
    // A VM that comes home to what was kept of it would be there before anything could befall it.
    let agent_options = vec!["--keep-memory".into(), "0s".into()];
    on_fabric_with(FabricOptions { agent_options, ..FabricOptions::default() }, |cluster, place| {
        let guest = GuestOptions { content: "random".into(), ..GuestOptions::named("lasts") };
        let mut hosts = hosts(cluster);
        boot(cluster, place, &guest, &hosts[0])?;
        await_full_working_set(cluster, &guest)?;
        for disturbance in [Disturbance::Cut(SHORT_CUT), Disturbance::Cut(LONG_CUT), Disturbance::Trickle] {
            let [here, there] = &hosts;
            let task =
                cluster.migrate_detached(&guest.name, there, &["--max-bandwidth", "16MiB", "--verify"])?;
            cluster.await_task(&task, "pre-copy under way", LIMIT, in_pre_copy)?;
            disturbance.happen(cluster, &task, there)?;
            let ended = cluster.await_task(&task, "an end", LIMIT, |task| task.state.is_final())?;
            let moved = ended.state == TaskState::Succeeded;
            // As long as the patience with a silent peer, it may end the attempt.
            let may_fail = matches!(disturbance, Disturbance::Cut(LONG_CUT));
            ensure(moved || may_fail, format!("{disturbance:?}: {ended:?}"))?;
            cluster.assert_runs_on(&guest.name, if moved { there } else { here })?;
            assert_alive(cluster, guest.address)?;
            if moved {
                hosts.reverse();
            }
        }
        Ok(())
    });
}

#[test]
fn a_move_cancelled_in_pre_copy_leaves_the_vm_running_at_the_source() {
    disturbed(TaskState::Cancelled, |cluster, task, _| {
        cluster.cli().text(&["task", "cancel", &task.id.to_string()], LIMIT).map(drop)
    });
}

#[test]
fn a_side_that_hangs_in_pre_copy_ends_the_attempt_and_everybody_else_answers_meanwhile() {
    on_one_fabric(|fabric, place| {
        let cluster: &dyn Cluster = fabric;
        let [here, there] = hosts(cluster);
        let guest = GuestOptions { content: "random".into(), ..GuestOptions::named("stays") };
        boot(cluster, place, &guest, &here)?;
        for hangs in [&there, &here] {
            let task = cluster.migrate_detached(&guest.name, &there, &["--max-bandwidth", "1MiB"])?;
            cluster.await_task(&task, "pre-copy under way", LIMIT, in_pre_copy)?;
            signal(fabric, hangs, Signal::SIGSTOP)?;
            let began = Instant::now();
            while began.elapsed() < HANG {
                let vm = cluster.vm(&guest.name)?;
                ensure(vm.owner.as_ref() == Some(&here), format!("{hangs} hangs, and {vm:?}"))?;
                let asked: Vec<Host> = cluster.cli().ask(&["host", "ls"])?;
                ensure(asked.iter().all(|host| host.state == HostState::Up), format!("{asked:?}"))?;
                std::thread::sleep(ASK_AGAIN);
            }
            signal(fabric, hangs, Signal::SIGCONT)?;
            let ended = cluster.await_task(&task, "an end", LIMIT, |task| task.state.is_final())?;
            let why = ended.error.as_ref().map(|error| error.message.clone()).unwrap_or_default();
            ensure(ended.state == TaskState::Failed && !why.is_empty(), format!("{ended:?}"))?;
            cluster.assert_runs_on(&guest.name, &here)?;
            assert_alive(cluster, guest.address)?;
        }
        migrate(cluster, &guest.name, &there, &[])?;
        assert_alive(cluster, guest.address)
    });
}

#[test]
fn a_link_cut_in_post_copy_makes_the_guest_wait_and_then_all_of_its_memory_follows() {
    on_fabric(|cluster, place| {
        let [here, there] = hosts(cluster);
        let guest = GuestOptions {
            memory: Bytes::mib(192),
            working_set: Bytes::mib(96),
            content: "random".into(),
            rate: "100000".into(),
            ..GuestOptions::named("follows")
        };
        boot(cluster, place, &guest, &here)?;
        await_full_working_set(cluster, &guest)?;
        // The guest runs there, and hardly anything of what it has written last has followed.
        let hold = cluster.hold(Step::DestinationSendResumed)?;
        let options = ["--post-copy", "--max-blackout", "1ms", "--max-bandwidth", "32MiB"];
        let task = cluster.migrate_detached(&guest.name, &there, &options)?;
        hold.await_reached()?;
        cluster.cut(&there)?;
        drop(hold);
        std::thread::sleep(MINUTE);
        cluster.mend(&there)?;
        let ended = cluster.await_task(&task, "an end", LIMIT, |task| task.state.is_final())?;
        let report = succeeded(ended)?;
        let rest = report.post_copy.as_ref().ok_or_else(|| LabError::Broken(format!("{report:?}")))?;
        ensure(rest.pages > 1000 && rest.reconnects > 0, format!("{rest:?}"))?;
        // The manager has lost sight of the host, too.
        cluster.await_hosts(LIMIT)?;
        cluster.assert_runs_on(&guest.name, &there)?;
        assert_alive(cluster, guest.address)?;
        migrate(cluster, &guest.name, &here, &options)?;
        assert_alive(cluster, guest.address)
    });
}

/// What befalls a move.
#[derive(Debug, Clone, Copy)]
enum Disturbance {
    /// The destination cannot be reached for so long.
    Cut(Duration),
    /// Of its bandwidth a hundredth is left, for a while.
    Trickle,
}

impl Disturbance {
    fn happen(self, cluster: &dyn Cluster, task: &Task, there: &HostName) -> Result<()> {
        let set_bandwidth = |rate| {
            cluster.cli().text(&["task", "set-bandwidth", &task.id.to_string(), rate], LIMIT).map(drop)
        };
        match self {
            Self::Cut(time) => {
                cluster.cut(there)?;
                std::thread::sleep(time);
                cluster.mend(there)?;
                cluster.await_hosts(LIMIT)
            }
            Self::Trickle => {
                set_bandwidth("160KiB")?;
                std::thread::sleep(LONG_CUT);
                set_bandwidth("16MiB")
            }
        }
    }
}

fn signal(fabric: &Fabric, host: &HostName, signal: Signal) -> Result<()> {
    for vmm in fabric.vmms(host)? {
        kill(vmm, signal).map_err(|error| LabError::Broken(format!("{signal} for {vmm}: {error}")))?;
    }
    Ok(())
}

/// Begins a move, disturbs it in pre-copy, and checks that nobody noticed and that a second attempt succeeds.
fn disturbed(expected: TaskState, disturb: impl Fn(&dyn Cluster, &Task, &HostName) -> Result<()>) {
    on_fabric(|cluster, place| {
        let [here, there] = hosts(cluster);
        let guest = GuestOptions {
            memory: Bytes::mib(320),
            working_set: Bytes::mib(192),
            content: "random".into(),
            ..GuestOptions::named("stays")
        };
        boot(cluster, place, &guest, &here)?;
        await_full_working_set(cluster, &guest)?;
        let load = load(cluster, &guest)?;
        let mark = load.mark()?;
        let task = cluster.migrate_detached(&guest.name, &there, &SLOWLY)?;
        cluster.await_task(&task, "pre-copy under way", LIMIT, in_pre_copy)?;
        disturb(cluster, &task, &there)?;
        let ended = cluster.await_task(&task, "an end", LIMIT, |task| task.state.is_final())?;
        ensure(ended.state == expected, format!("expected {expected:?}: {ended:?}"))?;
        ensure(ended.error.is_some(), format!("the task does not say why it ended: {ended:?}"))?;
        still_at(cluster, &load, &guest, &here)?;
        assert_unnoticed(&load, &mark, "the move that failed")?;
        let mark = load.mark()?;
        migrate(cluster, &guest.name, &there, &[])?;
        assert_unnoticed(&load, &mark, "the second attempt").map(drop)
    });
}

fn in_pre_copy(task: &Task) -> bool {
    task.progress
        .as_ref()
        .is_some_and(|progress| progress.phase == Phase::PreCopy && progress.bytes_sent > 1 << 20)
}

fn still_at(cluster: &dyn Cluster, load: &Load, guest: &GuestOptions, host: &HostName) -> Result<()> {
    cluster.assert_runs_on(&guest.name, host)?;
    assert_alive(cluster, guest.address)?;
    let failed = load.requests();
    ensure(failed.failed == 0, format!("requests failed: {failed:?}"))
}

/// Memory that was never touched moves in no time, and the move would be over before it could be disturbed.
fn await_full_working_set(cluster: &dyn Cluster, guest: &GuestOptions) -> Result<()> {
    let filled = godwit_lab::exec::poll(LIMIT, godwit_lab::exec::POLL_COMMAND, || {
        let report = godwit_lab::load::fetch(cluster.client(), guest.address)?;
        Ok((report.memory.passes > 0).then_some(()))
    })?;
    filled.ok_or_else(|| LabError::Broken("the guest did not fill its working set".into()))
}
