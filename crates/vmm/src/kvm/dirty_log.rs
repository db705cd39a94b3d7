//! The log of pages that vCPUs (and the kernel on their behalf) have written.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use godwit_migration::bitmap::PageBitmap;
use godwit_types::PAGE_SIZE_BYTES;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iowr_nr;

use super::{KvmError, call, last_error, manual_protect, set_slot};
use crate::memory::{Slot, insert_words};

ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);

/// Pages re-armed by one call, which holds KVM's memory lock: 256 MiB of guest memory. A multiple of 64.
const CLEAR_PAGES_MAX: u64 = 1 << 16;

/// The dirty log of all memory slots.
pub struct DirtyLog {
    vm: Arc<VmFd>,
    slots: Vec<Slot>,
    /// Whether reading leaves the log armed as it was, so that re-arming is a separate, cheaper step.
    manual: bool,
}

impl DirtyLog {
    /// The log of `slots`, switched off.
    pub fn new(vm: Arc<VmFd>, slots: Vec<Slot>) -> Self {
        let manual = manual_protect(&vm);
        Self { vm, slots, manual }
    }

    /// Switches the log on. On error it is off.
    pub fn start(&self) -> Result<(), KvmError> {
        let started =
            self.slots.iter().try_for_each(|slot| set_slot(&self.vm, slot, KVM_MEM_LOG_DIRTY_PAGES));
        if started.is_err() {
            self.stop();
        }
        started
    }

    /// Adds the pages written since the last call, and re-arms the log for them.
    pub fn harvest(&self, dirty: &mut PageBitmap) -> Result<(), KvmError> {
        for slot in &self.slots {
            let bytes = (slot.range.pages * PAGE_SIZE_BYTES) as usize;
            let words = self.vm.get_dirty_log(slot.id, bytes).map_err(call("reading the dirty log"))?;
            insert_words(dirty, slot.range.start, &words);
            if self.manual {
                self.rearm(slot, &words)?;
            }
        }
        Ok(())
    }

    /// Switches the log off. Failure only leaves it on.
    pub fn stop(&self) {
        for slot in &self.slots {
            if let Err(error) = set_slot(&self.vm, slot, 0) {
                tracing::warn!("the dirty log stays on: {}", super::chain(&error));
            }
        }
    }

    fn rearm(&self, slot: &Slot, words: &[u64]) -> Result<(), KvmError> {
        for (index, chunk) in words.chunks((CLEAR_PAGES_MAX / 64) as usize).enumerate() {
            if chunk.iter().all(|word| *word == 0) {
                continue;
            }
            let first_page = index as u64 * CLEAR_PAGES_MAX;
            let clear = kvm_clear_dirty_log {
                slot: slot.id,
                first_page,
                num_pages: CLEAR_PAGES_MAX.min(slot.range.pages - first_page) as u32,
                __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                    dirty_bitmap: chunk.as_ptr() as *mut _,
                },
            };
            // SAFETY: the kernel reads one bit for each of `num_pages`, which `chunk` holds, and writes nothing.
            if unsafe { ioctl_with_ref(&self.vm.as_raw_fd(), KVM_CLEAR_DIRTY_LOG(), &clear) } != 0 {
                return Err(last_error("re-arming the dirty log"));
            }
        }
        Ok(())
    }
}
