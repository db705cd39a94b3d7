//! Just enough qcow2 to make an empty image and to find a guest's bytes in one, as described in
//! <https://www.qemu.org/docs/master/interop/qcow2.html>.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use godwit_types::Bytes;

use crate::{LabError, Result};

const MAGIC: u32 = 0x5146_49fb;
const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// The most that one L2 table maps, and so the most that one entry of the L1 table does.
const L2_BYTES: u64 = CLUSTER_BYTES / 8 * CLUSTER_BYTES;
/// The bits of an L1 or L2 entry that hold an offset.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// L2 entry: the cluster reads as zeroes.
const ZERO: u64 = 1;
/// L2 entry: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
const REFCOUNT_ORDER: u32 = 4;
const HEADER_BYTES: u32 = 104;

/// Makes an empty image of at most one cluster of L1 table (4 TiB).
pub fn create(path: &Path, size: Bytes) -> Result<()> {
    let file = File::create_new(path).map_err(LabError::io(format!("create {}", path.display())))?;
    write_empty(&file, size.0).map_err(LabError::io(format!("write {}", path.display())))
}

/// Four clusters: the header, the refcount table, its one block, and the L1 table.
fn write_empty(file: &File, size: u64) -> io::Result<()> {
    let l1_entries = u32::try_from(size.div_ceil(L2_BYTES)).map_err(io::Error::other)?;
    file.set_len(4 * CLUSTER_BYTES)?;
    let mut header = Vec::new();
    let mut word = |bytes: &[u8]| header.extend_from_slice(bytes);
    word(&MAGIC.to_be_bytes());
    word(&3_u32.to_be_bytes());
    word(&[0; 12]);
    word(&CLUSTER_BITS.to_be_bytes());
    word(&size.to_be_bytes());
    word(&0_u32.to_be_bytes());
    word(&l1_entries.to_be_bytes());
    word(&(3 * CLUSTER_BYTES).to_be_bytes());
    word(&CLUSTER_BYTES.to_be_bytes());
    word(&1_u32.to_be_bytes());
    word(&[0; 36]);
    word(&REFCOUNT_ORDER.to_be_bytes());
    word(&HEADER_BYTES.to_be_bytes());
    file.write_all_at(&header, 0)?;
    file.write_all_at(&(2 * CLUSTER_BYTES).to_be_bytes(), CLUSTER_BYTES)?;
    file.write_all_at(&[0, 1, 0, 1, 0, 1, 0, 1], 2 * CLUSTER_BYTES)
}

/// Where an image keeps its tables.
#[derive(Debug)]
pub(super) struct Qcow2 {
    /// The disk's size as the guest sees it, in bytes.
    pub(super) size: u64,
    cluster_bits: u32,
    l1_offset: u64,
}

impl Qcow2 {
    /// Reads the header; `None` if the file is not a qcow2 image.
    pub(super) fn read(file: &File) -> io::Result<Option<Self>> {
        let mut header = [0; 48];
        match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        if header[..4] != MAGIC.to_be_bytes() {
            return Ok(None);
        }
        let long = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| header[at + i]));
        let cluster_bits = u32::from_be_bytes(std::array::from_fn(|i| header[20 + i]));
        if !(9..=21).contains(&cluster_bits) {
            return Err(io::Error::other("the qcow2 header names an impossible cluster size"));
        }
        Ok(Some(Self { size: long(24), cluster_bits, l1_offset: long(40) }))
    }

    /// Where in the file the guest's byte lies; `None` if it reads as zero.
    pub(super) fn locate(&self, file: &File, offset: u64) -> io::Result<Option<u64>> {
        let entries_per_l2 = (1_u64 << self.cluster_bits) / 8;
        let cluster = offset >> self.cluster_bits;
        let l2 = entry(file, self.l1_offset, cluster / entries_per_l2)? & OFFSET_MASK;
        if l2 == 0 {
            return Ok(None);
        }
        let place = entry(file, l2, cluster % entries_per_l2)?;
        if place & COMPRESSED != 0 {
            return Err(io::Error::other("compressed clusters are not expected here"));
        }
        let data = place & OFFSET_MASK;
        let inside = offset & ((1 << self.cluster_bits) - 1);
        Ok((data != 0 && place & ZERO == 0).then_some(data + inside))
    }
}

fn entry(file: &File, table: u64, index: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, table + index * 8)?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_image_has_its_size_and_reads_as_zero() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty.qcow2");
        create(&path, Bytes::mib(700)).unwrap();
        let file = File::open(&path).unwrap();
        let image = Qcow2::read(&file).unwrap().expect("a qcow2 image");
        assert_eq!(image.size, 700 << 20);
        assert_eq!(image.locate(&file, 0).unwrap(), None);
        assert_eq!(image.locate(&file, (700 << 20) - 512).unwrap(), None);
    }

    #[test]
    fn a_raw_image_is_not_taken_for_qcow2() {
        let file = tempfile::tempfile().unwrap();
        assert!(Qcow2::read(&file).unwrap().is_none());
        file.set_len(1 << 20).unwrap();
        assert!(Qcow2::read(&file).unwrap().is_none());
    }
}
