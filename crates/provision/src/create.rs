//! New disk images, empty and sparse; and how large those are that are there.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use godwit_types::Bytes;
use godwit_types::capability::DiskFacts;
use godwit_types::control::DiskBacking;
use godwit_types::vm::DiskFormat;

use crate::{ProvisionError, images, sync_directory};

const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// What one entry of the L1 table maps, in bytes: an L2 table of one cluster.
const L2_BYTES: u64 = CLUSTER_BYTES / 8 * CLUSTER_BYTES;
/// Clusters that one block of 16-bit reference counts is for.
const REFCOUNTS: u64 = CLUSTER_BYTES / 2;
const REFCOUNT_ORDER: u32 = 4;
/// A version 3 header.
const HEADER_BYTES: u32 = 104;
/// Unit in which the kernel counts what a file takes, in bytes.
const BLOCK_BYTES: u64 = 512;

/// Makes an image that reads as zeros, under a name that lasts and that nothing else may have.
pub fn create_image(path: &Path, format: DiskFormat, size: Bytes) -> io::Result<()> {
    // Nobody else on this host may look into a guest's disk.
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let made = match format {
        DiskFormat::Raw => file.set_len(size.0),
        DiskFormat::Qcow2 => write_empty_qcow2(&file, size.0),
    };
    made.and_then(|()| file.sync_all()).and_then(|()| path.parent().map_or(Ok(()), sync_directory))
}

/// What a disk is, by its image. Reads its header, and no more.
pub fn measure(disk: &DiskBacking) -> Result<DiskFacts, ProvisionError> {
    let failed = |cause| ProvisionError::Open { what: "disk image", path: disk.path.clone(), cause };
    let images = images::open(&DiskBacking { read_only: true, ..disk.clone() })?;
    let layered = images.len() > 1;
    let Some((_, own)) = images.into_iter().next() else {
        return Err(failed(io::ErrorKind::NotFound.into()));
    };
    let file = File::from(own);
    let metadata = file.metadata().map_err(failed)?;
    let size = images::disk_bytes(&file, disk.format).map_err(failed)?;
    let size = size.ok_or_else(|| ProvisionError::NotQcow2 { path: disk.path.clone() })?;
    Ok(DiskFacts { size: Bytes(size), allocated: Bytes(metadata.blocks() * BLOCK_BYTES), layered })
}

/// The header, the table of reference counts and its one block, then the L1 table, as described in
/// <https://www.qemu.org/docs/master/interop/qcow2.html>.
fn write_empty_qcow2(file: &File, size: u64) -> io::Result<()> {
    let l1_entries = u32::try_from(size.div_ceil(L2_BYTES)).map_err(io::Error::other)?;
    let clusters = 3 + (u64::from(l1_entries) * 8).div_ceil(CLUSTER_BYTES);
    if clusters > REFCOUNTS {
        return Err(io::Error::other("no qcow2 image can be as large"));
    }
    file.set_len(clusters * CLUSTER_BYTES)?;
    let mut header = b"QFI\xfb".to_vec();
    let mut put = |bytes: &[u8]| header.extend_from_slice(bytes);
    put(&3_u32.to_be_bytes());
    // No backing file.
    put(&[0; 12]);
    put(&CLUSTER_BITS.to_be_bytes());
    put(&size.to_be_bytes());
    put(&0_u32.to_be_bytes());
    put(&l1_entries.to_be_bytes());
    put(&(3 * CLUSTER_BYTES).to_be_bytes());
    put(&CLUSTER_BYTES.to_be_bytes());
    put(&1_u32.to_be_bytes());
    // No snapshots, no features.
    put(&[0; 36]);
    put(&REFCOUNT_ORDER.to_be_bytes());
    put(&HEADER_BYTES.to_be_bytes());
    file.write_all_at(&header, 0)?;
    file.write_all_at(&(2 * CLUSTER_BYTES).to_be_bytes(), CLUSTER_BYTES)?;
    file.write_all_at(&[0, 1].repeat(clusters as usize), 2 * CLUSTER_BYTES)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    fn backing(path: PathBuf, format: DiskFormat) -> DiskBacking {
        DiskBacking { lock: path.with_extension("lock"), path, format, read_only: false }
    }

    #[test]
    fn a_new_image_has_its_size_takes_no_space_and_replaces_nothing() {
        let directory = tempfile::tempdir().unwrap();
        for (format, size) in
            [(DiskFormat::Raw, 5 << 30), (DiskFormat::Qcow2, 700 << 20), (DiskFormat::Qcow2, 9 << 40)]
        {
            let path = directory.path().join(format!("{format:?}-{size}"));
            create_image(&path, format, Bytes(size)).unwrap();
            let facts = measure(&backing(path.clone(), format)).unwrap();
            assert_eq!((facts.size, facts.layered), (Bytes(size), false));
            assert!(facts.allocated <= Bytes(64 << 10), "{facts:?}");
            assert_eq!(
                create_image(&path, format, Bytes(1)).unwrap_err().kind(),
                io::ErrorKind::AlreadyExists
            );
            if format == DiskFormat::Raw {
                continue;
            }
            match Command::new("qemu-img").arg("check").arg(&path).output() {
                Ok(output) => {
                    let said = String::from_utf8_lossy(&output.stdout);
                    assert!(output.status.success() && said.contains("No errors"), "{said}");
                }
                Err(_) => eprintln!("SKIPPED: qemu-img is not installed, so nobody else looks at the image"),
            }
        }
    }

    #[test]
    fn an_image_on_another_is_layered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        create_image(&path, DiskFormat::Qcow2, Bytes(1 << 20)).unwrap();
        std::fs::write(directory.path().join("base"), [0; 512]).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&112_u64.to_be_bytes(), 8).unwrap();
        file.write_all_at(&4_u32.to_be_bytes(), 16).unwrap();
        file.write_all_at(b"base", 112).unwrap();
        assert!(measure(&backing(path, DiskFormat::Qcow2)).unwrap().layered);
    }
}
