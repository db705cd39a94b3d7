//! What one fabric leaves on the machine: namespaces with a common prefix, and one directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use godwit_faults::Board;
use godwit_types::HostName;

use super::Process;
use crate::cgroup::Cgroups;
use crate::{LabError, Result, exec, namespace};

/// Environment variable: when set, the directory with the logs stays.
const KEEP: &str = "GODWIT_LAB_KEEP";
/// How long a directory may resist its removal while processes end.
const REMOVE_LIMIT: Duration = Duration::from_secs(5);

/// One fabric's marks on the machine.
#[derive(Debug, Clone)]
pub(super) struct Run {
    prefix: String,
    dir: PathBuf,
    datastore: PathBuf,
}

impl Run {
    /// Makes the directories; `index` tells the fabrics of one process apart.
    pub(super) fn create(index: u32) -> Result<Self> {
        let prefix = format!("gw{}n{index}", std::process::id());
        let dir = std::env::temp_dir().join(format!("godwit-{prefix}"));
        let run = Self { datastore: dir.join("datastore"), prefix, dir };
        std::fs::create_dir_all(&run.datastore)
            .map_err(LabError::io(format!("create {}", run.datastore.display())))?;
        let faults = run.dir.join("faults");
        Board::create(&faults).map_err(LabError::io(format!("create {}", faults.display())))?;
        Ok(run)
    }

    /// What the names of all namespaces begin with.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What its agents call the directory of their cgroups.
    pub(super) fn cgroup(&self) -> String {
        format!("godwit-{}", self.prefix)
    }

    pub(super) fn cgroups(&self) -> Option<Cgroups> {
        Cgroups::named(&self.cgroup())
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn datastore(&self) -> &Path {
        &self.datastore
    }

    /// Where a host has its own datastore: a file system that only it sees.
    pub(super) fn own_datastore(&self, host: &HostName) -> PathBuf {
        self.dir.join(format!("datastore-{host}"))
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.dir.clone()
    }

    pub(super) fn log(&self, process: &Process) -> PathBuf {
        self.dir.join(format!("{process}.log"))
    }

    /// Kills all processes, removes all namespaces, and the directory.
    pub(super) fn remove(&self) {
        for namespace in namespace::named(&format!("{}-", self.prefix)) {
            if let Err(error) = namespace.destroy() {
                eprintln!("warning: {}; remove it with `ip netns del`", error.chain());
            }
        }
        if let Some(cgroups) = self.cgroups() {
            cgroups.remove();
        }
        if std::env::var_os(KEEP).is_some() {
            eprintln!("the logs are kept in {}", self.dir.display());
            return;
        }
        let gone = exec::poll(REMOVE_LIMIT, exec::POLL, || {
            Ok((std::fs::remove_dir_all(&self.dir).is_ok() || !self.dir.exists()).then_some(()))
        });
        if !matches!(gone, Ok(Some(()))) {
            eprintln!("warning: {} could not be removed", self.dir.display());
        }
    }
}

/// Removes what fabrics of processes that no longer exist left behind.
pub(super) fn sweep() {
    for namespace in namespace::named("gw") {
        let Some((prefix, _)) = namespace.name().split_once('-') else { continue };
        let Some((pid, index)) = prefix[2..].split_once('n') else { continue };
        if pid.parse::<u32>().is_err()
            || index.parse::<u32>().is_err()
            || Path::new("/proc").join(pid).exists()
        {
            continue;
        }
        let dir = std::env::temp_dir().join(format!("godwit-{prefix}"));
        Run { prefix: prefix.to_owned(), datastore: dir.join("datastore"), dir }.remove();
    }
}
