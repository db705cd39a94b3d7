//! What the engine needs of a VM. `godwit-vmm` implements these traits on KVM; tests implement them on a `Vec`.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use godwit_types::ownership::Witness;
use godwit_types::{Epoch, Gfn, MigrationId, VmId};

use crate::bitmap::PageBitmap;
use crate::disks::{ArrivingDisks, DiskRange, LeavingDisks};
use crate::wire::DigestKey;

/// A run of pages of guest RAM, or of a disk that moves with the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRange {
    pub start: Gfn,
    pub pages: u64,
}

impl PageRange {
    /// The number of the first page behind it.
    pub const fn end(self) -> u64 {
        self.start.0 + self.pages
    }

    /// Its pages.
    pub fn gfns(self) -> impl Iterator<Item = Gfn> {
        (self.start.0..self.end()).map(Gfn)
    }

    /// It in parts of so many pages, the last of which may be shorter.
    pub fn parts(self, pages: u64) -> impl Iterator<Item = Self> {
        let starts = (self.start.0..self.end()).step_by(pages as usize);
        starts.map(move |start| Self { start: Gfn(start), pages: pages.min(self.end() - start) })
    }

    /// Whether the page is in it.
    pub const fn contains(self, page: Gfn) -> bool {
        page.0 >= self.start.0 && page.0 < self.end()
    }
}

/// Whether whole pages hold only zeros. Folding fixed chunks lets the compiler use vector instructions.
pub fn is_zero(pages: &[u8]) -> bool {
    pages.chunks_exact(128).all(|chunk| chunk.iter().fold(0, |or, byte| or | byte) == 0)
}

/// One device's state: tagged, versioned, opaque to the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// The device's place in the machine, such as `pci-00.2/virtio-net`, unique in the VM.
    pub device: String,
    /// What the payload describes, such as `virtio-net`.
    pub kind: String,
    pub version: u16,
    /// Numbered fields (a protobuf message).
    pub payload: Vec<u8>,
}

/// What the source tells about the VM before anything moves, so that the destination can refuse it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub vm: VmId,
    /// The epoch at which the source runs the VM.
    pub epoch: Epoch,
    /// The VM's specification as JSON; must equal the one that the destination's machine was built from.
    pub spec_json: Vec<u8>,
    /// RAM, ascending, without overlap.
    pub ranges: Vec<PageRange>,
    /// The disks that move with it, ascending, above RAM.
    pub disks: Vec<DiskRange>,
    /// The CPU that the guest sees (CPUID, feature MSRs), in the VMM's own encoding.
    pub cpu: Vec<u8>,
}

/// A step of the machine that failed, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {reason}")]
pub struct MachineError {
    /// What was being done, such as `saving virtio-net`.
    pub step: String,
    pub reason: String,
}

/// Guest RAM, accessed in whole pages beside running vCPUs. Ranges outside RAM are an error, never a crash.
pub trait GuestMemory: Send + Sync {
    /// RAM, ascending, without overlap.
    fn ranges(&self) -> &[PageRange];

    /// The pages where they lie, to be given to the kernel or to a cipher, which read each byte once.
    ///
    /// A page that a vCPU writes meanwhile may come out torn; the dirty log then names it again.
    fn bytes(&self, pages: PageRange) -> Result<&[u8], MachineError>;

    /// Copies whole pages into RAM from `first` on.
    fn write(&self, first: Gfn, from: &[u8]) -> Result<(), MachineError>;

    /// Reads from a connection into these pages of RAM, past their first `done` bytes, with one call: how many bytes have
    /// come, none at its end. Whoever is never given a connection in clear can do without.
    fn receive(&self, _pages: PageRange, _done: usize, _from: BorrowedFd<'_>) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes pages read as zeros, before the guest runs here; costs nothing where they were never written.
    fn zero(&self, first: Gfn, pages: u64) -> Result<(), MachineError>;

    /// These pages will probably be written soon, for the first time: makes that cheap. What they read as stays.
    fn prepare(&self, _pages: PageRange) {}
}

/// Memory of the VM that this host has kept from before. Any contents do no harm: they are used only where they turn out to
/// be those that the source has now.
pub trait Kept: Send + Sync {
    /// What digests of it are made with: drawn for this migration, and known to no guest.
    fn key(&self) -> DigestKey;

    /// Copies whole pages as they were; those that were not kept read as zeros.
    fn read(&self, first: Gfn, into: &mut [u8]) -> Result<(), MachineError>;

    /// These pages are not read again.
    fn forget(&self, pages: PageRange);
}

/// What a vCPU has done, counted from some moment before its dirty log was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VcpuActivity {
    /// Pages that it has written, as often as the log has found them. Where the log does not tell vCPUs apart, an even part.
    pub written_pages: u64,
    /// How long it was held because of [`Source::slow`].
    pub held: Duration,
}

/// A VM that runs here and is to leave. Every call may come from any thread; none may block for long.
pub trait Source: Send + Sync {
    fn manifest(&self) -> Manifest;

    /// Why this VM cannot migrate, one sentence for each device or condition; empty if it can.
    fn blockers(&self) -> Vec<String>;

    fn memory(&self) -> &dyn GuestMemory;

    /// The disks that move with it, if any do.
    fn disks(&self) -> Option<Arc<dyn LeavingDisks>> {
        None
    }

    /// Starts logging writes. Pages written from now on are reported by [`Source::harvest_dirty`].
    fn start_dirty_log(&self) -> Result<(), MachineError>;

    /// Adds to `dirty` every page written since the last harvest, by vCPUs and by the VMM's own devices, and of the disks
    /// that move those that the guest has written; re-arms the log for them.
    fn harvest_dirty(&self, dirty: &mut PageBitmap) -> Result<(), MachineError>;

    /// Stops logging, and holds no vCPU any more. Never fails: at worst the log stays on.
    fn stop_dirty_log(&self);

    /// What each vCPU has done up to the last harvest. Empty: none can be slowed.
    fn vcpus(&self) -> Vec<VcpuActivity> {
        Vec::new()
    }

    /// From now on holds each vCPU for its part of the time, in permille, a few milliseconds at a time; those beyond the list
    /// for none. Until it is told otherwise, or [`Source::pause`].
    fn slow(&self, _shares: &[u16]) {}

    /// Stops all vCPUs, then drains device I/O, and says how long the draining took. Afterwards nothing writes guest memory,
    /// but for [`Source::save`]. On error the VM runs on.
    fn pause(&self) -> Result<Duration, MachineError>;

    /// Undoes [`Source::pause`], and [`Source::save`].
    fn resume(&self) -> Result<(), MachineError>;

    /// The clock by which the guest's goes on while it stands, since 1970; `None`: this process's.
    fn real_time(&self) -> Option<Duration> {
        None
    }

    /// Saves every device and vCPU. The VM is paused, stays so, and may be resumed here afterwards. The destination's
    /// [`Destination::real_time`] is `ahead_ns` nanoseconds ahead of this host's: real time is saved as it is there.
    fn save(&self, ahead_ns: i64) -> Result<Vec<Section>, MachineError>;

    /// The arbiter's word on the commit does not come: drops the disk locks, so that the destination can take over if this
    /// host cannot be heard any more. The VM stays paused, and can still be reclaimed. Never fails: what is left of the
    /// locks falls with the process.
    fn let_go(&self);

    /// Before [`Source::resume`], once the destination of `migration` may have everything: makes sure that the VM is still
    /// this host's, holding the disk locks, and lets the disks' records say that the guest runs on here.
    ///
    /// On error it is not known whose the VM is; to be asked again.
    fn reclaim(&self, migration: MigrationId) -> Result<Reclaimed, MachineError>;

    /// Step 8, after a granted commit: drops the disk locks. From here on this process never runs the VM again.
    fn hand_over(&self);
}

/// What loading a VM's state has shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loaded {
    /// How far the guest's clock is ahead of where this host's real time, and the source's when the state was saved, say that it
    /// should be, in nanoseconds; none if that is not known.
    pub clock_error_ns: Option<i64>,
}

/// Memory of which a part is not here. Every call may come from any thread, and none waits for a page.
pub trait Absent: Send + Sync {
    /// Adds the pages that somebody has begun to wait for, waiting for the first at most so long. Pages that nobody has
    /// written before are among them, and the same page may be named again.
    fn touched(&self, pages: &mut Vec<Gfn>, within: Duration) -> Result<(), MachineError>;

    /// Brings in whole pages from `first` on and wakes those who wait for them. Pages that are here stay as they are.
    fn place(&self, first: Gfn, contents: &[u8]) -> Result<(), MachineError>;

    /// The same for pages of zeros.
    fn place_zeros(&self, pages: PageRange) -> Result<(), MachineError>;

    /// Nobody has to wait any more: what was not placed reads as zeros.
    fn end(&self);

    /// Whether the guest has begun anew since, and needs nothing of what is still at the source.
    fn is_forgotten(&self) -> bool;
}

/// The answer of [`Source::reclaim`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reclaimed {
    /// The guest may run on here.
    Ours,
    /// The VM has moved on, for the given reason: it may never run here again.
    Lost(String),
}

/// A machine that waits for a VM. Every call may come from any thread.
pub trait Destination: Send + Sync {
    /// Compares the manifest with the machine built here. All reasons for refusal, or none.
    fn admit(&self, manifest: &Manifest) -> Result<(), Vec<String>>;

    fn memory(&self) -> &dyn GuestMemory;

    /// The disks that move with the VM, if any do.
    fn disks(&self) -> Option<Arc<dyn ArrivingDisks>> {
        None
    }

    /// What this host has kept of the VM's memory, if anything.
    fn kept(&self) -> Option<&dyn Kept> {
        None
    }

    /// Whether memory can follow after the guest runs here; if not, why.
    fn can_follow(&self) -> Result<(), String>;

    /// Before [`Destination::load`]: these pages, all RAM, are still at the source. What is here of them is dropped; from
    /// now on whoever touches one waits until it is placed.
    fn await_pages(&self, missing: &PageBitmap) -> Result<Arc<dyn Absent>, MachineError>;

    /// The clock by which the guest's went on since it was saved, since 1970; `None`: this process's.
    fn real_time(&self) -> Option<Duration> {
        None
    }

    /// Makes sure that the disks that have come are durable, then validates and loads all state; nothing runs yet. Each section is consumed exactly once; an unknown one is an
    /// error.
    fn load(&self, sections: Vec<Section>) -> Result<Loaded, MachineError>;

    /// In doubt, with all state loaded: tries once, without waiting, to take the disk locks that a dead source has left.
    /// Those that it gets it holds, at the source's epoch, until the arbiter's word.
    fn take_over(&self, migration: MigrationId) -> Witness;

    /// Step 9, after a granted claim: takes the disk locks at `epoch`, then starts the vCPUs, and says how long the locks took.
    ///
    /// On error nothing runs, and it is called again for a while: the source's locks may take a moment to fall, and fall
    /// only when it is heard of again if it is cut off from the arbiter.
    fn run(&self, epoch: Epoch) -> Result<Duration, MachineError>;

    /// After [`Destination::run`]: how long the vCPUs had run when the guest's first packet left, if one does `within` so long.
    fn first_packet(&self, within: Duration) -> Option<Duration> {
        let _ = within;
        None
    }
}
