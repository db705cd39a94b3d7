//! The lock file beside an image; see [`godwit_types::lock`].
//!
//! ```text
//!   try the OFD lock --free--> read the record --allowed--> write own record, fsync --> held
//!        |                          |
//!      taken: the record there      +--newer epoch, rival, other VM--> refused
//!        |    is not refused
//!        +--> sleep, try again, until the old holder has had its time
//!
//!   take over: try once --free, and the guest stands as its source left it--> held, record unchanged
//! ```
//!
//! Where a file system does not carry locks from host to host, the record alone orders the epochs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use godwit_types::lock::{LockRecord, LockRefused};
use godwit_types::{Epoch, MigrationId, VmId};

/// How long the last owner has to let go of its lock.
const PATIENCE: Duration = Duration::from_secs(5);
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// The record fills one sector, so that it is written as a whole, and over all of the last one.
const RECORD_BYTES: usize = 512;

/// A held lock. Dropping it lets go.
#[derive(Debug)]
pub struct DiskLock {
    path: PathBuf,
    /// The lock belongs to this open file description.
    file: File,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("cannot use the lock file {path}: {cause}; check that the datastore is mounted and writable")]
    Io { path: PathBuf, cause: io::Error },
    #[error("the lock file {path} is damaged; remove it only if no host runs the VM")]
    Damaged { path: PathBuf },
    #[error("the lock file {path} does not let this host have the disk: {reason}")]
    Refused { path: PathBuf, reason: LockRefused },
    #[error("the lock file {path} says that the guest has run on, or runs elsewhere: {record:?}")]
    RanOn { path: PathBuf, record: Option<LockRecord> },
    #[error("the lock {path} is still held by {holder}; end the VM's process there, or wait for it to end")]
    Held { path: PathBuf, holder: String },
}

impl DiskLock {
    /// Takes the lock at `path` and writes `record` into it.
    pub fn take(path: &Path, record: &LockRecord) -> Result<Self, LockError> {
        Self::take_within(path, record, PATIENCE)
    }

    /// The same without waiting.
    pub fn take_now(path: &Path, record: &LockRecord) -> Result<Self, LockError> {
        Self::take_within(path, record, Duration::ZERO)
    }

    /// Takes the lock that a dead source of `migration` has left, once and without waiting; `None` if it is held. The
    /// record stays the source's.
    pub fn take_over(
        path: &Path,
        vm: VmId,
        epoch: Epoch,
        migration: MigrationId,
    ) -> Result<Option<Self>, LockError> {
        let io = |cause| LockError::Io { path: path.to_owned(), cause };
        let file = open(path).map_err(io)?;
        let locked = set_lock(&file).map_err(io)?;
        let record = read_record(&file, path)?;
        if !record.as_ref().is_some_and(|record| record.stands_since(vm, epoch, migration)) {
            return Err(LockError::RanOn { path: path.to_owned(), record });
        }
        Ok(locked.then(|| Self { path: path.to_owned(), file }))
    }

    /// Writes `record` over the one of the same or an older epoch.
    pub fn renew(&self, record: &LockRecord) -> Result<(), LockError> {
        let current = read_record(&self.file, &self.path)?;
        if let Some(current) = &current {
            let refused = |reason| LockError::Refused { path: self.path.clone(), reason };
            record.may_replace(current).map_err(refused)?;
        }
        let written = try_lock(&self.file).and_then(|held| {
            // A file system may have taken the lock away from a host that it had lost sight of.
            let lost = || io::Error::other("the lock was lost to another host");
            held.then_some(()).ok_or_else(lost)?;
            write_record(&self.file, &self.path, record, current.is_none())
        });
        written.map_err(|cause| LockError::Io { path: self.path.clone(), cause })
    }

    /// Whether somebody else's lock at `path` can be seen from here, which they are known to hold.
    pub fn is_seen(path: &Path) -> io::Result<bool> {
        let file = open(path)?;
        let mut whole = whole_file();
        // SAFETY: the file descriptor is open and the pointer is to a live `flock`, whose process id is zero as required.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut whole) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(i32::from(whole.l_type) != libc::F_UNLCK)
    }

    fn take_within(path: &Path, record: &LockRecord, patience: Duration) -> Result<Self, LockError> {
        let deadline = Instant::now() + patience;
        loop {
            let file = open(path).map_err(|cause| LockError::Io { path: path.to_owned(), cause })?;
            let locked = try_lock(&file).map_err(|cause| LockError::Io { path: path.to_owned(), cause })?;
            let current = read_record(&file, path)?;
            if let Some(current) = &current {
                let refused = |reason| LockError::Refused { path: path.to_owned(), reason };
                record.may_replace(current).map_err(refused)?;
            }
            if locked {
                let io = |cause| LockError::Io { path: path.to_owned(), cause };
                write_record(&file, path, record, current.is_none()).map_err(io)?;
                return Ok(Self { path: path.to_owned(), file });
            }
            if Instant::now() >= deadline {
                let holder = current.map_or_else(
                    || "another process".to_owned(),
                    |current| format!("host {} at epoch {}", current.host, current.epoch),
                );
                return Err(LockError::Held { path: path.to_owned(), holder });
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// Whether the lock is ours now. A file system without locks counts as one whose locks are always free.
fn try_lock(file: &File) -> io::Result<bool> {
    set_lock(file).or_else(|error| match error.raw_os_error() {
        Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => {
            tracing::warn!(%error, "the datastore has no locks; the lock file's record alone orders the owners");
            Ok(true)
        }
        _ => Err(error),
    })
}

fn set_lock(file: &File) -> io::Result<bool> {
    let whole = whole_file();
    // SAFETY: the file descriptor is open and the pointer is to a live `flock`, whose process id is zero as required.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

fn whole_file() -> libc::flock {
    // SAFETY: all fields of `flock` are plain numbers.
    let mut whole: libc::flock = unsafe { std::mem::zeroed() };
    whole.l_type = libc::F_WRLCK as libc::c_short;
    whole.l_whence = libc::SEEK_SET as libc::c_short;
    whole
}

/// The record in the file; `None` if it is new.
fn read_record(file: &File, path: &Path) -> Result<Option<LockRecord>, LockError> {
    // Another host may have written it since this one has last read it. Failing, it costs nothing but freshness.
    // SAFETY: the file descriptor is open, and the call touches no memory of ours.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    let mut bytes = [0; RECORD_BYTES];
    let mut length = 0;
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(LockError::Io { path: path.to_owned(), cause }),
        }
    }
    if length == 0 {
        return Ok(None);
    }
    serde_json::from_slice(&bytes[..length])
        .map(Some)
        .map_err(|_| LockError::Damaged { path: path.to_owned() })
}

fn write_record(file: &File, path: &Path, record: &LockRecord, new: bool) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(record)?;
    debug_assert!(bytes.len() < RECORD_BYTES, "a record has bounded names and numbers");
    bytes.resize(RECORD_BYTES - 1, b' ');
    bytes.push(b'\n');
    file.write_all_at(&bytes, 0)?;
    file.sync_all()?;
    match path.parent().filter(|_| new) {
        Some(directory) => sync_directory(directory),
        None => Ok(()),
    }
}

/// Makes the new file's name durable, where the file system lets one do that.
fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory)?.sync_all() {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(60);

    fn record(vm: u128, host: &str, epoch: u64) -> LockRecord {
        let vm = VmId(format!("{vm:032x}").parse().unwrap());
        LockRecord { vm, host: host.parse().unwrap(), epoch: Epoch(epoch), ran_on_after: None }
    }

    fn place() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web1.raw.lock");
        (directory, path)
    }

    #[test]
    fn a_held_lock_is_not_given_to_the_next_owner_until_it_is_dropped() {
        let (_directory, path) = place();
        let held = DiskLock::take(&path, &record(1, "a", 1)).unwrap();
        let refused = DiskLock::take_within(&path, &record(1, "b", 2), SHORT).unwrap_err();
        assert!(refused.to_string().contains("held by host a at epoch 1"), "{refused}");
        let waiting = {
            let path = path.clone();
            std::thread::spawn(move || DiskLock::take(&path, &record(1, "b", 2)).map(drop))
        };
        std::thread::sleep(SHORT);
        drop(held);
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn a_host_that_comes_back_with_an_older_epoch_is_refused_at_once_whether_or_not_the_lock_is_held() {
        let (_directory, path) = place();
        let held = DiskLock::take(&path, &record(1, "b", 2)).unwrap();
        let refuse = |record| DiskLock::take(&path, &record).unwrap_err();
        assert!(matches!(refuse(record(1, "a", 1)), LockError::Refused { .. }));
        drop(held);
        assert!(matches!(refuse(record(1, "a", 1)), LockError::Refused { .. }));
        assert!(matches!(refuse(record(1, "a", 2)), LockError::Refused { .. }));
        assert!(matches!(refuse(record(9, "a", 3)), LockError::Refused { .. }));
        DiskLock::take(&path, &record(1, "a", 3)).unwrap();
        DiskLock::take(&path, &record(1, "a", 3)).unwrap();
    }

    #[test]
    fn another_process_holds_the_lock_as_well() {
        let (_directory, path) = place();
        drop(DiskLock::take(&path, &record(1, "a", 1)).unwrap());
        // Python's standard library is the nearest other process with this lock.
        let program = "import fcntl,struct,sys,time\nf=open(sys.argv[1],'r+')\n\
            fcntl.fcntl(f,37,struct.pack('hhqqi4x',1,0,0,0,0))\nprint('locked',flush=True)\nsys.stdin.read()";
        let child = std::process::Command::new("python3")
            .args(["-c", program])
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            eprintln!("SKIPPED: python3 is not installed");
            return;
        };
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        assert_eq!(line, "locked\n");
        let refused = DiskLock::take_within(&path, &record(1, "a", 2), SHORT);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(matches!(refused, Err(LockError::Held { .. })), "{refused:?}");
        DiskLock::take_within(&path, &record(1, "a", 2), SHORT).unwrap();
    }

    #[test]
    fn only_the_lock_of_a_dead_source_whose_guest_has_not_run_on_is_taken_over() {
        let (_directory, path) = place();
        let [mine, other] = [1, 2].map(|id| MigrationId(format!("{id:032x}").parse().unwrap()));
        let source = record(1, "a", 1);
        let take_over = |migration| DiskLock::take_over(&path, source.vm, source.epoch, migration);
        let held = DiskLock::take(&path, &source).unwrap();
        assert!(DiskLock::is_seen(&path).unwrap() && take_over(mine).unwrap().is_none());
        held.renew(&LockRecord { ran_on_after: Some(mine), ..source.clone() }).unwrap();
        assert!(
            matches!(take_over(mine), Err(LockError::RanOn { .. })),
            "it runs on, whoever holds the lock"
        );
        drop(held);
        assert!(!DiskLock::is_seen(&path).unwrap());
        assert!(matches!(take_over(mine), Err(LockError::RanOn { .. })));
        let taken = take_over(other).unwrap().unwrap();
        assert!(DiskLock::is_seen(&path).unwrap());
        taken.renew(&record(1, "b", 2)).unwrap();
        drop(taken);
        assert!(matches!(take_over(other), Err(LockError::RanOn { .. })), "it runs elsewhere");
        let refused = DiskLock::take(&path, &source).unwrap_err();
        assert!(matches!(refused, LockError::Refused { .. }), "{refused}");
    }

    #[test]
    fn a_damaged_record_is_refused() {
        let (_directory, path) = place();
        std::fs::write(&path, "{\"vm\":").unwrap();
        assert!(matches!(DiskLock::take(&path, &record(1, "a", 1)), Err(LockError::Damaged { .. })));
    }
}
