//! The log as KVM's bitmap of each memory slot: one for all vCPUs.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use godwit_migration::bitmap::PageBitmap;
use godwit_types::PAGE_SIZE_BYTES;
use kvm_bindings::{KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iowr_nr;

use crate::kvm::{KvmError, call, last_error, manual_protect};
use crate::memory::{Slot, insert_words};

ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);

/// Pages re-armed by one call, which holds KVM's memory lock: 256 MiB of guest memory. A multiple of 64.
const CLEAR_PAGES_MAX: u64 = 1 << 16;

/// See the module.
pub(super) struct BitmapLog {
    vm: Arc<VmFd>,
    /// Whether reading leaves the log armed as it was, so that re-arming is a separate, cheaper step.
    manual: bool,
    /// Pages that were found since the log was started, as often as they were found.
    found: AtomicU64,
}

impl BitmapLog {
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        let manual = manual_protect(&vm);
        Self { vm, manual, found: AtomicU64::new(0) }
    }

    pub(super) fn forget(&self) {
        self.found.store(0, Relaxed);
    }

    pub(super) fn found(&self) -> u64 {
        self.found.load(Relaxed)
    }

    /// Adds the pages written since the last call, and re-arms the log for them.
    pub(super) fn harvest(&self, slots: &[Slot], dirty: &mut PageBitmap) -> Result<(), KvmError> {
        for slot in slots {
            let bytes = (slot.range.pages * PAGE_SIZE_BYTES) as usize;
            let words = self.vm.get_dirty_log(slot.id, bytes).map_err(call("reading the dirty log"))?;
            insert_words(dirty, slot.range.start, &words);
            self.found.fetch_add(words.iter().map(|word| u64::from(word.count_ones())).sum(), Relaxed);
            if self.manual {
                self.rearm(slot, &words)?;
            }
        }
        Ok(())
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
