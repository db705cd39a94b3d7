//! What a move will cost is said before it, and kept beside what it then did cost.

use godwit_lab::LabError;
use godwit_lab::cluster::GuestOptions;
use godwit_tests::{VERB_LIMIT, assert_alive, boot, ensure, hosts, migrate, on_fabric, succeeded};
use godwit_types::ErrorCode;
use godwit_types::forecast::{KnownFrom, MigrationPlan, Outlook};

/// So much is allowed that a guest that hardly writes keeps to it on any machine.
const GENEROUS: [&str; 4] = ["--max-blackout", "5s", "--deadline", "10m"];

#[test]
fn a_plan_moves_nothing_and_the_move_carries_its_forecast_and_its_outcome() {
    on_fabric(|cluster, place| {
        let [here, there] = hosts(cluster);
        let guest = GuestOptions { content: "random".into(), ..GuestOptions::named("foreseen") };
        boot(cluster, place, &guest, &here)?;
        let verb = [&["vm", "migrate", "foreseen", "--to", there.as_str(), "--plan"], &GENEROUS[..]].concat();
        let plan: MigrationPlan = cluster.cli().ask(&verb)?;
        let told = plan.forecast.as_ref().expect("a running guest can be watched");
        // Whether the kernel tells a speed of the interfaces is up to it.
        let from = told.basis.link.known_from;
        let known = matches!(from, KnownFrom::Interface { .. } | KnownFrom::Assumption);
        let expected = known && told.basis.written.0 > 0;
        ensure(expected, format!("the guest writes, and nothing has moved yet: {plan:#?}"))?;
        cluster.assert_runs_on("foreseen", &here)?;
        ensure(cluster.vm("foreseen")?.task.is_none(), "a plan is no task")?;

        let task = cluster.migrate("foreseen", &there, &GENEROUS)?;
        let forecast = task.forecast.clone();
        let report = succeeded(task)?;
        cluster.assert_runs_on("foreseen", &there)?;
        ensure(forecast.is_some() && report.predicted.is_some(), format!("no forecast: {report:#?}"))?;
        ensure(report.total_ms > 0.0 && report.busy_ms > 0.0, format!("no outcome: {report:#?}"))?;

        let back = [&["vm", "migrate", "foreseen", "--to", here.as_str(), "--plan"], &GENEROUS[..]].concat();
        let plan: MigrationPlan = cluster.cli().ask(&back)?;
        let link = plan.forecast.map(|told| told.basis.link.known_from);
        let learned = link == Some(KnownFrom::Pair { migrations: 1 });
        ensure(learned, format!("the move has said nothing of the link: {link:?}"))?;
        migrate(cluster, "foreseen", &here, &GENEROUS)?;
        assert_alive(cluster, guest.address)
    });
}

#[test]
fn a_budget_that_cannot_be_met_is_told_with_exit_code_1_and_what_could_be() {
    on_fabric(|cluster, place| {
        let [here, there] = hosts(cluster);
        let guest =
            GuestOptions { content: "random".into(), rate: "0".into(), ..GuestOptions::named("wild") };
        boot(cluster, place, &guest, &here)?;
        let verb = ["vm", "migrate", "wild", "--to", there.as_str(), "--plan", "--max-bandwidth", "1MiB"];
        let asked = [&verb[..], &["--deadline", "10s"]].concat();
        let Err(LabError::Cli(refused)) = cluster.cli().text(&asked, VERB_LIMIT) else {
            return Err(LabError::Broken("64 MiB should not pass at 1 MiB/s in 10 s".into()));
        };
        ensure(refused.is(ErrorCode::Failed), format!("expected exit code 1: {refused}"))?;
        let plan: MigrationPlan = serde_json::from_str(&refused.stdout).expect("--json prints the document");
        let told = plan.forecast.as_ref().expect("a running guest can be watched");
        let said = told.reason.as_ref().is_some_and(|reason| reason.contains("the link carries 1MiB/s"));
        ensure(told.outlook == Outlook::Missed && said, format!("{plan:#?}"))?;
        cluster.assert_runs_on("wild", &here)?;
        assert_alive(cluster, guest.address)
    });
}
