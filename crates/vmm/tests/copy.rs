//! `godwit-vmm --copy`: disks of a VM that does not run, copied by a process of its own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use godwit_types::control::{CopyDisk, CopyDisks, DiskBacking, DiskDescriptors, NewPlace};
use godwit_types::storage::{StoragePhase, StorageStatus};
use godwit_types::vm::DiskFormat;
use godwit_types::{Bytes, Epoch, HostName, MigrationId, VmId};
use godwit_vmm::devices::disk::{Disk, Image};

const BYTES: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the disk holds something.
const HELD: [u64; 3] = [0, 1 << 20, BYTES - 4096];

fn vm() -> VmId {
    VmId("00000000-0000-0000-0000-000000000001".parse().unwrap())
}

fn host() -> HostName {
    "a".parse().unwrap()
}

fn backing(folder: &Path, name: &str, format: DiskFormat) -> DiskBacking {
    let path = folder.join(name);
    godwit_provision::create_image(&path, format, Bytes(BYTES)).unwrap();
    DiskBacking { lock: folder.join(format!("{name}.lock")), path, format, read_only: false }
}

fn files(backing: &DiskBacking) -> DiskDescriptors<OwnedFd> {
    godwit_provision::open_disk(backing).unwrap()
}

fn contents(backing: &DiskBacking) -> Vec<u8> {
    let image = Image::open(backing, &files(backing).images).unwrap();
    let mut bytes = vec![0; BYTES as usize];
    image.read_bytes(&mut bytes, 0).unwrap();
    bytes
}

/// A disk that holds something, and an empty image.
fn disks(folder: &Path, format: DiskFormat) -> CopyDisk {
    let (from, to) = (backing(folder, "from", format), backing(folder, "to", format));
    let image = Image::open(&from, &files(&from).images).unwrap();
    for at in HELD {
        image.write_bytes(&[0x5a; 4096], at).unwrap();
    }
    image.flush().unwrap();
    CopyDisk { from, to: NewPlace { index: 2, image: "fast/to".parse().unwrap(), backing: to } }
}

/// The process with its order, and its answers.
fn copier(disk: &CopyDisk, rate: Option<u64>) -> (Child, UnixStream) {
    let (ours, its) = UnixStream::pair().unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_godwit-vmm"))
        .arg("--copy")
        .stdin(Stdio::from(OwnedFd::from(its)))
        .spawn()
        .unwrap();
    let order = CopyDisks {
        migration: MigrationId("00000000-0000-0000-0000-000000000007".parse().unwrap()),
        vm: vm(),
        host: host(),
        epoch: Epoch(4),
        user: None,
        disks: vec![disk.clone()],
        bytes_per_s_max: rate,
    };
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    godwit_provision::send_copy(&ours, &order, &[(files(&disk.from), files(&disk.to.backing))]).unwrap();
    (child, ours)
}

fn told(line: &str) -> StorageStatus {
    serde_json::from_str(line).unwrap()
}

#[test]
fn all_that_a_disk_holds_is_copied_and_nothing_that_it_does_not() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let folder = tempfile::tempdir().unwrap();
        let disk = disks(folder.path(), format);
        let (mut child, socket) = copier(&disk, None);
        let lines: Vec<String> = BufReader::new(socket).lines().map(Result::unwrap).collect();
        assert!(child.wait().unwrap().success());
        let last = told(lines.last().unwrap());
        assert_eq!((last.progress.phase, &last.ended), (StoragePhase::InSync, &None), "{last:?}");
        let to = &disk.to.backing;
        assert!(contents(&disk.from) == contents(to), "{format:?}");
        let taken = fs::metadata(&to.path).unwrap().blocks() * 512;
        assert!(taken < 2 << 20, "{format:?} takes {taken} bytes: holes were filled");
        // Both are free for the VM's next start, and tell whose they are.
        for image in [&disk.from, to] {
            let next = Disk::new(image.clone(), files(image), vm(), host()).unwrap();
            next.take(Epoch(5)).unwrap();
        }
    }
}

#[test]
fn a_disk_that_somebody_has_in_use_is_not_copied() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disks(folder.path(), DiskFormat::Raw);
    let user = Disk::new(disk.from.clone(), files(&disk.from), vm(), host()).unwrap();
    user.take(Epoch(4)).unwrap();
    let (mut child, socket) = copier(&disk, None);
    let line = BufReader::new(socket).lines().next().unwrap().unwrap();
    assert!(told(&line).ended.is_some(), "{line}");
    assert!(child.wait().unwrap().success());
    let mut first = [0; 512];
    File::open(&disk.to.backing.path).unwrap().read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first, [0; 512]);
}

#[test]
fn it_ends_with_its_agent() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disks(folder.path(), DiskFormat::Raw);
    // For ever, but for its end.
    let (mut child, mut socket) = copier(&disk, Some(1));
    socket.read_exact(&mut [0]).unwrap();
    drop(socket);
    child.wait().unwrap();
    Disk::new(disk.from.clone(), files(&disk.from), vm(), host()).unwrap().take(Epoch(5)).unwrap();
}
