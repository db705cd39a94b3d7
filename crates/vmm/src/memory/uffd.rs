//! The kernel's interface for faults in user space (<linux/userfaultfd.h>).

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;

const WRITE: u64 = 1;
const READ: u64 = 2;

const fn number<T>(direction: u64, nr: u64) -> u64 {
    direction << 30 | (size_of::<T>() as u64) << 16 | 0xAA << 8 | nr
}

pub(crate) const API_VERSION: u64 = 0xAA;
pub(crate) const REGISTER_MISSING: u64 = 1;

/// Of `/dev/userfaultfd`.
pub(crate) const NEW: u64 = number::<()>(0, 0x00);
pub(crate) const API: u64 = number::<Api>(READ | WRITE, 0x3F);
pub(crate) const REGISTER: u64 = number::<Register>(READ | WRITE, 0x00);
pub(crate) const UNREGISTER: u64 = number::<Range>(READ, 0x01);
pub(crate) const COPY: u64 = number::<Copy>(READ | WRITE, 0x03);
pub(crate) const ZEROPAGE: u64 = number::<Zero>(READ | WRITE, 0x04);

/// `uffdio_api`.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Api {
    pub(crate) api: u64,
    pub(crate) features: u64,
    pub(crate) ioctls: u64,
}

/// `uffdio_range`: addresses of this process.
#[repr(C)]
#[derive(Debug, Clone, core::marker::Copy)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// `uffdio_register`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Register {
    pub(crate) range: Range,
    pub(crate) mode: u64,
    pub(crate) ioctls: u64,
}

/// `uffdio_copy`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) dst: u64,
    pub(crate) src: u64,
    pub(crate) len: u64,
    pub(crate) mode: u64,
    /// Bytes copied, or an error number below 0.
    pub(crate) copy: i64,
}

/// `uffdio_zeropage`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Zero {
    pub(crate) range: Range,
    pub(crate) mode: u64,
    /// Bytes that are there now, or an error number below 0.
    pub(crate) zeropage: i64,
}

/// An argument of a request of this file, whose number says how long it is.
pub(crate) trait Argument {}

impl Argument for Api {}
impl Argument for Range {}
impl Argument for Register {}
impl Argument for Copy {}
impl Argument for Zero {}

/// Makes a request.
pub(crate) fn call<T: Argument>(userfault: &File, request: u64, argument: &mut T) -> io::Result<()> {
    debug_assert_eq!((request >> 16 & 0x3fff) as usize, size_of::<T>());
    // SAFETY: the argument is of the request's type; what the kernel then writes it writes into pages that are not there,
    // so that nobody holds a reference into them.
    if unsafe { libc::ioctl(userfault.as_raw_fd(), request, argument) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `uffd_msg`.
pub(crate) struct Message;

impl Message {
    pub(crate) const BYTES: usize = 32;
    const PAGE_FAULT: u8 = 0x12;

    /// The address that was touched, if that is what it says.
    pub(crate) fn page_fault(message: &[u8]) -> Option<u64> {
        let address = message.get(16..24)?.try_into().ok()?;
        (message[0] == Self::PAGE_FAULT).then(|| u64::from_ne_bytes(address))
    }
}
