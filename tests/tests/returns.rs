//! A VM comes home to a host that has kept its memory.

use std::time::Duration;

use godwit_lab::cluster::{Cluster, GuestOptions, GuestPlace};
use godwit_lab::fabric::{Fabric, FabricOptions, Process};
use godwit_lab::{Result, exec, load};
use godwit_tests::{
    assert_alive, assert_unnoticed, boot, ensure, hosts, migrate, on_one_fabric, on_one_fabric_with,
};
use godwit_types::host::{Host, KeptMemory};
use godwit_types::{Bytes, HostName};

/// How long a host may take to keep a VM's memory, or to give it up, and to tell so.
const TOLD_LIMIT: Duration = Duration::from_secs(20);
/// How long a guest may take to fill its memory.
const FILLED_LIMIT: Duration = Duration::from_secs(60);

/// Does nothing to its memory by itself, 64 MiB of which cannot be packed.
fn guest() -> GuestOptions {
    GuestOptions { rate: "idle".into(), content: "random".into(), ..GuestOptions::named("commuter") }
}

/// Boots it, and waits until all its memory has contents.
fn boot_filled(cluster: &dyn Cluster, place: &GuestPlace, host: &HostName) -> Result<()> {
    boot(cluster, place, &guest(), host)?;
    let filled = exec::poll(FILLED_LIMIT, exec::POLL_COMMAND, || {
        let report = load::fetch(cluster.client(), guest().address)?;
        Ok((report.memory.passes > 0).then_some(()))
    })?;
    ensure(filled.is_some(), "the guest does not fill its memory")
}

fn kept(cluster: &dyn Cluster, host: &HostName) -> Result<Vec<KeptMemory>> {
    Ok(cluster.cli().ask::<Host>(&["host", "show", host.as_str()])?.facts.kept)
}

/// Waits until a host says that it has kept the guest's memory, or none.
fn await_kept(cluster: &dyn Cluster, host: &HostName, is_kept: bool) -> Result<()> {
    let told = exec::poll(TOLD_LIMIT, exec::POLL, || {
        let kept = kept(cluster, host)?;
        let all = kept.iter().any(|kept| kept.memory >= guest().working_set);
        Ok((if is_kept { all } else { kept.is_empty() }).then_some(()))
    })?;
    ensure(told.is_some(), format!("{host} should have kept memory: {is_kept}; {:?}", kept(cluster, host)?))
}

#[test]
fn a_vm_that_comes_home_again_and_again_is_sent_only_what_has_changed() {
    on_one_fabric(|fabric, place| {
        let cluster: &dyn Cluster = fabric;
        let [here, there] = hosts(cluster);
        boot_filled(cluster, place, &here)?;
        let load = godwit_tests::load(cluster, &guest())?;
        let first = migrate(cluster, "commuter", &there, &[])?.bytes;
        ensure(first.reused_pages == 0, format!("nothing was kept before the first trip: {first:?}"))?;
        for (from, to) in [(&here, &there), (&there, &here)].into_iter().cycle().take(3) {
            await_kept(cluster, from, true)?;
            let mark = load.mark()?;
            let home = migrate(cluster, "commuter", from, &[])?.bytes;
            assert_unnoticed(&load, &mark, &format!("the way back to {from}"))?;
            eprintln!("{} of {} bytes, {} pages reused", home.sent, first.sent, home.reused_pages);
            ensure(home.sent * 100 <= first.sent * 6, format!("{home:?} after {first:?}"))?;
            await_kept(cluster, from, false)?;
            await_kept(cluster, to, true)?;
        }
        load.stop();
        assert_alive(cluster, guest().address)?;
        agent_forgets(fabric, &here, &there)
    });
}

/// The VM is at `there`, or at `here`; the other host's agent begins anew, with nothing kept.
fn agent_forgets(fabric: &Fabric, here: &HostName, there: &HostName) -> Result<()> {
    let cluster: &dyn Cluster = fabric;
    let (away, home) = if kept(cluster, here)?.is_empty() { (here, there) } else { (there, here) };
    let agent = Process::Agent(home.clone());
    fabric.kill_process(&agent)?;
    fabric.start_process(agent)?;
    await_kept(cluster, home, false)?;
    let moved = migrate(cluster, "commuter", home, &[])?.bytes;
    ensure(moved.reused_pages == 0, format!("what was kept has ended with its agent: {moved:?}"))?;
    await_kept(cluster, away, true)?;
    assert_alive(cluster, guest().address)
}

#[test]
fn a_host_keeps_no_more_than_it_may_and_a_vm_comes_home_all_the_same() {
    let less = Bytes(guest().working_set.0 / 2).to_string();
    let agent_options = vec!["--keep-memory-max".into(), less];
    let options = FabricOptions { agent_options, ..FabricOptions::default() };
    on_one_fabric_with(options, |fabric, place| {
        let cluster: &dyn Cluster = fabric;
        let [here, there] = hosts(cluster);
        boot_filled(cluster, place, &here)?;
        migrate(cluster, "commuter", &there, &[])?;
        await_kept(cluster, &here, false)?;
        let home = migrate(cluster, "commuter", &here, &[])?.bytes;
        ensure(home.reused_pages == 0, format!("more was kept than may be: {home:?}"))?;
        assert_alive(cluster, guest().address)
    });
}
