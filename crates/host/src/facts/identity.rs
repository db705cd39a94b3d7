//! What tells one storage from another: a small file at a datastore's root, made by the first agent that reaches it.
//!
//! It comes into being whole, by a link, so that nobody reads half of it and of two that make it at once one wins. Where
//! that cannot be done, as on a datastore that cannot be written, nothing is known of its identity.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use uuid::Uuid;

const FILE: &str = ".godwit-datastore";
/// No file with an id is longer, in bytes.
const BYTES_MAX: usize = 64;

/// The id of the storage whose root this is, which gets one if it has none.
pub(super) fn of(root: &Path) -> Option<Uuid> {
    let known = read(root).or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            return Err(error);
        }
        create(root)?;
        read(root)
    });
    let unknown = |error: &io::Error| tracing::debug!("{} has no identity: {error}", root.display());
    known.inspect_err(unknown).ok()
}

fn read(root: &Path) -> io::Result<Uuid> {
    let path = root.join(FILE);
    let regular = fs::symlink_metadata(&path)?;
    if !regular.is_file() || regular.len() > BYTES_MAX as u64 {
        return Err(io::Error::other(format!("{FILE} is no file of ours")));
    }
    fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}

fn create(root: &Path) -> io::Result<()> {
    let id = Uuid::new_v4();
    let draft = root.join(format!("{FILE}.{id}"));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&draft)?;
        writeln!(file, "{id}")?;
        file.sync_all()
    })();
    let linked = written.and_then(|()| match fs::hard_link(&draft, root.join(FILE)) {
        // Another agent was quicker, and its id counts.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    let removed = fs::remove_file(&draft);
    linked.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_who_reach_a_storage_find_one_id_and_another_storage_has_another() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = one.path();
        let ids: Vec<_> = std::thread::scope(|scope| {
            let looks: Vec<_> = (0..8).map(|_| scope.spawn(move || of(root))).collect();
            looks.into_iter().map(|look| look.join().unwrap()).collect()
        });
        assert!(ids[0].is_some() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        assert_ne!(of(other.path()), ids[0]);
        assert_eq!(fs::read_dir(root).unwrap().count(), 1, "no drafts are left");
    }

    #[test]
    fn nothing_is_known_of_a_place_that_is_not_there_or_of_a_file_that_is_no_id() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(of(&root.path().join("missing")), None);
        fs::write(root.path().join(FILE), "not an id").unwrap();
        assert_eq!(of(root.path()), None);
    }
}
