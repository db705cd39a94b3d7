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
fn linux_survives_two_cut_networks_and_two_dead_sources_at_four_moments_of_the_handoff() {
    in_lab(3, |cluster, place| {
        let [a, b] = hosts(cluster);
        let c = cluster.hosts()[2].clone();
        let guest = GuestOptions { rate: "200".into(), ..GuestOptions::named(VM) };
        boot(cluster, place, &guest, &a)?;
        let load = load(cluster, &guest)?;
        is_cut_off_unnoticed(cluster, &load, &guest, &b, Step::SourceSendRound)?;
        is_cut_off_unnoticed(cluster, &load, &guest, &b, Step::SourceSendState)?;
        // The client's connection bears these, too, but its silence depends on how fast a dead host is noticed.
        load.stop();
        let before_the_commit = Step::SourceAskCommit;
        source_dies(cluster, &guest, &a, &b, before_the_commit)?;
        let after_the_commit = Step::DestinationAskClaim;
        source_dies(cluster, &guest, &b, &c, after_the_commit)
    });
}

/// The destination is cut off before the commit: nobody notices, and the VM stays.
fn is_cut_off_unnoticed(
    cluster: &dyn Cluster,
    load: &Load,
    guest: &GuestOptions,
    to: &HostName,
    step: Step,
) -> Result<()> {
    let [here, _] = hosts(cluster);
    let mark = load.mark()?;
    let task = begin_and_hold(cluster, to, step, |cluster| cluster.cut(to))?;
    let ended = cluster.await_task(&task, "an end", LIMIT, |task| task.state.is_final())?;
    ensure(ended.state == TaskState::Failed, format!("cut at {step:?}: {ended:?}"))?;
    cluster.assert_runs_on(VM, &here)?;
    let noticed = assert_unnoticed(load, &mark, &format!("cut at {step:?}"))?;
    eprintln!("cut at {step:?}: silence {} ms", noticed.network_silence.as_millis());
    assert_alive(cluster, guest.address)?;
    cluster.mend(to)?;
    cluster.await_hosts(LIMIT)
}

/// The source loses power once the destination has everything: the VM runs there.
fn source_dies(
    cluster: &dyn Cluster,
    guest: &GuestOptions,
    from: &HostName,
    to: &HostName,
    step: Step,
) -> Result<()> {
    let before = guests::fetch(cluster.client(), guest.address)?;
    let task = begin_and_hold(cluster, to, step, |cluster| cluster.kill(from))?;
    let ended = cluster.await_task(&task, "an end", LIMIT, |task| task.state.is_final())?;
    ensure(ended.state == TaskState::Succeeded, format!("the source died at {step:?}: {ended:?}"))?;
    cluster.assert_runs_on(VM, to)?;
    eprintln!("the source died at {step:?}: {}", ended.message);
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
