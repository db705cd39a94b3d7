//! One blow at one step of the handoff, and what must be true afterwards, whatever it was.
//!
//! ```text
//!  boot on the first host -> migrate -> held at STEP -> BLOW -> let go, start again what was ended
//!    -> the task ends -> judge -> migrate (or start) again -> stop, remove -> nothing is left
//! ```
//!
//! The VM's disk lies where both hosts reach it, or moves along.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use godwit_faults::Step;
use godwit_lab::cluster::{Cluster, GuestOptions, GuestPlace};
use godwit_lab::fabric::{Fabric, OWN_DATASTORE, Process};
use godwit_lab::load::{self, lost_writes};
use godwit_lab::{LabError, Result, exec};
use godwit_types::task::{Task, TaskState};
use godwit_types::vm::{Vm, VmState};
use godwit_types::{Bytes, HostName};

use crate::heartbeat::Heartbeats;
use crate::{VERB_LIMIT, assert_alive, ensure, hosts};

/// What befalls the cluster while a step is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    KillSourceVmm,
    KillDestinationVmm,
    KillSourceAgent,
    KillDestinationAgent,
    KillManager,
    /// The source's VMM and its agent at once, as when the host loses power.
    KillSourceHost,
    /// The source is off the management network for longer than a silent peer is waited for.
    CutSource,
    /// The destination is.
    CutDestination,
}

impl Blow {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::KillSourceVmm,
        Self::KillDestinationVmm,
        Self::KillSourceAgent,
        Self::KillDestinationAgent,
        Self::KillManager,
        Self::KillSourceHost,
        Self::CutSource,
        Self::CutDestination,
    ];
}

/// A blow at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    pub step: Step,
    pub blow: Blow,
    /// Whether the disk is the host's own, and moves with the VM.
    pub moves_disk: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with = if self.moves_disk { ", with a disk that moves" } else { "" };
        write!(f, "{:?} at {}{with}", self.blow, self.step.name())
    }
}

impl Case {
    /// Every blow at every step that a migration without post-copy takes. At every second step the disk moves with the VM,
    /// unless the source may die before the commit: then there is one case with a disk that a destination can take over with,
    /// and another with one that moves.
    pub fn all() -> Vec<Self> {
        let steps = Step::ALL.iter().copied().filter(|step| *step != Step::SourcePushRest);
        steps.flat_map(|step| Blow::ALL.into_iter().flat_map(move |blow| Self::of(step, blow))).collect()
    }

    fn of(step: Step, blow: Blow) -> impl Iterator<Item = Self> {
        let second = step as usize % 2 == 1;
        let disks: &[bool] = match blow {
            Blow::KillSourceVmm if second => &[false, true],
            Blow::KillSourceVmm | Blow::KillSourceHost | Blow::CutSource => &[false],
            _ => {
                if second {
                    &[true]
                } else {
                    &[false]
                }
            }
        };
        disks.iter().map(move |moves_disk| Self { step, blow, moves_disk: *moves_disk })
    }

    /// Different for every case, since those of one cluster share a datastore.
    fn vm_name(self) -> String {
        let (blow, moves) =
            (format!("{:?}", self.blow).to_lowercase(), if self.moves_disk { "m" } else { "" });
        format!("{blow}{moves}-at-{}", self.step.name())
    }

    /// Different for nearly every case: the client remembers whose an address was for up to a minute.
    fn address(self) -> Ipv4Addr {
        let number =
            self.step as usize * Blow::ALL.len() + self.blow as usize + usize::from(self.moves_disk) * 113;
        Ipv4Addr::new(10, 77, 0, 10 + (number % 240) as u8)
    }

    /// Whether the commit is durable when the step is taken.
    fn is_after_the_commit(self) -> bool {
        self.step >= Step::ManagerCommitted
    }

    /// Whether the VM must run at the destination, although its source died or was cut off before the commit.
    fn is_taken_over(self) -> bool {
        let prepared = self.step >= Step::SourceAskCommit && !self.is_after_the_commit();
        // By a disk that moves, nobody can see that its source is dead.
        prepared
            && !self.moves_disk
            && matches!(self.blow, Blow::KillSourceVmm | Blow::KillSourceHost | Blow::CutSource)
    }
}

/// How long the step is held after the blow.
const HELD: Duration = Duration::from_millis(100);
/// How long a process that was ended stays away.
const AWAY: Duration = Duration::from_millis(300);
/// Longer than the engines' patience with a silent peer, and than the manager's with a silent host.
const CUT: Duration = Duration::from_secs(12);
/// How long the cluster may take to get over a blow.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// How long a VM's death may take to be known to the manager.
const REPORT_LIMIT: Duration = Duration::from_secs(20);
/// How long processes of a migration that is over may linger to tell how it ended.
const LINGER_LIMIT: Duration = Duration::from_secs(45);

/// Runs a case, and fails unless everything holds that must.
pub fn run(fabric: &Fabric, place: &GuestPlace, case: Case) -> Result<()> {
    let cluster: &dyn Cluster = fabric;
    let [here, there] = hosts(cluster);
    let guest = GuestOptions {
        memory: Bytes::mib(64),
        working_set: Bytes::mib(8),
        address: case.address(),
        ..GuestOptions::named(&case.vm_name())
    };
    let image = |host: &HostName| image(fabric, case, &guest, host);
    if case.moves_disk {
        cluster.create_in(place, &guest, (OWN_DATASTORE, &fabric.own_datastore(&here)?))?;
    } else {
        cluster.create(place, &guest)?;
    }
    cluster.start(&guest.name, &here)?;
    load::await_guest(cluster, guest.address)?;
    assert_alive(cluster, guest.address)?;
    let beats = Heartbeats::watch(cluster.client(), guest.address, vec![image(&here)?, image(&there)?]);
    let acknowledged = load::fetch(cluster.client(), guest.address)?.disk.acked;
    let hold = cluster.hold(case.step)?;
    let options: &[&str] = if case.moves_disk { &["--move-disks"] } else { &[] };
    let task = cluster.migrate_detached(&guest.name, &there, options)?;
    hold.await_reached()?;
    let died_on = strike(fabric, case.blow, &here, &there)?;
    std::thread::sleep(HELD);
    drop(hold);
    mend(fabric, case.blow, &here, &there)?;
    let task = cluster.await_task(&task, "an end", SETTLE_LIMIT, |task| task.state.is_final())?;
    let owner = judge(cluster, case, (&guest, &image), &task, died_on.as_ref(), beats)?;
    one_process(fabric, &owner)?;
    let report = load::fetch(cluster.client(), guest.address)?;
    ensure(report.disk.acked >= acknowledged, format!("writes went back: {report:?}"))?;
    let back = if owner == here { &there } else { &here };
    crate::migrate(cluster, &guest.name, back, options)?;
    assert_alive(cluster, guest.address)?;
    unharmed(cluster, &guest, &image(back)?)?;
    cluster.stop(&guest.name)?;
    if case.moves_disk {
        one_image(fabric, back, &image(back)?)?;
    }
    cluster.cli().text(&["vm", "rm", &guest.name], VERB_LIMIT)?;
    nothing_left(fabric, &guest)
}

/// The VM's image, if its disk is on this host.
fn image(fabric: &Fabric, case: Case, guest: &GuestOptions, host: &HostName) -> Result<PathBuf> {
    let shared = || (fabric as &dyn Cluster).datastore().to_owned();
    let datastore = if case.moves_disk { fabric.own_datastore(host)? } else { shared() };
    Ok(datastore.join(guest.disk_path()))
}

/// Fails unless the only files in the hosts' own datastores are soon the VM's image and its lock file, where it is; then removes
/// them.
fn one_image(fabric: &Fabric, owner: &HostName, image: &Path) -> Result<()> {
    let files = |host: &HostName| -> Result<BTreeSet<PathBuf>> {
        let folder = fabric.own_datastore(host)?;
        let entries = fs::read_dir(&folder).map_err(LabError::io(format!("read {}", folder.display())))?;
        let hidden = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        Ok(entries.flatten().map(|entry| entry.path()).filter(|path| !hidden(path)).collect())
    };
    let lock = PathBuf::from(format!("{}.lock", image.display()));
    let own = BTreeSet::from([image.to_owned(), lock]);
    let mut seen = Vec::new();
    let alone = exec::poll(LINGER_LIMIT, exec::POLL_COMMAND, || {
        seen = fabric.hosts().iter().map(&files).collect::<Result<_>>()?;
        let expected = |(host, seen): (&HostName, &BTreeSet<PathBuf>)| {
            if host == owner { *seen == own } else { seen.is_empty() }
        };
        Ok(fabric.hosts().iter().zip(&seen).all(expected).then_some(()))
    })?;
    alone
        .ok_or_else(|| LabError::Broken(format!("{} should be the only image: {seen:?}", image.display())))?;
    own.iter().try_for_each(fs::remove_file).map_err(LabError::io("remove an image"))
}

/// Returns the host whose VMM was killed, if there was one.
fn strike(fabric: &Fabric, blow: Blow, here: &HostName, there: &HostName) -> Result<Option<HostName>> {
    let kill = |host: &HostName| Ok((fabric.kill_vmms(host)? > 0).then(|| host.clone()));
    match blow {
        Blow::KillSourceVmm => return kill(here),
        Blow::KillDestinationVmm => return kill(there),
        Blow::KillSourceAgent => fabric.kill_process(&Process::Agent(here.clone()))?,
        Blow::KillDestinationAgent => fabric.kill_process(&Process::Agent(there.clone()))?,
        Blow::KillManager => fabric.kill_process(&Process::Manager)?,
        Blow::KillSourceHost => {
            fabric.kill_process(&Process::Agent(here.clone()))?;
            return kill(here);
        }
        Blow::CutSource => fabric.cut(here)?,
        Blow::CutDestination => fabric.cut(there)?,
    }
    Ok(None)
}

fn mend(fabric: &Fabric, blow: Blow, here: &HostName, there: &HostName) -> Result<()> {
    let process = match blow {
        Blow::KillSourceVmm | Blow::KillDestinationVmm => return Ok(()),
        Blow::CutSource | Blow::CutDestination => {
            std::thread::sleep(CUT);
            fabric.mend(if blow == Blow::CutSource { here } else { there })?;
            return (fabric as &dyn Cluster).await_hosts(SETTLE_LIMIT);
        }
        Blow::KillSourceAgent | Blow::KillSourceHost => Process::Agent(here.clone()),
        Blow::KillDestinationAgent => Process::Agent(there.clone()),
        Blow::KillManager => Process::Manager,
    };
    std::thread::sleep(AWAY);
    fabric.start_process(process)?;
    (fabric as &dyn Cluster).await_hosts(SETTLE_LIMIT)
}

/// Where the image of the VM's disk is, if that host has it.
type Image<'a> = &'a dyn Fn(&HostName) -> Result<PathBuf>;

/// Where the VM is, which must be where it may be; one that died with its process is started again.
fn judge(
    cluster: &dyn Cluster,
    case: Case,
    (guest, image): (&GuestOptions, Image<'_>),
    task: &Task,
    died_on: Option<&HostName>,
    beats: Heartbeats,
) -> Result<HostName> {
    let [_, there] = hosts(cluster);
    let died = |vm: &Vm| died_on.is_some() && vm.owner.as_ref() == died_on;
    // A host reports the death of a process a moment after it.
    let vm = exec::poll(REPORT_LIMIT, exec::POLL_COMMAND, || {
        Ok(Some(cluster.vm(&guest.name)?).filter(|vm| !died(vm) || vm.state == VmState::Crashed))
    })?;
    let vm = vm.ok_or_else(|| LabError::Broken("the VM's death is not reported".into()))?;
    let told = format!("{vm:?} after {task:?}");
    let owner = vm.owner.clone().ok_or_else(|| LabError::Broken(format!("nobody owns {told}")))?;
    if case.is_after_the_commit() || case.is_taken_over() {
        ensure(owner == there, format!("the VM is the destination's: {told}"))?;
    }
    if died(&vm) {
        beats.end()?;
        let lost = lost_writes(&image(&owner)?, 1)?;
        ensure(lost.lost == 0, format!("writes were lost: {lost:?}"))?;
        cluster.start(&guest.name, &owner)?;
        load::await_guest(cluster, guest.address)?;
    } else {
        ensure(vm.state == VmState::Running, format!("the VM should run: {told}"))?;
        let moved = task.state == TaskState::Succeeded;
        ensure(moved == (owner == there), format!("the task does not say where the VM is: {told}"))?;
        assert_alive(cluster, guest.address)?;
        beats.end()?;
    }
    Ok(owner)
}

/// Fails unless the owner soon has the only process of a VM.
fn one_process(fabric: &Fabric, owner: &HostName) -> Result<()> {
    let alone = exec::poll(LINGER_LIMIT, exec::POLL_COMMAND, || {
        for host in fabric.hosts() {
            if fabric.vmms(host)?.len() != usize::from(host == owner) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })?;
    alone.ok_or_else(|| LabError::Broken(format!("{owner} should have the only process of the VM")))
}

fn unharmed(cluster: &dyn Cluster, guest: &GuestOptions, image: &Path) -> Result<()> {
    let report = load::fetch(cluster.client(), guest.address)?;
    let lost = lost_writes(image, report.disk.acked)?;
    let errors = report.memory.errors + report.disk.errors;
    ensure(errors == 0 && lost.lost == 0, format!("the guest was harmed: {report:?}, {lost:?}"))
}

/// Fails if a process, a tap, a cgroup or a file of the VM is left on a host. Logs of a crash may stay.
fn nothing_left(fabric: &Fabric, guest: &GuestOptions) -> Result<()> {
    let gone = exec::poll(LINGER_LIMIT, exec::POLL_COMMAND, || {
        for host in fabric.hosts() {
            if !fabric.vmms(host)?.is_empty() || !fabric.taps(host)?.is_empty() {
                return Ok(None);
            }
        }
        Ok(fabric.cgroups().is_none_or(|cgroups| cgroups.all().is_empty()).then_some(()))
    })?;
    gone.ok_or_else(|| LabError::Broken(format!("processes, taps or cgroups of {} are left", guest.name)))?;
    for host in fabric.hosts() {
        let left = files_below(&fabric.host_state(host).join("vms"));
        ensure(left.is_empty(), format!("files are left on {host}: {left:?}"))?;
    }
    Ok(())
}

fn files_below(folder: &std::path::Path) -> BTreeSet<String> {
    let folders = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.path()).into_iter().flatten().flatten());
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.ends_with(".log")).collect()
}
