//! `hbal`, Ganeti's balancer, on the same instance.

use std::collections::HashMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use godwit_lab::setup::packages;
use godwit_lab::{LabError, exec};
use nix::sys::resource::UsageWho;

use super::Planned;
use super::instance::Instance;
use crate::error::{BenchError, Result};
use crate::system::{cpu_s, read};

/// Fifty hosts take minutes.
const LIMIT: Duration = Duration::from_secs(1800);

/// Installs it.
pub(super) fn ensure() -> Result<()> {
    Ok(packages::ensure(&["ganeti-htools"])?)
}

/// Lets it plan until it finds nothing better.
pub(super) fn plan(instance: &Instance) -> Result<Planned> {
    let folder = tempfile::tempdir().map_err(LabError::io("make a folder"))?;
    let [data, loads, out] = ["data", "dynu", "out"].map(|name| folder.path().join(name));
    for (path, text) in [(&data, &instance.data), (&loads, &instance.loads)] {
        fs::write(path, text).map_err(LabError::io(format!("write {}", path.display())))?;
    }
    let mut command = Command::new("hbal");
    command.arg("-t").arg(&data).arg("-U").arg(&loads).arg("-S").arg(&out).args(["-p", "-v"]);
    let before = cpu_s(UsageWho::RUSAGE_CHILDREN)?;
    let printed = exec::run(&mut command, LIMIT)?;
    let cpu_s = cpu_s(UsageWho::RUSAGE_CHILDREN)? - before;
    let (score_before, score_after) =
        scores(&printed).ok_or_else(|| BenchError::Instance(format!("hbal says no score: {printed}")))?;
    let balanced = out.with_extension("balanced");
    let text = read(&balanced)?;
    let after: HashMap<&str, &str> = places(&text).collect();
    let moved: Vec<usize> = places(&instance.data)
        .enumerate()
        .filter(|(_, (vm, host))| after.get(vm) != Some(host))
        .map(|(index, _)| index)
        .collect();
    let memory_mib = instance.memory_mib();
    Ok(Planned {
        instance: instance.name.clone(),
        planner: "hbal",
        moves_max: None,
        moved: moved.len(),
        moved_mib: moved.iter().map(|vm| memory_mib[*vm]).sum(),
        score_before,
        score_after,
        cpu_s,
    })
}

/// `Cluster score improved from 3.39172172 to 0.21417944`
fn scores(printed: &str) -> Option<(f64, f64)> {
    let (_, rest) = printed.split_once("score improved from ")?;
    let mut words = rest.split_whitespace();
    let before = words.next()?.parse().ok()?;
    Some((before, words.nth(1)?.parse().ok()?))
}

/// The VMs of an instance, each with its host.
fn places(data: &str) -> impl Iterator<Item = (&str, &str)> {
    let fields = data.lines().map(|line| line.split('|').collect::<Vec<_>>());
    fields.filter(|fields| super::instance::is_vm(fields)).map(|fields| (fields[0], fields[6]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_scores_and_its_places_are_read() {
        let printed = "Initial score: 3.39172172\nCluster score improved from 3.39172172 to 0.21417944\n";
        assert_eq!(scores(printed), Some((3.39172172, 0.21417944)));
        assert_eq!(scores("Cluster is already well balanced"), None);
        let instance = Instance::generate(3, 6, 1);
        assert_eq!(places(&instance.data).count(), 6);
    }
}
