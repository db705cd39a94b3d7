//! Memory of which a part is not here, without userfaultfd: whoever touches a page asks first.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::Duration;

use godwit_migration::bitmap::PageBitmap;
use godwit_migration::{Absent, GuestMemory, MachineError, PageRange};
use godwit_types::{Gfn, PAGE_SIZE_BYTES};

use super::model::ModelVm;

pub struct ModelAbsent {
    vm: Weak<ModelVm>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    here: PageBitmap,
    touched: Vec<Gfn>,
    ended: bool,
    forgotten: bool,
}

impl ModelAbsent {
    /// Nothing that is missing is here, nor any page that was never written.
    pub fn new(vm: Weak<ModelVm>, ranges: &[PageRange], missing: &PageBitmap) -> Self {
        let mut here = PageBitmap::covering(ranges);
        for range in ranges {
            here.insert_range(*range);
            missing.runs(*range).for_each(|run| {
                for gfn in run.start.0..run.start.0 + run.pages {
                    here.remove(Gfn(gfn));
                }
            });
        }
        let state = State { here, touched: Vec::new(), ended: false, forgotten: false };
        Self { vm, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits for a page.
    pub fn touch(&self, gfn: Gfn) {
        let mut state = self.lock();
        if !state.ended && !state.here.contains(gfn) {
            state.touched.push(gfn);
            self.changed.notify_all();
        }
        drop(self.changed.wait_while(state, |state| !state.ended && !state.here.contains(gfn)));
    }

    /// The guest begins anew.
    pub fn forget(&self) {
        self.lock().forgotten = true;
    }

    fn put(&self, run: PageRange, write: impl Fn(&ModelVm, Gfn)) {
        let Some(vm) = self.vm.upgrade() else { return };
        let mut state = self.lock();
        for gfn in (run.start.0..run.start.0 + run.pages).map(Gfn) {
            if !state.here.contains(gfn) {
                write(&vm, gfn);
                state.here.insert(gfn);
            }
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Absent for ModelAbsent {
    fn touched(&self, pages: &mut Vec<Gfn>, within: Duration) -> Result<(), MachineError> {
        let idle = |state: &mut State| state.touched.is_empty() && !state.ended && !state.forgotten;
        let (mut state, _) = self.changed.wait_timeout_while(self.lock(), within, idle).unwrap();
        pages.append(&mut state.touched);
        Ok(())
    }

    fn place(&self, first: Gfn, contents: &[u8]) -> Result<(), MachineError> {
        const PAGE: usize = PAGE_SIZE_BYTES as usize;
        let run = PageRange { start: first, pages: (contents.len() / PAGE) as u64 };
        self.put(run, |vm, gfn| {
            let at = (gfn.0 - first.0) as usize * PAGE;
            vm.write(gfn, &contents[at..at + PAGE]).unwrap();
        });
        Ok(())
    }

    fn place_zeros(&self, pages: PageRange) -> Result<(), MachineError> {
        self.put(pages, |vm, gfn| vm.zero(gfn, 1).unwrap());
        Ok(())
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    fn is_forgotten(&self) -> bool {
        self.lock().forgotten
    }
}

pub type Shared = Mutex<Option<Arc<ModelAbsent>>>;
