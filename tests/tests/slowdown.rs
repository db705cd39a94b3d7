//! A guest that outruns its link is caught up with by slowing those who write, as far as is allowed, and left alone otherwise.

use godwit_lab::Result;
use godwit_lab::cluster::{Cluster, GuestOptions};
use godwit_tests::{
    VERB_LIMIT, assert_alive, assert_unnoticed, boot, ensure, hosts, load, migrate, on_fabric,
};
use godwit_types::Bytes;
use godwit_types::migration::MigrationReport;
use godwit_types::task::TaskState;

/// A tenth of what the guest writes: less than it, also on a machine that lets it write a quarter of that while its writes
/// are tracked, and more than what is left of it once it is slowed as far as is allowed.
const LINK: [&str; 4] = ["--max-bandwidth", "8MiB", "--max-blackout", "200ms"];
const ALLOWED: f64 = 95.0;

/// It goes through 16 MiB at 80 MiB/s, and makes up for nothing that it is kept from: so it is slowed by what it is held,
/// however fast the machine is.
fn wild(vcpus: u8) -> GuestOptions {
    GuestOptions {
        vcpus,
        memory: Bytes::mib(128),
        working_set: Bytes::mib(16),
        rate: "20480".into(),
        burst_us: 1000,
        content: "random".into(),
        ..GuestOptions::named("wild")
    }
}

#[test]
fn a_guest_that_outruns_its_link_stays_unslowed_unless_it_is_allowed_and_then_moves_within_the_bound() {
    for vcpus in [1, 2] {
        on_fabric(|cluster, place| {
            let [here, there] = hosts(cluster);
            let guest = wild(vcpus);
            boot(cluster, place, &guest, &here)?;
            let load = load(cluster, &guest)?;
            stays(cluster, &guest, here.as_str(), there.as_str())?;
            let mark = load.mark()?;
            let allowed = [&LINK[..], &["--max-slowdown", "95%", "--deadline", "2m", "--verify"]].concat();
            let report = migrate(cluster, &guest.name, &there, &allowed)?;
            eprintln!("{vcpus} vCPUs: {report:?}");
            within_the_bound(&report)?;
            assert_unnoticed(&load, &mark, "a move of a guest that was slowed")?;
            load.stop();
            assert_alive(cluster, guest.address)
        });
    }
}

/// By default nobody is slowed: the deadline passes, and the guest goes on where it was.
fn stays(cluster: &dyn Cluster, guest: &GuestOptions, here: &str, there: &str) -> Result<()> {
    let to = there.parse().expect("it is a host's name");
    let task = cluster.migrate_detached(&guest.name, &to, &[&LINK[..], &["--deadline", "6s"]].concat())?;
    let task = cluster.await_task(&task, "an end", 2 * VERB_LIMIT, |task| task.state.is_final())?;
    ensure(task.state == TaskState::Failed, format!("it should not have moved: {task:#?}"))?;
    let slowed = task.progress.is_some_and(|progress| progress.slowdown_percent > 0.0);
    ensure(!slowed, "nobody has allowed it to be slowed")?;
    cluster.assert_runs_on(&guest.name, &here.parse().expect("it is a host's name"))?;
    assert_alive(cluster, guest.address)
}

fn within_the_bound(report: &MigrationReport) -> Result<()> {
    ensure(!report.slowed.is_empty(), format!("nobody was slowed: {report:#?}"))?;
    for vcpu in &report.slowed {
        let fits = vcpu.highest_percent <= ALLOWED && vcpu.mean_percent <= ALLOWED && vcpu.mean_percent > 0.0;
        ensure(fits && vcpu.time_ms > 0.0, format!("{vcpu:?}"))?;
    }
    ensure(report.post_copy.is_none(), "nobody has allowed post-copy")
}
