//! Raw and qcow2 images.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use godwit_types::control::DiskBacking;
use godwit_types::vm::DiskFormat;
use imago::file::File as ImageFile;
use imago::format::gate::ImplicitOpenGate;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, FormatDriverBuilder, Mapping, StorageOpenOptions};

use super::DiskError;
use crate::devices::virtio::Buffer;

/// The size of the disk in the image, read without opening it for I/O. Drops what this host has cached of the image
/// already, so that little is left to drop when it is opened, while the guest stands still.
pub(super) fn capacity_bytes(backing: &DiskBacking, images: &Images) -> Result<u64, DiskError> {
    let path = &backing.path;
    let failed = |cause| DiskError::Open { path: path.clone(), cause };
    let file = own(images).map_err(failed)?;
    drop_cache(&file).map_err(failed)?;
    let size = godwit_provision::disk_bytes(&file, backing.format).map_err(failed)?;
    size.ok_or_else(|| DiskError::NotQcow2 { path: path.clone() })
}

/// A disk's images as the process was given them: the guest's own, then its backing files, each under its name.
pub(super) type Images = [(PathBuf, OwnedFd)];

/// An image that is open for I/O.
pub struct Image {
    access: FormatAccess<ImageFile>,
    format: DiskFormat,
    /// A second handle, to make writes durable without those of the file's times.
    file: Arc<File>,
}

impl Image {
    /// Begins I/O on the image after dropping what this host has cached of it.
    pub fn open(backing: &DiskBacking, images: &[(PathBuf, OwnedFd)]) -> Result<Self, DiskError> {
        let path = &backing.path;
        Self::open_parts(backing, images).map_err(|cause| DiskError::Open { path: path.clone(), cause })
    }

    fn open_parts(backing: &DiskBacking, images: &Images) -> io::Result<Self> {
        let (file, write) = (own(images)?, !backing.read_only);
        drop_cache(&file)?;
        let options = StorageOpenOptions::new().filename(&backing.path).write(write);
        let image = ImageFile::from_open_file(file.try_clone()?, options)?;
        let access = match backing.format {
            DiskFormat::Raw => FormatAccess::new(Raw::builder(image).write(write).open(Given(images))?),
            DiskFormat::Qcow2 => {
                let qcow2 = Qcow2::<ImageFile>::builder(image).write(write);
                FormatAccess::new(qcow2.open(Given(images))?)
            }
        };
        Ok(Self { access, format: backing.format, file: Arc::new(file) })
    }

    /// The size of the disk.
    pub fn bytes(&self) -> u64 {
        self.access.size()
    }

    /// Fills `buffers` from `offset` on.
    pub fn read(&self, buffers: &[Buffer<'_>], offset: u64) -> io::Result<()> {
        // The guard keeps the memory mapped, and marks the pages when it is dropped, whatever the outcome.
        let (vector, _guard) = IoVectorMut::from_volatile_slice(buffers);
        self.access.readv(vector, offset)
    }

    /// Writes `buffers` at `offset`.
    pub fn write(&self, buffers: &[Buffer<'_>], offset: u64) -> io::Result<()> {
        let (vector, _guard) = IoVector::from_volatile_slice(buffers);
        self.access.writev(vector, offset)
    }

    /// Fills `bytes` from `offset` on.
    pub fn read_bytes(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.access.read(bytes, offset)
    }

    /// Writes `bytes` at `offset`.
    pub fn write_bytes(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.access.write(bytes, offset)
    }

    /// Gives `found` the parts of a range, which lies on the disk, that may hold anything but zeros, ascending.
    pub fn data(&self, offset: u64, bytes: u64, mut found: impl FnMut(Range<u64>)) -> io::Result<()> {
        let (mut at, end) = (offset, offset + bytes);
        while let Some(part) = self.next_data(at, end)? {
            at = part.end;
            found(part);
        }
        Ok(())
    }

    /// The first of these parts between `at` and `end`.
    pub fn next_data(&self, mut at: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        if self.format == DiskFormat::Raw {
            return if at < end { allocated(&self.file, at, end) } else { Ok(None) };
        }
        while at < end {
            let (mapping, length) = self.access.get_mapping(at, end - at)?;
            let part = at..at + length.clamp(1, end - at);
            if !matches!(mapping, Mapping::Zero { .. } | Mapping::Eof { .. }) {
                return Ok(Some(part));
            }
            at = part.end;
        }
        Ok(None)
    }

    /// Makes a range read as zeros; with `unmap`, its space may be given back.
    pub fn write_zeroes(&mut self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        if unmap {
            self.access.discard_to_zero(offset, bytes)
        } else {
            self.access.write_zeroes(offset, bytes)
        }
    }

    /// Gives a range's space back, if the image and its file system can.
    pub fn discard(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        match self.access.discard_to_any(offset, bytes) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            outcome => outcome,
        }
    }

    /// Makes everything written durable: first the format's own tables, then the file.
    pub fn flush(&self) -> io::Result<()> {
        self.flush_tables()?.sync_data()
    }

    /// The first half of [`Image::flush`], and the file for the second, which takes long and needs nothing else.
    pub fn flush_tables(&self) -> io::Result<Arc<File>> {
        self.access.flush()?;
        Ok(Arc::clone(&self.file))
    }
}

/// The first part of `at..end` that takes space in the file; all of it where the file system cannot tell.
fn allocated(file: &File, at: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    let seek = |from: u64, whence| {
        // SAFETY: the call takes numbers; nobody uses the position of the file, which all reads and writes name.
        match unsafe { libc::lseek(file.as_raw_fd(), from as libc::off_t, whence) } {
            -1 => Err(io::Error::last_os_error()),
            found => Ok(found as u64),
        }
    };
    let start = match seek(at, libc::SEEK_DATA) {
        Ok(start) if start < end => start,
        Ok(_) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(Some(at..end)),
        Err(error) => return Err(error),
    };
    Ok(Some(start..seek(start, libc::SEEK_HOLE)?.clamp(start + 1, end)))
}

/// Another host may have written to the file since this one has last read it.
fn drop_cache(file: &File) -> io::Result<()> {
    // SAFETY: the file descriptor is open, and the call touches no memory of ours.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Lets an image have the backing files that the process was given, and nothing else.
#[derive(Clone, Copy)]
struct Given<'a>(&'a Images);

impl ImplicitOpenGate<ImageFile> for Given<'_> {
    fn open_format<F: FormatDriverBuilder<ImageFile>>(
        &mut self,
        builder: F,
    ) -> io::Result<FormatAccess<ImageFile>> {
        Ok(FormatAccess::new(builder.open(*self)?))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<ImageFile> {
        let path = options.get_filename().unwrap_or(Path::new(""));
        let Some((_, file)) = self.0.iter().skip(1).find(|(name, _)| name == path) else {
            let message =
                format!("it has changed, and now needs {}, which this process was not given", path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        };
        let file = File::from(file.try_clone()?);
        drop_cache(&file)?;
        ImageFile::from_open_file(file, options.clone().write(false))
    }
}

/// The guest's own image.
fn own(images: &Images) -> io::Result<File> {
    let (_, own) = images.first().ok_or(io::ErrorKind::NotFound)?;
    own.try_clone().map(File::from)
}
