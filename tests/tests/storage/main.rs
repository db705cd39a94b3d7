//! A VM whose disk only its host reaches moves with it; and its disk moves alone, to another datastore of its host.

mod alone;
mod along;
mod at_rest;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use godwit_lab::cluster::{Cluster, GuestOptions, GuestPlace};
use godwit_lab::fabric::{Fabric, FabricOptions, OWN_DATASTORE, OwnDatastores};
use godwit_lab::{LabError, Result, exec, load};
use godwit_tests::{assert_alive, ensure, hosts, on_one_fabric_with};
use godwit_types::vm::DiskFormat;
use godwit_types::{Bytes, HostName};

const LIMIT: Duration = Duration::from_secs(90);
/// What each host's own datastore takes.
const OWN: Bytes = Bytes::mib(96);
/// Where something lies on a raw disk that the guest did not write, in bytes.
const OLD_AT: u64 = 50 << 20;

fn guest(format: DiskFormat) -> GuestOptions {
    GuestOptions { disk: Bytes::mib(64), disk_format: format, ..GuestOptions::named("settler") }
}

/// Runs a test with a guest whose disk lies on the first of two hosts, with something at its end.
fn settled(format: DiskFormat, test: impl Fn(&Fabric, &GuestOptions) -> Result<()>) {
    settled_in(OwnDatastores::Bounded(OWN), format, test);
}

fn settled_in(own: OwnDatastores, format: DiskFormat, test: impl Fn(&Fabric, &GuestOptions) -> Result<()>) {
    let options = FabricOptions { own_datastores: Some(own), ..FabricOptions::default() };
    on_one_fabric_with(options, |fabric, place| {
        boot(fabric, place, &guest(format))?;
        test(fabric, &guest(format))
    });
}

fn boot(fabric: &Fabric, place: &GuestPlace, guest: &GuestOptions) -> Result<()> {
    let cluster: &dyn Cluster = fabric;
    let [here, _] = hosts(cluster);
    cluster.create_in(place, guest, (OWN_DATASTORE, &fabric.own_datastore(&here)?))?;
    if guest.disk_format == DiskFormat::Raw {
        let file = fs::OpenOptions::new().write(true).open(image(fabric, &here, guest)?);
        let written = file.and_then(|file| file.write_all_at(&old_contents(), OLD_AT));
        written.map_err(LabError::io("write to the disk"))?;
    }
    cluster.start(&guest.name, &here)?;
    load::await_guest(cluster, guest.address).map(drop)
}

/// Something that does not pack, behind all that the guest writes.
fn old_contents() -> Vec<u8> {
    let words = std::iter::successors(Some(0x9e37_79b9_7f4a_7c15_u64), |last| {
        Some(last.wrapping_mul(0x5851_f42d_4c95_7f2d).rotate_left(17).wrapping_add(1))
    });
    words.take(1 << 20).flat_map(u64::to_le_bytes).collect()
}

/// What lies in a host's own datastore, but for its identity.
fn files(fabric: &Fabric, host: &HostName) -> Result<Vec<String>> {
    let directory = fabric.own_datastore(host)?;
    let entries = fs::read_dir(&directory).map_err(LabError::io(format!("read {}", directory.display())))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| !name.starts_with(".godwit")).collect())
}

fn image(fabric: &Fabric, host: &HostName, guest: &GuestOptions) -> Result<PathBuf> {
    Ok(fabric.own_datastore(host)?.join(guest.disk_path()))
}

fn allocated(image: &Path) -> Result<u64> {
    let found = fs::metadata(image).map_err(LabError::io(format!("look at {}", image.display())))?;
    Ok(found.blocks() * 512)
}

/// Fails unless everything that the guest was promised is on its disk in the host's own datastore, and it has seen nothing
/// wrong.
fn intact(fabric: &Fabric, host: &HostName, guest: &GuestOptions) -> Result<()> {
    intact_in(fabric, &image(fabric, host, guest)?, guest)
}

/// The same with its disk wherever it is.
fn intact_in(fabric: &Fabric, image: &Path, guest: &GuestOptions) -> Result<()> {
    assert_alive(fabric, guest.address)?;
    let report = load::fetch(fabric.client(), guest.address)?;
    ensure(report.disk.errors == 0 && report.memory.errors == 0, format!("{report:?}"))?;
    nothing_lost(image, report.disk.acked)?;
    if guest.disk_format == DiskFormat::Raw {
        let mut found = old_contents();
        let read = fs::File::open(image).and_then(|file| file.read_exact_at(&mut found, OLD_AT));
        read.map_err(LabError::io("read the disk"))?;
        let why = format!("what lay on the disk before is not in {}", image.display());
        ensure(found == old_contents(), why)?;
    }
    Ok(())
}

/// Fails unless all writes that were acknowledged are in an image.
fn nothing_lost(image: &Path, acked: u64) -> Result<()> {
    let lost = load::lost_writes(image, acked)?;
    ensure(lost.expected > 0 && lost.lost == 0, format!("in {}: {lost:?}", image.display()))
}

/// Fails if an image takes much more than the one that it was copied from.
fn still_sparse(image: &Path, before: u64) -> Result<()> {
    let after = allocated(image)?;
    let grown = Bytes::mib(4).0;
    ensure(after <= before + grown, format!("{before} bytes became {after}: holes were filled"))
}

/// Waits until nothing is left of an arrival beside what was there.
fn await_files(fabric: &Fabric, host: &HostName, wanted: &[&str]) -> Result<()> {
    let gone = exec::poll(LIMIT, exec::POLL, || Ok((files(fabric, host)? == wanted).then_some(())))?;
    ensure(gone.is_some(), format!("left on {host}: {:?}", files(fabric, host)?))
}

/// Writes zeros until there is no room for more.
fn fill(path: &Path) -> Result<()> {
    let mut file = fs::File::create(path).map_err(LabError::io("create the filler"))?;
    let chunk = vec![0; 64 << 10];
    while std::io::Write::write_all(&mut file, &chunk).is_ok() {}
    Ok(())
}

/// The guest's disk in the datastore that the hosts share.
fn shared_image(fabric: &Fabric, guest: &GuestOptions) -> PathBuf {
    let cluster: &dyn Cluster = fabric;
    cluster.datastore().join(guest.disk_path())
}
