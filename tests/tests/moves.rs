//! Fifty moves in a row under the heaviest load, and ten under each other one, there and back, on the reference guest, which finds
//! a single stale, lost or torn page.

use godwit_lab::Result;
use godwit_lab::cluster::{Cluster, GuestOptions, GuestPlace};
use godwit_tests::{assert_alive, assert_unnoticed, boot, ensure, hosts, load, migrate, on_fabric};
use godwit_types::Bytes;
use godwit_types::migration::Comparison;

/// No guest that dirties as fast as it can comes to rest by itself, so the switch is forced soon.
const SWITCH_SOON: [&str; 5] = ["--deadline", "1s", "--on-deadline", "switch", "--verify"];

/// What a guest does while it is moved to and fro.
struct Way {
    moves: usize,
    vcpus: u8,
    working_set: Bytes,
    rate: &'static str,
    content: &'static str,
}

#[test]
fn fifty_moves_dirtying_256_mib_as_fast_as_it_can_with_one_vcpu() {
    moves(Way { moves: 50, vcpus: 1, working_set: Bytes::mib(256), rate: "0", content: "compressible" });
}

#[test]
fn fifty_moves_dirtying_256_mib_as_fast_as_it_can_with_two_vcpus() {
    moves(Way { moves: 50, vcpus: 2, working_set: Bytes::mib(256), rate: "0", content: "random" });
}

#[test]
fn ten_moves_dirtying_compressible_pages_at_a_steady_rate_with_one_vcpu() {
    moves(Way { moves: 10, vcpus: 1, working_set: Bytes::mib(128), rate: "10000", content: "compressible" });
}

#[test]
fn ten_moves_dirtying_zero_pages_with_two_vcpus() {
    moves(Way { moves: 10, vcpus: 2, working_set: Bytes::mib(64), rate: "2000", content: "zero" });
}

#[test]
fn ten_moves_idle_with_one_vcpu() {
    moves(Way { moves: 10, vcpus: 1, working_set: Bytes::mib(64), rate: "idle", content: "random" });
}

#[test]
fn ten_moves_idle_with_two_vcpus() {
    moves(Way { moves: 10, vcpus: 2, working_set: Bytes::mib(64), rate: "idle", content: "random" });
}

fn moves(way: Way) {
    on_fabric(|cluster, place| {
        let guest = GuestOptions {
            vcpus: way.vcpus,
            memory: Bytes(way.working_set.0 + Bytes::mib(128).0),
            working_set: way.working_set,
            rate: way.rate.into(),
            content: way.content.into(),
            ..GuestOptions::named("oracle")
        };
        there_and_back(cluster, place, &guest, way.moves)
    });
}

fn there_and_back(
    cluster: &dyn Cluster,
    place: &GuestPlace,
    guest: &GuestOptions,
    moves: usize,
) -> Result<()> {
    let [here, there] = hosts(cluster);
    let first = boot(cluster, place, guest, &here)?;
    ensure(
        first.vcpus == u32::from(guest.vcpus),
        format!("{} vCPUs came up, not {}", first.vcpus, guest.vcpus),
    )?;
    let load = load(cluster, guest)?;
    for number in 0..moves {
        let to = if number % 2 == 0 { &there } else { &here };
        let mark = load.mark()?;
        let report = migrate(cluster, &guest.name, to, &SWITCH_SOON)?;
        let same = report.verified.as_ref().is_some_and(|verified| verified.memory == Comparison::Same);
        ensure(same, format!("memory was not found the same: {:?}", report.verified))?;
        let noticed = assert_unnoticed(&load, &mark, &format!("move {} to {to}", number + 1))?;
        eprintln!(
            "move {}: total {:.0} ms, blackout {:.1} ms, silence {} ms, {} rounds, {} sent",
            number + 1,
            report.total_ms,
            report.blackout.total_ms,
            noticed.network_silence.as_millis(),
            report.rounds,
            Bytes(report.bytes.sent),
        );
    }
    let requests = load.stop();
    ensure(requests.answered > 0, "the load was never answered")?;
    assert_alive(cluster, guest.address)
}
