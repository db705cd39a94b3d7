//! A VM's life on one host, driven through the control socket.

use crate::support::{Vmm, guest, kvm_is_there, spec};
use godwit_types::control::{Notice, Reply, Request, Role, VmmState};
use godwit_types::{Bytes, ErrorCode};

struct Fixture {
    vmm: Vmm,
    _folder: tempfile::TempDir,
}

fn boot(vcpus: u8) -> Option<Fixture> {
    if !kvm_is_there() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernel = guest::write(folder.path());
    let config = Vmm::config(folder.path(), 0, &kernel, spec(vcpus, Bytes::mib(16), ""), 1, Role::Boot);
    Some(Fixture { vmm: Vmm::start(config), _folder: folder })
}

#[test]
fn a_guest_boots_and_is_typed_to() {
    let Some(Fixture { vmm, _folder }) = boot(1) else { return };
    vmm.wait_log("up\n", 1);
    let mut console = vmm.console();
    console.send(b"hey");
    console.expect(b"hey");
    let status = vmm.status();
    assert_eq!((status.state, status.epoch.0, status.listening), (VmmState::Running, 1, None));
}

#[test]
fn every_way_to_reset_starts_the_guest_anew_in_the_same_process() {
    let Some(Fixture { vmm, _folder }) = boot(2) else { return };
    let pid = vmm.status().pid;
    let mut console = vmm.console();
    vmm.wait_log("up\n", 1);
    for (boots, way) in (2..).zip([Some(b"r"), Some(b"k"), Some(b"t"), None]) {
        console.send(b"nn");
        console.expect(b"01");
        match way {
            Some(letter) => console.send(letter),
            None => vmm.must(&Request::Reset),
        }
        console.expect(b"up\n");
        vmm.wait_log("up\n", boots);
    }
    console.send(b"n");
    console.expect(b"0");
    assert_eq!(vmm.status().pid, pid);
}

#[test]
fn a_guest_that_powers_off_ends_the_process_and_subscribers_are_told() {
    let Some(Fixture { mut vmm, _folder }) = boot(1) else { return };
    vmm.wait_log("up\n", 1);
    vmm.console().send(b"o");
    let stopped =
        |notice: &Notice| matches!(notice, Notice::State { state: VmmState::Stopped, .. }).then_some(());
    vmm.notices.until(stopped);
    assert!(vmm.wait().success());
    assert_eq!(vmm.log(), "up\n");
}

#[test]
fn quit_and_sigterm_end_the_vm_at_once() {
    let Some(Fixture { mut vmm, _folder }) = boot(1) else { return };
    vmm.must(&Request::Quit);
    assert!(vmm.wait().success());
    let Some(Fixture { mut vmm, _folder }) = boot(1) else { return };
    // SAFETY: the process is this test's child and has not been waited for.
    assert_eq!(unsafe { libc::kill(vmm.status().pid as i32, libc::SIGTERM) }, 0);
    assert!(vmm.wait().success());
}

#[test]
fn what_cannot_be_done_is_refused_with_the_reason_and_the_guest_runs_on() {
    let Some(Fixture { vmm, _folder }) = boot(1) else { return };
    let migration = crate::support::migration_id(1);
    let refused = |request: &Request, code| match vmm.ask(request) {
        Reply::Error { error } => assert_eq!(error.code, code, "{error}"),
        other => panic!("{request:?} was answered {other:?}"),
    };
    refused(&Request::CancelMigration { migration }, ErrorCode::NotFound);
    let verdict = godwit_types::ownership::Verdict::Undecided;
    refused(&Request::Answer { migration, verdict }, ErrorCode::NotFound);
    refused(&Request::Balloon { target: Bytes::mib(16) }, ErrorCode::Invalid);
    let mut console = vmm.console();
    console.send(b"x");
    console.expect(b"x");
}

#[test]
fn a_machine_that_cannot_be_built_says_why_in_one_line() {
    if !kvm_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("not-a-kernel");
    std::fs::write(&kernel, [0; 4096]).unwrap();
    let config = Vmm::config(folder.path(), 0, &kernel, spec(1, Bytes::mib(16), ""), 1, Role::Boot);
    let (mut child, errors) = Vmm::spawn(&config);
    assert_eq!(crate::support::wait(&mut child).code(), Some(1));
    let text = std::fs::read_to_string(errors).unwrap();
    assert!(text.lines().count() == 1 && text.contains("neither a Linux bzImage nor an ELF image"), "{text}");
}
