//! Plans for what might be.

use godwit_scheduler::decision::Difference;
use godwit_scheduler::planner::Goal;
use godwit_scheduler::what_if::{Change, WhatIfError, apply};

use crate::cases::*;

#[test]
fn changes_are_made_one_after_the_other_and_leave_the_snapshot_alone() {
    let snapshot = cluster(&["a", "b"], vec![vm("web", Some("a"), 1000, 4), vm("db", Some("b"), 2000, 8)]);
    let before = snapshot.clone();
    let changes = [
        Change::AddHosts { like: name("a"), count: 2 },
        Change::AddVms { like: name("web"), count: 2 },
        Change::LoseHost { host: name("b") },
        Change::Maintenance { host: name("a") },
        Change::ScaleDemand { permille: 1500, vms: names(&["web"]) },
    ];
    let changed = apply(&snapshot, &changes).unwrap();
    assert_eq!(snapshot, before);
    let hosts: Vec<String> = changed.hosts.iter().map(|host| host.name.to_string()).collect();
    assert_eq!(hosts, ["a", "a-2", "a-3"]);
    let vms: Vec<_> =
        changed.vms.iter().map(|vm| (vm.name.as_str(), vm.host.is_some(), vm.demand.cpu)).collect();
    assert_eq!(
        vms,
        [("web", true, 1500), ("db", false, 2000), ("web-2", false, 1000), ("web-3", false, 1000)]
    );
}

#[test]
fn what_does_not_exist_is_said() {
    let snapshot = cluster(&["a"], Vec::new());
    let no = |change: Change| apply(&snapshot, &[change]).unwrap_err();
    assert_eq!(no(Change::LoseHost { host: name("x") }), WhatIfError::NoHost(name("x")));
    assert_eq!(no(Change::AddVms { like: name("x"), count: 1 }), WhatIfError::NoVm(name("x")));
    assert_eq!(no(Change::AddHosts { like: name("a"), count: 10_001 }), WhatIfError::TooMany(10_001));
}

#[test]
fn the_loss_of_a_host_is_planned_for_and_compared() {
    let snapshot = cluster(
        &["a", "b"],
        vec![vm("web", Some("a"), 1000, 40), vm("db", Some("b"), 2000, 40), vm("new", None, 1, 1)],
    );
    let lost = apply(&snapshot, &[Change::LoseHost { host: name("b") }]).unwrap();
    let (now, then) = (planned(&snapshot, &Goal::Place), planned(&lost, &Goal::Place));
    assert_eq!(then.unmoved.len(), 1);
    assert_eq!(then.unmoved[0].vm, name("db"));
    assert!(Difference::between(&now, &then).is_some());
    let more = apply(&lost, &[Change::AddHosts { like: name("a"), count: 1 }]).unwrap();
    assert_eq!(place(&more, &planned(&more, &Goal::Place), "db").as_deref(), Some("a-2"));
}
