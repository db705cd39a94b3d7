//! Blows at the handoff of an unmodified Linux guest between emulated hosts: networks cut, and hosts that lose power.

use std::time::Duration;

use godwit_faults::Step;
use godwit_lab::cluster::{Cluster, GuestOptions};
use godwit_lab::load::Load;
use godwit_lab::{LabError, Result, exec, load as guests};
use godwit_tests::{assert_alive, assert_unnoticed, boot, ensure, hosts, in_lab, load};
use godwit_types::HostName;
use godwit_types::task::{Task, TaskState};

/// How long a migration may take to notice a blow and to end.
const LIMIT: Duration = Duration::from_secs(120);
/// How long a guest may take to be heard again after its source has lost power.
const HEARD_LIMIT: Duration = Duration::from_secs(60);
const VM: &str = "linux";

#[test]
fn linux_survives_two_cut_networks_and_two_dead_hosts_at_four_moments_of_the_handoff() {
    in_lab(3, |cluster, place| {
        let [a, b] = hosts(cluster);
        let c = cluster.hosts()[2].clone();
        let guest = GuestOptions { rate: "200".into(), ..GuestOptions::named(VM) };
        boot(cluster, place, &guest, &a)?;
        let load = load(cluster, &guest)?;
        fails_unnoticed(cluster, &load, &guest, &b, Step::SourceSendRound, Blow::Cut)?;
        fails_unnoticed(cluster, &load, &guest, &b, Step::SourceSendState, Blow::Cut)?;
        fails_unnoticed(cluster, &load, &guest, &b, Step::DestinationLoad, Blow::Kill)?;
        // The client's connection bears this, too, but its silence depends on how fast a dead host is noticed.
        load.stop();
        source_dies_after_the_commit(cluster, &guest, &a, &c)
    });
}

#[derive(Debug, Clone, Copy)]
enum Blow {
    Cut,
    Kill,
}

/// The destination is struck before the commit: nobody notices, and the VM stays.
fn fails_unnoticed(
    cluster: &dyn Cluster,
    load: &Load,
    guest: &GuestOptions,
    to: &HostName,
    step: Step,
    blow: Blow,
) -> Result<()> {
    let [here, _] = hosts(cluster);
    let mark = load.mark()?;
    let task = begin_and_hold(cluster, to, step, |cluster| match blow {
        Blow::Cut => cluster.cut(to),
        Blow::Kill => cluster.kill(to),
    })?;
    let ended = cluster.await_task(&task, "an end", LIMIT, |task| task.state.is_final())?;
    ensure(ended.state == TaskState::Failed, format!("{blow:?} at {step:?}: {ended:?}"))?;
    cluster.assert_runs_on(VM, &here)?;
    let noticed = assert_unnoticed(load, &mark, &format!("{blow:?} at {step:?}"))?;
    eprintln!("{blow:?} at {step:?}: silence {} ms", noticed.network_silence.as_millis());
    assert_alive(cluster, guest.address)?;
    if matches!(blow, Blow::Cut) {
        cluster.mend(to)?;
        cluster.await_hosts(LIMIT)?;
    }
    Ok(())
}

/// The source loses power once the VM is the destination's: it runs there.
fn source_dies_after_the_commit(
    cluster: &dyn Cluster,
    guest: &GuestOptions,
    from: &HostName,
    to: &HostName,
) -> Result<()> {
    let before = guests::fetch(cluster.client(), guest.address)?;
    let task = begin_and_hold(cluster, to, Step::DestinationAskClaim, |cluster| cluster.kill(from))?;
    let ended = cluster.await_task(&task, "an end", LIMIT, |task| task.state.is_final())?;
    ensure(ended.state == TaskState::Succeeded, format!("the source died after the commit: {ended:?}"))?;
    cluster.assert_runs_on(VM, to)?;
    let heard = exec::poll(HEARD_LIMIT, exec::POLL_COMMAND, || {
        Ok(guests::fetch(cluster.client(), guest.address).ok())
    })?;
    let after = heard.ok_or_else(|| LabError::Broken("the guest is not heard again".into()))?;
    ensure(
        after.beats > before.beats && after.disk.acked >= before.disk.acked,
        format!("the guest is not the one that left: {before:?}, then {after:?}"),
    )?;
    ensure(after.memory.errors + after.disk.errors == 0, format!("the guest was harmed: {after:?}"))?;
    assert_alive(cluster, guest.address)
}

fn begin_and_hold(
    cluster: &dyn Cluster,
    to: &HostName,
    step: Step,
    strike: impl Fn(&dyn Cluster) -> Result<()>,
) -> Result<Task> {
    let hold = cluster.hold(step)?;

    let task = cluster.migrate_detached(VM, to, cluster.setting().migrate_options())?;
    hold.await_reached()?;
    strike(cluster)?;
    Ok(task)
}
