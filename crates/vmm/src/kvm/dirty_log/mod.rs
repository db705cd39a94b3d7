//! The log of pages that vCPUs (and the kernel on their behalf) have written.
//!
//! ```text
//!  KVM has rings, and nobody wants otherwise --> ring.rs: a ring of pages for each vCPU, so that it is known who writes
//!  otherwise --------------------------------> bitmap.rs: one bit for each page, for all vCPUs together
//! ```
//!
//! Which of them is settled with the VM, before its first vCPU. A log that is off costs nothing but the rings' memory.

mod bitmap;
mod ring;

use std::sync::Arc;

use godwit_migration::bitmap::PageBitmap;
use kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
use kvm_ioctls::{VcpuFd, VmFd};

use super::{KvmError, set_slot};
use crate::memory::Slot;
use bitmap::BitmapLog;
use ring::RingLog;
pub(super) use ring::enable as enable_rings;
pub use ring::{ENTRIES_MAX, ENTRIES_MIN, entries};

/// The dirty log of all memory slots.
pub struct DirtyLog {
    vm: Arc<VmFd>,
    slots: Vec<Slot>,
    form: Form,
    vcpus: usize,
}

enum Form {
    Bitmap(BitmapLog),
    Rings(RingLog),
}

impl DirtyLog {
    /// The log of `slots`, switched off; `rings` is how many entries each vCPU's ring was given when the VM was created, or
    /// 0 for none.
    pub fn new(vm: Arc<VmFd>, slots: Vec<Slot>, vcpus: &[VcpuFd], rings: u32) -> Result<Self, KvmError> {
        let form = match rings {
            0 => Form::Bitmap(BitmapLog::new(Arc::clone(&vm))),
            entries => Form::Rings(RingLog::new(Arc::clone(&vm), &slots, vcpus, entries)?),
        };
        Ok(Self { vm, slots, form, vcpus: vcpus.len() })
    }

    /// Whether each vCPU's writes are told by themselves.
    pub const fn tells_vcpus_apart(&self) -> bool {
        matches!(self.form, Form::Rings(_))
    }

    /// Switches the log on. On error it is off.
    pub fn start(&self) -> Result<(), KvmError> {
        match &self.form {
            Form::Bitmap(log) => log.forget(),
            Form::Rings(log) => log.begin()?,
        }
        let started =
            self.slots.iter().try_for_each(|slot| set_slot(&self.vm, slot, KVM_MEM_LOG_DIRTY_PAGES));
        if started.is_err() {
            self.stop();
        }
        started
    }

    /// Adds the pages written since the last call, and re-arms the log for them. What a processor still holds back of a vCPU
    /// that runs comes with a later call, and all of it once the vCPUs stand.
    pub fn harvest(&self, dirty: &mut PageBitmap) -> Result<(), KvmError> {
        match &self.form {
            Form::Bitmap(log) => log.harvest(&self.slots, dirty),
            Form::Rings(log) => log.harvest(dirty),
        }
    }

    /// Pages that each vCPU has written since the log was started, as often as the log has found them. Where it does not tell
    /// vCPUs apart, an even part each.
    pub fn written(&self) -> Vec<u64> {
        match &self.form {
            Form::Bitmap(log) => vec![log.found() / self.vcpus.max(1) as u64; self.vcpus],
            Form::Rings(log) => log.written(),
        }
    }

    /// Makes room in a vCPU's ring that is full; called by its own thread.
    pub fn make_room(&self, vcpu: u8) -> Result<(), KvmError> {
        match &self.form {
            Form::Bitmap(_) => Ok(()),
            Form::Rings(log) => log.make_room(vcpu),
        }
    }

    /// Switches the log off. Failure only leaves it on.
    pub fn stop(&self) {
        for slot in &self.slots {
            if let Err(error) = set_slot(&self.vm, slot, 0) {
                tracing::warn!("the dirty log stays on: {}", super::chain(&error));
            }
        }
        if let Form::Rings(log) = &self.form {
            log.end();
        }
    }
}
