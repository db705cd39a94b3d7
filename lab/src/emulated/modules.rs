//! The kernel's modules: which others each needs, and in what order they are loaded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{LabError, Result};

const UNPACK_LIMIT: Duration = Duration::from_secs(30);

/// A module, ready to be loaded.
#[derive(Debug, Clone)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// The wanted modules and all that they need, each after those that it needs. Names that the kernel has no module for
/// are skipped: they are built in.
pub(super) fn closure(modules: &Path, busybox: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    find(&modules.join("kernel"), &mut files)?;
    let mut loaded = Vec::new();
    for name in wanted {
        add(&files, busybox, &canonical(name), &mut loaded)?;
    }
    Ok(loaded)
}

fn add(
    files: &BTreeMap<String, PathBuf>,
    busybox: &Path,
    name: &str,
    loaded: &mut Vec<Module>,
) -> Result<()> {
    let Some(path) = files.get(name) else { return Ok(()) };
    if loaded.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let content = unpack(path, busybox)?;
    for needed in dependencies(&content) {
        add(files, busybox, &needed, loaded)?;
    }
    loaded.push(Module { name: name.to_owned(), content });
    Ok(())
}

/// What the module's information section says after `depends=`.
fn dependencies(content: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(found) = content.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = &content[found + KEY.len()..];
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    let names = String::from_utf8_lossy(&value[..end]).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(canonical).collect()
}

fn unpack(path: &Path, busybox: &Path) -> Result<Vec<u8>> {
    let doing = || LabError::io(format!("unpack {}", path.display()));
    if path.extension().is_none_or(|end| end != "xz") {
        return std::fs::read(path).map_err(doing());
    }
    let mut command = Command::new(busybox);
    command
        .args(["timeout", &UNPACK_LIMIT.as_secs().to_string()])
        .arg(busybox)
        .args(["unxz", "-c"])
        .arg(path);
    let output = command.output().map_err(doing())?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(LabError::Broken(format!("{} cannot be unpacked: {}", path.display(), output.status)))
}

fn find(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let reading = || LabError::io(format!("read {}", dir.display()));
    for entry in std::fs::read_dir(dir).map_err(reading())? {
        let path = entry.map_err(reading())?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if let Some((name, _)) = path.file_name().and_then(|name| name.to_str()?.split_once(".ko")) {
            files.insert(canonical(name), path);
        }
    }
    Ok(())
}

/// File names and dependencies write the same module with dashes and with underscores.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_modules_come_first_and_built_in_ones_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let nested = dir.path().join("kernel/net");
        std::fs::create_dir_all(&nested).unwrap();
        for (file, depends) in
            [("virtio_net.ko", "net-failover"), ("net_failover.ko", "failover"), ("failover.ko", "")]
        {
            std::fs::write(nested.join(file), format!("\x7fELF\0name=x\0depends={depends}\0more\0")).unwrap();
        }
        let wanted = ["virtio-net", "virtio_pci", "failover"];
        let found = closure(dir.path(), Path::new("unused"), &wanted).unwrap();
        let names: Vec<_> = found.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["failover", "net_failover", "virtio_net"]);
    }
}
