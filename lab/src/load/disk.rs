//! Whether every write that the guest was promised is in the image.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use godwit_guest_contract::disk::{RECORD_BYTES, Record, RecordBytes, capacity};

use super::qcow2::Qcow2;
use crate::{LabError, Result};

/// A slot that the guest is writing at this moment may be read torn; it is read again this often.
const READS: u32 = 5;
const REREAD_PAUSE: Duration = Duration::from_millis(20);

/// What a look at the image found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostWrites {
    /// Acknowledged records that should be there: all that were not overwritten by later ones.
    pub expected: u64,
    pub lost: u64,
    /// The first one that is not there, and what is there instead.
    pub first: Option<String>,
}

/// Looks for every record up to `acknowledged` in the image, raw or qcow2, while the guest may go on writing.
pub fn lost_writes(image: &Path, acknowledged: u64) -> Result<LostWrites> {
    let disk = Image::open(image)?;
    let capacity = capacity(disk.size);
    let oldest = (acknowledged + 1).saturating_sub(capacity).max(1);
    let mut result = LostWrites { expected: 0, lost: 0, first: None };
    for sequence in oldest..=acknowledged {
        result.expected += 1;
        if let Some(found) = fault(&disk, Record { sequence, capacity })? {
            result.lost += 1;
            result.first.get_or_insert(format!("record {sequence}: {found}"));
        }
    }
    Ok(result)
}

/// Fails unless the record that the guest was told last is in the image.
pub fn has_last_write(image: &Path, acknowledged: u64) -> Result<()> {
    let disk = Image::open(image)?;
    let record = Record { sequence: acknowledged, capacity: capacity(disk.size) };
    match fault(&disk, record)? {
        Some(found) => Err(LabError::Broken(format!("record {acknowledged} was acknowledged: {found}"))),
        None => Ok(()),
    }
}

/// What is wrong with the record's slot, if anything is. A later record in it is fine.
fn fault(disk: &Image, expected: Record) -> Result<Option<String>> {
    let mut fault = None;
    for attempt in 0..READS {
        if attempt > 0 {
            std::thread::sleep(REREAD_PAUSE);
        }
        let mut bytes: RecordBytes = [0; RECORD_BYTES];
        disk.read(expected.offset(), &mut bytes)?;
        fault = match Record::decode(&bytes) {
            Ok(found) if is_or_follows(found, expected) => return Ok(None),
            Ok(found) => Some(format!("record {} of {} slots lies there", found.sequence, found.capacity)),
            Err(fault) => Some(fault.to_string()),
        };
    }
    Ok(fault)
}

fn is_or_follows(found: Record, expected: Record) -> bool {
    found.capacity == expected.capacity
        && found.sequence >= expected.sequence
        && found.offset() == expected.offset()
}

/// A disk image of either format.
struct Image {
    file: File,
    size: u64,
    qcow2: Option<Qcow2>,
    path: String,
}

impl Image {
    fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(LabError::io(format!("open {name}")))?;
        let length = file.metadata().map_err(LabError::io(format!("look at {name}")))?.len();
        let qcow2 = Qcow2::read(&file).map_err(LabError::io(format!("read {name}")))?;
        let size = qcow2.as_ref().map_or(length, |image| image.size);
        Ok(Self { file, size, qcow2, path: name })
    }

    fn read(&self, offset: u64, bytes: &mut RecordBytes) -> Result<()> {
        let place = match &self.qcow2 {
            None => Ok(Some(offset)),
            Some(image) => image.locate(&self.file, offset),
        };
        bytes.fill(0);
        let read =
            place.and_then(|place| place.map_or(Ok(()), |place| self.file.read_exact_at(bytes, place)));
        read.map_err(LabError::io(format!("read {}", self.path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_types::Bytes;

    const SLOTS: u64 = 8;

    fn image(records: impl IntoIterator<Item = u64>) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(SLOTS * RECORD_BYTES as u64).unwrap();
        for sequence in records {
            let record = Record { sequence, capacity: SLOTS };
            file.as_file().write_all_at(&record.encode(), record.offset()).unwrap();
        }
        file
    }

    fn lost(records: impl IntoIterator<Item = u64>, acknowledged: u64) -> (u64, u64) {
        let found = lost_writes(image(records).path(), acknowledged).unwrap();
        (found.expected, found.lost)
    }

    #[test]
    fn a_disk_that_holds_every_acknowledged_record_has_lost_nothing() {
        assert_eq!(lost([], 0), (0, 0));
        assert_eq!(lost(1..=5, 5), (5, 0));
        assert_eq!(lost(1..=30, 30), (8, 0));
        assert_eq!(lost(1..=33, 30), (8, 0), "the guest went on writing meanwhile");
    }

    #[test]
    fn each_missing_record_is_counted() {
        assert_eq!(lost((1..=5).filter(|s| *s != 3), 5), (5, 1));
        assert_eq!(lost(1..=28, 30), (8, 2), "the last two never reached the disk");
    }

    #[test]
    fn an_empty_qcow2_disk_has_lost_what_was_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        super::super::qcow2::create(&path, Bytes::mib(4)).unwrap();
        let found = lost_writes(&path, 3).unwrap();
        assert_eq!((found.expected, found.lost), (3, 3));
    }
}
