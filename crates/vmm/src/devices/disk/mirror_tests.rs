//! Disks that move while a guest uses them.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use godwit_types::vm::DiskFormat;
use godwit_types::{Bytes, VmId};
use tempfile::TempDir;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend};

use super::super::{Change, LockError};
use super::*;
use crate::memory::GuestRam;

const BYTES: u64 = 3 << 20;
const EPOCH: Epoch = Epoch(4);

/// A guest's memory, and what it knows of its disk.
struct Guest {
    ram: GuestRam,
    known: Vec<u8>,
    random: u64,
}

impl Guest {
    fn new(seed: u64) -> Self {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 64 << 10)]).unwrap();
        Self { ram, known: vec![0; BYTES as usize], random: seed }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) % end
    }

    fn write(&mut self, disk: &Disk, offset: u64, length: u64, value: u8) -> io::Result<()> {
        self.ram.write_slice(&vec![value; length as usize], GuestAddress(0)).unwrap();
        let buffer = GuestMemoryBackend::get_slice(&self.ram, GuestAddress(0), length as usize).unwrap();
        disk.change((offset, length), Change::Write(&[buffer]))?;
        self.known[offset as usize..(offset + length) as usize].fill(value);
        Ok(())
    }

    /// Something that guests do.
    fn act(&mut self, disk: &Disk) {
        let offset = self.below(BYTES / 512 - 128) * 512;
        let length = (1 + self.below(128)) * 512;
        match self.below(10) {
            0 => disk.sync().unwrap(),
            1 | 2 => {
                let unmap = self.below(2) == 0;
                disk.change((offset, length), Change::Zero { unmap }).unwrap();
                self.known[offset as usize..(offset + length) as usize].fill(0);
            }
            3 => {
                // Whole clusters read as zeros afterwards, in either format.
                let (offset, length) = (offset & !0xffff, 64 << 10);
                disk.change((offset, length), Change::Discard).unwrap();
                self.known[offset as usize..(offset + length) as usize].fill(0);
            }
            _ => {
                let value = self.below(256) as u8;
                self.write(disk, offset, length, value).unwrap();
            }
        }
    }
}

fn backing(folder: &Path, name: &str, format: DiskFormat) -> DiskBacking {
    let path = folder.join(name);
    if !path.exists() {
        godwit_provision::create_image(&path, format, Bytes(BYTES)).unwrap();
    }
    DiskBacking { lock: folder.join(format!("{name}.lock")), path, format, read_only: false }
}

fn open(backing: &DiskBacking) -> Disk {
    let vm = VmId("00000000-0000-0000-0000-000000000001".parse().unwrap());
    let files = godwit_provision::open_disk(backing).unwrap();
    let disk = Disk::new(backing.clone(), files, vm, "a".parse().unwrap()).unwrap();
    disk.take(EPOCH).unwrap();
    disk
}

fn mirror(disk: &Disk, to: &DiskBacking) -> Result<(), MirrorError> {
    disk.mirror(there(), to.clone(), godwit_provision::open_disk(to).unwrap(), EPOCH)
}

/// Where the specification has the disk then.
fn there() -> DatastorePath {
    "fast/there".parse().unwrap()
}

/// Copies all, as a move's thread does.
fn copy(disk: &Disk) -> Result<(), MirrorError> {
    let mut buffer = vec![0; 32 << 10];
    while disk.copy_some(&mut buffer)? != Copied::All {}
    disk.settle_mirror()
}

fn contents(backing: &DiskBacking) -> Vec<u8> {
    let files = godwit_provision::open_disk(&DiskBacking { read_only: true, ..backing.clone() }).unwrap();
    let image = Image::open(&DiskBacking { read_only: true, ..backing.clone() }, &files.images).unwrap();
    let mut bytes = vec![0; BYTES as usize];
    image.read_bytes(&mut bytes, 0).unwrap();
    bytes
}

/// Two places, of which the disk lies in the first and holds something.
fn settled(format: DiskFormat) -> (TempDir, DiskBacking, DiskBacking, Disk, Guest) {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (backing(folder.path(), "here", format), backing(folder.path(), "there", format));
    let (disk, mut guest) = (open(&here), Guest::new(7));
    for at in [0, 64 << 10, 1 << 20, BYTES - 4096] {
        guest.write(&disk, at, 4096, 0x5a).unwrap();
    }
    (folder, here, there, disk, guest)
}

#[test]
fn a_disk_moves_whatever_its_guest_does_meanwhile_and_is_the_same_in_its_new_place() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        for seed in 0..3 {
            let (_folder, here, there, disk, mut guest) = settled(format);
            guest.random = seed;
            mirror(&disk, &there).unwrap();
            let copied = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    copy(&disk).unwrap();
                    copied.store(true, SeqCst);
                });
                while !copied.load(SeqCst) {
                    guest.act(&disk);
                }
            });
            (0..50).for_each(|_| guest.act(&disk));
            assert_eq!(disk.mirror_phase().unwrap(), StoragePhase::InSync);
            disk.hold_mirror().unwrap();
            (0..50).for_each(|_| guest.act(&disk));
            disk.sync().unwrap();
            // Whichever of the two is opened after a crash, it has everything.
            assert!(contents(&here) == guest.known, "{format:?}, seed {seed}: the old place");
            assert!(contents(&there) == guest.known, "{format:?}, seed {seed}: the new place");
            disk.switch().unwrap();
            let left = fs::read(&here.path).unwrap();
            (0..50).for_each(|_| guest.act(&disk));
            disk.release();
            assert!(contents(&there) == guest.known, "{format:?}, seed {seed}");
            assert!(fs::read(&here.path).unwrap() == left, "what is left stays as it was");
        }
    }
}

#[test]
fn holes_stay_holes() {
    use std::os::unix::fs::MetadataExt;
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let (_folder, here, there, disk, mut guest) = settled(format);
        // Allocated, and zero all the same.
        guest.write(&disk, 2 << 20, 64 << 10, 0).unwrap();
        mirror(&disk, &there).unwrap();
        copy(&disk).unwrap();
        let blocks = |backing: &DiskBacking| fs::metadata(&backing.path).unwrap().blocks();
        assert!(blocks(&there) <= blocks(&here), "{} of {} blocks", blocks(&there), blocks(&here));
        assert!(disk.held(0, BYTES).unwrap() < 1 << 20);
    }
}

#[test]
fn the_new_place_is_locked_from_the_beginning_and_the_old_one_until_the_switch() {
    let (_folder, here, there, disk, _) = settled(DiskFormat::Raw);
    let is_free = |backing: &DiskBacking| {
        let file = godwit_provision::open_disk(backing).unwrap().lock.unwrap();
        let taken = DiskLock::take_now(&file, &backing.lock, &disk.record(EPOCH));
        assert!(matches!(taken, Ok(_) | Err(LockError::Held { .. })), "{taken:?}");
        taken.is_ok()
    };
    mirror(&disk, &there).unwrap();
    assert!(!is_free(&here) && !is_free(&there) && disk.moved_to().is_none());
    copy(&disk).unwrap();
    disk.hold_mirror().unwrap();
    disk.switch().unwrap();
    assert!(is_free(&here) && !is_free(&there));
    assert_eq!(disk.moved_to(), Some(self::there()));
    // What follows is about the new place: it is let go of, and taken again.
    disk.release();
    assert!(is_free(&there));
    disk.reclaim(EPOCH, "00000000-0000-0000-0000-000000000002".parse().unwrap()).unwrap();
    assert!(is_free(&here) && !is_free(&there));
}

#[test]
fn a_move_that_is_ended_leaves_the_disk_where_it_was() {
    let (folder, here, there, disk, mut guest) = settled(DiskFormat::Raw);
    mirror(&disk, &there).unwrap();
    assert!(matches!(
        mirror(&disk, &backing(folder.path(), "third", DiskFormat::Raw)),
        Err(MirrorError::Busy)
    ));
    assert!(matches!(disk.hold_mirror(), Err(MirrorError::NotInSync)));
    assert!(matches!(disk.switch(), Err(MirrorError::NotInSync)));
    copy(&disk).unwrap();
    assert!(matches!(disk.switch(), Err(MirrorError::NotInSync)), "nobody holds it");
    disk.hold_mirror().unwrap();
    disk.end_mirror();
    assert!(matches!(disk.switch(), Err(MirrorError::NotOpen)));
    let ended = fs::read(&there.path).unwrap();
    (0..50).for_each(|_| guest.act(&disk));
    disk.release();
    assert!(contents(&here) == guest.known);
    assert!(fs::read(&there.path).unwrap() == ended);
}

/// An image in memory, to which nobody can write any more once it is sealed.
struct Sealable(File);

impl Sealable {
    fn new() -> Self {
        // SAFETY: the name is a constant, and the descriptor is new and nobody else's.
        let file =
            unsafe { File::from_raw_fd(libc::memfd_create(c"disk".as_ptr(), libc::MFD_ALLOW_SEALING)) };
        file.set_len(BYTES).unwrap();
        Self(file)
    }

    fn mirror(&self, disk: &Disk, folder: &Path) -> Result<(), MirrorError> {
        let backing = backing(folder, "sealable", DiskFormat::Raw);
        let mut files = godwit_provision::open_disk(&backing).unwrap();
        files.images[0].1 = self.0.try_clone().unwrap().into();
        disk.mirror(there(), backing, files, EPOCH)
    }

    fn seal(&self) {
        // SAFETY: the descriptor is open, and the call touches no memory of ours.
        let sealed = unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
        assert_eq!(sealed, 0);
    }
}

#[test]
fn a_guest_hears_nothing_of_a_target_that_fails() {
    let (folder, here, _, disk, mut guest) = settled(DiskFormat::Raw);
    // While it is copied, and by a write of the guest's.
    for copied_before in [false, true] {
        let target = Sealable::new();
        target.mirror(&disk, folder.path()).unwrap();
        if copied_before {
            copy(&disk).unwrap();
            target.seal();
            guest.write(&disk, 0, 4096, 9).unwrap();
        } else {
            target.seal();
            let error = copy(&disk).unwrap_err();
            disk.target_failed(io::Error::other(error.to_string())).unwrap();
        }
        assert!(matches!(disk.mirror_phase(), Err(MirrorError::Ended(_))));
        assert!(disk.hold_mirror().is_err() && disk.switch().is_err());
        (0..50).for_each(|_| guest.act(&disk));
    }
    disk.release();
    assert!(contents(&here) == guest.known);
}

#[test]
fn a_write_that_fails_at_a_held_target_waits_for_what_becomes_of_it() {
    for switched in [false, true] {
        let (folder, here, _, disk, mut guest) = settled(DiskFormat::Raw);
        let target = Sealable::new();
        target.mirror(&disk, folder.path()).unwrap();
        copy(&disk).unwrap();
        disk.hold_mirror().unwrap();
        target.seal();
        let written = std::thread::scope(|scope| {
            let writes = scope.spawn(|| guest.write(&disk, 0, 4096, 9));
            // Once the source has it, it has failed at the target.
            let mut first = [0];
            while first != [9] {
                disk.with_image(|image| image.read_bytes(&mut first, 0)).unwrap();
            }
            if switched {
                disk.switch().unwrap();
            } else {
                disk.end_mirror();
            }
            writes.join().unwrap()
        });
        assert_eq!(written.is_ok(), !switched, "{written:?}");
        disk.release();
        if !switched {
            assert!(contents(&here) == guest.known);
        }
    }
}
