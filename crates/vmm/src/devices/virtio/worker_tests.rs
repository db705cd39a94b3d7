//! A host that hangs must not take the VMM along.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::device::Device;
use crate::devices::virtio::test_driver::*;

/// Answers chains, unless the gate is shut: then it hangs, as a request to dead storage does.
#[derive(Default)]
struct Gated {
    shut: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicBool,
    /// What the next flush says.
    flush_fails: AtomicBool,
}

impl Gated {
    fn set_shut(&self, shut: bool) {
        *self.shut.lock().unwrap() = shut;
        self.opened.notify_all();
    }
}

impl VirtioDevice for Gated {
    const NAME: &'static str = "virtio-gated";
    const ID: u32 = 42;
    const CLASS: u32 = 0xFF_00_00;

    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }
    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}
    fn process(&self, _source: Source, io: &mut Io<'_>) -> Result<Progress, DriverFault> {
        io.serve_queue(0, 1, |_| {
            let mut shut = self.shut.lock().unwrap();
            while *shut {
                self.waiting.store(true, Ordering::SeqCst);
                shut = self.opened.wait(shut).unwrap();
            }
            Ok(0)
        })
    }
    fn flush(&self) -> Result<(), String> {
        if self.flush_fails.load(Ordering::SeqCst) { Err("the disk is full".to_owned()) } else { Ok(()) }
    }
}

/// A device that hangs in a request, and its driver.
fn hung(machine: &Machine) -> (Plugged<Gated>, Driver) {
    let plugged = machine.plug(Gated::default());
    let mut driver = Driver::new(machine, &plugged);
    driver.start(0);
    plugged.function.device().set_shut(true);
    driver.submit(0, &[(BUFFERS, 4, 0)]);
    wait_until("the request is not begun", || plugged.function.device().waiting.load(Ordering::SeqCst));
    (plugged, driver)
}

#[test]
fn a_pause_that_takes_too_long_fails_and_the_device_runs_on() {
    let machine = Machine::empty();
    let (plugged, mut driver) = hung(&machine);
    let error = plugged.function.pause().unwrap_err().to_string();
    assert!(error.contains("has been pending"), "{error}");
    plugged.function.device().set_shut(false);
    driver.answer(0);
    driver.submit(0, &[(BUFFERS, 4, 0)]);
    driver.answer(0);
    plugged.function.pause().unwrap();
}

#[test]
fn a_pause_that_cannot_make_writes_durable_fails_and_the_device_runs_on() {
    let machine = Machine::empty();
    let plugged = machine.plug(Gated::default());
    let mut driver = Driver::new(&machine, &plugged);
    for running in [false, true] {
        if running {
            driver.start(0);
        }
        plugged.function.device().flush_fails.store(true, Ordering::SeqCst);
        let error = plugged.function.pause().unwrap_err().to_string();
        assert!(error.contains("the disk is full"), "{error}");
        assert!(plugged.function.save().is_err(), "a running device is not saved");
        plugged.function.device().flush_fails.store(false, Ordering::SeqCst);
    }
    driver.submit(0, &[(BUFFERS, 4, 0)]);
    driver.answer(0);
    plugged.function.pause().unwrap();
}

#[test]
fn a_driver_sees_its_reset_end_only_when_the_device_no_longer_touches_memory() {
    let machine = Machine::empty();
    let (plugged, mut driver) = hung(&machine);
    driver.set_status(0);
    assert_ne!(driver.status(), 0);
    assert_eq!(driver.used_index(0), 0);
    plugged.function.device().set_shut(false);
    wait_until("the reset does not end", || driver.status() == 0);
    assert_eq!(driver.used_index(0), 1);
    driver.start(0);
    driver.submit(0, &[(BUFFERS, 4, 0)]);
    driver.answer(0);
}

#[test]
fn a_pause_ends_a_reset_that_is_still_going_on() {
    let machine = Machine::empty();
    let (plugged, driver) = hung(&machine);
    driver.set_status(0);
    plugged.function.device().set_shut(false);
    plugged.function.pause().unwrap();
    let next = Machine::with_ram(Arc::clone(&machine.environment.ram));
    let there = next.plug(Gated::default());
    there.function.restore(&plugged.function.save().unwrap()).unwrap();
    assert_eq!(driver.moved_to(&next, &there).status(), 0);
}
