//! A VM: its specification, which travels with it, and the document that the API shows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::check::Finding;
use crate::cpu::CpuFacts;
use crate::ids::{Epoch, HostName, Name, TaskId, VmId, VmName};
use crate::units::Bytes;

/// Most vCPUs of one VM.
pub const VCPUS_MAX: u8 = 64;
/// Most disks, and most network cards, of one VM.
pub const DEVICES_PER_KIND_MAX: usize = 8;
/// Least and most memory of one VM.
pub const MEMORY_MIN: Bytes = Bytes::mib(16);
/// See [`MEMORY_MIN`].
pub const MEMORY_MAX: Bytes = Bytes::mib(1 << 20);
/// Longest kernel command line, in bytes (Linux's own limit on x86-64).
pub const CMDLINE_BYTES_MAX: usize = 2047;

/// Everything the guest can see of its machine. Carried by the VM from host to host, never derived
/// from the binary that runs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmSpec {
    pub vcpus: u8,
    pub memory: Bytes,
    pub boot: BootSpec,
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    #[serde(default)]
    pub nics: Vec<NicSpec>,
    #[serde(default)]
    pub machine: MachineType,
    #[serde(default)]
    pub cpu: CpuProfile,
}

/// A kernel that the VMM loads itself: a bzImage or an ELF with a PVH note, told apart by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BootSpec {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub kernel: DatastorePath,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub initrd: Option<DatastorePath>,
    #[serde(default)]
    pub cmdline: String,
}

/// The versioned, guest-visible machine: device list, PCI addresses and defaults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum MachineType {
    /// The first machine: PCI with virtio 1.2 devices, serial console, ACPI.
    #[default]
    #[serde(rename = "godwit-1")]
    Godwit1,
    /// The same, with a balloon that takes reports of free pages.
    #[serde(rename = "godwit-2")]
    Godwit2,
}

impl MachineType {
    /// All that this release runs.
    pub const ALL: [Self; 2] = [Self::Godwit1, Self::Godwit2];
    /// What a new VM is given. One whose documents name none is the first, as it always was.
    pub const NEWEST: Self = Self::Godwit2;

    /// Its name, as in documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Godwit1 => "godwit-1",
            Self::Godwit2 => "godwit-2",
        }
    }

    /// Whether its balloon takes reports of free pages.
    pub const fn reports_free_pages(self) -> bool {
        match self {
            Self::Godwit1 => false,
            Self::Godwit2 => true,
        }
    }
}

/// Which CPU the guest sees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum CpuProfile {
    /// What x86-64 psABI level v2 promises (SSE4.2, POPCNT, CX16) and nothing beyond: moves between any two such hosts.
    X86_64V2,
    /// Everything the host's KVM offers; moves only to hosts that offer at least the same.
    Host,
    /// What several hosts have in common: moves between any two that offer it.
    Baseline(Box<CpuFacts>),
    /// The cluster's baseline, or as `Host` where there is none. What that is, is settled when the VM is defined, and does not
    /// change with the cluster's any more.
    #[default]
    Cluster,
}

impl CpuProfile {
    /// What `host`, which offers `offer`, lacks for a guest with this profile: everything, and nothing if it fits.
    pub fn missing_on(&self, offer: &CpuFacts, host: &str) -> Vec<Finding> {
        match self {
            Self::Host | Self::Cluster => Vec::new(),
            Self::X86_64V2 => offer.below_x86_64_v2(host).into_iter().collect(),
            Self::Baseline(facts) => facts.missing_on(offer, host),
        }
    }

    /// What a guest with this profile sees that starts on a host that offers `offer`, as far as that can be said beforehand.
    pub fn seen_on(&self, offer: &CpuFacts) -> CpuFacts {
        match self {
            Self::Host | Self::Cluster => offer.clone(),
            Self::X86_64V2 => offer.x86_64_v2(),
            Self::Baseline(facts) => CpuFacts { tsc: offer.tsc, ..(**facts).clone() },
        }
    }
}

impl fmt::Display for CpuProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::X86_64V2 => f.write_str("x86-64-v2"),
            Self::Host => f.write_str("all that its first host offers"),
            Self::Baseline(facts) => {
                let features = facts.features.len() + facts.msr_features.len();
                write!(f, "a baseline of {features} features of {} CPUs", facts.vendor)
            }
            Self::Cluster => f.write_str("the cluster's baseline"),
        }
    }
}

/// A place in a datastore, written `datastore/path/to/file`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DatastorePath {
    pub datastore: Name,
    /// Relative, below the datastore's root; never leaves it.
    pub path: String,
}

/// Why a text is not a [`DatastorePath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a place in a datastore: write DATASTORE/PATH, such as shared/web1.raw, without '..' parts"
)]
pub struct InvalidDatastorePath(pub String);

impl FromStr for DatastorePath {
    type Err = InvalidDatastorePath;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidDatastorePath(text.to_owned());
        let (datastore, path) = text.split_once('/').ok_or_else(invalid)?;
        let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
        if !path.split('/').all(plain) {
            return Err(invalid());
        }
        Ok(Self { datastore: datastore.parse().map_err(|_| invalid())?, path: path.to_owned() })
    }
}

impl TryFrom<String> for DatastorePath {
    type Error = InvalidDatastorePath;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DatastorePath> for String {
    fn from(place: DatastorePath) -> Self {
        place.to_string()
    }
}

impl fmt::Display for DatastorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.datastore, self.path)
    }
}

/// One virtio disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DiskSpec {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub image: DatastorePath,
    #[serde(default)]
    pub format: DiskFormat,
    #[serde(default)]
    pub read_only: bool,
}

/// How a disk image is laid out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    #[default]
    Raw,
    Qcow2,
}

/// One virtio network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NicSpec {
    /// The named guest network it is plugged into.
    pub network: Name,
    /// The manager chooses one when the VM is created without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
}

/// A unicast Ethernet address, written `52:54:00:12:34:56`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", schema(value_type = String))]
pub struct MacAddress(pub [u8; 6]);

/// Why a text is not a [`MacAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a unicast MAC address: write six hex bytes, such as 52:54:00:12:34:56")]
pub struct InvalidMacAddress(pub String);

impl FromStr for MacAddress {
    type Err = InvalidMacAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidMacAddress(text.to_owned());
        let bytes: Vec<u8> = text.split(':').map(hex_byte).collect::<Option<_>>().ok_or_else(invalid)?;
        let bytes: [u8; 6] = bytes.try_into().map_err(|_| invalid())?;
        if bytes[0] & 1 == 1 || bytes == [0; 6] { Err(invalid()) } else { Ok(Self(bytes)) }
    }
}

fn hex_byte(text: &str) -> Option<u8> {
    // `from_str_radix` alone would take "+6".
    let plain = text.len() == 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u8::from_str_radix(text, 16).ok()).flatten()
}

impl TryFrom<String> for MacAddress {
    type Error = InvalidMacAddress;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Why a [`VmSpec`] cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidVmSpec {
    #[error("a VM has 1 to {VCPUS_MAX} vCPUs, not {0}")]
    Vcpus(u8),
    #[error("a VM has {MEMORY_MIN} to {MEMORY_MAX} of memory in whole MiB, not {0}")]
    Memory(Bytes),
    #[error("a VM has at most {DEVICES_PER_KIND_MAX} {kind}, not {count}")]
    TooMany { kind: &'static str, count: usize },
    #[error("the kernel command line has {0} bytes; at most {CMDLINE_BYTES_MAX} are allowed")]
    Cmdline(usize),
    #[error("the disk {0} is listed twice")]
    DiskTwice(DatastorePath),
}

impl VmSpec {
    /// Checks the bounds that hold on any host.
    pub fn validate(&self) -> Result<(), InvalidVmSpec> {
        if self.vcpus == 0 || self.vcpus > VCPUS_MAX {
            return Err(InvalidVmSpec::Vcpus(self.vcpus));
        }
        let whole_mib = self.memory.0.is_multiple_of(Bytes::mib(1).0);
        if !whole_mib || self.memory < MEMORY_MIN || self.memory > MEMORY_MAX {
            return Err(InvalidVmSpec::Memory(self.memory));
        }
        for (kind, count) in [("disks", self.disks.len()), ("network cards", self.nics.len())] {
            if count > DEVICES_PER_KIND_MAX {
                return Err(InvalidVmSpec::TooMany { kind, count });
            }
        }
        if self.boot.cmdline.len() > CMDLINE_BYTES_MAX {
            return Err(InvalidVmSpec::Cmdline(self.boot.cmdline.len()));
        }
        for (index, disk) in self.disks.iter().enumerate() {
            if self.disks[..index].iter().any(|other| other.image == disk.image) {
                return Err(InvalidVmSpec::DiskTwice(disk.image.clone()));
            }
        }
        Ok(())
    }
}

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Defined, not running anywhere.
    Stopped,
    Starting,
    Running,
    Stopping,
    /// Running, and on its way to another host.
    Migrating,
    /// Its process ended without being asked to.
    Crashed,
    /// Its host cannot be reached, so nobody can tell.
    Unknown,
}

/// A request to define a VM: `POST /v1/vms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateVm {
    pub name: VmName,
    pub spec: VmSpec,
}

/// A request to start a VM: `POST /v1/vms/{vm}/start`. To stop one: [`crate::agent::StopVm`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StartRequest {
    /// Where; without it the manager picks a host that can run the VM.
    #[serde(default)]
    pub host: Option<HostName>,
}

/// A VM as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Vm {
    pub id: VmId,
    pub name: VmName,
    pub spec: VmSpec,
    pub state: VmState,
    /// The host that may run it now, or last could.
    pub owner: Option<HostName>,
    pub epoch: Epoch,
    /// The task that is busy with it, if any.
    pub task: Option<TaskId>,
    /// What last happened to it, in plain words.
    pub last_event: Option<String>,
    /// What it uses, if it runs and that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<crate::usage::VmUsage>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_path_cannot_leave_its_datastore() {
        for bad in ["shared", "shared/", "/etc/passwd", "shared/../x", "shared//x", "shared/./x", "sh ared/x"]
        {
            assert!(bad.parse::<DatastorePath>().is_err(), "{bad:?} was accepted");
        }
        let place: DatastorePath = "shared/vms/web1.raw".parse().unwrap();
        assert_eq!((place.datastore.as_str(), place.path.as_str()), ("shared", "vms/web1.raw"));
        assert_eq!(place.to_string(), "shared/vms/web1.raw");
    }

    #[test]
    fn multicast_short_and_odd_mac_addresses_are_refused() {
        for bad in ["", "52:54:00:12:34", "01:00:5e:00:00:01", "52:54:00:12:34:5", "52:54:00:12:34:+6"] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad:?} was accepted");
        }
        assert_eq!("52:54:00:AB:cd:01".parse::<MacAddress>().unwrap().to_string(), "52:54:00:ab:cd:01");
    }
}
