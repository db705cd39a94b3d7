//! Work on a cluster that may fall from under it.

use super::{Cluster, Setting};
use crate::setup::say;
use crate::{LabError, Result, logs};

/// How often work is begun.
const ATTEMPTS_MAX: u32 = 2;

/// Starts a cluster and works on it. Once more, loudly, if the emulator is to blame; any other failure is final, and
/// shows the ends of all logs.
pub fn attempt<T>(
    start: impl Fn() -> Result<Box<dyn Cluster>>,
    work: impl Fn(&dyn Cluster) -> Result<T>,
) -> Result<T> {
    let mut left = ATTEMPTS_MAX;
    loop {
        left -= 1;
        let cluster = start()?;
        let cluster = cluster.as_ref();
        let error = match work(cluster) {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        cluster.collect_logs();
        say(logs::tails(cluster.logs()));
        let error = cluster.check_foundation().err().unwrap_or(error);
        if left == 0 || !blames_the_emulator(cluster.setting(), &error) {
            return Err(error);
        }
        say(format_args!("{}: BEGINNING ONCE MORE on a new cluster", error.chain()));
    }
}

/// QEMU has been seen to abort while it emulates a host (an assertion in `iotlb_to_section`), and a guest kernel in an
/// emulated host to sleep for ever while it boots, its timer never set again. The first is QEMU's own. The second has been
/// seen under emulation only, and what causes it is not proved: a guest that never comes up twice is a failure.
fn blames_the_emulator(setting: Setting, error: &LabError) -> bool {
    setting == Setting::Lab && matches!(error, LabError::Died { .. } | LabError::Silent { .. })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::path::{Path, PathBuf};

    use godwit_types::HostName;

    use super::super::Access;
    use super::*;
    use crate::namespace::Namespace;

    /// A cluster of nothing.
    struct Hollow {
        fell: bool,
        access: Access,
    }

    fn hollow(fell: bool) -> Result<Box<dyn Cluster>> {
        let (namespace, token_file) = (Namespace::existing("none"), PathBuf::new());
        Ok(Box::new(Hollow { fell, access: Access { namespace, manager: String::new(), token_file } }))
    }

    impl Cluster for Hollow {
        fn setting(&self) -> Setting {
            Setting::Lab
        }
        fn hosts(&self) -> &[HostName] {
            &[]
        }
        fn access(&self) -> &Access {
            &self.access
        }
        fn client(&self) -> &Namespace {
            &self.access.namespace
        }
        fn datastore(&self) -> &Path {
            Path::new("/nonexistent")
        }
        fn logs(&self) -> &Path {
            Path::new("/nonexistent")
        }
        fn faults(&self) -> PathBuf {
            PathBuf::new()
        }
        fn cut(&self, _host: &HostName) -> Result<()> {
            Ok(())
        }
        fn mend(&self, _host: &HostName) -> Result<()> {
            Ok(())
        }
        fn kill(&self, _host: &HostName) -> Result<()> {
            Ok(())
        }
        fn kill_vmms(&self, _host: &HostName) -> Result<usize> {
            Ok(0)
        }
        fn shell(&self, _host: &HostName, _line: &str) -> Result<String> {
            Ok(String::new())
        }
        fn check_foundation(&self) -> Result<()> {
            if !self.fell {
                return Ok(());
            }
            let (process, status) = ("the emulator".to_owned(), "SIGABRT".to_owned());
            Err(LabError::Died { process, status, log: PathBuf::new(), tail: String::new() })
        }
        fn collect_logs(&self) {}
    }

    #[test]
    fn only_a_failure_of_the_emulator_earns_a_second_attempt() {
        let begun = Cell::new(0);
        let fail = |_: &dyn Cluster| -> Result<()> {
            begun.set(begun.get() + 1);
            Err(LabError::Broken("a write was lost".into()))
        };
        let error = attempt(|| hollow(false), fail).unwrap_err().to_string();
        assert_eq!((error.as_str(), begun.take()), ("a write was lost", 1));
        let error = attempt(|| hollow(true), fail).unwrap_err().to_string();
        assert!(error.starts_with("the emulator ended early"), "{error}");
        assert_eq!(begun.take(), 2);
        let second = |_: &dyn Cluster| {
            begun.set(begun.get() + 1);
            if begun.get() == 2 { Ok(()) } else { Err(LabError::Broken("no".into())) }
        };
        attempt(|| hollow(true), second).unwrap();
    }
}
