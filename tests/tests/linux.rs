//! An unmodified Debian cloud kernel on emulated hosts.

use godwit_lab::cluster::GuestOptions;
use godwit_tests::{assert_alive, assert_unnoticed, boot, ensure, hosts, in_lab, load, migrate};

const MOVES: usize = 10;

#[test]
fn linux_boots_with_one_and_with_two_vcpus_and_moves_ten_times_unnoticed() {
    in_lab(|cluster, place| {
        let [here, there] = hosts(cluster);
        let options = cluster.setting().migrate_options();
        let two = GuestOptions { vcpus: 2, rate: "200".into(), ..GuestOptions::named("two") };
        let report = boot(cluster, place, &two, &here)?;
        ensure(report.vcpus == 2, format!("{} vCPUs came up, not 2", report.vcpus))?;
        assert_alive(cluster, two.address)?;
        migrate(cluster, "two", &there, options)?;
        assert_alive(cluster, two.address)?;
        cluster.stop("two")?;
        let one = GuestOptions { rate: "200".into(), ..GuestOptions::named("one") };
        let report = boot(cluster, place, &one, &here)?;
        ensure(report.vcpus == 1, format!("{} vCPUs came up, not 1", report.vcpus))?;
        let load = load(cluster, &one)?;
        for number in 0..MOVES {
            let to = if number % 2 == 0 { &there } else { &here };
            let mark = load.mark()?;
            let report = migrate(cluster, "one", to, options)?;
            let noticed = assert_unnoticed(&load, &mark, &format!("move {} to {to}", number + 1))?;
            let (total, blackout) = (report.total_ms, report.blackout.total_ms);
            let silence = noticed.network_silence.as_millis();
            eprintln!(
                "move {}: total {total:.0} ms, blackout {blackout:.1} ms, silence {silence} ms",
                number + 1
            );
        }
        load.stop();
        Ok(())
    });
}
