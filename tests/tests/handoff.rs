//! No blow at any step of the handoff loses a VM, runs it twice, or leaves anything behind.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use godwit_faults::Step;
use godwit_lab::cluster::{Cluster, GuestOptions};
use godwit_lab::fabric::{Fabric, FabricOptions, OwnDatastores};
use godwit_lab::guest::GuestFiles;
use godwit_lab::{Result, logs};
use godwit_tests::handoff::{self, Case};
use godwit_tests::{assert_alive, boot, ensure, hosts, migrate, native, on_one_fabric};
use godwit_types::task::TaskState;

/// Clusters at a time. A case mostly waits, and those that cut a network do nothing else for a dozen seconds.
const CLUSTERS: usize = 10;
/// Environment variable: a part of the names of the cases to run, such as `CutSource at source`.
const ONLY: &str = "GODWIT_CASES";

#[test]
fn no_blow_at_any_step_loses_the_vm_runs_it_twice_or_leaves_anything_behind() {
    native(|guest| {
        let only = std::env::var(ONLY).unwrap_or_default();
        let cases: Vec<Case> =
            Case::all().into_iter().filter(|case| case.to_string().contains(&only)).collect();
        ensure(!cases.is_empty(), format!("no case has '{only}' in its name"))?;
        let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..CLUSTERS {
                scope.spawn(|| work(guest, &cases, &next, &failures));
            }
        });
        let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
        eprintln!("{} of {} cases failed", failures.len(), cases.len());
        ensure(failures.is_empty(), failures.join("\n"))
    });
}

/// Takes one case after another, on one cluster for as long as nothing fails.
fn work(guest: &GuestFiles, cases: &[Case], next: &AtomicUsize, failures: &Mutex<Vec<String>>) {
    let mut cluster = None;
    while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
        let begun = Instant::now();
        let outcome = match cluster.take().map_or_else(|| Fabric::start(options()), Ok) {
            Ok(fabric) => attempt(&fabric, guest, *case).map(|()| cluster = Some(fabric)),
            Err(error) => Err(error),
        };
        let seconds = begun.elapsed().as_secs_f64();
        eprintln!("{case}: {} after {seconds:.1} s", if outcome.is_ok() { "ok" } else { "FAILED" });
        if let Err(error) = outcome {
            let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
            failures.push(format!("{case}: {}", error.chain()));
        }
    }
}

/// With a datastore of each host's own, for disks that move.
fn options() -> FabricOptions {
    FabricOptions { own_datastores: Some(OwnDatastores::Lasting), ..FabricOptions::default() }
}

fn attempt(fabric: &Fabric, guest: &GuestFiles, case: Case) -> Result<()> {
    let outcome = guest.install(fabric).and_then(|place| handoff::run(fabric, &place, case));
    outcome.inspect_err(|error| eprintln!("{case}: {}\n{}", error.chain(), logs::tails(fabric.logs())))
}

#[test]
fn a_device_that_fails_to_save_or_load_leaves_the_vm_at_the_source_and_the_next_attempt_succeeds() {
    on_one_fabric(|fabric, place| {
        let cluster: &dyn Cluster = fabric;
        let [here, there] = hosts(cluster);
        let guest = GuestOptions::named("brittle");
        boot(cluster, place, &guest, &here)?;
        for step in [Step::SourceSave, Step::DestinationLoad] {
            cluster.fail(step, 1)?;
            let task = cluster.migrate_detached(&guest.name, &there, &[])?;
            let ended = cluster
                .await_task(&task, "an end", godwit_tests::VERB_LIMIT, |task| task.state.is_final())?;
            let why = ended.error.map(|error| error.message).unwrap_or_default();
            ensure(
                ended.state == TaskState::Failed && why.contains("a test wants it to fail"),
                format!("{step:?}: {why}"),
            )?;
            cluster.assert_runs_on(&guest.name, &here)?;
            assert_alive(cluster, guest.address)?;
        }
        migrate(cluster, &guest.name, &there, &[])?;
        assert_alive(cluster, guest.address)
    });
}
