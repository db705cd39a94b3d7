//! What the scheduler is shown of clusters in a store.

use std::collections::BTreeSet;

use godwit_scheduler::settings::HostSettings;
use godwit_scheduler::snapshot::{Disk, HostState, Room, Vm};
use godwit_types::agent::{LocalState, LocalVm};
use godwit_types::capability::DiskFacts;
use godwit_types::ownership::Ownership;
use godwit_types::power::PowerDriver;
use godwit_types::task::TaskState;
use godwit_types::usage::{HostUsage, VmUsage};
use godwit_types::vm::MachineType;
use godwit_types::{ApiError, Bytes, Epoch, ErrorCode, Name, TaskId};
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::clock::now_unix_ms;
use crate::fixtures;
use crate::store::{InMaintenance, Store};
use crate::tasks::new_task;

const NOW: u64 = 1_000_000_000_000;
const USED: VmUsage = VmUsage {
    over_ms: 60_000,
    cpu_run_permille: 500,
    cpu_wait_permille: 0,
    memory: Bytes::mib(70),
    network_bytes_per_s: 9,
    storage_ops_per_s: 8,
};

/// A store with these hosts, and a VM `web1` that runs on the first.
struct Scene {
    _dir: TempDir,
    store: Store,
    vm: VmRow,
}

impl Scene {
    async fn of(hosts: Vec<HostRow>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let vm = fixtures::vm("web1");
        let row = vm.clone();
        let filled = store.write(move |tx| {
            let owner = hosts[0].name.clone();
            hosts.iter().try_for_each(|host| tx.put_host(host))?;
            tx.add_vm(&row)?;
            Ok(tx.put_ownership(&Ownership { vm: row.id, owner, epoch: Epoch(1), claimed: true })?)
        });
        filled.await.unwrap();
        Self { _dir: dir, store, vm }
    }

    async fn write(&self, job: impl FnOnce(&Tx<'_>) -> Result<(), ApiError> + Send + 'static) {
        self.store.write(job).await.unwrap();
    }

    async fn snapshot(&self) -> Snapshot {
        let limits = crate::manager::Limits::default();
        let read = self.store.read(move |tx| Ok(snapshot(tx, &Terms::of(tx, &limits)?, None, NOW)?));
        read.await.unwrap()
    }

    async fn web1(&self) -> Vm {
        self.snapshot().await.vms.remove(0)
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn names(texts: &[&str]) -> BTreeSet<Name> {
    texts.iter().map(|text| name(text)).collect()
}

fn local(vm: &VmRow, usage: VmUsage) -> LocalVm {
    LocalVm {
        id: vm.id,
        name: vm.name.clone(),
        epoch: Epoch(1),
        state: LocalState::Running,
        detail: None,
        addresses: vec![],
        usage: Some(usage),
        disks: vec![],
    }
}

fn moving(vm: &VmRow, to: &str) -> Task {
    let kind = TaskKind::MigrateVm { from: name("a"), to: name(to) };
    Task { started_unix_ms: NOW - 60_000, ..new_task(vm, kind, String::new()) }
}

#[tokio::test]
async fn what_a_vm_wants_follows_from_what_its_host_reports() {
    let mut a = fixtures::host("a");
    a.facts.usage = Some(HostUsage {
        over_ms: 60_000,
        cpu_permille: 500,
        cpu_pressure_permille: 0,
        memory_pressure_permille: 0,
        cpu_mhz: 3_000,
    });
    a.last_seen_unix_ms = NOW - 1_000;
    let scene = Scene::of(vec![a.clone()]).await;
    assert_eq!(scene.web1().await.measured_unix_ms, None, "nobody has measured it");
    a.vms = vec![local(&scene.vm, USED)];
    scene.write(move |tx| Ok(tx.put_host(&a)?)).await;
    let shown = scene.snapshot().await;
    let vm = &shown.vms[0];
    assert_eq!(vm.measured_unix_ms, Some(NOW - 1_000));
    assert_eq!((vm.demand.cpu, vm.demand.memory), (1_500, Bytes::mib(70).0));
    assert_eq!((vm.demand.network, vm.demand.storage), (9, 8));
    assert_eq!(shown.hosts[0].capacity.cpu, 6_000);
    let free_and_held = Bytes::mib(2048 + 70).0;
    assert_eq!(shown.hosts[0].capacity.memory, free_and_held, "other programs hold the rest");
}

#[tokio::test]
async fn hosts_are_shown_as_what_they_are_for() {
    let (a, mut b, c) = (fixtures::host("a"), fixtures::host("b"), fixtures::host("c"));
    b.up = false;
    let scene = Scene::of(vec![a, b, c]).await;
    let entered = InMaintenance { since_unix_ms: 7, task: TaskId(Uuid::nil()), move_disks: true };
    scene
        .write(move |tx| {
            tx.enter_maintenance(&name("b"), entered)?;
            Ok(tx.enter_maintenance(&name("c"), entered)?)
        })
        .await;
    let shown = scene.snapshot().await.hosts;
    let states: Vec<HostState> = shown.iter().map(|host| host.state).collect();
    assert_eq!(states, [HostState::On, HostState::Lost, HostState::Maintenance]);
    assert_eq!((shown[2].since_unix_ms, shown[2].move_disks, shown[0].move_disks), (7, true, false));
}

#[tokio::test]
async fn a_vm_on_its_way_is_shown_where_it_will_be_and_its_memory_is_not_free_where_it_still_is() {
    let scene = Scene::of(vec![fixtures::host("a"), fixtures::host("b")]).await;
    let before = scene.snapshot().await.hosts[0].capacity.memory;
    let task = moving(&scene.vm, "b");
    scene.write(move |tx| Ok(tx.add_task(&task, &())?)).await;
    let shown = scene.snapshot().await;
    assert_eq!(shown.vms[0].host, Some(name("b")));
    assert!(shown.vms[0].pinned.as_ref().unwrap().contains("migrating from a to b"));
    assert_eq!(shown.hosts[0].capacity.memory, before - shown.vms[0].memory);
}

#[tokio::test]
async fn a_host_that_could_not_be_switched_is_left_as_it_is_for_a_while() {
    let scene = Scene::of(vec![fixtures::host("a"), fixtures::host("b")]).await;
    let task = Task {
        kind: TaskKind::SendToStandby { host: name("b") },
        vm: None,
        vm_name: None,
        ..moving(&scene.vm, "b")
    };
    scene
        .write(move |tx| {
            let driver = PowerDriver::Simulated { program: name("lab") };
            tx.put_host_settings(&name("b"), &HostSettings { driver, ..HostSettings::default() })?;
            tx.add_task(&task, &())?;
            let error = ApiError::new(ErrorCode::Failed, "no such lamp");
            Ok(tx.finish_task(task.id, TaskState::Failed, "not switched", None, Some(&error))?)
        })
        .await;
    let shown = async |later_ms: u64| {
        let now = now_unix_ms() + later_ms;
        let limits = crate::manager::Limits::default();
        let read = scene.store.read(move |tx| Ok(snapshot(tx, &Terms::of(tx, &limits)?, None, now)?));
        read.await.unwrap().hosts.remove(1).power.is_some()
    };
    assert!(!shown(0).await, "as if nobody could switch it");
    assert!(shown(SWITCH_AGAIN_MS + 60_000).await);
}

#[tokio::test]
async fn a_vm_runs_on_hosts_that_offer_at_least_what_its_guest_may_have_seen() {
    let (a, mut richer, mut poorer, mut unknown) =
        (fixtures::host("a"), fixtures::host("b"), fixtures::host("c"), fixtures::host("d"));
    richer.facts.vmm.as_mut().unwrap().cpu.features.insert("avx512f".into());
    poorer.facts.vmm.as_mut().unwrap().cpu.features.remove("avx2");
    unknown.facts.vmm = None;
    let scene = Scene::of(vec![a, richer, poorer, unknown, fixtures::host("e")]).await;
    let shown = scene.snapshot().await;
    assert_eq!(shown.vms[0].needs.cpu_classes, Some(names(&["a", "b"])));
    assert_eq!(shown.hosts[4].cpu_class, Some(name("a")), "hosts that are alike are of one class");
    let back = Scene::of(vec![shown_rich(), fixtures::host("z")]).await;
    assert_eq!(back.web1().await.needs.cpu_classes, Some(names(&["b"])), "and not back to a poorer one");
}

fn shown_rich() -> HostRow {
    let mut host = fixtures::host("b");
    host.facts.vmm.as_mut().unwrap().cpu.features.insert("avx512f".into());
    host
}

#[tokio::test]
async fn a_vm_to_be_placed_is_shown_the_hosts_whose_vmm_runs_its_machine() {
    let (mut old, mut none, unknown) = (fixtures::host("a"), fixtures::host("b"), fixtures::host("c"));
    old.facts.vmm.as_mut().unwrap().vcpus_max = 0;
    none.facts.kvm.flavour = godwit_types::host::KvmFlavour::None;
    let mut unknown = unknown;
    unknown.facts.vmm = None;
    let kinds = Kinds::of(&[old, none, unknown]);
    let spec = godwit_types::vm::VmSpec { machine: MachineType::Godwit1, ..fixtures::spec() };
    assert_eq!(kinds.startable(&spec), names(&["c"]));
}

#[tokio::test]
async fn a_disk_that_only_its_host_reaches_is_a_datastore_that_no_other_host_has() {
    let with_id = |host: &str, id| {
        let mut row = fixtures::host(host);
        row.facts.datastores[0].id = Some(Uuid::from_u128(id));
        row
    };
    let apart = Scene::of(vec![with_id("a", 1), with_id("b", 2)]).await.snapshot().await;
    assert_eq!(apart.vms[0].needs.datastores, names(&["shared", "shared.a"]));
    assert_eq!(apart.hosts[1].datastores, names(&["shared", "shared.b"]));
    let room = apart.hosts[1].rooms.get(&name("shared")).cloned();
    assert_eq!(room, Some(Room { storage: name("shared.b"), free: Bytes::mib(50_000).0 }));
    assert_eq!(apart.vms[0].disks, [], "nobody knows what it holds");
    let shared = Scene::of(vec![with_id("a", 1), with_id("b", 1)]).await.snapshot().await;
    assert!(shared.vms[0].needs.datastores.is_subset(&shared.hosts[1].datastores));
}

#[tokio::test]
async fn a_disk_whose_size_is_known_and_that_lies_by_itself_could_move_along() {
    let scene = Scene::of(vec![fixtures::host("a"), fixtures::host("b")]).await;
    let shown = async |facts: DiskFacts, ids: [u128; 2]| {
        let mut hosts = ["a", "b"].map(fixtures::host);
        for (host, id) in hosts.iter_mut().zip(ids) {
            host.facts.datastores[0].id = Some(Uuid::from_u128(id));
        }
        hosts[0].vms = vec![LocalVm { disks: vec![facts], usage: None, ..local(&scene.vm, USED) }];
        scene.write(move |tx| Ok(hosts.iter().try_for_each(|host| tx.put_host(host))?)).await;
        scene.web1().await.disks
    };
    let facts = DiskFacts { size: Bytes::mib(900), allocated: Bytes::mib(300), layered: false };
    let disk = Disk { datastore: name("shared"), storage: name("shared.a"), bytes: Bytes::mib(300).0 };
    assert_eq!(shown(facts, [1, 2]).await, [disk]);
    assert_eq!(shown(DiskFacts { layered: true, ..facts }, [1, 2]).await, [], "it has backing files");
    assert_eq!(shown(facts, [1, 1]).await, [], "both hosts reach it");
}

#[tokio::test]
async fn the_hour_that_comes_is_expected_to_be_as_it_was_yesterday() {
    const HOUR: u64 = 60 * 60_000;
    let scene = Scene::of(vec![fixtures::host("a")]).await;
    let id = scene.vm.id;
    let wanted = |cpu| BTreeMap::from([(id, godwit_scheduler::PerResource { cpu, ..Default::default() })]);
    let samples = [
        (NOW - 25 * HOUR, 9),
        (NOW - 24 * HOUR + HOUR / 2, 5),
        (NOW - 24 * HOUR + HOUR / 2 + 1, 4),
        (NOW - HOUR, 7),
    ];
    let samples = samples.map(|(at, cpu)| (at, wanted(cpu)));
    scene
        .write(move |tx| {
            for (at, wanted) in samples {
                tx.note_demand(at, &wanted)?;
            }
            Ok(())
        })
        .await;
    assert_eq!(scene.web1().await.expected.cpu, 5);
    let later = wanted(1);
    scene.write(move |tx| Ok(tx.note_demand(NOW + 20 * HOUR, &later)?)).await;
    assert_eq!(scene.web1().await.expected.cpu, 0, "what is long past is forgotten");
}

#[tokio::test]
async fn where_power_is_managed_demand_is_told_slot_by_slot() {
    const SLOT: u64 = 5 * 60_000;
    const DAY: u64 = 24 * 60 * 60_000;
    let scene = Scene::of(vec![fixtures::host("a")]).await;
    let id = scene.vm.id;
    let samples = [(NOW - DAY + SLOT, 40), (NOW - 13 * SLOT, 30), (NOW - 9 * SLOT, 3), (NOW - SLOT, 7)];
    scene
        .write(move |tx| {
            for (at, cpu) in samples {
                let wanted = godwit_scheduler::PerResource { cpu, ..Default::default() };
                tx.note_demand(at, &BTreeMap::from([(id, wanted)]))?;
            }
            Ok(())
        })
        .await;
    let unasked = scene.web1().await;
    assert!(unasked.recent_mhz.is_empty() && unasked.ahead_mhz.is_empty());
    let mut policy = godwit_scheduler::policy::Policy::default();
    policy.power.enabled = true;
    scene.write(move |tx| Ok(tx.put_policy(&policy)?)).await;
    let vm = scene.web1().await;
    assert_eq!(vm.recent_mhz, [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 7, 7], "an hour, and no gaps");
    assert_eq!(vm.ahead_mhz, [40; 13][..vm.ahead_mhz.len()], "as it was a day ago");
    assert!((12..=13).contains(&vm.ahead_mhz.len()));
}

#[tokio::test]
async fn past_moves_are_known_and_failed_ones_are_none() {
    let scene = Scene::of(vec![fixtures::host("a"), fixtures::host("b")]).await;
    let (good, bad) = (moving(&scene.vm, "b"), moving(&scene.vm, "b"));
    let began = crate::clock::now_unix_ms();
    scene
        .write(move |tx| {
            tx.add_task(&bad, &())?;
            let error = ApiError::new(ErrorCode::Failed, "no");
            tx.finish_task(bad.id, TaskState::Failed, "no", None, Some(&error))?;
            tx.add_task(&good, &())?;
            Ok(tx.finish_task(good.id, TaskState::Succeeded, "yes", None, None)?)
        })
        .await;
    let moved = scene.web1().await.moved_unix_ms;
    assert_eq!(moved.len(), 1);
    assert!(moved[0] >= began);
}
