//! Where arriving pages go: into guest memory, or onto the disks that arrive with it.

use godwit_types::Gfn;

use crate::disks::{self, ArrivingDisks};
use crate::machine::{GuestMemory, MachineError, PageRange};

/// See the module.
#[derive(Clone, Copy)]
pub(super) struct Places<'a> {
    pub(super) memory: &'a dyn GuestMemory,
    pub(super) disks: Option<&'a dyn ArrivingDisks>,
}

impl<'a> Places<'a> {
    /// The disks, if the page is of one of them.
    pub(super) fn disks_with(self, page: Gfn) -> Option<&'a dyn ArrivingDisks> {
        self.disks.filter(|arriving| disks::holds(arriving.ranges(), page))
    }

    pub(super) fn write(self, first: Gfn, contents: &[u8]) -> Result<(), MachineError> {
        match self.disks_with(first) {
            Some(disks) => disks.write(first, contents),
            None => self.memory.write(first, contents),
        }
    }

    pub(super) fn zero(self, pages: PageRange) -> Result<(), MachineError> {
        match self.disks_with(pages.start) {
            Some(disks) => disks.zero(pages),
            None => self.memory.zero(pages.start, pages.pages),
        }
    }
}
