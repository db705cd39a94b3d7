//! A machine's devices on their buses, without KVM, and a guest that does as it likes with them.

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use godwit_types::control::{DiskBacking, NicBacking, Role, VmmConfig};
use godwit_types::vm::{BootSpec, DiskFormat, MachineType, VmSpec};
use godwit_types::{Bytes, Epoch, VmId};
use godwit_vmm::bus::Bus;
use godwit_vmm::device::Device;
use godwit_vmm::devices::console::Console;
use godwit_vmm::devices::legacy::pm::{self, Pm};
use godwit_vmm::devices::legacy::rtc::{self, Rtc};
use godwit_vmm::devices::legacy::serial::{self, Serial};
use godwit_vmm::devices::legacy::{Platform, keyboard};
use godwit_vmm::devices::virtio::console::ConsolePort;
use godwit_vmm::devices::{self, Given, Pci};
use godwit_vmm::interrupt::{IoEvents, MsiSink};
use godwit_vmm::memory::GuestRam;
use uuid::Uuid;
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// Bytes of the guest's RAM.
pub const RAM_BYTES: usize = 1 << 20;
const DISK_BYTES: u64 = 64 << 10;
const TAP: &str = "tap0";
/// How long a worker gets to serve what it was kicked for. One that is slower is not waited for.
const SERVING: Duration = Duration::from_millis(2);

/// See the module.
pub struct Guest {
    pub mmio: Arc<Bus>,
    pub pio: Arc<Bus>,
    pub ram: Arc<GuestRam>,
    legacy: Vec<Arc<dyn Device>>,
    pci: Pci,
}

struct Nowhere;

impl MsiSink for Nowhere {
    fn signal(&self, _: u64, _: u32) -> io::Result<()> {
        Ok(())
    }
}

impl IoEvents for Nowhere {
    fn register(&self, _: u64, _: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn unregister(&self, _: u64, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

impl Platform for Nowhere {
    fn reset(&self) {}
    fn power_off(&self) {}
}

/// What all machines of this process are built from.
static CONFIG: LazyLock<VmmConfig> = LazyLock::new(config);

impl Guest {
    /// A machine whose disks are open.
    pub fn new() -> Self {
        let (mmio, pio) = (Arc::new(Bus::default()), Arc::new(Bus::default()));
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).expect("there is memory"));
        let console = Arc::new(Console::new().expect("there are file descriptors"));
        let terminal = ConsolePort::new(Arc::clone(&console)).expect("there are file descriptors");
        let legacy = legacy(&pio, &console);
        let events = Arc::new(Nowhere);
        let (bus, ports) = (Arc::clone(&mmio), Arc::clone(&pio));
        let open = |disk| godwit_provision::open_disk(disk).expect("the disk is there");
        let attach = |nic: &NicBacking| godwit_provision::attach(&nic.tap).expect("the tap is free");
        let disks = CONFIG.disks.iter().map(open).collect();
        let given = Given { terminal, disks, taps: CONFIG.nics.iter().map(attach).collect() };
        let pci =
            devices::build(&CONFIG, given, Arc::clone(&ram), Arc::clone(&events) as _, events, bus, ports)
                .expect("the devices of a valid configuration can be built");
        pci.take_locks(CONFIG.epoch).expect("no other process has this disk");
        Self { mmio, pio, ram, legacy, pci }
    }

    /// Every device that has a state.
    pub fn devices(&self) -> Vec<&Arc<dyn Device>> {
        self.legacy.iter().chain(self.pci.devices()).collect()
    }

    /// The balloon, as the operator sets it.
    pub fn set_balloon(&self, target: Bytes) {
        self.pci.set_balloon(target);
    }

    /// Writes guest memory where there is some.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        let _ = self.ram.write_slice(bytes, GuestAddress(address));
    }

    /// Waits a moment for an answer in the used ring at `used`.
    pub fn await_answer(&self, used: u64, before: u16) {
        let begun = Instant::now();
        while self.used_index(used) == before && begun.elapsed() < SERVING {
            std::thread::yield_now();
        }
    }

    /// How many answers a used ring holds.
    pub fn used_index(&self, used: u64) -> u16 {
        self.ram.read_obj(GuestAddress(used + 2)).unwrap_or(0)
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

fn legacy(pio: &Bus, console: &Arc<Console>) -> Vec<Arc<dyn Device>> {
    let interrupt = EventFd::new(0x800).expect("there are file descriptors");
    let serial = Arc::new(Serial::new(interrupt, Arc::clone(console)).expect("there are file descriptors"));
    let platform: Arc<dyn Platform> = Arc::new(Nowhere);
    let pm = Arc::new(Pm::new(Arc::clone(&platform), Box::new(|_| {})));
    let clock = Arc::new(Rtc::default());
    let keyboard = Arc::new(keyboard::Keyboard::new(platform));
    pio.insert(serial::BASE.into(), serial::PORTS, Arc::clone(&serial) as _)
        .and_then(|()| pio.insert(pm::BASE.into(), pm::PORTS, Arc::clone(&pm) as _))
        .and_then(|()| pio.insert(rtc::BASE.into(), rtc::PORTS, Arc::clone(&clock) as _))
        .and_then(|()| pio.insert(keyboard::PORT.into(), 1, keyboard))
        .expect("the ports are free");
    vec![serial, pm, clock]
}

fn config() -> VmmConfig {
    let folder = std::env::temp_dir().join(format!("godwit-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the folder for temporary files can be written");
    let path = folder.join("disk.raw");
    let disk = std::fs::File::create(&path).expect("the folder for temporary files can be written");
    disk.set_len(DISK_BYTES).expect("the folder for temporary files has room");
    let lock = folder.join("disk.raw.lock");
    let mac = "52:54:00:00:00:01".parse().expect("it is a MAC address");
    let nics = if make_tap() { vec![NicBacking { tap: TAP.into(), mac }] } else { Vec::new() };
    VmmConfig {
        vm: VmId(Uuid::from_u128(10)),
        name: "web1".parse().expect("it is a VM's name"),
        host: "a".parse().expect("it is a host's name"),
        epoch: Epoch(1),
        spec: VmSpec {
            vcpus: 1,
            memory: Bytes(RAM_BYTES as u64),
            boot: BootSpec {
                kernel: "shared/kernel".parse().expect("it is a place in a datastore"),
                initrd: None,
                cmdline: String::new(),
            },
            disks: Vec::new(),
            nics: Vec::new(),
            machine: MachineType::NEWEST,
            cpu: Default::default(),
        },
        control: PathBuf::new(),
        console_socket: PathBuf::new(),
        console_log: PathBuf::new(),
        kernel: PathBuf::new(),
        initrd: None,
        disks: vec![DiskBacking { path, lock, format: DiskFormat::Raw, read_only: false }],
        nics,
        role: Role::Boot,
        user: None,
        cgroup: None,
        descriptors: None,
        write_log: None,
    }
}

/// A tap in a network namespace of this process; without root there is no network card.
fn make_tap() -> bool {
    // SAFETY: the call changes only the namespace of this thread and of those that it starts.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return false;
    }
    let tap = ["tuntap", "add", TAP, "mode", "tap", "vnet_hdr"];
    [&tap[..], &["link", "set", TAP, "up"]]
        .iter()
        .all(|arguments| Command::new("ip").args(*arguments).status().is_ok_and(|status| status.success()))
}
