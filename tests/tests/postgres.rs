//! A database in a Linux guest on emulated hosts, with its files on the guest's own disk.

use godwit_lab::Result;
use godwit_lab::cluster::{Cluster, GuestOptions, GuestPlace};
use godwit_lab::emulated::Postgres;
use godwit_lab::load::pgbench::Server;
use godwit_tests::{
    assert_alive, assert_unnoticed, boot, ensure, hosts, in_lab_with_postgres, load, migrate_in_lab,
};
use godwit_types::Bytes;

const MOVES: usize = 10;

#[test]
fn postgresql_under_load_moves_ten_times_and_loses_no_transaction() {
    in_lab_with_postgres(boot_and_move);
}

/// Moves a guest with a database to and fro, while clients change it and others use the guest as well.
fn boot_and_move(cluster: &dyn Cluster, place: &GuestPlace, postgres: &Postgres) -> Result<()> {
    let [here, there] = hosts(cluster);
    let guest = GuestOptions {
        working_set: Bytes::mib(16),
        rate: "50".into(),
        service: Some(postgres.disk.clone()),
        ..GuestOptions::named("database")
    };
    boot(cluster, place, &guest, &here)?;
    let server = Server::await_answer(postgres, cluster.client(), guest.address)?;
    let load = load(cluster, &guest)?;
    let mut bench = server.bench()?;
    for number in 1..=MOVES {
        let to = if number % 2 == 1 { &there } else { &here };
        let mark = load.mark()?;
        let report = migrate_in_lab(cluster, &guest.name, to, number)?;
        assert_unnoticed(&load, &mark, &format!("move {number} to {to}"))?;
        bench.check_running()?;
        eprintln!(
            "move {number}: total {:.0} ms, blackout {:.1} ms",
            report.total_ms, report.blackout.total_ms
        );
    }
    let committed = bench.finish()?;
    eprintln!("{} transactions were acknowledged", committed.len());
    ensure(committed.len() > MOVES, format!("only {} transactions in {MOVES} moves", committed.len()))?;
    ensure(load.stop().downloaded > 0, "the download never began")?;
    server.check(&committed)?;
    assert_alive(cluster, guest.address)
}
