//! Whole days. Traces and CloudSim's own results are not part of the project: `GODWIT_TRACES` names the folder that has them.

use std::path::{Path, PathBuf};

use super::*;

/// The folder, or a word about why nothing is tested.
fn traces() -> Option<PathBuf> {
    let folder = std::env::var_os("GODWIT_TRACES").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("SKIPPED: GODWIT_TRACES does not name a folder with planetlab/ and golden/");
    }
    folder
}

fn read(folder: &Path, day: &str) -> Day {
    Day::read(&folder.join(format!("planetlab/{day}.csv.gz"))).unwrap()
}

#[test]
fn the_policies_of_cloudsim_come_out_as_cloudsim_prints_them() {
    let Some(folder) = traces() else { return };
    let golden = std::fs::read_to_string(folder.join("golden/cloudsim303_golden.csv")).unwrap();
    let mut compared = 0;
    for line in golden.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let who = match fields[0].split('_').nth(1) {
            Some("thr") => Who::Thr,
            Some("iqr") => Who::Iqr,
            Some("mad") => Who::Mad,
            Some("lr" | "lrr") => Who::Lr,
            _ => continue,
        };
        let row = simulate(&read(&folder, &fields[0][..8]), Rules::CloudSim, who).unwrap();
        // With as many digits as the simulator prints.
        let ours = [
            format!("{:.2}", row.energy_kwh),
            row.migrations.to_string(),
            format!("{:.5}", row.slav_percent),
            format!("{:.2}", row.slatah_percent),
            format!("{:.2}", row.pdm_percent),
            format!("{:.2}", row.lost_percent),
            row.shutdowns.to_string(),
        ];
        assert_eq!(ours.each_ref().map(String::as_str)[..], fields[2..9], "{}", fields[0]);
        compared += 1;
    }
    assert!(compared >= 2, "no golden figures in {}", folder.display());
}

#[test]
fn every_day_takes_less_energy_less_service_and_fewer_migrations_than_with_lr() {
    let Some(folder) = traces() else { return };
    let mut days: Vec<PathBuf> =
        std::fs::read_dir(folder.join("planetlab")).unwrap().map(|entry| entry.unwrap().path()).collect();
    days.sort();
    assert!(!days.is_empty());
    for path in days {
        let day = Day::read(&path).unwrap();
        let [theirs, ours] = [Who::Lr, Who::Godwit].map(|who| simulate(&day, Rules::CloudSim, who).unwrap());
        assert!(ours.energy_kwh < theirs.energy_kwh && ours.energy_kwh > ours.least_energy_kwh, "{ours:?}");
        assert!(
            ours.slav_percent < theirs.slav_percent && ours.lost_percent < theirs.lost_percent,
            "{ours:?}"
        );
        assert!(ours.migrations < theirs.migrations, "{ours:?}");
    }
}

/// What anybody can run: a hundred VMs that go up and down, each in its own time.
#[test]
fn on_a_made_up_day_few_migrations_save_most_of_the_energy() {
    let samples: Vec<Vec<u8>> = (0..100_u32)
        .map(|vm| (0..288_u32).map(|round| (5 + (vm * 37 + round * (1 + vm % 3)) % 40) as u8).collect())
        .collect();
    let day = day::tests::day(&samples.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let [theirs, ours] = [Who::Lr, Who::Godwit].map(|who| simulate(&day, Rules::CloudSim, who).unwrap());
    assert!(ours.energy_kwh < theirs.energy_kwh, "{ours:?} {theirs:?}");
    assert!(ours.migrations < theirs.migrations, "{ours:?} {theirs:?}");
}
