//! What cannot work is refused before anything moves, with the reason, the remedy and the documented exit code.

use godwit_lab::cluster::{Cluster, GuestOptions};
use godwit_lab::fabric::FabricOptions;
use godwit_lab::{LabError, Result};
use godwit_tests::{assert_alive, boot, ensure, hosts, on_fabric, on_fabric_with};
use godwit_types::check::{Check, MigrationCheck, Verdict};
use godwit_types::{Bytes, ErrorCode};

#[test]
fn unknown_vms_and_hosts_and_impossible_requests_are_refused() {
    on_fabric(|cluster, place| {
        let [here, there] = hosts(cluster);
        let guest = GuestOptions::named("calm");
        boot(cluster, place, &guest, &here)?;
        let (here, there) = (here.as_str(), there.as_str());
        refused(cluster, &["vm", "migrate", "nobody", "--to", there], ErrorCode::NotFound, &["nobody"])?;
        refused(cluster, &["vm", "migrate", "calm", "--to", "nowhere"], ErrorCode::NotFound, &["nowhere"])?;
        refused(cluster, &["vm", "show", "nobody"], ErrorCode::NotFound, &["nobody"])?;
        refused(cluster, &["host", "show", "nowhere"], ErrorCode::NotFound, &["nowhere"])?;
        refused(cluster, &["vm", "rm", "calm"], ErrorCode::Conflict, &["calm"])?;
        refused(cluster, &["vm", "start", "calm", "--host", there], ErrorCode::Conflict, &["calm"])?;
        refused(
            cluster,
            &["vm", "migrate", "calm", "--to", "not/a/name"],
            ErrorCode::Invalid,
            &["not/a/name"],
        )?;
        let already = cluster.cli().text(&["vm", "migrate", "calm", "--to", here], godwit_tests::VERB_LIMIT);
        ensure(already.is_err(), "a move to where the VM runs already should be refused")?;
        assert_alive(cluster, guest.address)
    });
}

#[test]
fn a_vm_that_is_migrating_already_is_refused_a_second_move() {
    on_fabric(|cluster, place| {
        let [here, there] = hosts(cluster);
        let guest = GuestOptions { content: "random".into(), ..GuestOptions::named("busy") };
        boot(cluster, place, &guest, &here)?;
        let task = cluster.migrate_detached("busy", &there, &["--max-bandwidth", "4MiB"])?;
        refused(cluster, &["vm", "migrate", "busy", "--to", there.as_str()], ErrorCode::Conflict, &["busy"])?;
        cluster.cli().text(&["task", "cancel", &task.id.to_string()], godwit_tests::VERB_LIMIT)?;
        cluster.await_task(&task, "an end", godwit_tests::VERB_LIMIT, |task| task.state.is_final())?;
        assert_alive(cluster, guest.address)
    });
}

#[test]
fn a_destination_without_the_network_and_the_datastore_is_refused() {
    let mut options = FabricOptions::default();
    options.bare.push(options.hosts[1].clone());
    on_fabric_with(options, |cluster, place| {
        let [here, there] = hosts(cluster);
        let guest = GuestOptions::named("settled");
        boot(cluster, place, &guest, &here)?;
        let missing = ["does not offer the network", "does not reach the datastore"];
        let verb = ["vm", "migrate", "settled", "--to", there.as_str()];
        refused(cluster, &verb, ErrorCode::Refused, &missing)?;
        let check = ["vm", "check-migration", "settled", "--json"];
        let Err(LabError::Cli(nowhere)) = cluster.cli().text(&check, godwit_tests::VERB_LIMIT) else {
            return Err(LabError::Broken("a host that can take the VM was found".into()));
        };
        ensure(nowhere.is(ErrorCode::Failed), format!("expected exit code 1: {nowhere}"))?;
        let told: MigrationCheck = serde_json::from_str(&nowhere.stdout).expect("--json prints the document");
        for words in missing {
            let said = told.hosts[1].findings.iter().any(|finding| finding.reason.contains(words));
            ensure(said, format!("the check does not say '{words}': {told:#?}"))?;
        }
        cluster.assert_runs_on("settled", &here)?;
        assert_alive(cluster, guest.address)
    });
}

#[test]
fn the_check_finds_the_host_that_a_migration_then_succeeds_to() {
    on_fabric(|cluster, place| {
        let [here, there] = hosts(cluster);
        let guest = GuestOptions::named("ready");
        boot(cluster, place, &guest, &here)?;
        let verb = ["vm", "check-migration", "ready", "--to", there.as_str(), "--post-copy", "--json"];
        let told = cluster.cli().text(&verb, godwit_tests::VERB_LIMIT)?;
        let told: MigrationCheck = serde_json::from_str(&told).expect("--json prints the document");
        let well = told.hosts[0].findings.iter().filter(|finding| finding.verdict == Verdict::Ok);
        let well: Vec<Check> = well.map(|finding| finding.check).collect();
        for check in Check::ALL.into_iter().filter(|check| *check != Check::Vcpus) {
            ensure(well.contains(&check), format!("{check:?} is not well: {told:#?}"))?;
        }
        cluster.assert_runs_on("ready", &here)?;
        let task = cluster.migrate_detached("ready", &there, &[])?;
        cluster.await_task(&task, "the move", godwit_tests::VERB_LIMIT, |task| task.state.is_final())?;
        cluster.assert_runs_on("ready", &there)?;
        // What it saw on its first host is what it needs of the next one.
        cluster
            .cli()
            .text(&["vm", "check-migration", "ready", "--to", here.as_str()], godwit_tests::VERB_LIMIT)?;
        assert_alive(cluster, guest.address)
    });
}

#[test]
fn a_vm_larger_than_any_host_is_refused_before_it_starts() {
    on_fabric(|cluster, place| {
        let [here, _] = hosts(cluster);
        let guest = GuestOptions { memory: Bytes::mib(1 << 20), ..GuestOptions::named("huge") };
        cluster.create(place, &guest)?;
        let verb = ["vm", "start", "huge", "--host", here.as_str()];
        refused(cluster, &verb, ErrorCode::Refused, &["memory"])?;
        cluster.cli().text(&["vm", "rm", "huge"], godwit_tests::VERB_LIMIT).map(drop)
    });
}

/// Fails unless the verb is refused with the code, and names what it is about.
fn refused(cluster: &dyn Cluster, verb: &[&str], code: ErrorCode, named: &[&str]) -> Result<()> {
    let Err(LabError::Cli(error)) = cluster.cli().text(verb, godwit_tests::VERB_LIMIT) else {
        return Err(LabError::Broken(format!("`godwit {}` should have been refused", verb.join(" "))));
    };
    eprintln!("{error}");
    ensure(error.is(code), format!("expected exit code {}: {error}", code.exit_code()))?;
    let missing: Vec<_> = named.iter().filter(|word| !error.stderr.contains(**word)).collect();
    ensure(missing.is_empty(), format!("the refusal does not name {missing:?}: {error}"))
}
