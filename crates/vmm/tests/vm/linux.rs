//! A stock Linux kernel boots, works, moves, restarts and powers off.
//!
//! Needs a KVM that runs one (so not PVM), a kernel and an initrd whose `/init` ends in a shell on the serial console:
//! `GODWIT_LINUX_KERNEL` and `GODWIT_LINUX_INITRD`.

use std::path::{Path, PathBuf};

use godwit_types::Bytes;
use godwit_types::control::{DiskBacking, Request, Role};
use godwit_types::migration::{Budget, MigrationOutcome, OnDeadline};
use godwit_types::vm::{CpuProfile, DiskFormat, DiskSpec};

use crate::support::{Vmm, grant_everything, kvm_is_there, migration_id, spec};

const MOVES: u64 = 3;
const MACHINES: [(u8, CpuProfile); 2] = [(1, CpuProfile::Host), (2, CpuProfile::X86_64V2)];
/// Emulated hosts are slow; what counts here is that nothing is lost.
const PATIENT: Budget = Budget {
    blackout_ms_max: 1000,
    deadline_ms: 30_000,
    on_deadline: OnDeadline::Switch,
    bandwidth_bytes_per_s_max: None,
    plain: false,
    post_copy: false,
    verify: true,
    slowdown_percent_max: 0,
};

#[test]
fn a_stock_kernel_restarts_in_the_same_process_and_powers_off_at_the_button() {
    for (vcpus, cpu) in MACHINES {
        let folder = tempfile::tempdir().unwrap();
        let Some(mut vmm) = boot(folder.path(), vcpus, cpu) else { return };
        vmm.console().send(b"reboot -f\n");
        vmm.wait_log("user space is up", 2);
        vmm.wait_log("/ #", 2);
        vmm.console().send(
            b"(head -c 24 /dev/input/event0 > /dev/null; poweroff -f) & sleep 1; echo ready $((1 + 1))\n",
        );
        vmm.wait_log("ready 2", 1);
        vmm.must(&Request::PowerButton);
        assert!(vmm.wait().success(), "{}", vmm.errors());
    }
}

#[test]
fn a_stock_kernel_moves_under_load_and_finds_nothing_wrong() {
    for (vcpus, cpu) in MACHINES {
        let folder = tempfile::tempdir().unwrap();
        let Some(mut here) = boot(folder.path(), vcpus, cpu) else { return };
        start_load(&here);
        for hop in 1..=MOVES {
            here = step(here, hop);
        }
    }
}

/// Boots to the shell.
fn boot(folder: &Path, vcpus: u8, cpu: CpuProfile) -> Option<Vmm> {
    let file = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let (Some(kernel), Some(initrd)) = (file("GODWIT_LINUX_KERNEL"), file("GODWIT_LINUX_INITRD")) else {
        eprintln!(
            "SKIPPED: needs a kernel that this KVM can run, in GODWIT_LINUX_KERNEL and GODWIT_LINUX_INITRD"
        );
        return None;
    };
    if !kvm_is_there() {
        return None;
    }
    let image = folder.join("disk.raw");
    std::fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
    let mut spec = spec(vcpus, Bytes::mib(192), "console=ttyS0 quiet panic=-1");
    spec.cpu = cpu;
    spec.disks = vec![DiskSpec {
        image: "shared/disk.raw".parse().unwrap(),
        format: DiskFormat::Raw,
        read_only: false,
    }];
    let mut config = Vmm::config(folder, 0, &kernel, spec, 1, Role::Boot);
    config.initrd = Some(initrd);
    let lock = image.with_extension("raw.lock");
    config.disks = vec![DiskBacking { path: image, lock, format: DiskFormat::Raw, read_only: false }];
    let vmm = Vmm::start(config);
    vmm.wait_log("user space is up", 1);
    vmm.wait_log("/ #", 1);
    Some(vmm)
}

/// A loop that copies and compares memory, one that writes the disk and reads it back, and one that sleeps; each tells
/// by a letter that it goes on, and by `BAD` that it found something wrong.
fn start_load(vmm: &Vmm) {
    let mut console = vmm.console();
    for line in [
        "head -c 2000000 /dev/urandom > /tmp/a; S=$(md5sum < /tmp/a)",
        "(while :; do cp /tmp/a /tmp/b; [ \"$(md5sum < /tmp/b)\" = \"$S\" ] && echo MEMORY-$? || echo BAD; sleep 0.3; done) > /tmp/m &",
        "(while :; do dd if=/tmp/a of=/dev/vda bs=1000000 count=1 conv=fsync 2>/tmp/e || cat /tmp/e; echo 3 > /proc/sys/vm/drop_caches; cmp -n 1000000 /dev/vda /tmp/a && echo DISK-$? || echo BAD; sleep 0.3; done) > /tmp/d 2>&1 &",
        "(while :; do sleep 1; date +%s >> /tmp/t; done) &",
        "echo load $((1 + 1))",
    ] {
        console.send(line.as_bytes());
        console.send(b"\n");
    }
    vmm.wait_log("load 2", 1);
}

/// Moves the guest once, and checks that its loops go on and have found nothing wrong.
fn step(mut here: Vmm, hop: u64) -> Vmm {
    let migration = migration_id(hop);
    let mut there = here.destination(hop as usize, migration);
    here.migrate_to(&there, migration, PATIENT);
    let outcome = grant_everything(&mut here, &mut there);
    let MigrationOutcome::Completed { report } = outcome else { panic!("{outcome:?}; {}", here.errors()) };
    eprintln!("move {hop}: {} ms, {:?}, {} rounds", report.total_ms, report.blackout, report.rounds);
    assert!(here.wait().success(), "{}", here.errors());
    let mut console = there.console();
    let check = format!(
        "rm -f /tmp/m2 /tmp/d2; : > /tmp/m; : > /tmp/d; : > /tmp/t; while [ $(cat /tmp/t | wc -l) -lt 2 ] || ! grep -q MEMORY /tmp/m || ! grep -q DISK /tmp/d; do sleep 1; done; grep BAD /tmp/m /tmp/d; dmesg | grep -iE 'oops|lockup|stall|error' ; echo hop-$(({hop} + 100))\n"
    );
    console.send(check.as_bytes());
    there.wait_log(&format!("hop-{}", hop + 100), 1);
    let log = there.log();
    // The command itself is echoed; only the guest's answers count.
    for bad in ["m:BAD", "d:BAD", "soft lockup", "Oops", "rcu_sched", "I/O error"] {
        assert!(!log.contains(bad), "{log}");
    }
    there
}
