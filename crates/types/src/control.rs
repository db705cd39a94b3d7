//! The control socket of `godwit-vmm`: a Unix stream socket that carries one JSON document per line.
//!
//! The client sends [`Request`] lines; the VMM answers each with one [`Reply`] line, in order. After
//! [`Request::Subscribe`] the same connection also carries [`Notice`] lines, told apart by their key:
//!
//! ```text
//! -> {"request":"status"}
//! <- {"reply":"status", ...}
//! -> {"request":"subscribe"}
//! <- {"reply":"done"}
//! <- {"notice":"state","state":"running"}
//! <- {"notice":"question","question":{"ask":"commit", ...}}
//! -> {"request":"answer","migration":"...","verdict":{"verdict":"granted","epoch":2}}
//! <- {"reply":"done"}
//! ```
//!
//! A subscriber first receives the current state and every question that is still open, so an agent that was
//! restarted misses nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::capability::GuestFacts;
use crate::error::ApiError;
use crate::forecast::Survey;
use crate::ids::{Epoch, HostName, MigrationId, VmId, VmName};
use crate::key::MigrationKey;
use crate::migration::{Budget, MigrationOutcome, MigrationProgress};
use crate::ownership::{Verdict, Witness};
use crate::storage::StorageStatus;
use crate::units::Bytes;
use crate::vm::{DatastorePath, DiskFormat, MacAddress, VmSpec};

/// Longest line on the control socket, in bytes.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// Bytes of the virtio header (`virtio_net_hdr_v1`) in front of every frame of a tap.
pub const TAP_HEADER_BYTES: i32 = 12;
/// Most page streams of a migration that is told nothing else.
const PAGE_STREAMS_DEFAULT_MAX: usize = 8;
/// Cores for each page stream: one that sends keeps one busy, and the guest goes on meanwhile.
const CORES_PER_PAGE_STREAM: usize = 4;
/// Connections that one [`Request::MigrateOut`] may bring.
pub const MIGRATION_CONNECTIONS_MAX: usize = 33;
/// Descriptors that each of [`CopyDisks::disks`] comes with.
pub const COPY_DESCRIPTORS: usize = 4;
/// The exit code of a process that its sandbox has stopped, as shells have it for SIGSYS.
pub const SANDBOX_EXIT_CODE: i32 = 128 + 31;

/// Page streams of one of `moves` migrations that are under way from a host with so many cores: together they have no more
/// than one alone, as long as each has one.
pub fn page_streams(cores: usize, moves: usize) -> u32 {
    let all = (cores / CORES_PER_PAGE_STREAM).min(PAGE_STREAMS_DEFAULT_MAX);
    (all / moves.max(1)).max(1) as u32
}

/// What `godwit-vmm --config FILE` is given: the VM's specification and what this host provides for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmConfig {
    pub vm: VmId,
    pub name: VmName,
    pub host: HostName,
    /// The epoch at which this process runs the VM; for [`Role::Incoming`], at which it will.
    pub epoch: Epoch,
    pub spec: VmSpec,
    /// The control socket to create.
    pub control: PathBuf,
    /// Serial console: a Unix socket to create, and a log to append to.
    pub console_socket: PathBuf,
    pub console_log: PathBuf,
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    /// One for each disk of the specification, in order.
    pub disks: Vec<DiskBacking>,
    /// One for each network card of the specification, in order.
    pub nics: Vec<NicBacking>,
    pub role: Role,
    /// The user and group that the process becomes; of no other VM on this host. None: it stays its agent's.
    #[serde(default)]
    pub user: Option<u32>,
    /// The cgroup that it joins, made and removed by the agent.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// The descriptors that it inherits, by their numbers. Paths are for messages, and for the agent's own use.
    #[serde(default)]
    pub descriptors: Option<Descriptors<i32>>,
    /// How the guest's writes are logged; none: the best way that this host's KVM knows. For tests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_log: Option<WriteLog>,
}

/// A way in which KVM logs what a guest writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "form", rename_all = "snake_case")]
pub enum WriteLog {
    /// One bit for each page.
    Bitmap,
    /// A ring for each vCPU with so many entries, a power of two; a bitmap where KVM has no rings.
    Rings { entries: u32 },
}

/// Everything that the process is given open, since it opens nothing itself: `D` is a descriptor or its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptors<D> {
    pub kvm: D,
    pub kernel: D,
    pub initrd: Option<D>,
    /// One for each disk of the specification, in order.
    pub disks: Vec<DiskDescriptors<D>>,
    /// One for each network card of the specification, in order.
    pub taps: Vec<D>,
    /// Bound, for the process to listen on.
    pub control: D,
    pub console: D,
    pub console_log: D,
    /// Of an incoming VM: the TCP socket that listens for its source.
    pub migration: Option<D>,
    /// Of an incoming VM: `/dev/userfaultfd`, if this host has it.
    #[serde(default = "none")]
    pub userfault: Option<D>,
    /// Of an incoming VM: a memory file with what this host has kept of its memory, and to keep it in if it does not arrive.
    #[serde(default = "none")]
    pub kept: Option<D>,
    /// The file that takes the process into its cgroup.
    pub cgroup: Option<D>,
}

fn none<D>() -> Option<D> {
    None
}

/// What belongs to one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDescriptors<D> {
    /// The guest's image, then its backing files, each under the name by which the one before asks for it.
    pub images: Vec<(PathBuf, D)>,
    /// None if the guest may only read.
    pub lock: Option<D>,
}

impl<D> Descriptors<D> {
    /// Turns each descriptor into something else.
    pub fn map<E, X>(self, mut change: impl FnMut(D) -> Result<E, X>) -> Result<Descriptors<E>, X> {
        let mut disks = Vec::new();
        for disk in self.disks {
            let images = disk.images.into_iter().map(|(path, image)| Ok((path, change(image)?)));
            let images = images.collect::<Result<_, X>>()?;
            disks.push(DiskDescriptors { images, lock: disk.lock.map(&mut change).transpose()? });
        }
        Ok(Descriptors {
            kvm: change(self.kvm)?,
            kernel: change(self.kernel)?,
            initrd: self.initrd.map(&mut change).transpose()?,
            disks,
            taps: self.taps.into_iter().map(&mut change).collect::<Result<_, X>>()?,
            control: change(self.control)?,
            console: change(self.console)?,
            console_log: change(self.console_log)?,
            migration: self.migration.map(&mut change).transpose()?,
            userfault: self.userfault.map(&mut change).transpose()?,
            kept: self.kept.map(&mut change).transpose()?,
            cgroup: self.cgroup.map(&mut change).transpose()?,
        })
    }
}

/// Whether the VM boots here or arrives here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Role {
    /// Takes the disk locks, boots and runs at once.
    Boot,
    /// Builds the machine, opens the disks without taking their locks, listens, waits for the source.
    Incoming {
        migration: MigrationId,
        listen: SocketAddr,
        /// See [`PrepareIncoming::key`](crate::agent::PrepareIncoming::key).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<MigrationKey>,
        /// Disks, by their numbers, whose images are new and empty: what they hold arrives with the VM.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        disks: BTreeSet<u32>,
    },
}

/// A disk image on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskBacking {
    pub path: PathBuf,
    /// The lock file beside the image; see [`crate::lock`].
    pub lock: PathBuf,
    pub format: DiskFormat,
    pub read_only: bool,
}

/// A tap device on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicBacking {
    /// The name of a persistent tap that the agent has made.
    pub tap: String,
    pub mac: MacAddress,
}

/// What a client asks of the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Answered by [`Reply::Status`].
    Status,
    /// Answered by [`Reply::Guest`].
    Guest,
    /// Watches what the guest writes for `sample_ms` milliseconds. Answered by [`Reply::Survey`], sooner if a migration
    /// away begins meanwhile; refused while one is under way.
    Survey { sample_ms: u32 },
    /// Answered by [`Reply::Done`]; notices follow.
    Subscribe,
    /// Presses the ACPI power button.
    PowerButton,
    /// Resets the machine as its reset button would.
    Reset,
    /// Ends the VM at once: disks flushed, locks dropped, process gone.
    Quit,
    /// Asks the balloon to hold this much of the guest's memory.
    Balloon { target: Bytes },
    /// Starts a migration away, over the connections to `address` that come with this line as descriptors
    /// (`SCM_RIGHTS`): the control connection first, then one for each page stream. Answered by [`Reply::Done`] once it has
    /// begun, or by [`Reply::Error`] with the reason why it cannot; its end arrives as [`Notice::MigrationEnded`].
    MigrateOut {
        migration: MigrationId,
        destination: HostName,
        address: SocketAddr,
        /// See [`StartOutgoing::key`](crate::agent::StartOutgoing::key).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<MigrationKey>,
        /// A memory file comes with it, as the last descriptor, into which memory goes once the VM has left.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        keep: bool,
        /// Disks, by their numbers, that move with the VM.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        disks: BTreeSet<u32>,
        budget: Budget,
    },
    /// Answers [`Notice::Disconnected`]: new connections, as with [`Request::MigrateOut`], or why there are none.
    Reconnect {
        migration: MigrationId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<ApiError>,
    },
    /// Changes what the migration away may send while its guest runs, in bytes per second; none is no cap. While the guest
    /// stands it is never held back.
    SetBandwidth {
        migration: MigrationId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes_per_s_max: Option<u64>,
    },
    /// Cancels the migration away. Refused once the commit has been asked for.
    CancelMigration { migration: MigrationId },
    /// What becomes of disks that move to other places on this host. Answered by [`Reply::Storage`], or by [`Reply::Error`]:
    /// then nothing has changed.
    Storage { migration: MigrationId, order: StorageOrder },
    /// The arbiter's answer to an open [`Question`].
    Answer { migration: MigrationId, verdict: Verdict },
}

/// What to do with disks that move to other places on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum StorageOrder {
    /// Begin. The descriptors of each disk's new image and of its lock file come with the line, in order.
    Begin {
        disks: Vec<NewPlace>,
        /// Bytes per second to copy; none is no cap.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes_per_s_max: Option<u64>,
    },
    /// Say how it gets on.
    Look,
    /// Let nothing but the next order end it. Refused if it is not in sync. Asking again changes nothing.
    Hold,
    /// Use the new images alone. Refused if it is not held. Asking again changes nothing.
    Switch,
    /// End it: the disks stay where they are. Refused once it has switched.
    Cancel,
}

/// Where a disk moves to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewPlace {
    /// Which of the configuration's disks it is, from 0.
    pub index: u32,
    /// Its place in the VM's specification from then on.
    pub image: DatastorePath,
    /// An image that is empty, and has the disk's size.
    pub backing: DiskBacking,
}

/// What `godwit-vmm --copy` is told on its standard input, a socket, on one line: to copy disks of a VM that does not run into
/// new images. Behind the line, for each disk, come one more byte and four descriptors with it: image, lock file, new image,
/// new lock file. It answers with [`StorageStatus`] lines, the last once it has ended or all is durable, and ends when the
/// socket is closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyDisks {
    pub migration: MigrationId,
    pub vm: VmId,
    pub host: HostName,
    /// At which the disks' locks are taken.
    pub epoch: Epoch,
    /// See [`VmmConfig::user`].
    #[serde(default)]
    pub user: Option<u32>,
    pub disks: Vec<CopyDisk>,
    /// Bytes per second to copy; none is no cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_s_max: Option<u64>,
}

/// One of them: an image without backing files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyDisk {
    pub from: DiskBacking,
    pub to: NewPlace,
}

/// The VMM's answer to one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    Done,
    Status(Box<Status>),
    Guest(Box<GuestFacts>),
    Survey(Box<Survey>),
    Storage(Box<StorageStatus>),
    Error { error: ApiError },
}

/// How the VMM is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub vm: VmId,
    pub epoch: Epoch,
    pub pid: u32,
    pub state: VmmState,
    /// Where an incoming VMM listens for the migration's streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listening: Option<SocketAddr>,
    /// The migration under way, or the last one away from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationStatus>,
    /// Memory that the balloon holds.
    pub balloon: Bytes,
    /// What the guest has asked of its disks since this process began: reads, writes and the like.
    #[serde(default)]
    pub disk_operations: u64,
}

/// A migration away, seen from its source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MigrationStatus {
    pub migration: MigrationId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<MigrationProgress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<MigrationOutcome>,
}

/// What the VMM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmmState {
    /// An incoming machine that waits for its source.
    Incoming,
    Running,
    /// Stopped for the switchover, or waiting for the arbiter's word.
    Paused,
    /// The commit was granted: this process may never run the VM again.
    HandedOver,
    /// The guest powered itself off, or was stopped.
    Stopped,
}

/// What the VMM tells its subscribers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "notice", rename_all = "snake_case")]
pub enum Notice {
    State {
        state: VmmState,
        epoch: Epoch,
    },
    /// Needs [`Request::Answer`]; asked again to every new subscriber until it is answered.
    Question {
        question: Question,
    },
    Progress {
        migration: MigrationId,
        progress: MigrationProgress,
    },
    /// On the source, which still has part of a guest's memory: needs one [`Request::Reconnect`]; said again to every new
    /// subscriber until it is answered.
    Disconnected {
        migration: MigrationId,
        destination: HostName,
        address: SocketAddr,
        /// As many as it had.
        page_streams: u32,
    },
    /// On the source.
    MigrationEnded {
        migration: MigrationId,
        outcome: MigrationOutcome,
    },
    /// On the destination: the VM runs here now, and its network must be told.
    Arrived {
        migration: MigrationId,
    },
    /// On the destination: the migration will not happen; the process ends.
    IncomingFailed {
        migration: MigrationId,
        error: ApiError,
    },
    /// A device of the guest reported an error to it, such as a failed disk write.
    DeviceError {
        device: String,
        message: String,
    },
}

/// What the engine asks the arbiter, through the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Question {
    /// Step 7, on the source, whose VM runs at `epoch`.
    Commit { migration: MigrationId, vm: VmId, epoch: Epoch, destination: HostName },
    /// Step 9, on the destination, which will run the VM at `epoch`. The agent opens the tap before it answers `granted`.
    Claim {
        migration: MigrationId,
        vm: VmId,
        epoch: Epoch,
        #[serde(default)]
        witness: Witness,
    },
}

impl Question {
    /// The migration that the question belongs to.
    pub const fn migration(&self) -> MigrationId {
        match self {
            Self::Commit { migration, .. } | Self::Claim { migration, .. } => *migration,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_shown_in_the_documentation_are_the_lines_on_the_socket() {
        let line = serde_json::to_string(&Request::Status).unwrap();
        assert_eq!(line, r#"{"request":"status"}"#);
        let notice = Notice::State { state: VmmState::Running, epoch: Epoch(3) };
        assert_eq!(
            serde_json::to_string(&notice).unwrap(),
            r#"{"notice":"state","state":"running","epoch":3}"#
        );
        let reply: Reply = serde_json::from_str(r#"{"reply":"done"}"#).unwrap();
        assert_eq!(reply, Reply::Done);
    }
}
