//! Raw and qcow2 images.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use godwit_types::control::DiskBacking;
use godwit_types::vm::DiskFormat;
use imago::file::File as ImageFile;
use imago::format::gate::ImplicitOpenGate;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, FormatDriverBuilder, StorageOpenOptions};

use super::DiskError;
use crate::devices::virtio::Buffer;

const QCOW2_MAGIC: &[u8; 4] = b"QFI\xfb";
/// Where the header of a qcow2 image has the size of the disk, as a big-endian 64-bit number.
const QCOW2_SIZE_AT: usize = 24;

/// The size of the disk in the image, read without opening it for I/O. Drops what this host has cached of the image
/// already, so that little is left to drop when it is opened, while the guest stands still.
pub(super) fn capacity_bytes(backing: &DiskBacking) -> Result<u64, DiskError> {
    let path = &backing.path;
    let failed = |cause| DiskError::Open { path: path.clone(), cause };
    let mut file = File::open(path).map_err(failed)?;
    drop_cache(&file).map_err(failed)?;
    match backing.format {
        DiskFormat::Raw => file.seek(SeekFrom::End(0)).map_err(failed),
        DiskFormat::Qcow2 => {
            let mut header = [0; QCOW2_SIZE_AT + 8];
            let read = file.read_exact(&mut header);
            if read.is_err() || !header.starts_with(QCOW2_MAGIC) {
                return Err(DiskError::NotQcow2 { path: path.clone() });
            }
            let size = header[QCOW2_SIZE_AT..].try_into().expect("eight bytes are left");
            Ok(u64::from_be_bytes(size))
        }
    }
}

/// An image that is open for I/O.
pub struct Image {
    access: FormatAccess<ImageFile>,
    /// A second handle, to make writes durable without those of the file's times.
    file: File,
}

impl Image {
    /// Opens the image after dropping what this host has cached of it.
    pub fn open(backing: &DiskBacking) -> Result<Self, DiskError> {
        let path = &backing.path;
        Self::open_parts(backing).map_err(|cause| DiskError::Open { path: path.clone(), cause })
    }

    fn open_parts(backing: &DiskBacking) -> io::Result<Self> {
        let (path, write) = (&backing.path, !backing.read_only);
        let file = OpenOptions::new().read(true).write(write).open(path)?;
        drop_cache(&file)?;
        let gate = SameDirectory::of(path)?;
        let access = match backing.format {
            DiskFormat::Raw => FormatAccess::new(Raw::builder_path(path).write(write).open(gate)?),
            DiskFormat::Qcow2 => {
                FormatAccess::new(Qcow2::<ImageFile>::builder_path(path).write(write).open(gate)?)
            }
        };
        Ok(Self { access, file })
    }

    /// The size of the disk.
    pub fn bytes(&self) -> u64 {
        self.access.size()
    }

    /// Fills `buffers` from `offset` on.
    pub fn read(&mut self, buffers: &[Buffer<'_>], offset: u64) -> io::Result<()> {
        // The guard keeps the memory mapped, and marks the pages when it is dropped, whatever the outcome.
        let (vector, _guard) = IoVectorMut::from_volatile_slice(buffers);
        self.access.readv(vector, offset)
    }

    /// Writes `buffers` at `offset`.
    pub fn write(&mut self, buffers: &[Buffer<'_>], offset: u64) -> io::Result<()> {
        let (vector, _guard) = IoVector::from_volatile_slice(buffers);
        self.access.writev(vector, offset)
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
    pub fn flush(&mut self) -> io::Result<()> {
        self.access.flush()?;
        self.file.sync_data()
    }
}

/// Another host may have written to the file since this one has last read it.
fn drop_cache(file: &File) -> io::Result<()> {
    // SAFETY: the file descriptor is open, and the call touches no memory of ours.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Lets an image have a backing file in its own directory, which is the same on all hosts, and nothing else.
#[derive(Clone)]
struct SameDirectory(PathBuf);

impl SameDirectory {
    fn of(image: &Path) -> io::Result<Self> {
        let image = image.canonicalize()?;
        image
            .parent()
            .map(|directory| Self(directory.to_owned()))
            .ok_or_else(|| io::Error::other("the image has no directory"))
    }
}

impl ImplicitOpenGate<ImageFile> for SameDirectory {
    fn open_format<F: FormatDriverBuilder<ImageFile>>(
        &mut self,
        builder: F,
    ) -> io::Result<FormatAccess<ImageFile>> {
        let path = builder.get_image_path().unwrap_or_default().canonicalize()?;
        if path.parent() != Some(&self.0) {
            let message = format!("its backing file {} lies in another directory", path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        Ok(FormatAccess::new(builder.open(self.clone())?))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<ImageFile> {
        // The builders given to `open_format` open their own file through here.
        let path = options.get_filename().unwrap_or(Path::new("")).canonicalize()?;
        if path.parent() != Some(&self.0) {
            let message = format!("its data file {} lies in another directory", path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        imago::Storage::open(options)
    }
}
