//! A guest's driver in miniature, for tests: it knows the device only through the bus and through guest memory.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{Environment, Function, VirtioDevice};
use crate::bus::Bus;
use crate::device::Device;
use crate::devices::pci::{PciFunction, layout};
use crate::interrupt::{IoEvents, MsiSink};
use crate::memory::GuestRam;

/// Bytes of the test guest's RAM.
pub const RAM_BYTES: usize = 16 << 20;
/// Where tests may put their buffers.
pub const BUFFERS: u64 = 0x10_0000;
/// Everything awaited arrives well within this, or never.
const PATIENCE: Duration = Duration::from_secs(10);

/// Feature bits that every test driver accepts: VERSION_1.
pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT: u64 = 1 << 28;

pub const STATUS_DRIVER: u8 = 3;
pub const STATUS_FEATURES_OK: u8 = 8;
pub const STATUS_DRIVER_OK: u8 = 4;
pub const STATUS_NEEDS_RESET: u8 = 64;

/// Flags of a descriptor.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT_TABLE: u16 = 4;

/// Messages in the order they were sent.
#[derive(Default)]
pub struct MsiLog(Mutex<Vec<(u64, u32)>>);

impl MsiSink for MsiLog {
    fn signal(&self, address: u64, data: u32) -> io::Result<()> {
        self.0.lock().unwrap().push((address, data));
        Ok(())
    }
}

impl MsiLog {
    /// Takes the messages so far.
    pub fn take(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// Waits for a message with `data`, and forgets those before it.
    pub fn wait_for(&self, data: u32) {
        let what = format!("no interrupt {data:#x} arrived");
        wait_until(&what, || {
            let mut log = self.0.lock().unwrap();
            let found = log.iter().position(|message| message.1 == data);
            found.map(|at| log.drain(..=at)).is_some()
        });
    }
}

/// Registered notification addresses, with the file descriptor of each.
#[derive(Default)]
pub struct IoEventLog(pub Mutex<BTreeMap<u64, i32>>);

impl IoEvents for IoEventLog {
    fn register(&self, address: u64, event: &EventFd) -> io::Result<()> {
        assert_eq!(self.0.lock().unwrap().insert(address, event.as_raw_fd()), None, "registered twice");
        Ok(())
    }
    fn unregister(&self, address: u64, event: &EventFd) -> io::Result<()> {
        assert_eq!(self.0.lock().unwrap().remove(&address), Some(event.as_raw_fd()), "not registered");
        Ok(())
    }
}

/// A machine without vCPUs.
pub struct Machine {
    pub environment: Environment,
    pub messages: Arc<MsiLog>,
    pub notifications: Arc<IoEventLog>,
}

impl Machine {
    /// With RAM of its own.
    pub fn empty() -> Self {
        let ranges = [(GuestAddress(0), RAM_BYTES)];
        Self::with_ram(Arc::new(GuestRam::from_ranges(&ranges).unwrap()))
    }

    /// With the RAM of another, as after a migration.
    pub fn with_ram(ram: Arc<GuestRam>) -> Self {
        let (messages, notifications) = (Arc::new(MsiLog::default()), Arc::new(IoEventLog::default()));
        let environment = Environment {
            ram,
            msi: Arc::clone(&messages) as _,
            io_events: Arc::clone(&notifications) as _,
            mmio: Arc::new(Bus::default()),
        };
        Self { environment, messages, notifications }
    }

    /// The RAM.
    pub fn ram(&self) -> &GuestRam {
        &self.environment.ram
    }

    /// Puts a device into slot 8.
    pub fn plug<D: VirtioDevice>(&self, device: D) -> Plugged<D> {
        let queues = device.queue_sizes().len();
        let function = Function::new(8, &self.environment, |_| device, queues).unwrap();
        Plugged { function }
    }
}

/// A function that is shut down when dropped.
pub struct Plugged<D: VirtioDevice> {
    pub function: Arc<Function<D>>,
}

impl<D: VirtioDevice> Drop for Plugged<D> {
    fn drop(&mut self) {
        self.function.shut_down();
    }
}

/// The driver of one device.
pub struct Driver {
    mmio: Arc<Bus>,
    ram: Arc<GuestRam>,
    pub config: Arc<dyn PciFunction>,
    pub bar: u64,
    pub queues: Vec<DriverQueue>,
}

/// The driver's side of one queue.
#[derive(Clone)]
pub struct DriverQueue {
    pub index: u16,
    pub size: u16,
    /// Descriptors; the available ring and the used ring lie [`AVAILABLE`] and [`USED`] behind.
    pub base: u64,
    pub next_descriptor: u16,
    pub available: u16,
    pub used: u16,
}

pub const AVAILABLE: u64 = 0x2000;
pub const USED: u64 = 0x3000;

impl Driver {
    /// The driver of the function in slot 8 at its first address, with bus mastering switched on.
    pub fn new<D: VirtioDevice>(machine: &Machine, plugged: &Plugged<D>) -> Self {
        let config = Arc::clone(&plugged.function) as Arc<dyn PciFunction>;
        config.write_config(4, &6u16.to_le_bytes());
        Self::at(machine, layout::bar_start(8), config)
    }

    /// The driver of a function whose BAR is at `bar`.
    pub fn at(machine: &Machine, bar: u64, config: Arc<dyn PciFunction>) -> Self {
        let (mmio, ram) = (Arc::clone(&machine.environment.mmio), Arc::clone(&machine.environment.ram));
        Self { mmio, ram, config, bar, queues: Vec::new() }
    }

    /// The same driver on another machine, to which its guest was moved.
    pub fn moved_to<D: VirtioDevice>(&self, machine: &Machine, plugged: &Plugged<D>) -> Self {
        Self {
            mmio: Arc::clone(&machine.environment.mmio),
            ram: Arc::clone(&machine.environment.ram),
            config: Arc::clone(&plugged.function) as _,
            bar: self.bar,
            queues: self.queues.clone(),
        }
    }

    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.mmio.read(self.bar + offset, data);
    }

    pub fn write(&self, offset: u64, data: &[u8]) {
        self.mmio.write(self.bar + offset, data);
    }

    pub fn read_u32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn read_u16(&self, offset: u64) -> u16 {
        self.read_u32(offset) as u16
    }

    pub fn config_u32(&self, offset: usize) -> u32 {
        let mut data = [0; 4];
        self.config.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn status(&self) -> u8 {
        self.read_u16(20) as u8
    }

    pub fn set_status(&self, status: u8) {
        self.write(20, &[status]);
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.write(0, &select.to_le_bytes());
            u64::from(self.read_u32(4))
        };
        half(0) | half(1) << 32
    }

    /// Negotiates exactly `features`; returns whether the device agrees.
    pub fn negotiate(&self, features: u64) -> bool {
        self.set_status(0);
        wait_until("the device does not finish its reset", || self.status() == 0);
        self.set_status(STATUS_DRIVER);
        for select in [0u32, 1] {
            self.write(8, &select.to_le_bytes());
            self.write(12, &((features >> (32 * select)) as u32).to_le_bytes());
        }
        self.set_status(STATUS_DRIVER | STATUS_FEATURES_OK);
        self.status() & STATUS_FEATURES_OK != 0
    }

    /// Sets all queues up with at most `size` descriptors each, and MSI-X with the message data 0x100 for the
    /// configuration and 0x101 + n for queue n.
    pub fn set_up_queues(&mut self, size: u16) {
        self.set_up_queues_at(size, 0x1_0000);
    }

    /// The same, with the rings from `rings` on.
    pub fn set_up_queues_at(&mut self, size: u16, rings: u64) {
        self.queues.clear();
        for index in 0..self.read_u16(18) {
            self.write(22, &index.to_le_bytes());
            let size = self.read_u16(24).min(size);
            let base = rings + 0x1_0000 * u64::from(index);
            self.write(24, &size.to_le_bytes());
            self.write(26, &(index + 1).to_le_bytes());
            for (register, address) in [(32, base), (40, base + AVAILABLE), (48, base + USED)] {
                self.write(register, &(address as u32).to_le_bytes());
                self.write(register + 4, &0u32.to_le_bytes());
            }
            self.ram.write_slice(&[0; 0x4000], GuestAddress(base)).unwrap();
            self.write(28, &1u16.to_le_bytes());
            self.queues.push(DriverQueue { index, size, base, next_descriptor: 0, available: 0, used: 0 });
        }
        self.write(16, &0u16.to_le_bytes());
        for vector in 0..=self.queues.len() as u64 {
            self.write(0x4000 + vector * 16, &0xFEE0_0000u64.to_le_bytes());
            self.write(0x4008 + vector * 16, &(0x100 + vector as u32).to_le_bytes());
            self.write(0x400c + vector * 16, &0u32.to_le_bytes());
        }
        let msix = self.capability(0x11, None).expect("every virtio device has MSI-X");
        self.config.write_config(msix + 2, &0x8000u16.to_le_bytes());
    }

    /// Everything from reset to DRIVER_OK.
    pub fn start(&mut self, features: u64) {
        assert!(self.negotiate(features | VERSION_1));
        self.set_up_queues(64);
        self.set_status(STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
        assert_eq!(self.status(), STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
    }

    /// Offset of the first capability with this ID, and for vendor capabilities this type.
    pub fn capability(&self, id: u8, cfg_type: Option<u8>) -> Option<usize> {
        let mut at = (self.config_u32(0x34) & 0xff) as usize;
        while at != 0 {
            let header = self.config_u32(at).to_le_bytes();
            if header[0] == id && cfg_type.is_none_or(|wanted| header[3] == wanted) {
                return Some(at);
            }
            at = header[1].into();
        }
        None
    }

    /// Writes a chain of `(address, length, flags)` into the descriptor table and returns its head.
    pub fn describe(&mut self, queue: usize, parts: &[(u64, u32, u16)]) -> u16 {
        let queue = &mut self.queues[queue];
        let head = queue.next_descriptor;
        for (number, (address, length, flags)) in parts.iter().enumerate() {
            let at = (head + number as u16) % queue.size;
            let (next, flag) = if number + 1 < parts.len() { ((at + 1) % queue.size, NEXT) } else { (0, 0) };
            let descriptor = Descriptor::new(*address, *length, flags | flag, next);
            self.ram.write_obj(descriptor, GuestAddress(queue.base + u64::from(at) * 16)).unwrap();
        }
        queue.next_descriptor = (head + parts.len() as u16) % queue.size;
        head
    }

    /// Makes the chain at `head` available, without a kick.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let queue = &mut self.queues[queue];
        let slot = u64::from(queue.available % queue.size);
        self.ram.write_obj(head.to_le(), GuestAddress(queue.base + AVAILABLE + 4 + slot * 2)).unwrap();
        queue.available = queue.available.wrapping_add(1);
        self.ram.write_obj(queue.available.to_le(), GuestAddress(queue.base + AVAILABLE + 2)).unwrap();
    }

    pub fn kick(&self, queue: usize) {
        self.write(0x3000 + 4 * queue as u64, &(queue as u16).to_le_bytes());
    }

    /// Describes, offers and kicks.
    pub fn submit(&mut self, queue: usize, parts: &[(u64, u32, u16)]) -> u16 {
        let head = self.describe(queue, parts);
        self.offer(queue, head);
        self.kick(queue);
        head
    }

    /// How many answers the device has given in all.
    pub fn used_index(&self, queue: usize) -> u16 {
        self.ram.read_obj::<u16>(GuestAddress(self.queues[queue].base + USED + 2)).unwrap()
    }

    /// The next answer, if there is one: head, and bytes written.
    pub fn poll(&mut self, queue: usize) -> Option<(u16, u32)> {
        if self.used_index(queue) == self.queues[queue].used {
            return None;
        }
        let queue = &mut self.queues[queue];
        let at = queue.base + USED + 4 + u64::from(queue.used % queue.size) * 8;
        queue.used = queue.used.wrapping_add(1);
        // Asks for an interrupt at the next answer, as drivers with EVENT_IDX do.
        let event = queue.base + AVAILABLE + 4 + u64::from(queue.size) * 2;
        self.ram.write_obj(queue.used.to_le(), GuestAddress(event)).unwrap();
        let entry: u64 = self.ram.read_obj(GuestAddress(at)).unwrap();
        Some((entry as u16, (entry >> 32) as u32))
    }

    /// Waits for the next answer.
    pub fn answer(&mut self, queue: usize) -> (u16, u32) {
        let mut answer = None;
        wait_until("the device does not answer", || {
            answer = self.poll(queue);
            answer.is_some()
        });
        answer.unwrap()
    }

    /// Waits until the device has given up on this driver.
    pub fn wait_for_needs_reset(&self) {
        wait_until("the device accepts what it must not", || self.status() & STATUS_NEEDS_RESET != 0);
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

/// Waits for something that happens on another thread.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Moves the state of `from` to `to`, as a migration does. `from` stays paused.
pub fn migrate<D: VirtioDevice>(from: &Plugged<D>, to: &Plugged<D>) {
    from.function.pause().unwrap();
    to.function.restore(&from.function.save().unwrap()).unwrap();
}
