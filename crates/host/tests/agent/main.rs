//! The agent against a manager and a VMM that are stand-ins, each test in a network namespace of its own.

mod fake_manager;
mod fake_vmm;
mod storage;
mod world;

use std::io::Write;
use std::os::unix::net::UnixStream;

use godwit_types::agent::{Leftover, LocalState, MovedDisk, Outgoing};
use godwit_types::capability::GuestFacts;
use godwit_types::check::Check;
use godwit_types::migration::MigrationOutcome;
use godwit_types::ownership::Verdict;
use godwit_types::vm::VmSpec;
use godwit_types::{Bytes, Epoch, ErrorCode};

use world::{MIGRATION, TAP, VM, World, guest, in_a_world, ip, offer, spec, survey, until};

fn granted(epoch: u64) -> Option<Verdict> {
    Some(Verdict::Granted { epoch: Epoch(epoch) })
}

fn tap_is_open() -> bool {
    ip(&format!("-o link show {TAP}")).contains(",UP")
}

#[test]
fn a_vm_starts_with_its_network_open_and_stops_by_its_power_button_without_a_trace() {
    in_a_world(|world| async move {
        let local = world.start_vm("", 1).await.unwrap();
        assert_eq!((local.state, local.epoch), (LocalState::Running, Epoch(1)));
        assert!(tap_is_open());
        assert!(ip("-o link show master gwtbr").contains(TAP));
        world.until_reported(LocalState::Running).await;
        assert_eq!(
            world.start_vm("", 1).await.unwrap().state,
            LocalState::Running,
            "starting again changes nothing"
        );
        assert_eq!(world.start_vm("", 2).await.unwrap_err().code, ErrorCode::Conflict);

        world.stop_vm(false, 10_000).await.unwrap();
        world.assert_nothing_left();
        assert!(!world.vm_dir().exists());
        world.until_reported(LocalState::Stopped).await;
        world.stop_vm(false, 10_000).await.unwrap();
    });
}

#[test]
fn what_a_vm_uses_is_reported_once_it_was_measured_and_so_is_what_its_host_does() {
    in_a_world(|world| async move {
        world.start_vm("", 1).await.unwrap();
        let usage = world.until_used().await;
        assert!(usage.memory.0 > 0 && usage.storage_ops_per_s > 0, "{usage:?}");
        let host = world.book.lock().unwrap().reports.last().unwrap().facts.usage;
        assert!(host.is_some_and(|host| host.cpu_permille > 0), "{host:?}");
        assert_eq!(world.vm().await.unwrap().usage.map(|usage| usage.memory.0 > 0), Some(true));
        world.stop_vm(true, 0).await.unwrap();
    });
}

#[test]
fn a_guest_that_ignores_its_power_button_runs_on_until_it_is_forced() {
    in_a_world(|world| async move {
        world.start_vm("stubborn", 1).await.unwrap();
        let refused = world.stop_vm(false, 50).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Failed);
        assert!(refused.remedy.unwrap().contains("--force"));
        assert_eq!(world.vm().await.unwrap().state, LocalState::Running);
        world.stop_vm(true, 0).await.unwrap();
        world.assert_nothing_left();
    });
}

#[test]
fn a_vmm_that_fails_to_start_says_why_and_leaves_nothing() {
    in_a_world(|world| async move {
        let failed = world.start_vm("crash-at-start", 1).await.unwrap_err();
        assert!(failed.message.contains(fake_vmm::CRASH_WORDS), "{failed}");
        world.assert_nothing_left();
        assert!(!world.vm_dir().exists());
        assert_eq!(world.vm().await.unwrap_err().code, ErrorCode::NotFound);
        world.start_vm("", 2).await.unwrap();
        world.stop_vm(true, 0).await.unwrap();
    });
}

#[test]
fn a_crash_is_reported_with_the_last_words_and_the_vm_can_be_started_again() {
    in_a_world(|world| async move {
        world.start_vm("", 1).await.unwrap();
        let mut control = UnixStream::connect(world.vm_dir().join("control.sock")).unwrap();
        control.write_all(b"{\"request\":\"reset\"}\n").unwrap();
        let crashed = world.until_reported(LocalState::Crashed).await;
        let detail = crashed.detail.unwrap();
        assert!(detail.contains("exit code 3") && detail.contains(fake_vmm::CRASH_WORDS), "{detail}");
        world.assert_nothing_left();
        assert!(world.vm_dir().join("vmm.log").exists(), "the log is kept");
        world.start_vm("", 2).await.unwrap();
        world.stop_vm(true, 0).await.unwrap();
        assert!(!world.vm_dir().exists());
    });
}

#[test]
fn a_copy_of_an_older_epoch_is_fenced_and_one_of_the_owners_epoch_is_not() {
    in_a_world(|world| async move {
        world.start_vm("", 7).await.unwrap();
        let refused = world.fence(7).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Conflict);
        assert_eq!(world.vm().await.unwrap().state, LocalState::Running);
        world.fence(8).await.unwrap();
        world.assert_nothing_left();
        world.fence(8).await.unwrap();
    });
}

async fn outgoing(world: &World) -> Outgoing {
    world.client.get(&format!("/v1/vms/{VM}/outgoing/{MIGRATION}")).await.unwrap()
}

#[test]
fn a_granted_commit_is_relayed_and_the_source_is_cleared() {
    in_a_world(|world| async move {
        world.book.lock().unwrap().verdict = granted(8);
        world.start_vm("", 7).await.unwrap();
        world.migrate_away().await.unwrap();
        let local = world.until_reported(LocalState::HandedOver).await;
        assert_eq!(local.epoch, Epoch(7));
        until(|| async { !world.vm_dir().exists() }).await;
        world.assert_nothing_left();
        assert!(matches!(outgoing(&world).await.outcome, Some(MigrationOutcome::HandedOver { .. })));
        let book = world.book.lock().unwrap();
        let [asked] = book.commits.as_slice() else { panic!("{:?}", book.commits) };
        assert_eq!((asked.vm, asked.migration, asked.epoch), (VM, MIGRATION, Epoch(7)));
        assert_eq!((asked.source.as_str(), asked.destination.as_str()), ("b", "c"));
    });
}

#[test]
fn a_migration_gets_its_share_of_the_hosts_cap_and_what_the_manager_allows_also_by_the_next_agent() {
    in_a_world(|mut world| async move {
        world.start_vm("slow", 7).await.unwrap();
        let limits = world.book.lock().unwrap().reports.last().unwrap().facts.migration;
        assert_eq!((limits.moves_max, limits.bandwidth_bytes_per_s_max), (3, Some(100 << 20)));
        world.migrate_away().await.unwrap();
        world.until_said(&format!("begins with Some({})", 100 << 20)).await;
        world.allow(Some(10 << 20)).await.unwrap();
        world.until_said(&format!("may send Some({})", 10 << 20)).await;
        world.stop_agent().await;
        world.start_agent().await;
        world.allow(Some(20 << 20)).await.unwrap();
        world.until_said(&format!("may send Some({})", 20 << 20)).await;
        let lifted = world.said().contains(&format!("may send Some({})", 100 << 20));
        assert!(!lifted, "an agent that does not know what is allowed lifts no cap");
        assert_eq!(world.allow_other().await.unwrap_err().code, ErrorCode::NotFound);
        world.stop_vm(true, 0).await.unwrap_err();
    });
}

#[test]
fn a_refused_commit_leaves_the_vm_running_here() {
    in_a_world(|world| async move {
        world.book.lock().unwrap().verdict = Some(Verdict::Refused { reason: "aborted".to_owned() });
        world.start_vm("", 7).await.unwrap();
        world.migrate_away().await.unwrap();
        until(|| async { outgoing(&world).await.outcome.is_some() }).await;
        assert!(matches!(outgoing(&world).await.outcome, Some(MigrationOutcome::Failed { .. })));
        assert_eq!(world.vm().await.unwrap().state, LocalState::Running);
        assert!(tap_is_open());
        world.stop_vm(true, 0).await.unwrap();
        world.assert_nothing_left();
    });
}

#[test]
fn without_the_managers_word_the_agent_goes_on_asking_and_invents_none() {
    in_a_world(|mut world| async move {
        world.start_vm("", 7).await.unwrap();
        world.until_reported(LocalState::Running).await;
        world.stop_manager().await;
        world.migrate_away().await.unwrap();
        until(|| async { world.vm().await.unwrap().detail.is_some() }).await;
        let waiting = world.vm().await.unwrap();
        assert_eq!(waiting.state, LocalState::Outgoing);
        assert!(waiting.detail.unwrap().contains("arbiter"));
        let stop = world.stop_vm(true, 0).await.unwrap_err();
        assert_eq!(stop.code, ErrorCode::Conflict, "the VM may be another host's already");

        // It can be reached again, and its store is broken: an error is no word either.
        world.start_manager().await;
        until(|| async { world.book.lock().unwrap().commits.len() > 3 }).await;
        assert_eq!(world.vm().await.unwrap().state, LocalState::Outgoing);
        world.book.lock().unwrap().verdict = granted(8);
        world.until_reported(LocalState::HandedOver).await;
        until(|| async { !world.vm_dir().exists() }).await;
    });
}

#[test]
fn the_tap_is_blocked_until_the_claim_is_granted_and_open_before_the_vmm_hears_of_it() {
    in_a_world(|world| async move {
        let address = world.prepare_incoming(spec("")).await.unwrap().address;
        assert_eq!(
            world.prepare_incoming(spec("")).await.unwrap().address,
            address,
            "asking again changes nothing"
        );
        assert_eq!(world.vm().await.unwrap().state, LocalState::Incoming);
        assert!(!tap_is_open());
        assert!(ip("-o link show master gwtbr").contains(TAP), "plugged");
        assert_eq!(world.start_vm("", 9).await.unwrap_err().code, ErrorCode::Conflict);

        // The source's commit is still on its way.
        world.book.lock().unwrap().verdict = Some(Verdict::Undecided);
        drop(tokio::net::TcpStream::connect(address).await.unwrap());
        until(|| async { !world.book.lock().unwrap().claims.is_empty() }).await;
        assert_eq!(world.vm().await.unwrap().state, LocalState::Prepared);
        assert!(!tap_is_open());
        let refused = world.discard_incoming().await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Conflict, "the arbiter may have granted the claim");
        world.book.lock().unwrap().verdict = granted(2);
        let local = world.until_reported(LocalState::Running).await;
        assert_eq!(local.epoch, Epoch(2));
        assert_eq!(world.said(), "before the claim, taps open: false\nclaim granted, taps open: true\n");
        assert_eq!(world.discard_incoming().await.unwrap_err().code, ErrorCode::Conflict, "it runs here");
        world.stop_vm(true, 0).await.unwrap();
        world.assert_nothing_left();
    });
}

#[test]
fn an_incoming_vm_that_is_discarded_leaves_nothing_and_was_never_here() {
    in_a_world(|world| async move {
        world.prepare_incoming(spec("")).await.unwrap();
        world.discard_incoming().await.unwrap();
        world.assert_nothing_left();
        assert!(!world.vm_dir().exists());
        assert_eq!(world.vm().await.unwrap_err().code, ErrorCode::NotFound);
        world.discard_incoming().await.unwrap();
    });
}

/// What arrives with a disk, in a directory that is not there.
fn with_disk() -> (VmSpec, Vec<MovedDisk>) {
    let mut spec = spec("");
    spec.disks[0].image = "shared/vms/web1.raw".parse().unwrap();
    (spec, vec![MovedDisk { index: 0, size: Bytes::mib(1) }])
}

#[test]
fn the_image_of_a_vm_that_does_not_arrive_stays_until_the_manager_says_so_also_to_the_next_agent() {
    in_a_world(|mut world| async move {
        for restarted in [false, true] {
            let (spec, disks) = with_disk();
            world.prepare_incoming_with(spec, disks).await.unwrap();
            let image = world.stored("vms/web1.raw");
            assert_eq!(std::fs::metadata(&image).unwrap().len(), 1 << 20);
            if restarted {
                world.stop_agent().await;
            }
            let mut control = UnixStream::connect(world.vm_dir().join("control.sock")).unwrap();
            control.write_all(b"{\"request\":\"reset\"}\n").unwrap();
            until(|| async { UnixStream::connect(world.vm_dir().join("control.sock")).is_err() }).await;
            if restarted {
                world.start_agent().await;
            }
            // Its process may have had everything before it died.
            let left = [Leftover { vm: VM, migration: MIGRATION }];
            let told = |world: &World| world.book.lock().unwrap().reports.last().unwrap().leftovers == left;
            until(|| async { told(&world) }).await;
            assert!(image.exists());
            world.discard_incoming().await.unwrap();
            assert!(!world.stored("vms").exists());
            until(|| async { world.book.lock().unwrap().reports.last().unwrap().leftovers.is_empty() }).await;
        }
    });
}

#[test]
fn an_image_that_arrives_is_made_nowhere_where_there_is_something_and_is_the_vms_own_once_it_runs() {
    in_a_world(|world| async move {
        let (mut spec, disks) = with_disk();
        spec.disks[0].image = "shared/web1.raw".parse().unwrap();
        let refused = world.prepare_incoming_with(spec, disks).await.unwrap_err();
        assert!(refused.message.contains("already"), "{refused}");
        assert_eq!(std::fs::read(world.stored("web1.raw")).unwrap(), b"x");
        let (spec, disks) = with_disk();
        world.book.lock().unwrap().verdict = granted(2);
        let address = world.prepare_incoming_with(spec, disks).await.unwrap().address;
        drop(tokio::net::TcpStream::connect(address).await.unwrap());
        world.until_reported(LocalState::Running).await;
        world.stop_vm(true, 0).await.unwrap();
        world.discard_incoming().await.unwrap();
        assert!(world.stored("vms/web1.raw").exists());
        assert_eq!(world.book.lock().unwrap().reports.last().unwrap().leftovers, []);
    });
}

#[test]
fn what_a_vm_has_left_is_removed_only_if_it_has_left_it() {
    in_a_world(|world| async move {
        let refused = world.remove_left(1).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Refused, "{refused}");
        let record = format!("{{\"vm\":\"{VM}\",\"host\":\"b\",\"epoch\":1}}");
        std::fs::write(world.stored("web1.raw.lock"), record).unwrap();
        world.start_vm("", 1).await.unwrap();
        assert!(world.remove_left(1).await.is_err(), "it runs here");
        world.stop_vm(true, 0).await.unwrap();
        world.remove_left(1).await.unwrap();
        assert!(!world.stored("web1.raw").exists() && !world.stored("web1.raw.lock").exists());
        world.remove_left(1).await.unwrap();
    });
}

#[test]
fn a_refused_claim_ends_the_arrival() {
    in_a_world(|world| async move {
        world.book.lock().unwrap().verdict = Some(Verdict::Refused { reason: "aborted".to_owned() });
        let address = world.prepare_incoming(spec("")).await.unwrap().address;
        drop(tokio::net::TcpStream::connect(address).await.unwrap());
        until(|| async { world.vm().await.is_err() }).await;
        world.assert_nothing_left();
    });
}

#[test]
fn a_destination_that_lacks_things_names_all_of_them_and_touches_nothing() {
    in_a_world(|world| async move {
        let mut lacking = spec("");
        lacking.nics[0].network = "dmz".parse().unwrap();
        lacking.disks[0].image = "shared/missing.raw".parse().unwrap();
        lacking.memory = godwit_types::vm::MEMORY_MAX;
        let refused = world.prepare_incoming(lacking).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Refused);
        for reason in ["dmz", "missing.raw", "TiB of memory"] {
            assert!(refused.message.contains(reason), "{refused}");
        }
        assert!(!world.vm_dir().exists());
        assert!(!ip("-o link").contains(TAP));
    });
}

#[test]
fn whoever_only_asks_is_told_all_that_keeps_a_vm_from_arriving_and_nothing_is_touched() {
    in_a_world(|world| async move {
        assert_eq!(world.admission(spec("")).await, []);
        let mut lacking = spec("");
        lacking.nics[0].network = "dmz".parse().unwrap();
        lacking.disks[0].image = "shared/missing.raw".parse().unwrap();
        lacking.boot.kernel = "iso/vmlinuz".parse().unwrap();
        lacking.memory = godwit_types::vm::MEMORY_MAX;
        let checks: Vec<Check> = world.admission(lacking).await.iter().map(|finding| finding.check).collect();
        assert_eq!(checks, [Check::Memory, Check::Datastores, Check::Disks, Check::Networks]);
        assert!(!world.vm_dir().exists());
        assert!(!ip("-o link").contains(TAP));
        world.start_vm("", 1).await.unwrap();
        let found = world.admission(spec("")).await;
        assert!(found.iter().any(|finding| finding.check == Check::Vm), "{found:?}");
    });
}

#[test]
fn the_manager_hears_what_the_vmm_offers_and_what_a_running_guest_needs_and_does() {
    in_a_world(|world| async move {
        world.start_vm("", 1).await.unwrap();
        until(|| async { world.reported_offer() == Some(offer()) }).await;
        let told = world.guest().await.unwrap();
        assert_eq!(
            told.disks.iter().map(|disk| (disk.size, disk.layered)).collect::<Vec<_>>(),
            [(Bytes(1), false)]
        );
        assert_eq!(GuestFacts { disks: vec![], ..told }, guest());
        assert_eq!(world.survey().await.unwrap(), survey());
        world.stop_vm(true, 0).await.unwrap();
        assert_eq!(world.guest().await.unwrap_err().code, ErrorCode::NotFound);
    });
}

#[test]
fn vms_outlive_their_agent_and_the_next_one_adopts_them_with_their_questions() {
    in_a_world(|mut world| async move {
        world.start_vm("", 7).await.unwrap();
        world.migrate_away().await.unwrap();
        until(|| async { !world.book.lock().unwrap().commits.is_empty() }).await;
        world.stop_agent().await;
        assert!(tap_is_open());
        let asked = world.book.lock().unwrap().commits.len();
        world.start_agent().await;
        until(|| async { world.book.lock().unwrap().commits.len() > asked }).await;
        assert_eq!(world.vm().await.unwrap().state, LocalState::Outgoing);
        world.book.lock().unwrap().verdict = granted(8);
        world.until_reported(LocalState::HandedOver).await;
        until(|| async { !world.vm_dir().exists() }).await;
        world.assert_nothing_left();
    });
}

#[test]
fn a_vm_that_died_while_no_agent_watched_is_cleared_and_reported() {
    in_a_world(|mut world| async move {
        world.start_vm("", 7).await.unwrap();
        world.stop_agent().await;
        let mut control = UnixStream::connect(world.vm_dir().join("control.sock")).unwrap();
        control.write_all(b"{\"request\":\"reset\"}\n").unwrap();
        until(|| async { UnixStream::connect(world.vm_dir().join("control.sock")).is_err() }).await;
        world.start_agent().await;
        let crashed = world.until_reported(LocalState::Crashed).await;
        assert!(crashed.detail.unwrap().contains(fake_vmm::CRASH_WORDS));
        world.assert_nothing_left();
    });
}

#[test]
fn two_agents_never_share_a_state_directory() {
    in_a_world(|world| async move {
        let second = godwit_host::run_until(world.config(), std::future::pending()).await.unwrap_err();
        assert!(matches!(second, godwit_host::HostError::StateTaken { .. }), "{second}");
    });
}
