//! What the demo and the tests do with VMs, in the words of the command line.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use godwit_guest_contract::BURST_US;
use godwit_types::host::{Host, HostState};
use godwit_types::task::Task;
use godwit_types::vm::{DiskFormat, Vm, VmState};
use godwit_types::{Bytes, HostName};

use super::{Cli, Cluster, DATASTORE, NETWORK, NETWORK_PREFIX_BITS};
use crate::{LabError, Result, exec};

/// How long a VM may take to start or stop, emulated hosts included.
const START_STOP_LIMIT: Duration = Duration::from_secs(180);
/// How long a migration may take, emulated hosts included.
pub const MIGRATION_LIMIT: Duration = Duration::from_secs(600);

/// A guest's files, as paths in [`DATASTORE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestPlace {
    pub kernel: String,
    pub initrd: Option<String>,
    /// What its command line begins with.
    pub cmdline: String,
}

/// A VM to be made from a guest's files. Its one disk is `NAME.raw` or `NAME.qcow2`.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    pub name: String,
    pub vcpus: u8,
    pub memory: Bytes,
    pub disk: Bytes,
    pub disk_format: DiskFormat,
    /// Its address on [`NETWORK`].
    pub address: Ipv4Addr,
    /// `godwit.ws`.
    pub working_set: Bytes,
    /// `godwit.rate`: pages per second, 0 for as fast as it can, or `idle`.
    pub rate: String,
    /// `godwit.burst`: microseconds.
    pub burst_us: u64,
    /// `godwit.content`: `zero`, `compressible` or `random`.
    pub content: String,
    /// The raw image of a second disk, which is copied, with a system of its own whose program runs in the guest.
    pub service: Option<PathBuf>,
}

impl GuestOptions {
    /// A small VM with the given name at 10.77.0.10.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            vcpus: 1,
            memory: Bytes::mib(256),
            disk: Bytes::mib(32),
            disk_format: DiskFormat::Raw,
            address: Ipv4Addr::new(10, 77, 0, 10),
            working_set: Bytes::mib(64),
            rate: "500".into(),
            burst_us: BURST_US,
            content: "compressible".into(),
            service: None,
        }
    }

    /// The disk's path in [`DATASTORE`].
    pub fn disk_path(&self) -> String {
        match self.disk_format {
            DiskFormat::Raw => format!("{}.raw", self.name),
            DiskFormat::Qcow2 => format!("{}.qcow2", self.name),
        }
    }

    fn cmdline(&self, place: &GuestPlace) -> String {
        let Self { address, working_set, rate, burst_us, content, .. } = self;
        let ours = format!(
            "godwit.ip={address}/{NETWORK_PREFIX_BITS} godwit.ws={working_set} godwit.rate={rate} godwit.burst={burst_us} \
             godwit.content={content}"
        );
        let service = if self.service.is_some() { " godwit.service=on" } else { "" };
        let ours = format!("{ours}{service}");
        if place.cmdline.is_empty() { ours } else { format!("{} {ours}", place.cmdline) }
    }
}

/// The verbs, for any cluster.
impl dyn Cluster + '_ {
    /// The command line that reaches this cluster's manager.
    pub fn cli(&self) -> Cli<'_> {
        Cli::new(self.access())
    }

    /// Defines a VM and makes an empty disk for it.
    pub fn create(&self, place: &GuestPlace, guest: &GuestOptions) -> Result<Vm> {
        self.create_in(place, guest, (DATASTORE, self.datastore()))
    }

    /// The same, with the disk in another datastore, whose directory is named beside it.
    pub fn create_in(
        &self,
        place: &GuestPlace,
        guest: &GuestOptions,
        (datastore, directory): (&str, &Path),
    ) -> Result<Vm> {
        let image = directory.join(guest.disk_path());
        match guest.disk_format {
            DiskFormat::Raw => make_raw(&image, guest.disk)?,
            DiskFormat::Qcow2 => crate::load::qcow2::create(&image, guest.disk)?,
        }
        let format = if guest.disk_format == DiskFormat::Raw { "raw" } else { "qcow2" };
        let (vcpus, memory) = (guest.vcpus.to_string(), guest.memory.to_string());
        let kernel = format!("{DATASTORE}/{}", place.kernel);
        let disk = format!("{datastore}/{},format={format}", guest.disk_path());
        let (nic, cmdline) = (format!("network={NETWORK}"), guest.cmdline(place));
        let mut verb = vec!["vm", "create", &guest.name, "--kernel", &kernel, "--vcpus", &vcpus];
        verb.extend(["--memory", &memory, "--disk", &disk, "--nic", &nic, "--cmdline", &cmdline]);
        let service = format!("{datastore}/{}-service.raw", guest.name);
        if let Some(image) = &guest.service {
            let copy = directory.join(format!("{}-service.raw", guest.name));
            std::fs::copy(image, &copy).map_err(LabError::io(format!("copy to {}", copy.display())))?;
            verb.extend(["--disk", &service]);
        }
        let initrd = place.initrd.as_ref().map(|path| format!("{DATASTORE}/{path}"));
        if let Some(initrd) = &initrd {
            verb.extend(["--initrd", initrd]);
        }
        self.cli().ask(&verb)
    }

    /// Starts a VM on a host, and waits until its process runs.
    pub fn start(&self, vm: &str, host: &HostName) -> Result<()> {
        let verb = ["vm", "start", vm, "--host", host.as_str()];
        self.cli().text(&verb, START_STOP_LIMIT).map(drop)
    }

    /// Ends a VM at once, and waits until its process is gone.
    pub fn stop(&self, vm: &str) -> Result<()> {
        self.cli().text(&["vm", "stop", vm, "--force"], START_STOP_LIMIT).map(drop)
    }

    /// Migrates a VM, and waits for the end. The final task, with its report.
    pub fn migrate(&self, vm: &str, to: &HostName, more: &[&str]) -> Result<Task> {
        let verb = [&["vm", "migrate", vm, "--to", to.as_str()], more].concat();
        self.cli().wait_for(&verb, MIGRATION_LIMIT)
    }

    /// Begins to migrate a VM. The task, hardly begun.
    pub fn migrate_detached(&self, vm: &str, to: &HostName, more: &[&str]) -> Result<Task> {
        self.cli().ask(&[&["vm", "migrate", vm, "--to", to.as_str(), "--detach"], more].concat())
    }

    /// A task as it is now.
    pub fn task(&self, task: &Task) -> Result<Task> {
        self.cli().ask(&["task", "show", &task.id.to_string()])
    }

    /// Waits until `reached` holds for a task.
    pub fn await_task(
        &self,
        task: &Task,
        what: &str,
        limit: Duration,
        reached: impl Fn(&Task) -> bool,
    ) -> Result<Task> {
        let found = exec::poll(limit, exec::POLL_COMMAND, || Ok(Some(self.task(task)?).filter(&reached)))?;
        found.ok_or_else(|| self.timeout(format!("the migration of {}: {what}", task.subject()), limit))
    }

    /// A VM as it is now.
    pub fn vm(&self, vm: &str) -> Result<Vm> {
        self.cli().ask(&["vm", "show", vm])
    }

    /// Checks that a VM runs on a host, and nowhere else in the manager's mind.
    pub fn assert_runs_on(&self, vm: &str, host: &HostName) -> Result<()> {
        let shown = self.vm(vm)?;
        if shown.state == VmState::Running && shown.owner.as_ref() == Some(host) {
            return Ok(());
        }
        let owner = shown.owner.map_or("nowhere".into(), |owner| owner.to_string());
        Err(LabError::Broken(format!("{vm} should run on {host}, but is {:?} on {owner}", shown.state)))
    }

    /// Waits until the manager has heard from all hosts since the call.
    pub fn await_hosts(&self, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        let wanted = self.hosts().len();
        let up = exec::poll(limit, exec::POLL_COMMAND, || {
            let hosts: Vec<Host> = match self.cli().ask(&["host", "ls"]) {
                Ok(hosts) => hosts,
                Err(LabError::Cli(_)) => return Ok(None),
                Err(error) => return Err(error),
            };
            let heard = |host: &&Host| Duration::from_millis(host.last_seen_ms) < begun.elapsed();
            let up = hosts.iter().filter(|host| host.state == HostState::Up).filter(heard).count();
            Ok((up == wanted).then_some(()))
        })?;
        up.ok_or_else(|| self.timeout(format!("{wanted} hosts up"), limit))
    }

    fn timeout(&self, what: String, limit: Duration) -> LabError {
        LabError::Timeout { what, limit, logs: PathBuf::from(self.logs()) }
    }
}

fn make_raw(path: &std::path::Path, size: Bytes) -> Result<()> {
    let file = File::create_new(path).map_err(LabError::io(format!("create {}", path.display())))?;
    file.set_len(size.0).map_err(LabError::io(format!("grow {}", path.display())))
}
