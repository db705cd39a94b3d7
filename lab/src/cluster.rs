//! A running cluster, whatever its hosts are made of, and a user's way to it: the `godwit` command line.

use std::path::{Path, PathBuf};

use godwit_types::HostName;
use serde::Serialize;

pub mod attempt;
pub mod cli;
pub mod faults;
pub mod vms;

pub use cli::{Cli, CliError};
pub use faults::Hold;
pub use vms::{GuestOptions, GuestPlace};

use crate::Result;
use crate::namespace::Namespace;

/// The datastore that every host offers.
pub const DATASTORE: &str = "shared";
/// The guest network that every host offers.
pub const NETWORK: &str = "lan";
/// The client's address on the guest network.
pub const CLIENT_ADDRESS: &str = "10.77.0.1";
/// The guest network's prefix length.
pub const NETWORK_PREFIX_BITS: u8 = 24;

/// What the hosts are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Setting {
    /// Processes in network namespaces of this machine, on its own `/dev/kvm`.
    Kvm,
    /// Emulated machines with nested KVM.
    Lab,
}

impl Setting {
    /// What `godwit vm migrate` needs here besides its defaults. Where hosts are emulated, the handoff alone takes some
    /// hundred milliseconds, and no migration ever predicts the default blackout.
    pub fn migrate_options(self) -> &'static [&'static str] {
        match self {
            Self::Kvm => &[],
            Self::Lab => &["--max-blackout", "1s"],
        }
    }
}

/// How the manager's API is reached.
#[derive(Debug, Clone)]
pub struct Access {
    /// The namespace to be in.
    pub namespace: Namespace,
    /// Such as `http://10.76.0.1:7400`.
    pub manager: String,
    /// A file of this machine that holds the API's token.
    pub token_file: PathBuf,
}

/// A cluster with a manager and some hosts, all up. Dropping it removes everything it is made of.
pub trait Cluster: Send + Sync {
    /// What the hosts are made of.
    fn setting(&self) -> Setting;

    /// The hosts' names, in the manager's words.
    fn hosts(&self) -> &[HostName];

    /// How the manager's API is reached.
    fn access(&self) -> &Access;

    /// A namespace with [`CLIENT_ADDRESS`] on the guest network, where nothing else lives.
    fn client(&self) -> &Namespace;

    /// The content of [`DATASTORE`], as a directory of this machine.
    fn datastore(&self) -> &Path;

    /// The logs of the manager, the hosts and the VMs.
    fn logs(&self) -> &Path;

    /// The file in which tests and programs meet, as a file of this machine; see `godwit-faults`.
    fn faults(&self) -> PathBuf;

    /// Cuts the host off from the manager and from the other hosts; its guests keep their network.
    fn cut(&self, host: &HostName) -> Result<()>;

    /// Undoes [`Cluster::cut`].
    fn mend(&self, host: &HostName) -> Result<()>;

    /// Ends everything on the host at once, as if its power were cut.
    fn kill(&self, host: &HostName) -> Result<()>;

    /// Kills every VMM process on the host with SIGKILL; returns how many there were.
    fn kill_vmms(&self, host: &HostName) -> Result<usize>;

    /// Runs a line of shell on the host; what it has printed. Fails if it does.
    fn shell(&self, host: &HostName, line: &str) -> Result<String>;

    /// Fails with [`LabError::Died`](crate::LabError::Died) if something that the cluster is made of, and that is not
    /// Godwit, has ended although nobody wanted it to.
    fn check_foundation(&self) -> Result<()>;

    /// Brings the logs that lie inside of hosts to [`Cluster::logs`], as far as they can be had.
    fn collect_logs(&self);
}
