//! The cgroups (version 2) that a cluster's agents make on this machine.

use std::fs;
use std::path::{Path, PathBuf};

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

    /// Removes those that are left behind. Their processes have ended.
    pub fn remove(&self) {
        for cgroup in self.all().iter().rev() {
            if let Err(error) = fs::remove_dir(cgroup) {
                eprintln!("warning: the cgroup {} could not be removed: {error}", cgroup.display());
            }
        }
    }
}

fn below(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let folders = entries.flatten().map(|entry| entry.path()).filter(|entry| entry.is_dir());
    std::iter::once(path.to_owned()).chain(folders.flat_map(|folder| below(&folder))).collect()
}
