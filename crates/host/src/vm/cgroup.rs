//! A VM's cgroup (version 2): what its process may use of the host, and the sure way to end all of it.
//!
//! ```text
//!  <mount>/godwit/HOST/VM    made before the process starts, which joins it first of all; removed when it has ended
//! ```

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use godwit_types::vm::VmSpec;
use godwit_types::{Bytes, HostName, VmId};

use super::dir::absent_is_fine;

/// Memory of a VM's process beside the guest's own: its heap, page tables and dirty logs in the kernel, sockets.
const OVERHEAD: Bytes = Bytes::mib(128);
/// Page tables grow with the guest: one byte for so many of it.
const OVERHEAD_SHARE: u64 = 32;
/// Threads of a process beside its vCPUs: devices, clients of its sockets, a migration.
const THREADS_MAX: u32 = 512;
/// `cpu.weight` of one vCPU, and of them all.
const WEIGHT: u32 = 100;
const WEIGHT_MAX: u32 = 10_000;
/// How long a cgroup may still be busy when its last process was killed.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(1);
const REMOVE_POLL: Duration = Duration::from_millis(5);
/// Times that a directory is made again which another agent has just removed as empty.
const MAKE_ATTEMPTS: u32 = 5;

/// The limits, each with the controller that enforces it.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// Where this agent's cgroups are.
#[derive(Debug)]
pub(crate) struct Cgroups {
    /// The root of the hierarchy; none if no cgroup can be made.
    root: Option<PathBuf>,
    /// Of this host, below the root.
    home: PathBuf,
    /// Those of [`CONTROLLERS`] that can be had.
    controllers: Vec<&'static str>,
}

/// One VM's cgroup.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroups {
    /// Looks where cgroups can be made; says once what of the limits this machine cannot enforce, and why.
    pub(crate) fn find(parent: &Path, host: &HostName) -> Self {
        let parent = parent.strip_prefix("/").unwrap_or(parent);
        let home = parent.join(host.as_str());
        match usable(parent) {
            Ok((root, controllers, missing)) => {
                if !missing.is_empty() {
                    tracing::warn!(
                        "VMs run without some limits in {}: {}",
                        root.display(),
                        missing.join("; ")
                    );
                }
                Self { root: Some(root), home, controllers }
            }
            Err(why) => {
                tracing::warn!("VMs run without limits of memory, threads and CPU: {why}");
                Self { root: None, home, controllers: Vec::new() }
            }
        }
    }

    /// Makes a VM's cgroup, with all limits that can be had, and opens the file by which its process joins.
    pub(crate) fn create(&self, vm: VmId, spec: &VmSpec) -> io::Result<Option<(Cgroup, OwnedFd)>> {
        let Some(root) = &self.root else { return Ok(None) };
        let cgroup = Cgroup(root.join(&self.home).join(vm.to_string()));
        cgroup.remove()?;
        let controllers = &self.controllers;
        make(root, &cgroup.0, controllers)?;
        let opened = cgroup.limit(spec, controllers).and_then(|()| {
            OpenOptions::new().write(true).open(cgroup.0.join("cgroup.procs")).map(OwnedFd::from)
        });
        match opened {
            Ok(members) => Ok(Some((cgroup, members))),
            Err(error) => {
                cgroup.remove()?;
                Err(error)
            }
        }
    }
}

impl Cgroup {
    /// The one that an earlier agent has made.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Ends every process in it.
    pub(crate) fn kill(&self) -> io::Result<()> {
        absent_is_fine(fs::write(self.0.join("cgroup.kill"), "1"))
    }

    /// Ends what is still in it and removes it, and what is empty above it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + REMOVE_TIMEOUT;
        self.kill()?;
        while let Err(error) = absent_is_fine(fs::remove_dir(&self.0)) {
            if error.kind() != io::ErrorKind::ResourceBusy || Instant::now() >= deadline {
                return Err(error);
            }
            sleep(REMOVE_POLL);
        }
        // Other VMs, or other agents on this machine, may be there.
        for above in self.0.ancestors().skip(1).take(2) {
            let _ = fs::remove_dir(above);
        }
        Ok(())
    }

    fn limit(&self, spec: &VmSpec, controllers: &[&str]) -> io::Result<()> {
        let vcpus = u32::from(spec.vcpus);
        let memory = spec.memory.0 + spec.memory.0 / OVERHEAD_SHARE + OVERHEAD.0;
        let limits = [
            ("memory", "memory.max", memory),
            ("pids", "pids.max", (THREADS_MAX + vcpus).into()),
            ("cpu", "cpu.weight", (WEIGHT * vcpus).min(WEIGHT_MAX).into()),
        ];
        for (_, file, limit) in limits.iter().filter(|(controller, ..)| controllers.contains(controller)) {
            fs::write(self.0.join(file), limit.to_string())?;
        }
        Ok(())
    }
}

/// Makes `path` below `root`, and hands the controllers down to it.
fn make(root: &Path, path: &Path, controllers: &[&str]) -> io::Result<()> {
    let mut attempts = 0;
    loop {
        let above: Vec<&Path> =
            path.ancestors().skip(1).take_while(|above| above.starts_with(root)).collect();
        let made = above.iter().rev().try_for_each(|directory| {
            fs::create_dir_all(directory)?;
            controllers.iter().try_for_each(|controller| {
                fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"))
            })
        });
        match made.and_then(|()| fs::create_dir(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempts < MAKE_ATTEMPTS => {
                attempts += 1
            }
            made => return made,
        }
    }
}

/// The root of the hierarchy, the controllers that it hands down, and what is wrong with the others.
fn usable(parent: &Path) -> Result<(PathBuf, Vec<&'static str>, Vec<String>), String> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let root = mounted(&mountinfo).ok_or("no cgroup hierarchy of version 2 is mounted")?;
    let (usable, missing) = usable_in(&root, parent)?;
    Ok((root, usable, missing))
}

fn usable_in(root: &Path, parent: &Path) -> Result<(Vec<&'static str>, Vec<String>), String> {
    let home = root.join(parent);
    fs::create_dir_all(&home).map_err(|error| format!("{} cannot be made: {error}", home.display()))?;
    // If it is in use, it stays.
    let _ = fs::remove_dir(&home);
    let have = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let (mut usable, mut missing) = (Vec::new(), Vec::new());
    for controller in CONTROLLERS {
        if !have.split_whitespace().any(|had| had == controller) {
            missing.push(format!("there is no controller {controller}, which version 1 may hold"));
            continue;
        }
        match fs::write(root.join("cgroup.subtree_control"), format!("+{controller}")) {
            Ok(()) => usable.push(controller),
            Err(error) => missing.push(format!("the controller {controller} is not handed down: {error}")),
        }
    }
    Ok((usable, missing))
}

/// Where version 2 is mounted, by `/proc/self/mountinfo`.
fn mounted(mountinfo: &str) -> Option<PathBuf> {
    let cgroup2 = |line: &&str| line.split(" - ").nth(1).is_some_and(|fs| fs.starts_with("cgroup2 "));
    let line = mountinfo.lines().find(cgroup2)?;
    line.split(' ').nth(4).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_of_version_2_is_found_among_those_of_version_1() {
        let mountinfo = "30 24 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
            31 24 0:27 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mounted(mountinfo), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mounted("30 24 0:26 / /sys rw - cgroup cgroup rw,cpu\n"), None);
    }

    #[test]
    fn what_cannot_be_limited_is_told_with_the_reason() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpuset pids memory\n").unwrap();
        let (usable, missing) = usable_in(root.path(), Path::new("godwit")).unwrap();
        assert_eq!(usable, ["memory", "pids"]);
        assert_eq!(missing, ["there is no controller cpu, which version 1 may hold"]);
        assert!(!root.path().join("godwit").exists());

        fs::remove_file(root.path().join("cgroup.subtree_control")).unwrap();
        fs::create_dir(root.path().join("cgroup.subtree_control")).unwrap();
        let (usable, missing) = usable_in(root.path(), Path::new("godwit")).unwrap();
        assert!(usable.is_empty());
        assert!(missing[0].starts_with("the controller memory is not handed down: "), "{missing:?}");

        let why = usable_in(&root.path().join("cgroup.controllers"), Path::new("godwit")).unwrap_err();
        assert!(why.contains("godwit cannot be made: "), "{why}");
    }

    #[test]
    fn everything_in_a_cgroup_ends_with_it() {
        let spec: VmSpec = serde_json::from_value(serde_json::json!({
            "vcpus": 2, "memory": 1 << 24, "boot": {"kernel": "shared/k", "cmdline": ""},
        }))
        .unwrap();
        let parent = PathBuf::from(format!("godwit-test-{}", std::process::id()));
        let cgroups = Cgroups::find(&parent, &"a".parse().unwrap());
        let vm = VmId(uuid::Uuid::from_u128(1));
        let (cgroup, members) = match cgroups.create(vm, &spec) {
            Ok(Some(made)) => made,
            Ok(None) => return eprintln!("SKIPPED: there is no cgroup hierarchy of version 2"),
            Err(error) => return eprintln!("SKIPPED: no cgroup can be made here: {error}"),
        };
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        io::Write::write_all(&mut fs::File::from(members), child.id().to_string().as_bytes()).unwrap();
        cgroup.remove().unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(!cgroup.path().exists() && !cgroups.root.unwrap().join(parent).exists());
    }
}
