//! The block device on real images, driven through its queue.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use godwit_types::Epoch;
use godwit_types::control::DiskBacking;
use godwit_types::ids::VmId;
use godwit_types::vm::DiskFormat;
use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::{FormatCreateBuilder, Storage, StorageCreateOptions};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::device::Device;
use crate::devices::disk::{BLOCK_BYTES, Image};
use crate::devices::virtio::test_driver::*;
use crate::memory::GuestRam;

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;
const IMAGE_BYTES: u64 = 1 << 20;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH_REQUEST: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

struct Images {
    directory: tempfile::TempDir,
}

impl Images {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn raw(&self) -> DiskBacking {
        fs::File::create(self.path("disk.raw")).unwrap().set_len(IMAGE_BYTES).unwrap();
        self.backing("disk.raw", DiskFormat::Raw)
    }

    fn qcow2(&self) -> DiskBacking {
        self.qcow2_on("disk.qcow2", None)
    }

    fn qcow2_on(&self, name: &str, base: Option<&Path>) -> DiskBacking {
        let options = StorageCreateOptions::new().filename(self.path(name));
        let file = ImageFile::create_open(options).unwrap();
        let builder = Qcow2::<ImageFile>::create_builder(file).size(IMAGE_BYTES);
        let builder = match base {
            Some(base) => builder.backing(base.to_str().unwrap().to_owned(), "raw".to_owned()),
            None => builder,
        };
        builder.create().unwrap();
        self.backing(name, DiskFormat::Qcow2)
    }

    fn backing(&self, name: &str, format: DiskFormat) -> DiskBacking {
        DiskBacking {
            path: self.path(name),
            lock: self.path(&format!("{name}.lock")),
            format,
            read_only: false,
        }
    }
}

/// Has the reference implementation look at a qcow2 image, where it is installed.
fn check_qcow2(path: &Path) {
    match Command::new("qemu-img").arg("check").arg(path).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("No errors"), "{said}");
        }
        Err(_) => eprintln!("SKIPPED: qemu-img is not installed, so nobody else looks at the image"),
    }
}

/// What an image holds, read by opening it anew.
fn contents(backing: &DiskBacking) -> Vec<u8> {
    let backing = DiskBacking { read_only: true, ..backing.clone() };
    let files = godwit_provision::open_disk(&backing).unwrap();
    let image = Image::open(&backing, &files.images).unwrap();
    let mut bytes = vec![0; image.bytes() as usize];
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), bytes.len())]).unwrap();
    let whole = GuestMemoryBackend::get_slice(&ram, GuestAddress(0), bytes.len()).unwrap();
    image.read(&[whole], 0).unwrap();
    ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

fn block(backing: &DiskBacking, host: &str, reports: &Reports) -> Block {
    let vm = VmId("00000000-0000-0000-0000-000000000001".parse().unwrap());
    let files = godwit_provision::open_disk(backing).unwrap();
    let disk = Disk::new(backing.clone(), files, vm, host.parse().unwrap()).unwrap();
    Block::new(disk, "serial-0", "disk".to_owned(), reports.clone())
}

/// A started device whose lock is taken at epoch 1.
fn started(machine: &Machine, backing: &DiskBacking, features: u64) -> (Plugged<Block>, Driver) {
    let plugged = machine.plug(block(backing, "a", &Reports::default()));
    plugged.function.device().disk().take(Epoch(1)).unwrap();
    let mut driver = Driver::new(machine, &plugged);
    driver.start(features);
    (plugged, driver)
}

/// One request and its status. `data` lies at [`DATA`].
fn request(driver: &mut Driver, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> (u8, u32) {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    driver.put(HEADER, &header);
    driver.put(STATUS, &[0xee]);
    let mut parts = vec![(HEADER, 16, 0)];
    parts.extend_from_slice(data);
    parts.push((STATUS, 1, WRITE));
    let head = driver.submit(0, &parts);
    let (answered, written) = driver.answer(0);
    assert_eq!(answered, head);
    (driver.get(STATUS, 1)[0], written)
}

fn write(driver: &mut Driver, sector: u64, bytes: &[u8]) -> u8 {
    driver.put(DATA, bytes);
    request(driver, OUT, sector, &[(DATA, bytes.len() as u32, 0)]).0
}

fn read(driver: &mut Driver, sector: u64, length: u32) -> Vec<u8> {
    driver.put(DATA, &vec![0xaa; length as usize]);
    assert_eq!(request(driver, IN, sector, &[(DATA, length, WRITE)]), (OK, length + 1));
    driver.get(DATA, length as usize)
}

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|index| (index / 7) as u8 ^ seed).collect()
}

#[test]
fn what_is_written_and_flushed_is_in_the_image_and_reads_back() {
    let (images, machine) = (Images::new(), Machine::empty());
    let backing = images.raw();
    let (_plugged, mut driver) = started(&machine, &backing, FLUSH);
    assert_eq!((driver.read_u32(0x2000), driver.read_u32(0x2004)), ((IMAGE_BYTES / 512) as u32, 0));
    let bytes = pattern(3, 4096);
    assert_eq!(write(&mut driver, 5, &bytes), OK);
    assert_eq!(request(&mut driver, FLUSH_REQUEST, 0, &[]), (OK, 1));
    assert_eq!(fs::read(&backing.path).unwrap()[5 * 512..][..4096], bytes);
    assert_eq!(read(&mut driver, 5, 4096), bytes);
    // The same, scattered over pieces that fit no sector.
    let pieces = [(DATA, 100, WRITE), (DATA + 100, 3900, WRITE), (DATA + 4000, 96, WRITE)];
    driver.put(DATA, &[0; 4096]);
    assert_eq!(request(&mut driver, IN, 5, &pieces), (OK, 4097));
    assert_eq!(driver.get(DATA, 4096), bytes);
}

#[test]
fn pages_that_a_read_fills_are_marked_as_written() {
    let (images, machine) = (Images::new(), Machine::empty());
    let (_plugged, mut driver) = started(&machine, &images.raw(), FLUSH);
    let region = machine.ram().iter().next().unwrap();
    (**region).bitmap().reset();
    assert_eq!(request(&mut driver, IN, 0, &[(DATA + 0x1000, 8192, WRITE)]).0, OK);
    let dirty = |address: u64| region.bitmap().dirty_at(address as usize);
    assert_eq!([0, 0x1000, 0x2000, 0x3000].map(|offset| dirty(DATA + offset)), [false, true, true, false]);
}

#[test]
fn errors_reach_the_guest_and_are_reported_once() {
    let (images, machine) = (Images::new(), Machine::empty());
    let reported = Arc::new(Mutex::new(Vec::new()));
    let reports = Reports::default();
    let log = Arc::clone(&reported);
    reports.set_sink(move |device, message| log.lock().unwrap().push(format!("{device}: {message}")));
    let plugged = machine.plug(block(&images.raw(), "a", &reports));
    let mut driver = Driver::new(&machine, &plugged);
    driver.start(FLUSH);
    // No lock is held yet.
    assert_eq!(request(&mut driver, IN, 0, &[(DATA, 512, WRITE)]), (IOERR, 1));
    assert_eq!(request(&mut driver, FLUSH_REQUEST, 0, &[]).0, IOERR);
    assert_eq!(reported.lock().unwrap().len(), 1, "{reported:?}");
    plugged.function.device().disk().take(Epoch(1)).unwrap();
    let last = IMAGE_BYTES / 512 - 1;
    assert_eq!(request(&mut driver, IN, last, &[(DATA, 512, WRITE)]).0, OK);
    for (kind, sector, length, flags, status) in [
        (IN, last, 1024, WRITE, IOERR),
        (OUT, last + 1, 512, 0, IOERR),
        (OUT, u64::MAX, 512, 0, IOERR),
        (IN, 0, 511, WRITE, IOERR),
        (77, 0, 512, WRITE, UNSUPPORTED),
    ] {
        let answer = request(&mut driver, kind, sector, &[(DATA, length, flags)]);
        assert_eq!(answer, (status, 1), "request {kind} at {sector}");
    }
    assert_eq!(reported.lock().unwrap().len(), 1, "the guest's own mistakes are not errors of the disk");
}

#[test]
fn a_read_only_disk_takes_no_lock_and_no_writes() {
    let (images, machine) = (Images::new(), Machine::empty());
    let backing = DiskBacking { read_only: true, ..images.raw() };
    let (plugged, mut driver) = started(&machine, &backing, 1 << VIRTIO_BLK_F_RO);
    assert!(!backing.lock.exists());
    assert_ne!(plugged.function.device().features() & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(write(&mut driver, 0, &[1; 512]), IOERR);
    assert_eq!(read(&mut driver, 0, 512), [0; 512]);
}

#[test]
fn the_serial_number_is_told() {
    let (images, machine) = (Images::new(), Machine::empty());
    let (_plugged, mut driver) = started(&machine, &images.raw(), FLUSH);
    assert_eq!(request(&mut driver, GET_ID, 0, &[(DATA, 20, WRITE)]), (OK, 21));
    assert_eq!(driver.get(DATA, 20), b"serial-0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn zeroed_ranges_read_as_zeros_and_their_neighbours_stay() {
    let images = Images::new();
    zero_ranges(&images.raw());
    zero_ranges(&images.qcow2());
}

fn zero_ranges(backing: &DiskBacking) {
    let machine = Machine::empty();
    let (_plugged, mut driver) = started(&machine, backing, FLUSH);
    for (kind, flags) in [(WRITE_ZEROES, 0u32), (WRITE_ZEROES, 1), (DISCARD, 0)] {
        assert_eq!(write(&mut driver, 8, &[7; 8192]), OK);
        let mut range = [0; 16];
        range[..8].copy_from_slice(&9u64.to_le_bytes());
        range[8..12].copy_from_slice(&8u32.to_le_bytes());
        range[12..].copy_from_slice(&flags.to_le_bytes());
        driver.put(DATA, &range);
        assert_eq!(request(&mut driver, kind, 0, &[(DATA, 16, 0)]).0, OK);
        let after = read(&mut driver, 8, 8192);
        assert_eq!((&after[..512], &after[9 * 512..]), (&[7; 512][..], &[7; 7 * 512][..]), "{kind}/{flags}");
        assert!(kind == DISCARD || after[512..9 * 512].iter().all(|byte| *byte == 0), "{kind}/{flags}");
        range[..8].copy_from_slice(&(IMAGE_BYTES / 512 - 1).to_le_bytes());
        driver.put(DATA, &range);
        assert_eq!(request(&mut driver, kind, 0, &[(DATA, 16, 0)]).0, IOERR);
    }
}

#[test]
fn a_request_without_header_or_status_is_a_fault_of_the_driver() {
    let (images, machine) = (Images::new(), Machine::empty());
    let backing = images.raw();
    let (_plugged, mut driver) = started(&machine, &backing, FLUSH);
    for parts in [vec![(HEADER, 16, 0)], vec![(HEADER, 15, 0), (STATUS, 1, WRITE)], vec![(STATUS, 1, WRITE)]]
    {
        driver.submit(0, &parts);
        driver.wait_for_needs_reset();
        driver.start(FLUSH);
    }
    assert_eq!(write(&mut driver, 0, &[1; 512]), OK);
}

#[test]
fn what_an_image_holds_is_found_and_its_holes_are_not() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let (images, machine) = (Images::new(), Machine::empty());
        let backing = if format == DiskFormat::Raw { images.raw() } else { images.qcow2() };
        let (plugged, mut driver) = started(&machine, &backing, FLUSH);
        let found = || {
            let mut found = Vec::new();
            let disk = plugged.function.device().disk();
            disk.with_image(|image| image.data(0, IMAGE_BYTES, |part| found.push(part))).unwrap();
            found
        };
        assert_eq!(found(), [], "{format:?}");
        assert_eq!(write(&mut driver, 1024, &pattern(1, 4096)), OK);
        let held = found();
        let bytes: u64 = held.iter().map(|part| part.end - part.start).sum();
        assert!(
            held.iter().any(|part| part.start <= 512 << 10 && part.end >= (512 << 10) + 4096),
            "{held:?}"
        );
        assert!(bytes <= 64 << 10, "{format:?}: {held:?}");
    }
}

/// Reads blocks as a copy of the disk does.
fn copy_blocks(disk: &Disk, copy: &mut [u8], blocks: impl Iterator<Item = u64>) {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), BLOCK_BYTES as usize)]).unwrap();
    let slice = GuestMemoryBackend::get_slice(&ram, GuestAddress(0), BLOCK_BYTES as usize).unwrap();
    for block in blocks {
        disk.with_image(|image| image.read(&[slice], block * BLOCK_BYTES)).unwrap();
        let at = (block * BLOCK_BYTES) as usize;
        ram.read_slice(&mut copy[at..at + BLOCK_BYTES as usize], GuestAddress(0)).unwrap();
    }
}

#[test]
fn a_copy_and_what_was_written_meanwhile_are_the_disk() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let (images, machine) = (Images::new(), Machine::empty());
        let backing = if format == DiskFormat::Raw { images.raw() } else { images.qcow2() };
        let (plugged, mut driver) = started(&machine, &backing, FLUSH);
        let disk = plugged.function.device().disk();
        assert_eq!(write(&mut driver, 0, &pattern(1, 8192)), OK);
        disk.written().start(IMAGE_BYTES);
        let mut copy = vec![0; IMAGE_BYTES as usize];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..4 {
                    let mut blocks: Vec<u64> = (0..IMAGE_BYTES / BLOCK_BYTES).collect();
                    disk.written().harvest(|run| blocks.extend(run.gfns().map(|block| block.0)));
                    copy_blocks(disk, &mut copy, blocks.into_iter());
                }
            });
            for turn in 0..400u64 {
                let sector = turn * 37 % (IMAGE_BYTES / 512 - 2);
                assert_eq!(write(&mut driver, sector, &pattern(turn as u8, 1024)), OK);
            }
            let mut range = [0; 16];
            range[..8].copy_from_slice(&9u64.to_le_bytes());
            range[8..12].copy_from_slice(&100u32.to_le_bytes());
            driver.put(DATA, &range);
            assert_eq!(request(&mut driver, WRITE_ZEROES, 0, &[(DATA, 16, 0)]).0, OK);
        });
        let mut late = Vec::new();
        disk.written().harvest(|run| late.extend(run.gfns().map(|block| block.0)));
        copy_blocks(disk, &mut copy, late.into_iter());
        disk.release();
        assert!(copy == contents(&backing), "{format:?}");
    }
}

/// Writes, moves to another host, and checks there; for each format.
#[test]
fn a_disk_moves_with_its_guest_in_the_middle_of_writing() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let images = Images::new();
        let backing = match format {
            DiskFormat::Raw => images.raw(),
            DiskFormat::Qcow2 => images.qcow2(),
        };
        let mut machine = Machine::empty();
        let (mut here, mut driver) = started(&machine, &backing, FLUSH);
        let mut sector = 0;
        for (epoch, host) in (2..8).zip(["b", "a"].into_iter().cycle()) {
            // The destination is built, and knows the size, while the source still writes.
            let next = Machine::with_ram(Arc::clone(&machine.environment.ram));
            let there = next.plug(block(&backing, host, &Reports::default()));
            for _ in 0..40 {
                assert_eq!(write(&mut driver, sector, &pattern(sector as u8, 512)), OK);
                sector += 5;
            }
            // One request that the source may or may not have begun.
            driver.put(DATA, &pattern(sector as u8, 512));
            driver.put(HEADER, &[1, 0, 0, 0, 0, 0, 0, 0]);
            driver.put(HEADER + 8, &sector.to_le_bytes());
            driver.submit(0, &[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)]);
            migrate(&here, &there);
            here.function.device().disk().release();
            there.function.device().disk().take(Epoch(epoch)).unwrap();
            driver = driver.moved_to(&next, &there);
            there.function.resume().unwrap();
            driver.answer(0);
            assert_eq!((driver.poll(0), driver.get(STATUS, 1)[0]), (None, OK));
            sector += 5;
            for check in (0..sector).step_by(5) {
                assert_eq!(
                    read(&mut driver, check, 512),
                    pattern(check as u8, 512),
                    "sector {check} of {format:?}"
                );
            }
            (machine, here) = (next, there);
        }
        here.function.device().disk().release();
        if format == DiskFormat::Qcow2 {
            check_qcow2(&backing.path);
        }
        let bytes = contents(&backing);
        for check in (0..sector).step_by(5) {
            assert_eq!(bytes[check as usize * 512..][..512], pattern(check as u8, 512), "sector {check}");
        }
    }
}

#[test]
fn what_is_flushed_to_a_qcow2_image_outlives_the_process() {
    let (images, machine) = (Images::new(), Machine::empty());
    let backing = images.qcow2();
    let (_plugged, mut driver) = started(&machine, &backing, FLUSH);
    // Two clusters: the second is entered into a table that exists, and is cached, by then.
    for sector in [100, 1000] {
        assert_eq!(write(&mut driver, sector, &pattern(sector as u8, 4096)), OK);
        assert_eq!(request(&mut driver, FLUSH_REQUEST, 0, &[]).0, OK);
    }
    // What a crash would leave: the file as it is, while the device is still open.
    let left = images.backing("left.qcow2", DiskFormat::Qcow2);
    fs::copy(&backing.path, &left.path).unwrap();
    check_qcow2(&left.path);
    let bytes = contents(&left);
    for sector in [100, 1000] {
        assert_eq!(bytes[sector * 512..][..4096], pattern(sector as u8, 4096), "sector {sector}");
    }
}

#[test]
fn a_qcow2_backing_file_beside_the_image_is_read() {
    let (images, machine) = (Images::new(), Machine::empty());
    fs::write(images.path("base.raw"), pattern(9, IMAGE_BYTES as usize)).unwrap();
    let backing = images.qcow2_on("beside.qcow2", Some(Path::new("base.raw")));
    let plugged = machine.plug(block(&backing, "a", &Reports::default()));
    plugged.function.device().disk().take(Epoch(1)).unwrap();
    let mut driver = Driver::new(&machine, &plugged);
    driver.start(FLUSH);
    assert_eq!(write(&mut driver, 1, &[1; 512]), OK);
    let mut expected = pattern(9, 2048);
    expected[512..1024].fill(1);
    assert_eq!(read(&mut driver, 0, 2048), expected);
}

#[test]
fn an_image_that_has_come_to_need_another_file_is_refused() {
    let (images, elsewhere) = (Images::new(), Images::new());
    fs::write(elsewhere.path("base.raw"), pattern(9, IMAGE_BYTES as usize)).unwrap();
    let after = images.qcow2_on("after.qcow2", Some(&elsewhere.path("base.raw")));
    let block = block(&images.qcow2(), "a", &Reports::default());
    fs::write(images.path("disk.qcow2"), fs::read(&after.path).unwrap()).unwrap();
    let message = block.disk().take(Epoch(1)).unwrap_err().to_string();
    assert!(message.contains("was not given"), "{message}");
}

#[test]
fn images_that_are_not_what_the_configuration_says_are_refused_with_the_reason() {
    let images = Images::new();
    let backing = images.raw();
    let vm = VmId("00000000-0000-0000-0000-000000000001".parse().unwrap());
    let new = |backing: &DiskBacking, files| Disk::new(backing.clone(), files, vm, "a".parse().unwrap());
    let new = |configured: &DiskBacking| new(configured, godwit_provision::open_disk(&backing).unwrap());
    let wrong = DiskBacking { format: DiskFormat::Qcow2, ..backing.clone() };
    let message = new(&wrong).err().expect("refused").to_string();
    assert!(message.contains("is not a qcow2 image"), "{message}");
    let disk = new(&backing).unwrap();
    fs::OpenOptions::new().write(true).open(&backing.path).unwrap().set_len(IMAGE_BYTES * 2).unwrap();
    let message = disk.take(Epoch(1)).unwrap_err().to_string();
    assert!(message.contains("cannot be resized"), "{message}");
    // The refusal has not kept the lock.
    fs::OpenOptions::new().write(true).open(&backing.path).unwrap().set_len(IMAGE_BYTES).unwrap();
    disk.take(Epoch(2)).unwrap();
}
