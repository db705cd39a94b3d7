//! Guests that can be put on a cluster.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cluster::{Cluster, GuestPlace};
use crate::{LabError, Result, setup};

/// Which guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Guest {
    /// Debian's own cloud kernel, with a small program as its first process.
    Linux,
    /// The small kernel of `guests/reference`, which runs on any `/dev/kvm`.
    Reference,
}

/// A guest's files on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFiles {
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    /// What its command line begins with.
    pub cmdline: String,
}

impl GuestFiles {
    /// The reference guest, built if it is not yet.
    pub fn reference() -> Result<Self> {
        setup::build_reference_guest()?;
        Ok(Self { kernel: setup::reference_guest()?, initrd: None, cmdline: String::new() })
    }

    /// Copies the files into the cluster's datastore.
    pub fn install(&self, cluster: &dyn Cluster) -> Result<GuestPlace> {
        let install = |from: &Path| -> Result<String> {
            let name = from.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let copying = LabError::io(format!("copy {} into the datastore", from.display()));
            std::fs::copy(from, cluster.datastore().join(&name)).map_err(copying)?;
            Ok(name)
        };
        let initrd = self.initrd.as_deref().map(install).transpose()?;
        Ok(GuestPlace { kernel: install(&self.kernel)?, initrd, cmdline: self.cmdline.clone() })
    }
}
