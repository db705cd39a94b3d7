//! What a guest gives back is freed, marked, and only then answered.

use std::sync::atomic::AtomicBool;

use vm_memory::FileOffset;

use super::*;
use crate::device::Device;
use crate::devices::virtio::Function;
use crate::devices::virtio::test_driver::*;

const LIST: u64 = BUFFERS;

fn file_backed() -> Machine {
    let file = tempfile::tempfile().unwrap();
    file.set_len(RAM_BYTES as u64).unwrap();
    let range = (GuestAddress(0), RAM_BYTES, Some(FileOffset::new(file, 0)));
    Machine::with_ram(Arc::new(GuestRam::from_ranges_with_files([range]).unwrap()))
}

fn plugged(machine: &Machine, reporting: bool) -> Plugged<Balloon> {
    let balloon = |interrupts: &_| Balloon::new(&machine.environment.ram, interrupts, reporting);
    Plugged { function: Function::new(8, &machine.environment, balloon, queues(reporting).len()).unwrap() }
}

fn started(machine: &Machine) -> (Plugged<Balloon>, Driver) {
    let plugged = plugged(machine, true);
    let mut driver = Driver::new(machine, &plugged);
    driver.start(FEATURE_REPORTING);
    (plugged, driver)
}

/// Fills the pages, forgets that they were written, and lets the guest do something: those that it has changed.
fn changed(
    driver: &mut Driver,
    machine: &Machine,
    pages: Range<u64>,
    act: impl FnOnce(&mut Driver),
) -> Vec<u64> {
    for page in pages.clone() {
        driver.put(page * 4096, &[0x55; 4096]);
    }
    let region = machine.ram().iter().next().unwrap();
    (**region).bitmap().reset();
    act(driver);
    let dirty = |page: &u64| region.bitmap().dirty_at(*page as usize * 4096);
    let changed: Vec<u64> = pages.clone().filter(dirty).collect();
    for page in pages {
        let zero = driver.get(page * 4096, 4096).iter().all(|byte| *byte == 0);
        assert_eq!(zero, changed.contains(&page), "page {page:#x}");
    }
    changed
}

fn report(driver: &mut Driver, queue: usize, buffers: &[(u64, u32)]) {
    let parts: Vec<_> = buffers.iter().map(|(address, length)| (*address, *length, WRITE)).collect();
    let head = driver.submit(queue, &parts);
    assert_eq!(driver.answer(queue), (head, 0));
}

fn give(driver: &mut Driver, pages: &[u32]) {
    let list: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    driver.put(LIST, &list);
    let head = driver.submit(INFLATE, &[(LIST, list.len() as u32, 0)]);
    assert_eq!(driver.answer(INFLATE), (head, 0));
}

#[test]
fn pages_given_back_read_as_zeros_and_are_marked_as_written() {
    for machine in [Machine::empty(), file_backed()] {
        let (_plugged, mut driver) = started(&machine);
        let given = |driver: &mut Driver| give(driver, &[0x300, 0x301, 0x302, 0x2ff, 0x500]);
        let changed = changed(&mut driver, &machine, 0x2fe..0x504, given);
        assert_eq!(changed, [0x2ff, 0x300, 0x301, 0x302, 0x500]);
    }
}

#[test]
fn reported_pages_read_as_zeros_and_are_marked_once_the_report_is_answered_whatever_its_queue() {
    for (queue, machine) in [(2, Machine::empty()), (3, Machine::empty()), (4, file_backed())] {
        let (_plugged, mut driver) = started(&machine);
        let reported = |driver: &mut Driver| {
            // Two whole pages, and one with a piece of either neighbour.
            report(driver, queue, &[(0x300_000, 0x2000), (0x310_800, 0x2000)]);
        };
        assert_eq!(changed(&mut driver, &machine, 0x2fe..0x318, reported), [0x300, 0x301, 0x311]);
    }
}

#[test]
fn a_report_of_less_than_a_page_or_of_nothing_that_may_be_written_frees_nothing() {
    let machine = Machine::empty();
    let (_plugged, mut driver) = started(&machine);
    let reported = |driver: &mut Driver| {
        report(driver, 2, &[(0x300_800, 0x400), (0x301_800, 0x1000)]);
        let head = driver.submit(2, &[(0x304_000, 0x1000, 0)]);
        assert_eq!(driver.answer(2), (head, 0));
    };
    assert_eq!(changed(&mut driver, &machine, 0x300..0x306, reported), [0u64; 0]);
}

#[test]
fn nothing_is_freed_while_memory_is_still_on_its_way() {
    let machine = Machine::empty();
    let (plugged, mut driver) = started(&machine);
    let awaited = Arc::new(AtomicBool::new(true));
    let told = Arc::clone(&awaited);
    plugged.function.device().free_nothing_while(move || told.load(Ordering::SeqCst));
    let both = |driver: &mut Driver| {
        report(driver, 2, &[(0x300_000, 0x1000)]);
        give(driver, &[0x302]);
    };
    assert_eq!(changed(&mut driver, &machine, 0x300..0x304, both), [0u64; 0]);
    awaited.store(false, Ordering::SeqCst);
    assert_eq!(changed(&mut driver, &machine, 0x300..0x304, both), [0x300, 0x302]);
}

#[test]
fn the_first_machine_offers_no_reports_and_a_guest_that_makes_them_does_not_fit_it() {
    let machine = Machine::empty();
    let (here, _driver) = started(&machine);
    let first = Machine::with_ram(Arc::clone(&machine.environment.ram));
    let there = plugged(&first, false);
    assert_eq!(there.function.device().features() & FEATURE_REPORTING, 0);
    here.function.pause().unwrap();
    let refused = there.function.restore(&here.function.save().unwrap()).unwrap_err();
    assert!(refused.to_string().contains("5 queues, this one has 2"), "{refused}");
}

#[test]
fn pages_outside_ram_are_ignored() {
    let machine = file_backed();
    let (_plugged, mut driver) = started(&machine);
    driver.put(RAM_BYTES as u64 - 4096, &[1; 4096]);
    let last = (RAM_BYTES / 4096) as u32 - 1;
    give(&mut driver, &[u32::MAX, u32::MAX - 1, last + 1, last, 0xf_ffff]);
    assert_eq!(driver.get(RAM_BYTES as u64 - 4096, 4096), [0; 4096]);
}

#[test]
fn the_guest_learns_the_target_and_tells_its_size_and_both_move_along() {
    let machine = Machine::empty();
    let (plugged, driver) = started(&machine);
    plugged.function.device().set_target(Bytes::mib(4));
    machine.messages.wait_for(0x100);
    assert_eq!(driver.read_u32(0x2000), 1024);
    driver.write(0x2004, &1000u32.to_le_bytes());
    assert_eq!(plugged.function.device().size(), Bytes(1000 * 4096));
    let next = Machine::with_ram(Arc::clone(&machine.environment.ram));
    let (there, _) = started(&next);
    there.function.reset();
    migrate(&plugged, &there);
    assert_eq!(there.function.device().size(), Bytes(1000 * 4096));
    assert_eq!(driver.moved_to(&next, &there).read_u32(0x2000), 1024);
    there.function.device().set_target(Bytes::mib(1 << 30));
    assert_eq!(driver.moved_to(&next, &there).read_u32(0x2000), (RAM_BYTES / 4096) as u32);
}
