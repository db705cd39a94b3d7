//! A VM's directory below the agent's state directory.
//!
//! ```text
//! vms/ID/config.json    what the VMM was started with; there while a process may run
//!        control.sock   the VMM's control socket
//!        console.sock   the serial console, and what it has said:
//!        console.log
//!        vmm.log        standard output and error of the process
//! ```
//! After a crash the logs stay for whoever looks into it, until the VM is here again.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use godwit_types::VmId;
use godwit_types::control::VmmConfig;

/// How much of a log's end is read for an error message, in bytes.
const TAIL_BYTES_MAX: u64 = 4096;
/// Lines of it that are shown.
const TAIL_LINES_MAX: usize = 5;

/// The directory of one VM.
#[derive(Debug, Clone)]
pub(crate) struct VmDir(PathBuf);

impl VmDir {
    pub(crate) fn new(state_dir: &Path, vm: VmId) -> Self {
        Self(state_dir.join("vms").join(vm.to_string()))
    }

    /// The directories of all VMs that were here.
    pub(crate) fn all(state_dir: &Path) -> io::Result<Vec<(VmId, Self)>> {
        let entries = match fs::read_dir(state_dir.join("vms")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            all.extend(id.map(|id| (id, Self(path))));
        }
        Ok(all)
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.0.join("config.json")
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.0.join("console.sock")
    }

    pub(crate) fn console_log(&self) -> PathBuf {
        self.0.join("console.log")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("vmm.log")
    }

    /// Makes it, empty, for nobody else to look into: the control socket decides over the VM.
    pub(crate) fn create(&self) -> io::Result<()> {
        self.remove()?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)
    }

    /// Replaces the configuration as a whole, so that a reader never sees half of it.
    pub(crate) fn write_config(&self, config: &VmmConfig) -> io::Result<()> {
        let whole = self.0.join("config.json.new");
        // Not for other users: it may hold a migration's key.
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&whole)?;
        file.write_all(&serde_json::to_vec_pretty(config)?)?;
        fs::rename(whole, self.config())
    }

    pub(crate) fn read_config(&self) -> io::Result<VmmConfig> {
        Ok(serde_json::from_slice(&fs::read(self.config())?)?)
    }

    /// Removes everything.
    pub(crate) fn remove(&self) -> io::Result<()> {
        absent_is_fine(fs::remove_dir_all(&self.0))
    }

    /// Removes everything but the logs.
    pub(crate) fn keep_logs(&self) -> io::Result<()> {
        for gone in [self.config(), self.control(), self.console()] {
            absent_is_fine(fs::remove_file(gone))?;
        }
        Ok(())
    }

    /// The last lines that the process wrote.
    pub(crate) fn last_words(&self) -> String {
        let tail = || -> io::Result<Vec<u8>> {
            let mut file = fs::File::open(self.log())?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES_MAX)))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let text = String::from_utf8_lossy(&tail().unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(TAIL_LINES_MAX)..].join("; ")
    }
}

pub(super) fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_the_logs_last_lines() {
        let state = tempfile::tempdir().unwrap();
        let dir = VmDir::new(state.path(), VmId(uuid::Uuid::from_u128(1)));
        assert_eq!(dir.last_words(), "");
        dir.create().unwrap();
        let text: String = (0..1000).map(|n| format!("line {n}\n\n")).collect();
        fs::write(dir.log(), text).unwrap();
        assert_eq!(dir.last_words(), "line 995; line 996; line 997; line 998; line 999");
    }

    #[test]
    fn only_directories_of_vms_are_listed() {
        let state = tempfile::tempdir().unwrap();
        assert!(VmDir::all(state.path()).unwrap().is_empty());
        let id = VmId(uuid::Uuid::from_u128(7));
        VmDir::new(state.path(), id).create().unwrap();
        fs::create_dir(state.path().join("vms/lost+found")).unwrap();
        let all = VmDir::all(state.path()).unwrap();
        assert_eq!(all.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [id]);
    }
}
