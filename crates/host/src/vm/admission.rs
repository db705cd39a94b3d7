//! Whether this host can run a VM: every reason against it at once, before anything is touched.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use godwit_provision::lock_of;
use godwit_types::check::{self, Check, Finding};
use godwit_types::control::{DiskBacking, NicBacking};
use godwit_types::host::{KvmFacts, KvmFlavour};
use godwit_types::lock::LockRecord;
use godwit_types::vm::{DatastorePath, DiskSpec, NicSpec, VmSpec};
use godwit_types::{ApiError, Bytes, Epoch, HostName, VmId};
use nix::unistd::{AccessFlags, access};

use super::places;
use crate::config::HostConfig;
use crate::net::Port;

/// Memory that a VM's process needs beside the guest's own.
const OVERHEAD: Bytes = Bytes::mib(64);

/// What a host provides for a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backing {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) disks: Vec<DiskBacking>,
    pub(crate) nics: Vec<NicBacking>,
    pub(crate) ports: Vec<Port>,
}

/// The VM, and what there is for it.
#[derive(Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) config: &'a HostConfig,
    pub(crate) vm: VmId,
    pub(crate) spec: &'a VmSpec,
    pub(crate) epoch: Epoch,
    /// Disks, by their numbers, whose contents arrive with the VM.
    pub(crate) arriving: &'a BTreeSet<u32>,
    /// Images that were made here for an earlier arrival of it, which the next replaces.
    pub(crate) made: Vec<PathBuf>,
    pub(crate) kvm: KvmFacts,
    /// Memory that is neither in use nor promised to another VM.
    pub(crate) memory: Bytes,
}

impl Candidate<'_> {
    /// Finds everything that the VM needs, or all the reasons why this host cannot run it.
    pub(crate) fn examine(&self) -> Result<Backing, Vec<Finding>> {
        let mut found = Vec::new();
        found.extend(self.invalid());
        found.extend(self.without_kvm());
        found.extend(self.without_memory());
        let mut keep = |result: Result<PathBuf, Finding>| result.map_err(|finding| found.push(finding)).ok();
        let kernel = keep(self.file(&self.spec.boot.kernel, false));
        let initrd = self.spec.boot.initrd.as_ref().map(|initrd| keep(self.file(initrd, false)));
        let disks = self.disks().map_err(|lacking| found.extend(lacking)).ok();
        let ports =
            self.spec.nics.iter().enumerate().map(|(index, nic)| self.port(index, nic)).collect::<Vec<_>>();
        found.extend(ports.iter().filter_map(|port| port.as_ref().err().cloned()));
        match (kernel, disks) {
            (Some(kernel), Some(disks)) if found.is_empty() => {
                let ports: Vec<Port> = ports.into_iter().flatten().collect();
                let nics =
                    ports.iter().map(|port| NicBacking { tap: port.tap.clone(), mac: port.mac }).collect();
                Ok(Backing { kernel, initrd: initrd.flatten(), disks, nics, ports })
            }
            _ => Err(found),
        }
    }

    /// Where the VM's disks lie, or everything that keeps this host from using them.
    pub(crate) fn disks(&self) -> Result<Vec<DiskBacking>, Vec<Finding>> {
        let (mut disks, mut found) = (Vec::new(), Vec::new());
        for (index, disk) in (0..).zip(&self.spec.disks) {
            match self.disk(index, disk) {
                Ok(disk) => disks.push(disk),
                Err(finding) => found.push(finding),
            }
        }
        if found.is_empty() { Ok(disks) } else { Err(found) }
    }

    fn invalid(&self) -> Option<Finding> {
        let error = self.spec.validate().err()?;
        Some(Finding::blocked(Check::Machine, error.to_string(), "define the VM anew: godwit vm create"))
    }

    fn without_kvm(&self) -> Option<Finding> {
        let name = &self.config.name;
        (self.kvm.flavour == KvmFlavour::None).then(|| {
            let limits = self.kvm.limits.as_deref().unwrap_or("there is no usable /dev/kvm");
            Finding::no_virtualisation(name, limits)
        })
    }

    fn without_memory(&self) -> Option<Finding> {
        let (name, needed) = (&self.config.name, needed(self.spec));
        (needed > self.memory).then(|| {
            let reason = format!(
                "the VM needs {needed} of memory, and of that of {name} {} is neither in use nor promised to other VMs",
                self.memory
            );
            Finding::no_memory(name, reason)
        })
    }

    fn disk(&self, index: u32, disk: &DiskSpec) -> Result<DiskBacking, Finding> {
        let arrives = self.arriving.contains(&index);
        let path = match arrives {
            true => places::to_arrive(self.config, (self.vm, self.epoch), &disk.image, &self.made)?,
            false => self.file(&disk.image, !disk.read_only)?,
        };
        let lock = lock_of(&path);
        if !disk.read_only && !arrives {
            self.lock(disk, &lock)?;
        }
        Ok(DiskBacking { path, lock, format: disk.format, read_only: disk.read_only })
    }

    /// The lock file is created with the first start, and must not name a later owner.
    fn lock(&self, disk: &DiskSpec, lock: &Path) -> Result<(), Finding> {
        let name = &self.config.name;
        let unusable = |error: io::Error| {
            let reason = format!("{name} cannot use the lock file of the disk {}: {error}", disk.image);
            Finding::blocked(Check::Disks, reason, "let root of every host write to the datastore")
        };
        match fs::read(lock) {
            Ok(_) => drop(OpenOptions::new().write(true).open(lock).map_err(unusable)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let directory = lock.parent().unwrap_or(Path::new("/"));
                access(directory, AccessFlags::W_OK).map_err(|errno| unusable(errno.into()))?;
                return Ok(());
            }
            Err(error) => return Err(unusable(error)),
        }
        // What cannot be read is judged by the VMM, which alone takes the lock.
        let Some(current) = places::record(lock) else { return Ok(()) };
        let ours =
            LockRecord { vm: self.vm, host: self.config.name.clone(), epoch: self.epoch, ran_on_after: None };
        ours.may_replace(&current).map_err(|refused| {
            let remedy = format!("find out who writes to {}: it must be one VM's alone", disk.image);
            Finding::blocked(Check::Disks, format!("the disk {}: {refused}", disk.image), remedy)
        })
    }

    /// The place of a file in a datastore, if it can be opened.
    fn file(&self, place: &DatastorePath, write: bool) -> Result<PathBuf, Finding> {
        let (name, wanted) = (&self.config.name, &place.datastore);
        let datastore = self.config.datastores.iter().find(|datastore| datastore.name == *wanted);
        let datastore = datastore.ok_or_else(|| Finding::no_datastore(name, wanted))?;
        let unusable = |reason: String| {
            let remedy =
                format!("check the mount of '{wanted}' on {name}, and the file: all hosts see the same");
            Finding::blocked(Check::Disks, reason, remedy)
        };
        let unreachable = |error: io::Error| {
            unusable(format!("{name} cannot open {place} in {}: {error}", datastore.path.display()))
        };
        let root = datastore.path.canonicalize().map_err(unreachable)?;
        let path = root.join(&place.path).canonicalize().map_err(unreachable)?;
        if !path.starts_with(&root) {
            return Err(unusable(format!("{place} leads out of the datastore by a symbolic link")));
        }
        let file = OpenOptions::new().read(true).write(write).open(&path).map_err(unreachable)?;
        let regular = file.metadata().map_err(unreachable)?.is_file();
        if regular { Ok(path) } else { Err(unusable(format!("{place} is not a file"))) }
    }

    fn port(&self, index: usize, nic: &NicSpec) -> Result<Port, Finding> {
        let network = self.config.networks.iter().find(|network| network.name == nic.network);
        let network = network.ok_or_else(|| Finding::no_network(&self.config.name, &nic.network))?;
        let mac = nic.mac.ok_or_else(|| {
            let reason = format!("its network card {index} has no MAC address");
            Finding::blocked(Check::Networks, reason, "define the VM anew: godwit vm create")
        })?;
        let (bridge, uplink) = (network.bridge.clone(), network.uplink.clone());
        Ok(Port { tap: tap_name(self.vm, index), mac, bridge, uplink })
    }
}

/// The memory of a VM and of its process.
pub(crate) fn needed(spec: &VmSpec) -> Bytes {
    Bytes(spec.memory.0.saturating_add(OVERHEAD.0))
}

/// The reasons in one error.
pub(crate) fn refusal(host: &HostName, found: &[Finding]) -> ApiError {
    check::refuse(&format!("{host} cannot run this VM"), found)
        .expect_err("what is found against a VM blocks it")
}

/// At most 15 bytes, and the same whenever the VM is here, so that one that was left over is found.
fn tap_name(vm: VmId, nic: usize) -> String {
    format!("gw{:08x}n{nic}", vm.0.as_u128() as u32)
}

#[cfg(test)]
pub(super) mod tests {
    use godwit_types::vm::{BootSpec, DEVICES_PER_KIND_MAX, MacAddress};
    use godwit_types::{ErrorCode, Name};
    use uuid::Uuid;

    use super::*;
    use crate::config::{DatastoreConfig, NetworkConfig};

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    pub(in crate::vm) fn config(datastore: &Path) -> HostConfig {
        HostConfig {
            name: name("b"),
            manager: "http://127.0.0.1:1".parse().unwrap(),
            token_file: PathBuf::new(),
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: "127.0.0.1:0".parse().unwrap(),
            migration_address: "127.0.0.1".parse().unwrap(),
            state_dir: PathBuf::new(),
            networks: vec![NetworkConfig { name: name("guests"), bridge: "br0".to_owned(), uplink: None }],
            datastores: vec![DatastoreConfig { name: name("shared"), path: datastore.to_owned() }],
            vm_users: 1..=1,
            keep: None,
            cgroup: PathBuf::new(),
            moves_max: None,
            bandwidth_bytes_per_s_max: None,
            standby: vec![],
            vmm: None,
        }
    }

    fn spec() -> VmSpec {
        let disk = DiskSpec {
            image: "shared/web1.raw".parse().unwrap(),
            format: Default::default(),
            read_only: false,
        };
        let boot =
            BootSpec { kernel: "shared/vmlinuz".parse().unwrap(), initrd: None, cmdline: String::new() };
        let nic = NicSpec { network: name("guests"), mac: Some(MacAddress([0x52, 0x54, 0, 0, 0, 1])) };
        VmSpec {
            vcpus: 1,
            memory: Bytes::mib(256),
            boot,
            disks: vec![disk],
            nics: vec![nic],
            machine: Default::default(),
            cpu: Default::default(),
        }
    }

    fn admit(
        config: &HostConfig,
        spec: &VmSpec,
        memory: Bytes,
        flavour: KvmFlavour,
    ) -> Result<Backing, ApiError> {
        let kvm = KvmFacts { flavour, limits: None };
        let vm = VmId(Uuid::from_u128(0xdead_0123_4567));
        let arriving = &BTreeSet::new();
        let candidate =
            Candidate { config, vm, spec, epoch: Epoch(2), arriving, made: Vec::new(), kvm, memory };
        candidate.examine().map_err(|found| refusal(&config.name, &found))
    }

    fn datastore() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in ["vmlinuz", "web1.raw"] {
            fs::write(dir.path().join(file), "x").unwrap();
        }
        dir
    }

    #[test]
    fn a_host_with_everything_says_where_it_is() {
        let store = datastore();
        let backing = admit(&config(store.path()), &spec(), Bytes::mib(320), KvmFlavour::Svm).unwrap();
        let root = store.path().canonicalize().unwrap();
        assert_eq!(backing.kernel, root.join("vmlinuz"));
        assert_eq!(backing.disks[0].lock, root.join("web1.raw.lock"));
        assert_eq!(backing.nics[0].tap, "gw01234567n0");
        assert!(tap_name(VmId(Uuid::max()), DEVICES_PER_KIND_MAX - 1).len() <= 15);
    }

    #[test]
    fn a_refusal_names_every_reason_at_once() {
        let store = datastore();
        let mut spec = spec();
        spec.nics[0].network = name("dmz");
        spec.disks[0].image = "shared/missing.raw".parse().unwrap();
        spec.boot.kernel = "iso/vmlinuz".parse().unwrap();
        let refused = admit(&config(store.path()), &spec, Bytes::mib(64), KvmFlavour::None).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Refused);
        for reason in ["dmz", "missing.raw", "datastore 'iso'", "320MiB", "/dev/kvm"] {
            assert!(refused.message.contains(reason), "{reason} is not in: {refused}");
        }
        assert!(refused.remedy.is_some());
    }

    #[test]
    fn a_disk_that_another_host_took_at_a_later_epoch_is_refused() {
        let store = datastore();
        let record = |epoch| {
            let vm = VmId(Uuid::from_u128(0xdead_0123_4567));
            let record = LockRecord { vm, host: name("a"), epoch: Epoch(epoch), ran_on_after: None };
            let mut bytes = serde_json::to_vec(&record).unwrap();
            bytes.resize(512, 0);
            fs::write(store.path().join("web1.raw.lock"), bytes).unwrap();
        };
        record(1);
        assert!(admit(&config(store.path()), &spec(), Bytes::mib(320), KvmFlavour::Svm).is_ok());
        record(3);
        let refused = admit(&config(store.path()), &spec(), Bytes::mib(320), KvmFlavour::Svm).unwrap_err();
        assert!(refused.message.contains("moved on"), "{refused}");
    }

    #[test]
    fn a_symbolic_link_does_not_lead_out_of_a_datastore() {
        let (store, outside) = (datastore(), datastore());
        fs::remove_file(store.path().join("web1.raw")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("web1.raw"), store.path().join("web1.raw")).unwrap();
        let refused = admit(&config(store.path()), &spec(), Bytes::mib(320), KvmFlavour::Svm).unwrap_err();
        assert!(refused.message.contains("symbolic link"), "{refused}");
    }
}
