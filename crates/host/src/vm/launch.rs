//! Starting a VM's process: to boot, or to receive a migration.
//!
//! ```text
//!  admit --> directory --> taps --> descriptors, cgroup --> process --> control socket --> ready --> supervised
//!    |           '-----------'---------------'----------------'---------------'-- fails: everything is undone
//!    '-- refused, with all reasons
//! ```

use std::collections::BTreeSet;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use godwit_faults::Step;
use godwit_types::agent::{GuestAddress, Incoming, LocalState, LocalVm, MovedDisk, PrepareIncoming, StartVm};
use godwit_types::control::{Descriptors, Role, Status, VmmConfig, VmmState};
use godwit_types::vm::VmSpec;
use godwit_types::{ApiError, Bytes, Epoch, ErrorCode, VmId, VmName};
use tokio::time::{sleep, timeout};

use super::admission::{Backing, needed, refusal};
use super::control::Control;
use super::dir::VmDir;
use super::machine::{Machine, blocking, remove_cgroup, unplug_all};
use super::process::{Process, describe};
use super::question::open_taps;
use super::reached;
use super::state::State;
use super::supervise::{supervise, tell_network};
use super::user;
use crate::agent::Agent;
use crate::facts;
use crate::net::{self, Port};

/// How long the datastores may take to show the VM's files.
const ADMIT_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a process may take to keep the memory of a VM that is already on its way back.
const HOME_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a VMM may take to build its machine.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between looks at whether it is ready.
const READY_POLL: Duration = Duration::from_millis(5);

/// A process to start.
#[derive(Debug)]
struct Launch {
    vm: VmId,
    name: VmName,
    epoch: Epoch,
    spec: VmSpec,
    role: Role,
    addresses: Vec<GuestAddress>,
    /// What this host has of an incoming VM's memory, and keeps if it does not arrive.
    kept: Option<File>,
    /// Disks that arrive with it.
    arriving: Vec<MovedDisk>,
}

/// `POST /v1/vms/{id}/start`. Starting what runs already, at the same epoch, changes nothing.
pub(crate) async fn start(agent: Arc<Agent>, vm: VmId, asked: StartVm) -> Result<LocalVm, ApiError> {
    let _turn = agent.vms.lock(vm).await;
    if let Some(machine) = agent.vms.live(vm) {
        let local = machine.report();
        let same =
            machine.state(|state| state.epoch == asked.epoch && state.incoming.is_none() && !state.stopping);
        return if same { Ok(local) } else { Err(here_already(&local)) };
    }
    let StartVm { name, epoch, spec } = asked;
    agent.keep.forget(vm);
    agent.copies.end(vm).await?;
    // Whatever became of its last arrival, its disks are its own.
    let (settled, disks) = (Arc::clone(&agent), spec.disks.clone());
    blocking(move || settled.arrivals.settle_started(vm, &disks)).await;
    let (role, addresses, arriving) = (Role::Boot, Vec::new(), Vec::new());
    let launch = Launch { vm, name, epoch, spec, role, addresses, kept: None, arriving };
    let (machine, _) = agent.launch(launch).await?;
    // Once more, now that the VMM holds the taps: a bridge is taught nothing about a port without a carrier, and may
    // still lead to where the VM ran before.
    open_taps(&machine).await;
    tell_network(&agent, &machine);
    Ok(machine.report())
}

/// `POST /v1/vms/{id}/incoming`. Asking again for the same migration finds the machine that is already there.
pub(crate) async fn incoming(
    agent: Arc<Agent>,
    vm: VmId,
    asked: PrepareIncoming,
) -> Result<Incoming, ApiError> {
    let _turn = agent.vms.lock(vm).await;
    // A process that has handed the VM over can never run it again, and may still be ending when the VM comes home.
    if let Some(machine) =
        agent.vms.live(vm).filter(|machine| machine.report().state == LocalState::HandedOver)
    {
        if machine.state(|state| state.migrating_away()) {
            let message = format!("part of the memory of {} is still on this host", machine.config.name);
            return Err(ApiError::new(ErrorCode::Conflict, message)
                .remedy("wait until all of it has followed the VM, then migrate again"));
        }
        // What it has moved by then is what is kept.
        if !agent.keep.is_lent(vm) || !machine.gone_within(HOME_TIMEOUT).await {
            machine.quit().await;
        }
    }
    if let Some(machine) = agent.vms.live(vm) {
        if machine.state(|state| state.incoming) != Some(asked.migration) {
            return Err(here_already(&machine.report()));
        }
        return listening(&agent, &machine.control.status().await?);
    }
    reached(Step::DestinationAgentPrepare).await;
    let PrepareIncoming { migration, name, spec, epoch, addresses, source, key, disks: arriving } = asked;
    tracing::info!("{name} is to arrive from {source} by migration {migration}");
    let listen = SocketAddr::new(agent.config.migration_address, 0);
    let disks = arriving.iter().map(|disk| disk.index).collect();
    let role = Role::Incoming { migration, listen, key, disks };
    let kept = agent.keep.lend(vm, &name, spec.memory);
    let launch = Launch { vm, name, epoch, spec, role, addresses, kept, arriving };
    match agent.launch(launch).await {
        Ok((_, status)) => listening(&agent, &status),
        Err(error) => {
            // The source has heard nothing of it yet.
            blocking(move || agent.arrivals.discard(vm, migration)).await;
            Err(error)
        }
    }
}

fn listening(agent: &Agent, status: &Status) -> Result<Incoming, ApiError> {
    let Some(mut address) = status.listening else {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            "the VM's process has already received its migration",
        ));
    };
    if address.ip().is_unspecified() {
        address.set_ip(agent.config.advertise.ip());
    }
    Ok(Incoming { address })
}

fn here_already(local: &LocalVm) -> ApiError {
    let message =
        format!("{} is on this host already, at epoch {} ({:?})", local.name, local.epoch, local.state);
    ApiError::new(ErrorCode::Conflict, message).remedy("wait for its task to end, or stop it: godwit vm stop")
}

impl Agent {
    async fn launch(self: &Arc<Self>, launch: Launch) -> Result<(Arc<Machine>, Status), ApiError> {
        let (backing, user, reservation) = {
            // Two VMs at once must not be promised the same memory, or the same user.
            let _admission = self.admission.lock().await;
            self.require_staying()?;
            let backing = self.admit(&launch).await?;
            let user = self.user(launch.vm)?;
            self.make_room(&launch).await;
            (backing, user, self.vms.reserve(launch.vm, launch.spec.memory, user))
        };
        let dir = VmDir::new(&self.config.state_dir, launch.vm);
        let config = vmm_config(self, &launch, &backing, &dir, user);
        let boots = launch.role == Role::Boot;
        let (mut config, mut descriptors) =
            prepare(self, dir.clone(), config, backing.ports.clone(), launch.arriving).await?;
        descriptors.kept = launch.kept.map(OwnedFd::from);
        let (process, status) = match spawn(&self.vmm, &dir, &mut config, descriptors, boots).await {
            Ok(ready) => ready,
            Err(error) => {
                blocking(move || undo(&dir, &backing.ports, config.cgroup)).await;
                return Err(error);
            }
        };
        let migration = match launch.role {
            Role::Boot => None,
            Role::Incoming { migration, .. } => Some(migration),
        };
        let state = State { epoch: launch.epoch, ..State::new(&status, migration) };
        let machine = Arc::new(Machine::new(config, dir, process, backing.ports, &launch.addresses, state));
        self.vms.insert(Arc::clone(&machine));
        drop(reservation);
        self.spawn(supervise(Arc::clone(self), Arc::clone(&machine)));
        self.changed.notify_one();
        Ok((machine, status))
    }

    /// Gives up kept memory that the VM needs, its own last: that turns into what it needs.
    async fn make_room(self: &Arc<Self>, launch: &Launch) {
        let (agent, vm, memory) = (Arc::clone(self), launch.vm, needed(&launch.spec));
        blocking(move || {
            let promised = agent.vms.memory_promised().0.saturating_add(memory.0);
            let there = facts::memory_available().0.saturating_add(agent.keep.held_of(vm).0);
            agent.keep.give_up(Bytes(promised.saturating_sub(there)), vm);
        })
        .await;
    }

    /// A user for the VM's process, if this one can become another.
    pub(super) fn user(&self, vm: VmId) -> Result<Option<u32>, ApiError> {
        let root = nix::unistd::geteuid().is_root();
        root.then(|| user::choose(&self.config.vm_users, vm, self.vms.users())).transpose()
    }

    async fn admit(self: &Arc<Self>, launch: &Launch) -> Result<Backing, ApiError> {
        let arriving: BTreeSet<u32> = launch.arriving.iter().map(|disk| disk.index).collect();
        let examined = self.examine(launch.vm, (&launch.spec, &arriving), launch.epoch, ADMIT_TIMEOUT).await;
        examined.map_err(|found| refusal(&self.config.name, &found))
    }
}

fn vmm_config(
    agent: &Agent,
    launch: &Launch,
    backing: &Backing,
    dir: &VmDir,
    user: Option<u32>,
) -> VmmConfig {
    VmmConfig {
        vm: launch.vm,
        name: launch.name.clone(),
        host: agent.config.name.clone(),
        epoch: launch.epoch,
        spec: launch.spec.clone(),
        control: dir.control(),
        console_socket: dir.console(),
        console_log: dir.console_log(),
        kernel: backing.kernel.clone(),
        initrd: backing.initrd.clone(),
        disks: backing.disks.clone(),
        nics: backing.nics.clone(),
        role: launch.role.clone(),
        user,
        cgroup: None,
        descriptors: None,
        write_log: None,
    }
}

/// Makes the directory, the taps, the images that arrive and the cgroup, and opens everything that the process works with. The taps of a VM that
/// boots are open at once.
async fn prepare(
    agent: &Arc<Agent>,
    dir: VmDir,
    mut config: VmmConfig,
    ports: Vec<Port>,
    arriving: Vec<MovedDisk>,
) -> Result<(VmmConfig, Descriptors<OwnedFd>), ApiError> {
    let agent = Arc::clone(agent);
    blocking(move || {
        dir.create().map_err(|error| {
            let message =
                format!("the VM's directory beside {} cannot be made: {error}", dir.log().display());
            failed(message).remedy("check the agent's state directory, and that its disk is not full")
        })?;
        let prepared = plug(&ports, config.role == Role::Boot)
            .and_then(|()| make_images(&agent, &config, &arriving))
            .and_then(|()| provide(&agent, &mut config));
        match prepared {
            Ok(descriptors) => Ok((config, descriptors)),
            Err(error) => {
                undo(&dir, &ports, config.cgroup);
                Err(error)
            }
        }
    })
    .await
}

fn make_images(agent: &Agent, config: &VmmConfig, arriving: &[MovedDisk]) -> Result<(), ApiError> {
    let Role::Incoming { migration, .. } = config.role else { return Ok(()) };
    let disk = |moved: &MovedDisk| Some((config.disks.get(moved.index as usize)?.clone(), *moved));
    let disks: Vec<_> = arriving.iter().filter_map(disk).collect();
    if disks.is_empty() { Ok(()) } else { agent.arrivals.begin(config.vm, migration, &disks) }
}

fn plug(ports: &[Port], open: bool) -> Result<(), ApiError> {
    for port in ports {
        let plugged = net::plug(port).and_then(|()| if open { net::open(port) } else { Ok(()) });
        plugged.map_err(|error| failed(chain(&error)))?;
    }
    Ok(())
}

/// Everything that the process is given.
fn provide(agent: &Agent, config: &mut VmmConfig) -> Result<Descriptors<OwnedFd>, ApiError> {
    let mut descriptors = godwit_provision::open(config).map_err(|error| failed(chain(&error)))?;
    let made = agent.cgroups.create(config.vm, &config.spec).map_err(|error| {
        let message =
            format!("the VM's cgroup below {} cannot be made: {error}", agent.config.cgroup.display());
        failed(message).remedy("name another place with --cgroup")
    })?;
    if let Some((cgroup, members)) = made {
        config.cgroup = Some(cgroup.path().to_owned());
        descriptors.cgroup = Some(members);
    }
    Ok(descriptors)
}

fn undo(dir: &VmDir, ports: &[Port], cgroup: Option<PathBuf>) {
    unplug_all(ports);
    remove_cgroup(cgroup);
    if let Err(error) = dir.remove() {
        tracing::warn!("a VM's directory was not removed: {error}");
    }
}

/// Starts the process and waits until it is ready. If it does not get so far, it is gone when this returns.
async fn spawn(
    vmm: &Path,
    dir: &VmDir,
    config: &mut VmmConfig,
    descriptors: Descriptors<OwnedFd>,
    boots: bool,
) -> Result<(Process, Status), ApiError> {
    let process = Process::spawn(vmm, dir, config, descriptors).map_err(|error| {
        failed(format!("{} cannot be started: {error}", vmm.display())).remedy("name the binary with --vmm")
    })?;
    let control = Control::new(dir.control());
    let outcome = tokio::select! {
        ended = process.ended() => Err(format!("the VM's process {}", describe(ended))),
        ready = timeout(READY_TIMEOUT, ready(&control, boots)) => {
            ready.map_err(|_| format!("the VM's process was not ready within {} s", READY_TIMEOUT.as_secs()))
        }
    };
    match outcome {
        Ok(status) => Ok((process, status)),
        Err(why) => {
            process.kill();
            process.ended().await;
            let words = dir.last_words();
            Err(failed(if words.is_empty() { why } else { format!("{why}: {words}") }))
        }
    }
}

async fn ready(control: &Control, boots: bool) -> Status {
    loop {
        match control.status().await {
            Ok(status) if boots && matches!(status.state, VmmState::Running | VmmState::Stopped) => {
                return status;
            }
            Ok(status) if !boots && status.listening.is_some() => return status,
            // Not yet: no socket, or a machine that is still being built.
            Ok(_) | Err(_) => sleep(READY_POLL).await,
        }
    }
}

fn failed(message: String) -> ApiError {
    ApiError::new(ErrorCode::Failed, message)
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}
