//! Each check by itself, and all at once.

use godwit_types::capability::DiskFacts;
use godwit_types::check::Verdict::{self, Blocked, Ok as Fits, Warning};
use godwit_types::host::{DatastoreOffer, KvmFlavour};
use godwit_types::migration::{Budget, MoveDisks};
use godwit_types::task::{Task, TaskKind};
use godwit_types::{Bytes, Epoch, ErrorCode, TaskId};
use uuid::Uuid;

use super::clock::{SKEW_REFUSED_MS, SKEW_WARNED_MS};
use super::*;
use crate::fixtures::{guest, host, vm};
use crate::moving::moving;
use crate::tasks::new_task;

/// A case that fits in every respect, to be spoilt.
struct Setting {
    vm: VmRow,
    owned: Ownership,
    busy: Option<Task>,
    source: HostRow,
    destination: HostRow,
    wish: Wish,
    answers: Answers,
}

impl Setting {
    fn new() -> Self {
        let (vm, source, destination) = (vm("web1"), host("a"), host("b"));
        let owned = Ownership { vm: vm.id, owner: source.name.clone(), epoch: Epoch(1), claimed: true };
        let answers =
            Answers { guest: Some(Ok(guest())), admission: Some(Ok(vec![])), skew: Skew::default() };
        Self { vm, owned, busy: None, source, destination, wish: Wish::default(), answers }
    }

    fn judge(&self) -> HostCheck {
        judge(&Case {
            vm: &self.vm,
            owned: Some(&self.owned),
            busy: self.busy.as_ref(),
            source: Some(&self.source),
            destination: &self.destination,
            wish: &self.wish,
            moving: &moving(
                &self.vm.spec,
                Some(&self.source),
                &self.destination,
                self.wish.move_disks.as_ref(),
            ),
            answers: &self.answers,
        })
    }

    fn guest(&mut self) -> &mut GuestFacts {
        self.answers.guest.as_mut().unwrap().as_mut().unwrap()
    }

    fn offer(&mut self) -> &mut VmmOffer {
        self.destination.facts.vmm.as_mut().unwrap()
    }
}

fn task() -> Task {
    let kind = TaskKind::MigrateVm { from: "a".parse().unwrap(), to: "c".parse().unwrap() };
    Task { id: TaskId(Uuid::nil()), ..new_task(&vm("web1"), kind, String::new()) }
}

fn silent() -> ApiError {
    ApiError::new(ErrorCode::Unreachable, "connection refused")
}

#[test]
fn between_equal_hosts_every_check_is_told_and_all_is_well() {
    for post_copy in [false, true] {
        let wish = Wish { budget: Budget { post_copy, ..Budget::default() }, move_disks: None };
        let judged = Setting { wish, ..Setting::new() }.judge();
        let checks: Vec<Check> = judged.findings.iter().map(|finding| finding.check).collect();
        let asked = Check::ALL.into_iter().filter(|check| *check != Check::PostCopy || post_copy);
        assert_eq!((judged.verdict, checks), (Fits, asked.collect()), "{judged:#?}");
    }
}

/// Gives the two hosts storages of their own under one name.
fn apart(s: &mut Setting) {
    s.source.facts.datastores[0].id = Some(Uuid::from_u128(1));
    s.destination.facts.datastores[0].id = Some(Uuid::from_u128(2));
}

/// The same, and lets the disk move along.
fn along(s: &mut Setting) {
    apart(s);
    s.wish.move_disks = Some(MoveDisks::default());
    s.guest().disks =
        vec![DiskFacts { size: Bytes::mib(100_000), allocated: Bytes::mib(40_000), layered: false }];
}

#[test]
fn a_disk_that_may_and_can_move_along_is_told_of() {
    let mut setting = Setting::new();
    along(&mut setting);
    let judged = setting.judge();
    assert_eq!(judged.verdict, Fits, "{judged:#?}");
    let disks = judged.findings.iter().find(|finding| finding.check == Check::Disks).unwrap();
    assert!(disks.reason.contains("shared/web1.raw can move along"), "{disks:?}");
}

type Spoil = fn(&mut Setting);
/// What is spoilt, and the one check that must say so, in these words.
const SPOILT: &[(Check, Verdict, &str, Spoil)] = &[
    (Check::Vm, Blocked, "web1 is not running", |s| s.vm.power = Power::Stopped),
    (Check::Vm, Blocked, "has not confirmed", |s| s.owned.claimed = false),
    (Check::Vm, Blocked, "migrating from a to c already", |s| s.busy = Some(task())),
    (Check::Source, Blocked, "a, which runs it, is down", |s| s.source.up = false),
    (Check::Source, Blocked, "connection refused", |s| s.answers.guest = Some(Err(silent()))),
    (Check::Blockers, Blocked, "pci-00.5: passed through", |s| {
        s.guest().blockers.push("pci-00.5: passed through".into());
    }),
    (Check::Host, Blocked, "b is down", |s| s.destination.up = false),
    (Check::Host, Blocked, "connection refused", |s| s.answers.admission = Some(Err(silent()))),
    (Check::Release, Warning, "runs 0.2.0", |s| s.offer().release = "0.2.0".into()),
    (Check::Release, Blocked, "2-3", |s| (s.offer().protocol.min, s.offer().protocol.max) = (2, 3)),
    (Check::Release, Blocked, "b runs 0.0.9", |s| {
        (s.destination.facts.version, s.destination.facts.vmm) = ("0.0.9".into(), None);
    }),
    (Check::Virtualisation, Blocked, "Intel VT-x", |s| s.destination.facts.kvm.flavour = KvmFlavour::Vmx),
    (Check::Cpu, Blocked, "of b lacks avx512f, gfni", |s| {
        s.guest().cpu.features.extend(["gfni", "avx512f"].map(str::to_owned));
    }),
    (Check::FeatureMsrs, Blocked, "of b lacks taa-no", |s| {
        s.guest().cpu.msr_features.insert("taa-no".into());
    }),
    (Check::Tsc, Blocked, "3000000 kHz", |s| s.offer().cpu.tsc.as_mut().unwrap().khz = 3_000_000),
    (Check::Machine, Blocked, "b runs godwit-2", |s| s.offer().machines = vec!["godwit-2".into()]),
    (Check::Devices, Blocked, "kvm-vcpu comes in version 2", |s| {
        s.guest().sections.insert("kvm-vcpu".into(), 2);
    }),
    (Check::Devices, Blocked, "of the kind virtio-gpu", |s| {
        s.guest().sections.insert("virtio-gpu".into(), 1);
    }),
    (Check::Vcpus, Blocked, "at most 0", |s| s.offer().vcpus_max = 0),
    (Check::Vcpus, Warning, "3 vCPUs and b has 2 CPUs", |s| s.vm.spec.vcpus = 3),
    (Check::Memory, Blocked, "192MiB", |s| {
        s.answers.admission = None;
        s.destination.facts.memory_available = Bytes(0);
    }),
    (Check::Networks, Blocked, "network 'lan'", |s| {
        s.answers.admission = None;
        s.destination.facts.networks.clear();
    }),
    (Check::Datastores, Blocked, "datastore 'shared'", |s| {
        s.answers.admission = None;
        s.destination.facts.datastores.clear();
    }),
    (Check::Disks, Blocked, "moved on", |s| {
        let found = Finding::blocked(Check::Disks, "the VM has moved on", "look");
        s.answers.admission = Some(Ok(vec![found]));
    }),
    (Check::Clock, Warning, "101 ms behind", |s| s.answers.skew.ms = -101),
    (Check::PostCopy, Blocked, "to b: no userfaultfd", |s| {
        s.wish.budget.post_copy = true;
        s.offer().no_post_copy = Some("no userfaultfd".into());
    }),
    (Check::Disks, Blocked, "'shared' that a does not share with b", apart),
    (Check::Disks, Blocked, "cannot send its disks along", |s| {
        along(s);
        s.guest().moves_disks = false;
    }),
    (Check::Disks, Blocked, "backing files", |s| {
        along(s);
        s.guest().disks[0].layered = true;
    }),
    (Check::Disks, Blocked, "not known how large", |s| {
        along(s);
        s.guest().disks.clear();
    }),
    (Check::Disks, Blocked, "at most 512GiB move", |s| {
        along(s);
        s.guest().disks[0].size = Bytes::mib(513 << 10);
    }),
    (Check::Datastores, Blocked, "hold 58.6GiB", |s| {
        along(s);
        s.guest().disks[0].allocated = Bytes::mib(60_000);
    }),
    (Check::Datastores, Blocked, "says nothing of what its datastore 'fast' is", |s| {
        along(s);
        let fast = DatastoreOffer {
            name: "fast".parse().unwrap(),
            id: None,
            ..s.destination.facts.datastores[0].clone()
        };
        s.destination.facts.datastores.push(fast);
        s.wish.move_disks = Some(MoveDisks { datastore: Some("fast".parse().unwrap()) });
    }),
    (Check::PostCopy, Blocked, "there before the guest", |s| {
        along(s);
        s.wish.budget.post_copy = true;
    }),
    (Check::Clock, Blocked, "5001 ms ahead", |s| s.answers.skew.ms = 5_001),
];

#[test]
fn whatever_does_not_fit_is_found_by_its_own_check_with_a_remedy() {
    for (check, verdict, words, spoil) in SPOILT {
        let mut setting = Setting::new();
        spoil(&mut setting);
        let judged = setting.judge();
        let finding = judged.findings.iter().find(|f| f.check == *check && f.reason.contains(words));
        let finding = finding.unwrap_or_else(|| panic!("{check:?}: no word of {words:?} in {judged:#?}"));
        assert_eq!((finding.verdict, finding.remedy.is_some()), (*verdict, true), "{finding:?}");
        assert!(judged.verdict >= *verdict, "{judged:#?}");
        let other = judged.findings.iter().find(|f| f.check != *check && f.verdict == Blocked);
        assert_eq!(other, None, "only {check:?} was spoilt");
    }
}

#[test]
fn all_that_blocks_is_told_at_once() {
    let mut setting = Setting::new();
    let mut blocking = 0;
    for (check, verdict, _, spoil) in SPOILT {
        // Others take away the word of those who could tell more.
        if *verdict == Blocked
            && matches!(check, Check::Cpu | Check::Tsc | Check::Machine | Check::Devices | Check::Clock)
        {
            spoil(&mut setting);
            blocking += 1;
        }
    }
    let judged = setting.judge();
    let told = judged.findings.iter().filter(|finding| finding.verdict == Blocked).count();
    assert_eq!((judged.verdict, told), (Blocked, blocking), "{judged:#?}");
}

#[test]
fn what_nobody_could_look_at_is_not_called_well() {
    let mut setting = Setting::new();
    setting.answers = Answers::default();
    setting.destination.facts.vmm = None;
    let judged = setting.judge();
    let unknown: Vec<Check> =
        judged.findings.iter().filter(|f| f.reason.starts_with("not known")).map(|f| f.check).collect();
    let expected = [
        Check::Blockers,
        Check::Release,
        Check::Cpu,
        Check::FeatureMsrs,
        Check::Tsc,
        Check::Machine,
        Check::Devices,
        Check::Disks,
    ];
    assert_eq!((judged.verdict, unknown), (Warning, expected.to_vec()), "{judged:#?}");
}

#[test]
fn the_agents_own_word_replaces_what_it_last_reported() {
    let mut setting = Setting::new();
    setting.destination.facts.memory_available = Bytes(0);
    assert_eq!(setting.judge().verdict, Fits);
    let full = Finding::blocked(Check::Memory, "promised to others", "free some");
    // What several parts of the VM lack is said once.
    setting.answers.admission = Some(Ok(vec![full.clone(), full.clone()]));
    let told: Vec<Finding> =
        setting.judge().findings.into_iter().filter(|f| f.check == Check::Memory).collect();
    assert_eq!(told, [full]);
}

#[test]
fn a_move_to_where_it_is_is_refused_for_that_alone() {
    let mut setting = Setting::new();
    setting.destination = setting.source.clone();
    let judged = setting.judge();
    assert_eq!(judged.findings.len(), 1, "{judged:#?}");
    assert!(judged.findings[0].is_blocked() && judged.findings[0].reason.contains("is on a already"));
}

#[test]
fn a_clock_is_held_against_a_host_only_as_far_as_it_is_certain() {
    let verdict = |ms, error_ms| {
        let mut setting = Setting::new();
        setting.answers.skew = Skew { ms, error_ms };
        setting.judge().verdict
    };
    let (warned, refused) = (SKEW_WARNED_MS as i64, SKEW_REFUSED_MS as i64);
    assert_eq!([verdict(warned, 0), verdict(warned + 1, 0), verdict(warned + 1, 1)], [Fits, Warning, Fits]);
    assert_eq!([verdict(-refused, 0), verdict(-refused - 1, 0)], [Warning, Blocked]);
    assert_eq!(verdict(refused + 1, 1), Warning);
}
