//! What a VM's process is on its host, seen from outside while its guest runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use godwit_lab::cluster::{Cluster, GuestOptions};
use godwit_lab::fabric::Fabric;
use godwit_lab::{LabError, Result};
use godwit_tests::{assert_alive, boot, ensure, hosts, migrate, on_one_fabric};
use godwit_types::HostName;

#[test]
fn each_vm_is_a_user_of_its_own_without_any_right_but_its_open_descriptors() {
    on_one_fabric(|fabric, place| {
        let cluster: &dyn Cluster = fabric;
        let [here, there] = hosts(cluster);
        let mut guests = [GuestOptions::named("first"), GuestOptions::named("second")];
        guests[1].address = std::net::Ipv4Addr::from(u32::from(guests[0].address) + 1);
        for guest in &guests {
            boot(cluster, place, guest, &here)?;
        }
        let users = confined_users(fabric, &here)?;
        ensure(users.len() == 2, format!("two VMs share a user: {users:?}"))?;
        // The same on the other side, and for the process that it came from, after a move with all its threads.
        migrate(cluster, "first", &there, &[])?;
        migrate(cluster, "first", &here, &[])?;
        let users = confined_users(fabric, &here)?;
        ensure(users.len() == 2, format!("two VMs share a user: {users:?}"))?;
        for guest in &guests {
            assert_alive(cluster, guest.address)?;
            cluster.stop(&guest.name)?;
        }
        let left = fabric.cgroups().map(|cgroups| cgroups.all()).unwrap_or_default();
        ensure(left.is_empty(), format!("cgroups are left: {left:?}"))
    });
}

/// Checks every VMM of a host; the users that they are.
fn confined_users(fabric: &Fabric, host: &HostName) -> Result<BTreeSet<u32>> {
    let vmms = fabric.vmms(host)?.into_iter().map(|pid| PathBuf::from(format!("/proc/{pid}")));
    vmms.map(|process| confined(fabric, host, &process)).collect()
}

/// Checks one process; the user that it is.
fn confined(fabric: &Fabric, host: &HostName, process: &Path) -> Result<u32> {
    let tasks = fs::read_dir(process.join("task")).map_err(LabError::io("list threads"))?;
    for task in tasks.flatten() {
        let status = read(&task.path().join("status"))?;
        let field = |name: &str| {
            let found = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            found.unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        for (name, wanted) in [("NoNewPrivs", "1"), ("Seccomp", "2"), ("Groups", "")] {
            ensure(field(name).concat() == wanted, format!("{name} is {:?}", field(name)))?;
        }
        // The process's own, that against `clone3`, and the thread's. Threads that start none have no fewer.
        let filters = field("Seccomp_filters").concat().parse::<u32>().unwrap_or(0);
        ensure(filters >= 3, format!("the thread {:?} has only {filters} filters", field("Name")))?;
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            ensure(field(set).concat() == "0000000000000000", format!("{set} is {:?}", field(set)))?;
        }
    }
    let expected_cgroup = fabric.cgroups().map(|cgroups| cgroups.path().join(host.as_str()));
    if let Some(home) = expected_cgroup {
        let name = read(&process.join("cgroup"))?;
        let name = name.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned();
        let inside = home.ends_with(Path::new(&name).parent().unwrap_or(Path::new("")));
        ensure(inside && !name.is_empty(), format!("it is in the cgroup {name:?}, not below {home:?}"))?;
    } else {
        eprintln!("SKIPPED: no cgroup hierarchy of version 2 is mounted");
    }
    only_expected_descriptors(fabric, process)?;
    let status = read(&process.join("status"))?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    let uids: BTreeSet<u32> = uids.split_whitespace().filter_map(|uid| uid.parse().ok()).collect();
    match uids.first() {
        Some(uid) if uids.len() == 1 && *uid > 65_535 => Ok(*uid),
        _ => Err(LabError::Broken(format!("the process is the users {uids:?}"))),
    }
}

fn only_expected_descriptors(fabric: &Fabric, process: &Path) -> Result<()> {
    let logs = fabric.logs().display().to_string();
    let datastore = fabric.datastore().display().to_string();
    let faults = fabric.faults().display().to_string();
    let anonymous = ["/dev/null", "/dev/kvm", "/dev/net/tun", "anon_inode:", "socket:", "/memfd:godwit-kept"];
    for descriptor in fs::read_dir(process.join("fd")).map_err(LabError::io("list descriptors"))?.flatten() {
        let target = fs::read_link(descriptor.path()).map_err(LabError::io("read a descriptor"))?;
        let target = target.display().to_string();
        let of_vm = target.starts_with(&logs) && target.contains("/vms/") && target.ends_with(".log");
        let given = target.starts_with(&datastore) || target == faults || of_vm;
        let expected = given || anonymous.iter().any(|beginning| target.starts_with(beginning));
        ensure(expected, format!("the process has {target} open"))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(LabError::io(format!("read {}", path.display())))
}
