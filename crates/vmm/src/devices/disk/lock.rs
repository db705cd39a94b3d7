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
//! The file is given to the process open. A held lock belongs to its open description, which nobody else shares.
//! Where a file system does not carry locks from host to host, the record alone orders the epochs.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
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
    /// Takes the lock of `file`, which lies at `path`, and writes `record` into it.
    pub fn take(file: &OwnedFd, path: &Path, record: &LockRecord) -> Result<Self, LockError> {
        Self::take_within(file, path, record, PATIENCE)
    }

    /// The same without waiting.
    pub fn take_now(file: &OwnedFd, path: &Path, record: &LockRecord) -> Result<Self, LockError> {
        Self::take_within(file, path, record, Duration::ZERO)
    }

    /// Takes the lock that a dead source of `migration` has left, once and without waiting; `None` if it is held. The
    /// record stays the source's.
    pub fn take_over(
        file: &OwnedFd,
        path: &Path,
        vm: VmId,
        epoch: Epoch,
        migration: MigrationId,
    ) -> Result<Option<Self>, LockError> {
        let io = |cause| LockError::Io { path: path.to_owned(), cause };
        let file = file.try_clone().map(File::from).map_err(io)?;
        // Let go of again if what follows fails. Unlike `take`, this is worth nothing on a file system without locks.
        let lock = set_lock(&file, libc::F_WRLCK).map_err(io)?.then(|| Self::of(&file, path));
        let lock = lock.transpose().map_err(io)?;
        let record = read_record(&file, path)?;
        if !record.as_ref().is_some_and(|record| record.stands_since(vm, epoch, migration)) {
            return Err(LockError::RanOn { path: path.to_owned(), record });
        }
        Ok(lock)
    }

    /// Writes `record` over the one of the same or an older epoch.
    pub fn renew(&self, record: &LockRecord) -> Result<(), LockError> {
        replaceable(&self.file, &self.path, record)?;
        let written = try_lock(&self.file).and_then(|held| {
            // A file system may have taken the lock away from a host that it had lost sight of.
            let lost = || io::Error::other("the lock was lost to another host");
            held.then_some(()).ok_or_else(lost)?;
            write_record(&self.file, record)
        });
        written.map_err(|cause| LockError::Io { path: self.path.clone(), cause })
    }

    /// Whether somebody else's lock of `file` can be seen from here, which they are known to hold.
    pub fn is_seen(file: &OwnedFd) -> io::Result<bool> {
        let mut whole = whole_file(libc::F_WRLCK);
        // SAFETY: the file descriptor is open and the pointer is to a live `flock`, whose process id is zero as required.
        match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut whole) } {
            0 => Ok(i32::from(whole.l_type) != libc::F_UNLCK),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn of(file: &File, path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: file.try_clone()? })
    }

    fn take_within(
        file: &OwnedFd,
        path: &Path,
        record: &LockRecord,
        patience: Duration,
    ) -> Result<Self, LockError> {
        let deadline = Instant::now() + patience;
        let io = |cause| LockError::Io { path: path.to_owned(), cause };
        let file = file.try_clone().map(File::from).map_err(io)?;
        loop {
            // Let go of again if what follows fails.
            let lock = try_lock(&file).map_err(io)?.then(|| Self::of(&file, path));
            let lock = lock.transpose().map_err(io)?;
            let current = replaceable(&file, path, record)?;
            if let Some(lock) = lock {
                write_record(&file, record).map_err(io)?;
                return Ok(lock);
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

impl Drop for DiskLock {
    fn drop(&mut self) {
        // Fails only where there are no locks.
        let _ = set_lock(&self.file, libc::F_UNLCK);
    }
}

/// Whether the lock is ours now. A file system without locks counts as one whose locks are always free.
fn try_lock(file: &File) -> io::Result<bool> {
    set_lock(file, libc::F_WRLCK).or_else(|error| match error.raw_os_error() {
        Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => {
            tracing::warn!(%error, "the datastore has no locks; the lock file's record alone orders the owners");
            Ok(true)
        }
        _ => Err(error),
    })
}

/// Sets the lock, or clears it (`F_UNLCK`); whether nobody else's is in the way.
fn set_lock(file: &File, kind: libc::c_int) -> io::Result<bool> {
    let whole = whole_file(kind);
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

fn whole_file(kind: libc::c_int) -> libc::flock {
    // SAFETY: all fields of `flock` are plain numbers.
    let mut whole: libc::flock = unsafe { std::mem::zeroed() };
    whole.l_type = kind as libc::c_short;
    whole.l_whence = libc::SEEK_SET as libc::c_short;
    whole
}

/// The record in the file, which `record` may replace.
fn replaceable(file: &File, path: &Path, record: &LockRecord) -> Result<Option<LockRecord>, LockError> {
    let current = read_record(file, path)?;
    if let Some(current) = &current {
        let refused = |reason| LockError::Refused { path: path.to_owned(), reason };
        record.may_replace(current).map_err(refused)?;
    }
    Ok(current)
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

fn write_record(file: &File, record: &LockRecord) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(record)?;
    debug_assert!(bytes.len() < RECORD_BYTES, "a record has bounded names and numbers");
    bytes.resize(RECORD_BYTES - 1, b' ');
    bytes.push(b'\n');
    file.write_all_at(&bytes, 0)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(60);

    fn record(vm: u128, host: &str, epoch: u64) -> LockRecord {
        let vm = VmId(format!("{vm:032x}").parse().unwrap());
        LockRecord { vm, host: host.parse().unwrap(), epoch: Epoch(epoch), ran_on_after: None }
    }

    fn take_within(path: &Path, record: &LockRecord, patience: Duration) -> Result<DiskLock, LockError> {
        DiskLock::take_within(&open(path), path, record, patience)
    }

    fn open(path: &Path) -> OwnedFd {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).open(path).unwrap().into()
    }

    fn take(path: &Path, record: &LockRecord) -> Result<DiskLock, LockError> {
        take_within(path, record, PATIENCE)
    }

    fn place() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web1.raw.lock");
        (directory, path)
    }

    #[test]
    fn a_held_lock_is_not_given_to_the_next_owner_until_it_is_dropped() {
        let (_directory, path) = place();
        let held = take(&path, &record(1, "a", 1)).unwrap();
        let refused = take_within(&path, &record(1, "b", 2), SHORT).unwrap_err();
        assert!(refused.to_string().contains("held by host a at epoch 1"), "{refused}");
        let waiting = {
            let path = path.clone();
            std::thread::spawn(move || take(&path, &record(1, "b", 2)).map(drop))
        };
        std::thread::sleep(SHORT);
        drop(held);
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn a_host_that_comes_back_with_an_older_epoch_is_refused_at_once_whether_or_not_the_lock_is_held() {
        let (_directory, path) = place();
        let held = take(&path, &record(1, "b", 2)).unwrap();
        let refuse = |record| take(&path, &record).unwrap_err();
        assert!(matches!(refuse(record(1, "a", 1)), LockError::Refused { .. }));
        drop(held);
        assert!(matches!(refuse(record(1, "a", 1)), LockError::Refused { .. }));
        assert!(matches!(refuse(record(1, "a", 2)), LockError::Refused { .. }));
        assert!(matches!(refuse(record(9, "a", 3)), LockError::Refused { .. }));
        take(&path, &record(1, "a", 3)).unwrap();
        take(&path, &record(1, "a", 3)).unwrap();
    }

    #[test]
    fn another_process_holds_the_lock_as_well() {
        let (_directory, path) = place();
        drop(take(&path, &record(1, "a", 1)).unwrap());
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
        let refused = take_within(&path, &record(1, "a", 2), SHORT);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(matches!(refused, Err(LockError::Held { .. })), "{refused:?}");
        take_within(&path, &record(1, "a", 2), SHORT).unwrap();
    }

    #[test]
    fn only_the_lock_of_a_dead_source_whose_guest_has_not_run_on_is_taken_over() {
        let (_directory, path) = place();
        let [mine, other] = [1, 2].map(|id| MigrationId(format!("{id:032x}").parse().unwrap()));
        let source = record(1, "a", 1);
        let take_over =
            |migration| DiskLock::take_over(&open(&path), &path, source.vm, source.epoch, migration);
        let ran_on = |taken| matches!(taken, Err(LockError::RanOn { .. }));
        let held = take(&path, &source).unwrap();
        assert!(DiskLock::is_seen(&open(&path)).unwrap() && take_over(mine).unwrap().is_none());
        held.renew(&LockRecord { ran_on_after: Some(mine), ..source.clone() }).unwrap();
        assert!(ran_on(take_over(mine)), "whoever holds the lock");
        drop(held);
        assert!(!DiskLock::is_seen(&open(&path)).unwrap());
        assert!(ran_on(take_over(mine)));
        let taken = take_over(other).unwrap().unwrap();
        assert!(DiskLock::is_seen(&open(&path)).unwrap());
        taken.renew(&record(1, "b", 2)).unwrap();
        drop(taken);
        assert!(ran_on(take_over(other)), "it runs elsewhere");
        let refused = take(&path, &source).unwrap_err();
        assert!(matches!(refused, LockError::Refused { .. }), "{refused}");
    }

    #[test]
    fn a_damaged_record_is_refused() {
        let (_directory, path) = place();
        std::fs::write(&path, "{\"vm\":").unwrap();
        assert!(matches!(take(&path, &record(1, "a", 1)), Err(LockError::Damaged { .. })));
    }
}
