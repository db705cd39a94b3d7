//! The state of a machine whose guest is at work, as this release saves it: one file for each device, which later
//! releases must be able to read. `GODWIT_BLESS=1` writes the files, for a release that adds or changes a section.

use std::path::Path;
use std::sync::Arc;

use godwit_migration::{Section, Source};
use godwit_types::Epoch;
use godwit_types::control::{Descriptors, VmmState};
use godwit_vmm::machine::{Machine, Observer, Parts};
use godwit_vmm::offer::{RELEASE, sections};

use crate::reference::Fixture;

/// When set, the files are written.
const BLESS: &str = "GODWIT_BLESS";

struct Nobody;

impl Observer for Nobody {
    fn state(&self, _: VmmState, _: Epoch) {}
    fn device_error(&self, device: &str, message: &str) {
        panic!("{device}: {message}");
    }
}

#[test]
fn all_that_a_machine_saves_is_of_a_kind_and_version_that_a_golden_file_keeps() {
    std::thread::spawn(|| {
        let Some(fixture) = Fixture::new() else { return };
        let saved = saved(&fixture);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        for section in &saved {
            assert_eq!(sections().get(&section.kind), Some(&section.version), "{}", section.device);
        }
        if std::env::var_os(BLESS).is_some() {
            bless(&folder.join(RELEASE), &saved);
        }
        let kept: Vec<String> = std::fs::read_dir(&folder)
            .unwrap()
            .flat_map(|release| std::fs::read_dir(release.unwrap().path()).unwrap())
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        for name in saved.iter().map(file_name) {
            assert!(kept.contains(&name), "no golden file {name}: write it with {BLESS}=1, and commit it");
        }
    })
    .join()
    .unwrap();
}

/// What the machine of a guest that has worked for a moment saves.
fn saved(fixture: &Fixture) -> Vec<Section> {
    let config = fixture.config(1, "godwit.ws=8MiB godwit.rate=500");
    let Descriptors { kvm, kernel, initrd, disks, taps, console, console_log, .. } =
        godwit_provision::open(&config).unwrap();
    let console = godwit_provision::listen(console).unwrap();
    let parts = Parts {
        kvm,
        kernel,
        initrd,
        disks,
        taps,
        console,
        console_log,
        userfault: Err("none is needed".into()),
        kept: None,
    };
    let machine: Arc<Machine> = Machine::build(config, parts, Arc::new(Nobody)).unwrap();
    machine.start().unwrap();
    fixture.report();
    Source::pause(&*machine).unwrap();
    Source::save(&*machine, 0).unwrap()
}

fn bless(folder: &Path, saved: &[Section]) {
    std::fs::create_dir_all(folder).unwrap();
    for section in saved {
        std::fs::write(folder.join(file_name(section)), &section.payload).unwrap();
    }
}

/// The device, the kind and the version of a section.
fn file_name(section: &Section) -> String {
    format!("{}@{}@{}", section.device.replace('/', "+"), section.kind, section.version)
}
