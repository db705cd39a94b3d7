//! One request: a header, data either way, a status byte (virtio 1.2, 5.2.6).

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::{Block, RANGE_SECTORS_MAX, REQUEST_BYTES_MAX};
use crate::devices::disk::{Change, SECTOR_BYTES};
use crate::devices::virtio::{Chain, DriverFault};

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;

/// What the guest is told instead of an answer.
enum Refusal {
    Unsupported,
    /// The guest asked for something out of bounds; nothing is wrong with the disk.
    Invalid,
    Failed(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Serves the request; returns the number of bytes written into it.
pub(super) fn serve(block: &Block, mut chain: Chain<'_>) -> Result<u32, DriverFault> {
    let verdict =
        chain.take_last().ok_or(DriverFault::Request("a disk request has no room for its status"))?;
    let mut header = [0; HEADER_BYTES];
    chain.take(&mut header)?;
    let (kind, sector) = (u32_at(&header, 0), u64_at(&header, 8));
    let (status, written) = match execute(block, kind, sector, &mut chain) {
        Ok(written) => {
            block.note(&Ok(()));
            (VIRTIO_BLK_S_OK, written)
        }
        Err(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        Err(Refusal::Invalid) => (VIRTIO_BLK_S_IOERR, 0),
        Err(Refusal::Failed(error)) => {
            block.note(&Err(error));
            (VIRTIO_BLK_S_IOERR, 0)
        }
    };
    verdict.copy_from(&[status as u8]);
    Ok(written + 1)
}

fn execute(block: &Block, kind: u32, sector: u64, chain: &mut Chain<'_>) -> Result<u32, Refusal> {
    let writes = matches!(kind, VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES);
    if writes && block.disk.read_only() {
        return Err(Refusal::Invalid);
    }
    block.disk.count_operation();
    let mut written = 0;
    match kind {
        VIRTIO_BLK_T_IN => {
            let bytes = chain.writable_bytes();
            let offset = range_start(block, sector, bytes)?;
            block.disk.with_image(|image| image.read(chain.writable.make_contiguous(), offset))?;
            written = bytes as u32;
        }
        VIRTIO_BLK_T_OUT => {
            let bytes = chain.readable_bytes();
            let offset = range_start(block, sector, bytes)?;
            let buffers = chain.readable.make_contiguous();
            block.disk.change((offset, bytes as u64), Change::Write(buffers))?;
        }
        VIRTIO_BLK_T_FLUSH => block.disk.sync()?,
        VIRTIO_BLK_T_GET_ID => written = chain.put(&block.id) as u32,
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => clear(block, kind, chain)?,
        _ => return Err(Refusal::Unsupported),
    }
    if writes && !block.driver_flushes() {
        block.disk.sync()?;
    }
    Ok(written)
}

/// Discards or zeroes the one range that a request may name.
fn clear(block: &Block, kind: u32, chain: &mut Chain<'_>) -> Result<(), Refusal> {
    let mut range = [0; RANGE_BYTES];
    if chain.readable_bytes() != RANGE_BYTES || chain.take(&mut range).is_err() {
        return Err(Refusal::Invalid);
    }
    let (sector, sectors, flags) = (u64_at(&range, 0), u32_at(&range, 8), u32_at(&range, 12));
    let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    let zeroes = kind == VIRTIO_BLK_T_WRITE_ZEROES;
    if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || unmap && !zeroes {
        return Err(Refusal::Unsupported);
    }
    if sectors > RANGE_SECTORS_MAX {
        return Err(Refusal::Invalid);
    }
    let (offset, bytes) = bounds(block, sector, sectors.into())?;
    let change = if zeroes { Change::Zero { unmap } } else { Change::Discard };
    Ok(block.disk.change((offset, bytes), change)?)
}

/// Where a transfer of `bytes` starts in the image.
fn range_start(block: &Block, sector: u64, bytes: usize) -> Result<u64, Refusal> {
    let whole_sectors = (bytes as u64).is_multiple_of(SECTOR_BYTES);
    if bytes == 0 || !whole_sectors || bytes > REQUEST_BYTES_MAX {
        return Err(Refusal::Invalid);
    }
    bounds(block, sector, bytes as u64 / SECTOR_BYTES).map(|(offset, _)| offset)
}

/// Offset and length in bytes of a range that lies on the disk.
fn bounds(block: &Block, sector: u64, sectors: u64) -> Result<(u64, u64), Refusal> {
    let end = sector.checked_add(sectors).ok_or(Refusal::Invalid)?;
    if end > block.disk.sectors() {
        return Err(Refusal::Invalid);
    }
    Ok((sector * SECTOR_BYTES, sectors * SECTOR_BYTES))
}

fn u32_at(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; 16], at: usize) -> u64 {
    u64::from(u32_at(bytes, at + 4)) << 32 | u64::from(u32_at(bytes, at))
}
