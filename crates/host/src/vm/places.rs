//! Where disks lie that move with their VM: where one can arrive, and what one has left behind.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use godwit_provision::lock_of;
use godwit_types::check::{Check, Finding};
use godwit_types::control::DiskBacking;
use godwit_types::lock::LockRecord;
use godwit_types::vm::DatastorePath;
use godwit_types::{Epoch, VmId};
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::{AccessFlags, access};

use super::dir::absent_is_fine;
use crate::config::HostConfig;

/// Where the disk of a VM can be made that will run here at `epoch`: nothing is there, or what the VM has left there itself
/// before that, or what was `made` for an earlier arrival that came to nothing.
pub(super) fn to_arrive(
    config: &HostConfig,
    (vm, epoch): (VmId, Epoch),
    image: &DatastorePath,
    made: &[PathBuf],
) -> Result<PathBuf, Finding> {
    let (name, wanted) = (&config.name, &image.datastore);
    let datastore = config.datastores.iter().find(|datastore| datastore.name == *wanted);
    let datastore = datastore.ok_or_else(|| Finding::no_datastore(name, wanted))?;
    let blocked = |reason: String, remedy: &str| Finding::blocked(Check::Disks, reason, remedy);
    let unusable = |error: io::Error| {
        let reason = format!("{name} cannot make {image} in {}: {error}", datastore.path.display());
        blocked(reason, "let root of that host write to the datastore, or name another")
    };
    let path = inside(&datastore.path, &image.path).map_err(unusable)?;
    let above = path.ancestors().skip(1).find(|directory| directory.exists()).unwrap_or(Path::new("/"));
    access(above, AccessFlags::W_OK).map_err(|errno| unusable(errno.into()))?;
    let taken = |reason: String| blocked(reason, "move the file out of the way, or name another datastore");
    let lock = lock_of(&path);
    let own = match record(&lock) {
        Some(record) => record.vm == vm && record.epoch < epoch,
        // One that nobody has run with yet names nobody.
        None => made.contains(&path),
    };
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && (own || !lock.exists()) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(taken(format!(
            "{image} would get the lock file of another disk, {} on {name}",
            lock.display()
        ))),
        Err(error) => Err(unusable(error)),
        Ok(there) if own && there.is_file() && !is_held(&lock) => Ok(path),
        Ok(_) => Err(taken(format!(
            "there is {} on {name} already, which the VM has not left there",
            path.display()
        ))),
    }
}

/// Removes an image that the VM has left behind when it moved with its disks, and last used here at the epoch; not one that
/// it has in use again.
pub(super) fn remove_left(
    config: &HostConfig,
    (vm, epoch): (VmId, Epoch),
    image: &DatastorePath,
    in_use: &[DiskBacking],
) -> Result<(), String> {
    let datastore = config.datastores.iter().find(|datastore| datastore.name == image.datastore);
    let datastore = datastore.ok_or_else(|| format!("there is no datastore '{}' here", image.datastore))?;
    let failed = |error: io::Error| format!("{image}: {error}");
    let path = inside(&datastore.path, &image.path).map_err(failed)?;
    if !path.exists() {
        return Ok(());
    }
    if in_use.iter().any(|disk| disk.path == path) {
        return Err(format!("{image} is in use by VM {vm} again"));
    }
    let lock = lock_of(&path);
    match record(&lock) {
        Some(record) if record.vm == vm && record.epoch <= epoch && record.host == config.name => {}
        found => {
            return Err(format!(
                "{image} is not what VM {vm} has left at epoch {epoch}: its lock says {found:?}"
            ));
        }
    }
    absent_is_fine(fs::remove_file(&path))
        .and_then(|()| absent_is_fine(fs::remove_file(&lock)))
        .map_err(failed)
}

/// A place below a root that no symbolic link leads out of. Neither it nor the directories above it need to be there.
fn inside(root: &Path, below: &str) -> io::Result<PathBuf> {
    let root = root.canonicalize()?;
    let path = root.join(below);
    let (directory, file) = path.parent().zip(path.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
    let there = directory.ancestors().find(|directory| directory.exists()).unwrap_or(&root);
    let missing = directory.strip_prefix(there).map_err(io::Error::other)?;
    let there = there.canonicalize()?;
    if !there.starts_with(&root) {
        return Err(io::Error::other("it leads out of the datastore by a symbolic link"));
    }
    Ok(there.join(missing).join(file))
}

/// What a lock file says, as far as it can be read.
pub(super) fn record(lock: &Path) -> Option<LockRecord> {
    let bytes = fs::read(lock).ok()?;
    serde_json::from_slice(bytes.split(|byte| *byte == 0).next()?).ok()
}

/// Whether somebody holds the lock. One that cannot be asked for counts as free, as where there are no locks.
fn is_held(lock: &Path) -> bool {
    let Ok(file) = File::open(lock) else { return false };
    // SAFETY: all fields of `flock` are plain numbers.
    let mut whole: libc::flock = unsafe { std::mem::zeroed() };
    whole.l_type = libc::F_WRLCK as libc::c_short;
    whole.l_whence = libc::SEEK_SET as libc::c_short;
    let asked = fcntl(&file, FcntlArg::F_OFD_GETLK(&mut whole));
    asked.is_ok() && i32::from(whole.l_type) != libc::F_UNLCK
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::admission::tests::config;
    use super::*;

    const VM: VmId = VmId(Uuid::from_u128(3));

    fn image() -> DatastorePath {
        "shared/vms/web1.raw".parse().unwrap()
    }

    fn left(root: &Path, vm: u128, host: &str, epoch: u64) -> PathBuf {
        let path = root.canonicalize().unwrap().join("vms/web1.raw");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "old").unwrap();
        let (vm, epoch) = (VmId(Uuid::from_u128(vm)), Epoch(epoch));
        let record = LockRecord { vm, host: host.parse().unwrap(), epoch, ran_on_after: None };
        let mut bytes = serde_json::to_vec(&record).unwrap();
        bytes.resize(512, b' ');
        fs::write(lock_of(&path), bytes).unwrap();
        path
    }

    #[test]
    fn a_disk_arrives_where_nothing_is_and_where_its_vm_has_left_it_and_nowhere_else() {
        let root = tempfile::tempdir().unwrap();
        let config = config(root.path());
        let at = |epoch| to_arrive(&config, (VM, Epoch(epoch)), &image(), &[]);
        assert!(at(3).is_ok(), "also the directory is made");
        let path = left(root.path(), 3, "b", 1);
        assert_eq!(at(3).unwrap(), path);
        assert!(at(1).is_err(), "the VM has moved on");
        left(root.path(), 4, "b", 1);
        assert!(at(3).unwrap_err().reason.contains("web1.raw"), "another VM's");
        fs::remove_file(&path).unwrap();
        assert!(at(3).is_err(), "its lock file is there still");
        fs::remove_file(lock_of(&path)).unwrap();
        fs::write(&path, "somebody's").unwrap();
        assert!(at(3).is_err());
        let made_before =
            || to_arrive(&config, (VM, Epoch(3)), &image(), std::slice::from_ref(&path)).is_ok();
        assert!(made_before());
        left(root.path(), 4, "b", 1);
        assert!(!made_before(), "it has become another VM's");
        fs::remove_file(lock_of(&path)).unwrap();
        fs::remove_file(&path).unwrap();
        fs::remove_dir(path.parent().unwrap()).unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("vms")).unwrap();
        assert!(at(3).unwrap_err().reason.contains("symbolic link"));
    }

    #[test]
    fn only_what_the_vm_has_left_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let config = config(root.path());
        let remove = |epoch| remove_left(&config, (VM, Epoch(epoch)), &image(), &[]);
        assert_eq!(remove(2), Ok(()), "it is gone already");
        for (vm, host, epoch) in [(4, "b", 1), (3, "a", 1), (3, "b", 3)] {
            let path = left(root.path(), vm, host, epoch);
            assert!(remove(2).is_err() && path.exists());
        }
        let path = left(root.path(), 3, "b", 2);
        assert_eq!(remove(2), Ok(()));
        assert!(!path.exists() && !lock_of(&path).exists());
    }
}
