//! The cgroups (version 2) that a cluster's agents make on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::exec;

/// How long a cgroup may resist its removal while processes end.
const REMOVE_LIMIT: Duration = Duration::from_secs(5);

/// A directory of cgroups, named after its cluster.
#[derive(Debug, Clone)]
pub struct Cgroups(PathBuf);

impl Cgroups {
    /// What an agent started with `--cgroup NAME` makes its cgroups in; none where version 2 is not mounted.
    pub fn named(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = mount.into_iter().find(|fields| fields.get(2) == Some(&"cgroup2"))?;
        Some(Self(Path::new(mount[1]).join(name)))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// All that exist, the outer ones first.
    pub fn all(&self) -> Vec<PathBuf> {
        below(&self.0)
    }

    /// Removes those that are left behind. Their processes were killed, and may still be ending.
    pub fn remove(&self) {
        let gone = exec::poll(REMOVE_LIMIT, exec::POLL, || {
            let removed = self.all().iter().rev().all(|cgroup| fs::remove_dir(cgroup).is_ok());
            Ok(removed.then_some(()))
        });
        if !matches!(gone, Ok(Some(()))) {
            eprintln!("warning: the cgroup {} could not be removed", self.0.display());
        }
    }
}

fn below(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let folders = entries.flatten().map(|entry| entry.path()).filter(|entry| entry.is_dir());
    std::iter::once(path.to_owned()).chain(folders.flat_map(|folder| below(&folder))).collect()
}
