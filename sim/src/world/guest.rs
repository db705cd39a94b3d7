//! The guest: its memory, what its disk has acknowledged, and the disk with its lock file.

use godwit_migration::{MachineError, Reclaimed};
use godwit_types::lock::LockRecord;
use godwit_types::ownership::Witness;
use godwit_types::{Epoch, MigrationId, VmId};

use super::Side;

/// The page that saving the devices writes.
pub(crate) const SAVE_PAGE: usize = 0;

/// What the guest itself knows, wherever it runs: a number for each page and for its disk, which grow.
#[derive(Debug, Clone, Hash)]
pub(crate) struct Guest {
    pub(crate) pages: Vec<u32>,
    pub(crate) written: u32,
    /// The last write to the disk that the guest was told is done.
    pub(crate) acknowledged: u32,
}

impl Guest {
    pub(crate) fn new(pages: usize) -> Self {
        Self { pages: vec![0; pages], written: 0, acknowledged: 0 }
    }

    pub(crate) fn next(&mut self) -> u32 {
        self.written += 1;
        self.written
    }
}

/// The source's copy of memory, and its dirty log.
#[derive(Debug, Clone, Hash)]
pub(crate) struct Memory {
    pub(crate) pages: Vec<u32>,
    dirty: Vec<bool>,
    waiting: Vec<bool>,
}

impl Memory {
    pub(crate) fn new(pages: usize) -> Self {
        Self { pages: vec![0; pages], dirty: vec![false; pages], waiting: vec![false; pages] }
    }

    pub(crate) fn write(&mut self, page: usize, content: u32) {
        self.pages[page] = content;
        self.dirty[page] = true;
    }

    /// The log begins: all pages wait to be sent.
    pub(crate) fn mark_all(&mut self) {
        self.waiting.fill(true);
        self.dirty.fill(false);
    }

    /// Moves what is dirty to what waits to be sent; how much waits then.
    pub(crate) fn harvest(&mut self) -> u64 {
        for (waiting, dirty) in self.waiting.iter_mut().zip(&mut self.dirty) {
            *waiting |= std::mem::take(dirty);
        }
        self.waiting.iter().filter(|waiting| **waiting).count() as u64
    }

    /// The pages that wait, to be sent.
    pub(crate) fn take(&mut self) -> Vec<usize> {
        let pages = (0..self.pages.len()).filter(|page| self.waiting[*page]).collect();
        self.waiting.fill(false);
        pages
    }
}

/// The shared disk: its content, and the lock file beside it; see `DiskLock` of `godwit-vmm`.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    pub(crate) content: u32,
    pub(crate) record: LockRecord,
    pub(crate) holders: [bool; 2],
    shared_locks: bool,
    compare: bool,
}

impl Disk {
    /// A disk that the source holds at `epoch`.
    pub(crate) fn new(vm: VmId, epoch: Epoch, shared_locks: bool, compare: bool) -> Self {
        let record = LockRecord { vm, host: Side::Source.host(), epoch, ran_on_after: None };
        Self { content: 0, record, holders: [true, false], shared_locks, compare }
    }

    /// Takes the lock at `epoch`, as `DiskLock::take` does, or says why not.
    pub(crate) fn take(&mut self, side: Side, epoch: Epoch) -> Result<(), String> {
        self.lock(side, LockRecord { vm: self.record.vm, host: side.host(), epoch, ran_on_after: None })?
    }

    /// As `godwit_migration::Source::reclaim` of `godwit-vmm`.
    pub(crate) fn reclaim(
        &mut self,
        epoch: Epoch,
        migration: MigrationId,
    ) -> Result<Reclaimed, MachineError> {
        let (vm, host) = (self.record.vm, Side::Source.host());
        match self.lock(Side::Source, LockRecord { vm, host, epoch, ran_on_after: Some(migration) }) {
            Ok(Ok(())) => Ok(Reclaimed::Ours),
            Ok(Err(reason)) => Err(MachineError { step: "reclaiming the disks".into(), reason }),
            Err(refused) => Ok(Reclaimed::Lost(refused)),
        }
    }

    /// As `godwit_migration::Destination::take_over` of `godwit-vmm`.
    pub(crate) fn take_over(&mut self, source: Epoch, migration: MigrationId) -> Witness {
        if !self.shared_locks || !self.record.stands_since(self.record.vm, source, migration) {
            return Witness::Blind { reason: String::new() };
        }
        if self.holders[Side::Source.index()] {
            return Witness::None;
        }
        self.holders[Side::Destination.index()] = true;
        Witness::SourceDead
    }

    /// The outer error: the record there refuses this one. The inner: the lock is held.
    fn lock(&mut self, side: Side, record: LockRecord) -> Result<Result<(), String>, String> {
        if self.compare {
            record.may_replace(&self.record).map_err(|refused| refused.to_string())?;
        }
        if self.shared_locks && self.holders[side.other().index()] {
            return Ok(Err("the lock is still held".into()));
        }
        self.record = record;
        self.holders[side.index()] = true;
        Ok(Ok(()))
    }

    pub(crate) fn release(&mut self, side: Side) {
        self.holders[side.index()] = false;
    }
}
