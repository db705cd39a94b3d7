//! What one lab leaves on the machine: namespaces with a common prefix, and one directory.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use godwit_faults::Board;
use godwit_types::HostName;
use serde::{Deserialize, Serialize};

use super::network::Network;
use crate::{LabError, Result, exec, setup};

/// The lab of `cargo xtask lab`.
pub(super) const STANDING: &str = "standing";
/// Environment variable: when set, the directory with the logs stays.
const KEEP: &str = "GODWIT_LAB_KEEP";
/// How long a directory may resist its removal while processes end.
const REMOVE_LIMIT: Duration = Duration::from_secs(5);

/// A lab's marks on the machine, also to be found by later processes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    /// Unique among the labs of the machine.
    pub(super) name: String,
    pub(super) hosts: Vec<HostName>,
    /// Whether it is to outlive the process that makes it.
    stands: bool,
}

/// Held as long as a lab's process lives; one that nobody holds tells an orphan.
#[derive(Debug)]
pub(super) struct Ownership {
    _lock: File,
}

impl State {
    /// A lab that ends with this process.
    pub(super) fn transient(hosts: Vec<HostName>) -> Self {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        Self { name: format!("{process}n{number}"), hosts, stands: false }
    }

    /// The lab that stays until it is taken down.
    pub(super) fn standing(hosts: Vec<HostName>) -> Self {
        Self { name: STANDING.to_owned(), hosts, stands: true }
    }

    /// Reads what [`State::save`] wrote; `None` if there is no such lab.
    pub(super) fn load(name: &str) -> Result<Option<Self>> {
        let path = labs().join(name).join("state.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(LabError::io(format!("read {}", path.display()))(error)),
        };
        let what = path.display().to_string();
        serde_json::from_str(&text).map(Some).map_err(|source| LabError::Document {
            what,
            found: text,
            source,
        })
    }

    /// Makes the lab's directories, and says what it is before anything else is made.
    pub(super) fn save(&self) -> Result<Ownership> {
        for dir in [self.datastore(), self.shared().join("logs"), self.dir().join("manager")] {
            fs::create_dir_all(&dir).map_err(LabError::io(format!("create {}", dir.display())))?;
        }
        let faults = self.faults();
        Board::create(&faults).map_err(LabError::io(format!("create {}", faults.display())))?;
        let path = self.owner_file();
        let failed = || LabError::io(format!("lock {}", path.display()));
        let lock = File::create(&path).map_err(failed())?;
        lock.lock().map_err(failed())?;
        let path = self.dir().join("state.json");
        let text = serde_json::to_string(self).expect("names and numbers can be written as JSON");
        fs::write(&path, text).map_err(LabError::io(format!("write {}", path.display())))?;
        Ok(Ownership { _lock: lock })
    }

    /// What the names of the lab's namespaces begin with.
    pub(super) fn prefix(&self) -> String {
        format!("gwlab-{}", self.name)
    }

    /// Consoles, logs, the manager's state, and [`State::shared`].
    pub(super) fn dir(&self) -> PathBuf {
        labs().join(&self.name)
    }

    /// What all hosts see.
    pub(super) fn shared(&self) -> PathBuf {
        self.dir().join("shared")
    }

    pub(super) fn datastore(&self) -> PathBuf {
        self.shared().join("datastore")
    }

    pub(super) fn faults(&self) -> PathBuf {
        self.shared().join("faults")
    }

    pub(super) fn token_file(&self) -> PathBuf {
        self.shared().join("token")
    }

    /// What a host's agent says, as a path in [`State::shared`].
    pub(super) fn agent_log_in_shared(host: &HostName) -> String {
        format!("logs/agent-{host}.log")
    }

    pub(super) fn agent_log(&self, host: &HostName) -> PathBuf {
        self.shared().join(Self::agent_log_in_shared(host))
    }

    /// A host's place among the hosts, which its addresses follow from.
    pub(super) fn index(&self, host: &str) -> Result<u8> {
        let index = (0..).zip(&self.hosts).find(|(_, name)| name.as_str() == host);
        let known = || self.hosts.iter().map(HostName::as_str).collect::<Vec<_>>().join(", ");
        index.map(|(index, _)| index).ok_or_else(|| {
            LabError::Unsupported(format!("the lab has no host {host}: its hosts are {}", known()))
        })
    }

    /// Kills everything that belongs to the lab, and removes its namespaces and its directory.
    pub(super) fn remove(&self) {
        Network::remove(&self.prefix());
        if std::env::var_os(KEEP).is_some() {
            eprintln!("the logs are kept in {}", self.dir().display());
            return;
        }
        let gone = exec::poll(REMOVE_LIMIT, exec::POLL, || {
            Ok((fs::remove_dir_all(self.dir()).is_ok() || !self.dir().exists()).then_some(()))
        });
        if !matches!(gone, Ok(Some(()))) {
            eprintln!("warning: {} could not be removed", self.dir().display());
        }
    }

    fn is_orphan(&self) -> bool {
        !self.stands && File::open(self.owner_file()).is_ok_and(|file| file.try_lock().is_ok())
    }

    fn owner_file(&self) -> PathBuf {
        self.dir().join("owner")
    }
}

/// Removes the labs of processes that no longer exist.
pub(super) fn sweep() {
    let names = fs::read_dir(labs()).into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        if let Ok(Some(state)) = State::load(&name)
            && state.is_orphan()
        {
            state.remove();
        }
    }
}

fn labs() -> PathBuf {
    setup::target_dir().join("lab")
}
