//! A disk image and the backing files below it.
//!
//! A VM's process that a guest has taken over can write what it likes into its own image's header. So that header leads
//! nowhere but to files in the image's directory, read-only, and never to another VM's own disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use godwit_types::control::DiskBacking;
use godwit_types::vm::DiskFormat;

use crate::ProvisionError;

/// Images of one disk: its own and those below it.
pub(crate) const CHAIN_MAX: usize = 16;
/// A qcow2 header lies in the first cluster, and the smallest cluster that is common has so many bytes.
const HEADER_BYTES_MAX: u64 = 64 << 10;

const MAGIC: &[u8; 4] = b"QFI\xfb";
/// Where a header has the size of the disk.
const SIZE_AT: usize = 24;
/// Length of a version 2 header, in bytes.
const V2_BYTES: usize = 72;
/// Of the incompatible features: the data lies in another file.
const DATA_FILE: u64 = 1 << 2;
/// The header extension that names the backing file's format.
const BACKING_FORMAT: u32 = 0xE279_2ACA;

/// The lock file beside an image.
pub fn lock_of(image: &Path) -> PathBuf {
    PathBuf::from(format!("{}.lock", image.display()))
}

/// The size of the disk in an image, in bytes; none if it is not an image of that format.
pub fn disk_bytes(image: &File, format: DiskFormat) -> io::Result<Option<u64>> {
    if format == DiskFormat::Raw {
        return Ok(Some(image.metadata()?.len()));
    }
    let mut header = [0; SIZE_AT + 8];
    match image.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(u64_at(&header, SIZE_AT).filter(|_| header.starts_with(MAGIC))),
    }
}

/// Opens the image and its backing files, under the names by which the image's driver will ask for them.
pub(crate) fn open(disk: &DiskBacking) -> Result<Vec<(PathBuf, OwnedFd)>, ProvisionError> {
    let failed =
        |path: &Path, cause| ProvisionError::Open { what: "disk image", path: path.to_owned(), cause };
    let home = disk.path.canonicalize().map_err(|cause| failed(&disk.path, cause))?;
    let (mut images, mut path) = (Vec::new(), disk.path.clone());
    let mut format = Some(disk.format);
    loop {
        let canonical = path.canonicalize().map_err(|cause| failed(&path, cause))?;
        if canonical.parent() != home.parent() {
            return Err(ProvisionError::Elsewhere { image: disk.path.clone(), backing: path });
        }
        if !images.is_empty() && lock_of(&canonical).exists() {
            return Err(ProvisionError::InUse { image: disk.path.clone(), backing: path });
        }
        let write = images.is_empty() && !disk.read_only;
        let mut options = OpenOptions::new();
        // Whatever else than a file is there must not make the opener wait.
        options.read(true).write(write).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = options.open(&canonical).map_err(|cause| failed(&path, cause))?;
        let header = header(&file).map_err(|cause| failed(&path, cause))?;
        let below = below(&header, format, &path)?;
        images.push((path.clone(), file.into()));
        let Some((name, next)) = below else { return Ok(images) };
        if images.len() == CHAIN_MAX {
            return Err(ProvisionError::TooDeep(disk.path.clone()));
        }
        path = path.parent().unwrap_or(Path::new("/")).join(name);
        format = next;
    }
}

/// The backing file that a header names, with its format if that is named too; `None` if there is nothing below.
fn below(
    header: &[u8],
    format: Option<DiskFormat>,
    path: &Path,
) -> Result<Option<(String, Option<DiskFormat>)>, ProvisionError> {
    let qcow2 = header.starts_with(MAGIC);
    match format {
        Some(DiskFormat::Raw) => return Ok(None),
        Some(DiskFormat::Qcow2) if !qcow2 => return Err(ProvisionError::NotQcow2 { path: path.to_owned() }),
        None if !qcow2 => return Ok(None),
        Some(DiskFormat::Qcow2) | None => {}
    }
    let version = u32_at(header, 4).unwrap_or(0);
    if version >= 3 && u64_at(header, V2_BYTES).unwrap_or(0) & DATA_FILE != 0 {
        return Err(ProvisionError::DataFile(path.to_owned()));
    }
    let (Some(start @ 1..), Some(length)) = (u64_at(header, 8), u32_at(header, 16)) else { return Ok(None) };
    let end = start.saturating_add(length.into());
    let name = header.get(start as usize..end as usize).unwrap_or_default();
    let Ok(name) = std::str::from_utf8(name) else {
        return Err(ProvisionError::NotQcow2 { path: path.to_owned() });
    };
    let length = if version >= 3 { u32_at(header, 100).unwrap_or(0) as usize } else { V2_BYTES };
    let format = match extension(header, length, BACKING_FORMAT) {
        Some(b"qcow2") => Some(DiskFormat::Qcow2),
        Some(b"raw" | b"file") => Some(DiskFormat::Raw),
        _ => None,
    };
    Ok(Some((name.to_owned(), format)))
}

/// The header extension of a kind; they begin at `at`.
fn extension(header: &[u8], mut at: usize, wanted: u32) -> Option<&[u8]> {
    loop {
        let (kind, length) = (u32_at(header, at)?, u32_at(header, at + 4)? as usize);
        let content = header.get(at + 8..)?.get(..length)?;
        if kind == wanted {
            return Some(content);
        }
        if kind == 0 {
            return None;
        }
        at += 8 + length.next_multiple_of(8);
    }
}

fn header(file: &File) -> std::io::Result<Vec<u8>> {
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    let mut header = Vec::new();
    // The descriptor's own position is not used by anybody afterwards: all access names its offset.
    file.take(HEADER_BYTES_MAX).read_to_end(&mut header)?;
    Ok(header)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A version 3 header that names a backing file and, in an extension, its format.
    fn qcow2(backing: &str, format: &str) -> Vec<u8> {
        let mut header = vec![0; 104];
        header[..4].copy_from_slice(MAGIC);
        header[4..8].copy_from_slice(&3u32.to_be_bytes());
        header[100..104].copy_from_slice(&104u32.to_be_bytes());
        if !format.is_empty() {
            header.extend(BACKING_FORMAT.to_be_bytes());
            header.extend((format.len() as u32).to_be_bytes());
            header.extend(format.as_bytes());
            header.resize(header.len().next_multiple_of(8), 0);
        }
        header.extend([0; 8]);
        if !backing.is_empty() {
            let start = header.len() as u64;
            header[8..16].copy_from_slice(&start.to_be_bytes());
            header[16..20].copy_from_slice(&(backing.len() as u32).to_be_bytes());
            header.extend(backing.as_bytes());
        }
        header
    }

    fn store(files: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, DiskBacking) {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        for (name, content) in files {
            fs::write(home.join(name), content).unwrap();
        }
        let (path, lock) = (home.join("disk"), home.join("disk.lock"));
        (dir, DiskBacking { path, lock, format: DiskFormat::Qcow2, read_only: false })
    }

    fn names(disk: &DiskBacking) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        open(disk).unwrap().iter().map(|(path, _)| name(path)).collect()
    }

    #[test]
    fn every_image_of_a_chain_is_opened_in_order_and_only_the_first_for_writing() {
        let middle = qcow2("base", "raw");
        let (_dir, disk) =
            store(&[("disk", qcow2("middle", "")), ("middle", middle), ("base", qcow2("x", ""))]);
        assert_eq!(names(&disk), ["disk", "middle", "base"], "what is raw is not looked into");
        for (index, (path, file)) in open(&disk).unwrap().into_iter().enumerate() {
            let written = std::os::unix::fs::FileExt::write_at(&File::from(file), b"Q", 0);
            assert_eq!(written.is_ok(), index == 0, "{}", path.display());
        }
    }

    #[test]
    fn a_raw_disk_leads_nowhere_whatever_its_guest_has_written() {
        let (_dir, mut disk) = store(&[("disk", qcow2("secret", "qcow2")), ("secret", vec![])]);
        disk.format = DiskFormat::Raw;
        assert_eq!(names(&disk), ["disk"]);
    }

    #[test]
    fn a_header_that_leads_out_of_the_directory_is_refused() {
        let (elsewhere, _) = store(&[("base", vec![])]);
        let outside = elsewhere.path().join("home/base");
        for name in [outside.to_str().unwrap(), "../base", "/dev/null"] {
            let (_dir, disk) = store(&[("disk", qcow2(name, "raw"))]);
            fs::write(disk.path.parent().unwrap().with_file_name("base"), "").unwrap();
            assert!(matches!(open(&disk), Err(ProvisionError::Elsewhere { .. })), "{name}");
        }
        let (dir, disk) = store(&[("disk", qcow2("link", "raw"))]);
        std::os::unix::fs::symlink(outside, dir.path().join("home/link")).unwrap();
        assert!(matches!(open(&disk), Err(ProvisionError::Elsewhere { .. })));
    }

    #[test]
    fn another_vms_disk_an_external_data_file_and_an_endless_chain_are_refused() {
        let (_dir, disk) =
            store(&[("disk", qcow2("other", "raw")), ("other", vec![]), ("other.lock", vec![])]);
        assert!(matches!(open(&disk), Err(ProvisionError::InUse { .. })));
        let mut external = qcow2("", "");
        external[79] |= DATA_FILE as u8;
        let (_dir, disk) = store(&[("disk", external)]);
        assert!(matches!(open(&disk), Err(ProvisionError::DataFile(_))));
        let (_dir, disk) = store(&[("disk", qcow2("disk", "qcow2"))]);
        assert!(matches!(open(&disk), Err(ProvisionError::TooDeep(_))));
        let (_dir, disk) = store(&[("disk", b"QFI\xfb".to_vec())]);
        assert_eq!(names(&disk), ["disk"], "a header that is cut short names nothing");
        let (_dir, disk) = store(&[("disk", vec![0; 512])]);
        assert!(matches!(open(&disk), Err(ProvisionError::NotQcow2 { .. })));
    }
}
