//! The disk workload: a record is written, flushed and only then counted; older ones are read back and verified.
//! Past the page cache, so that what is verified was on the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use godwit_guest_contract::disk::{RECORD_BYTES, Record, RecordBytes, Scan, capacity};
use nix::fcntl::OFlag;

use super::count;
use super::state::Disk;

const PAUSE: Duration = Duration::from_millis(5);
/// How much of the disk is read at once when looking for the newest record.
const SCAN_RECORDS: usize = 256;

/// A buffer as direct I/O wants it.
#[repr(C, align(4096))]
struct Aligned<const N: usize>([RecordBytes; N]);

/// Works until the disk fails. Continues after the newest record of an earlier run.
pub(super) fn run(path: impl AsRef<Path>, state: &Disk) -> io::Result<()> {
    let direct = OFlag::O_DIRECT.bits();
    let mut disk = OpenOptions::new().read(true).write(true).custom_flags(direct).open(path)?;
    let capacity = capacity(disk.seek(SeekFrom::End(0))?);
    let newest = if capacity == 0 { return Ok(()) } else { newest(&disk, capacity)? };
    state.acked.store(newest, Relaxed);
    let mut buffer = Box::new(Aligned([[0; RECORD_BYTES]; 1]));
    for sequence in newest + 1.. {
        let record = Record { sequence, capacity };
        buffer.0[0] = record.encode();
        disk.write_all_at(&buffer.0[0], record.offset())?;
        disk.sync_data()?;
        state.acked.store(sequence, Relaxed);
        let oldest = sequence.saturating_sub(capacity - 1).max(newest + 1);
        let older = Record { sequence: oldest + scatter(sequence) % (sequence - oldest + 1), capacity };
        disk.read_exact_at(&mut buffer.0[0], older.offset())?;
        count(&state.read_back);
        if let Err(fault) = older.verify(&buffer.0[0]) {
            state.faults.add(|| format!("disk: record {}: {fault}", older.sequence));
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn newest(disk: &File, capacity: u64) -> io::Result<u64> {
    let mut scan = Scan::new(capacity, 0);
    let mut buffer = Box::new(Aligned([[0; RECORD_BYTES]; SCAN_RECORDS]));
    let mut slot = 0;
    while slot < capacity {
        let records = SCAN_RECORDS.min((capacity - slot) as usize);
        disk.read_exact_at(buffer.0[..records].as_flattened_mut(), slot * RECORD_BYTES as u64)?;
        buffer.0[..records].iter().for_each(|bytes| scan.feed(bytes));
        slot += records as u64;
    }
    Ok(scan.newest())
}

/// Spreads numbers over the disk (Fibonacci hashing).
const fn scatter(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;

    /// The disk ends the workload: a device that takes no more writes.
    #[test]
    fn acknowledged_records_are_on_the_disk_and_a_second_run_goes_on_after_them() {
        let path = std::env::temp_dir().join(format!("godwit-linux-guest-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        file.set_len(64 << 10).unwrap();
        let state = Arc::new(Disk::default());
        // The thread ends with the test's process; it holds nothing but the removed file.
        thread::spawn({
            let (path, state) = (path.clone(), Arc::clone(&state));
            move || state.end(run(path, &state))
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        while state.acked.load(Relaxed) < 200 {
            assert!(Instant::now() < deadline, "{state:?}");
            thread::sleep(PAUSE);
        }
        let acknowledged = state.acked.load(Relaxed);
        let disk = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(newest(&disk, 128).unwrap() >= acknowledged);
        assert!(format!("{:?}", state.faults).contains("first: Mutex { data: None"), "{state:?}");
    }
}
