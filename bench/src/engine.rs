//! What moves a VM: Godwit, or QEMU with one of several settings.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use godwit_lab::cluster::Cluster;
use godwit_lab::fabric::{Fabric, FabricOptions};
use godwit_lab::setup;
use godwit_types::HostName;

use crate::case::Case;
use crate::error::{BenchError, Result};
use crate::godwit::GodwitVm;
use crate::qemu::QemuVm;

/// The VMs' disk, which their load leaves alone; its locks are part of a handoff.
const DISK_BYTES: u64 = 32 << 20;

/// The engines, in the order of their runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Engine {
    Godwit,
    /// In clear, as QEMU sends here.
    GodwitPlain,
    /// Encrypted again, and memory may follow the guest.
    GodwitPostcopy,
    /// As QEMU comes: capped at 128 MiB/s.
    QemuDefault,
    /// Without the cap.
    QemuUncapped,
    /// Without the cap, over four channels.
    QemuMultifd,
    /// Without the cap, and post-copy at once.
    QemuPostcopy,
}

/// Where VMs run: hosts in network namespaces of this machine, the same for all engines.
pub(crate) struct Bed {
    pub(crate) fabric: Fabric,
    /// The guest's kernel, by its path in the datastore.
    pub(crate) kernel: String,
    pub(crate) source: HostName,
    pub(crate) destination: HostName,
}

/// A VM that runs on the bed's source.
pub(crate) trait Running {
    /// The logs of its serial console, at the source and at the destination.
    fn consoles(&self) -> [PathBuf; 2];

    /// Moves it to the bed's destination, or gives up.
    fn migrate(&mut self, terms: Terms) -> Result<Moved>;

    /// Types a byte at its console, wherever it runs now.
    fn type_byte(&mut self, byte: u8) -> Result<()>;

    /// Ends it, and removes what it was made of.
    fn end(self: Box<Self>) -> Result<()>;
}

/// What a migration is given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// How long it may take until it is given up.
    pub(crate) limit: Duration,
    /// Its blackout budget in milliseconds; `None`: the engine's own.
    pub(crate) blackout_ms_max: Option<u32>,
}

/// How a migration went, as its engine tells it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moved {
    /// When it was asked for.
    pub(crate) begun: Instant,
    /// When it had ended and the VM ran at the destination; or when it was given up.
    pub(crate) ended: Instant,
    pub(crate) converged: bool,
    /// What the engine itself says; nothing of a migration that was given up.
    pub(crate) reported: Option<Reported>,
}

/// An engine's own account of a migration, in milliseconds. QEMU's blackout is known to be wrong at times.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reported {
    pub(crate) total_ms: f64,
    pub(crate) blackout_ms: f64,
    /// What it said before it began.
    pub(crate) foretold: Option<Foretold>,
}

/// What was expected of a migration, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Foretold {
    pub(crate) total_ms: f64,
    pub(crate) blackout_ms: f64,
}

impl Engine {
    pub(crate) fn is_qemu(self) -> bool {
        !matches!(self, Self::Godwit | Self::GodwitPlain | Self::GodwitPostcopy)
    }

    /// Its name in tables and on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Godwit => "godwit",
            Self::GodwitPlain => "godwit-plain",
            Self::GodwitPostcopy => "godwit-postcopy",
            Self::QemuDefault => "qemu-default",
            Self::QemuUncapped => "qemu-uncapped",
            Self::QemuMultifd => "qemu-multifd",
            Self::QemuPostcopy => "qemu-postcopy",
        }
    }

    /// Boots a VM; `name` is given to no other.
    pub(crate) fn boot<'a>(self, bed: &'a Bed, case: &Case, name: &str) -> Result<Box<dyn Running + 'a>> {
        let godwit = |option| GodwitVm::boot(bed, case, name, option);
        Ok(match self {
            Self::Godwit => Box::new(godwit(None)?),
            Self::GodwitPlain => Box::new(godwit(Some("--plain"))?),
            Self::GodwitPostcopy => Box::new(godwit(Some("--post-copy"))?),
            Self::QemuDefault | Self::QemuUncapped | Self::QemuMultifd | Self::QemuPostcopy => {
                Box::new(QemuVm::boot(bed, case, name, self)?)
            }
        })
    }
}

impl Bed {
    /// Starts the hosts, and puts the guest into their datastore.
    pub(crate) fn start() -> Result<Self> {
        Self::start_with(FabricOptions::default())
    }

    /// The same, on two hosts as wished.
    pub(crate) fn start_with(options: FabricOptions) -> Result<Self> {
        let fabric = Fabric::start(options)?;
        let (guest, kernel) = (setup::reference_guest()?, "guest.elf");
        std::fs::copy(&guest, fabric.datastore().join(kernel))
            .map_err(BenchError::io(format!("copy {} into the datastore", guest.display())))?;
        let [source, destination] = [fabric.hosts()[0].clone(), fabric.hosts()[1].clone()];
        Ok(Self { fabric, kernel: kernel.to_owned(), source, destination })
    }

    /// Makes a VM's disk.
    pub(crate) fn make_disk(&self, name: &str) -> Result<PathBuf> {
        let path = self.fabric.datastore().join(format!("{name}.raw"));
        let file = std::fs::File::create_new(&path);
        file.and_then(|file| file.set_len(DISK_BYTES))
            .map_err(BenchError::io(format!("make {}", path.display())))?;
        Ok(path)
    }
}
