//! A VM whose process runs on this host.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use godwit_types::agent::{GuestAddress, LocalVm};
use godwit_types::capability::DiskFacts;
use godwit_types::control::{DiskBacking, Request, Role, VmmConfig, VmmState};
use godwit_types::usage::VmUsage;
use godwit_types::{Bytes, VmId};
use tokio::sync::watch;
use tokio::time::timeout;

use super::arrivals::NewImage;
use super::cgroup::Cgroup;
use super::control::Control;
use super::dir::VmDir;
use super::process::Process;
use super::state::State;
use crate::announce::Addresses;
use crate::facts;
use crate::net::{self, NetError, Port};

/// How long a VMM may take to hear that it shall quit, and then to flush its disks and end, before it is killed.
const QUIT_REPLY_TIMEOUT: Duration = Duration::from_secs(3);
const QUIT_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a killed process may take to be gone: the kernel still tears down its memory.
const GONE_TIMEOUT: Duration = Duration::from_secs(30);

/// A VM's process and everything that belongs to it.
#[derive(Debug)]
pub(crate) struct Machine {
    /// As it was started; see [`Machine::disks`] for where its disks are now.
    pub(crate) config: VmmConfig,
    pub(crate) dir: VmDir,
    pub(crate) control: Control,
    pub(crate) process: Process,
    pub(crate) ports: Vec<Port>,
    pub(crate) addresses: Vec<Addresses>,
    state: Mutex<State>,
    /// Where disks are that have moved since.
    moved: Mutex<Vec<NewImage>>,
    /// What it uses, as last measured.
    usage: Mutex<Option<VmUsage>>,
    /// Its disks, as last looked at.
    disk_facts: Mutex<Vec<DiskFacts>>,
    /// Becomes true when the process has ended and nothing of it is left.
    gone: watch::Sender<bool>,
}

impl Machine {
    pub(crate) fn new(
        config: VmmConfig,
        dir: VmDir,
        process: Process,
        ports: Vec<Port>,
        addresses: &[GuestAddress],
        state: State,
    ) -> Self {
        let control = Control::new(dir.control());
        let addresses = ports.iter().map(|port| Addresses::new(port.mac, addresses)).collect();
        Self {
            config,
            dir,
            control,
            process,
            ports,
            addresses,
            state: Mutex::new(state),
            moved: Mutex::default(),
            usage: Mutex::default(),
            disk_facts: Mutex::default(),
            gone: watch::Sender::new(false),
        }
    }

    pub(crate) fn id(&self) -> VmId {
        self.config.vm
    }

    /// Reads or changes the state. Never held across anything slow.
    pub(crate) fn state<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the manager is told.
    pub(crate) fn report(&self) -> LocalVm {
        let (epoch, state, detail) = self.state(|state| (state.epoch, state.local(), state.waiting.clone()));
        LocalVm {
            id: self.id(),
            name: self.config.name.clone(),
            epoch,
            state,
            detail,
            addresses: self.seen(),
            usage: *self.usage.lock().unwrap_or_else(PoisonError::into_inner),
            disks: self.disk_facts.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Looks at its disks, for the next report. What cannot be looked at is not known.
    pub(crate) fn look_at_disks(&self) {
        let facts: Result<Vec<_>, _> = self.disks().iter().map(godwit_provision::measure).collect();
        let facts = facts.unwrap_or_else(|error| {
            tracing::debug!("the disks of {} cannot be looked at: {error}", self.config.name);
            Vec::new()
        });
        *self.disk_facts.lock().unwrap_or_else(PoisonError::into_inner) = facts;
    }

    /// It was measured.
    pub(crate) fn set_usage(&self, usage: Option<VmUsage>) {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = usage;
    }

    /// The guest's addresses, of all its network cards.
    pub(crate) fn seen(&self) -> Vec<GuestAddress> {
        self.addresses.iter().flat_map(Addresses::all).collect()
    }

    /// Memory that this VM may still come to use. One that has left gives back what it has.
    pub(crate) fn memory_to_come(&self) -> Bytes {
        if self.state(|state| state.handed_over) {
            return Bytes(0);
        }
        let resident = facts::memory_resident(self.process.pid());
        Bytes(self.config.spec.memory.0.saturating_sub(resident.0))
    }

    /// The VM as it would be started on this host, for an agent that finds it later.
    pub(crate) fn settled_config(&self) -> VmmConfig {
        let mut config =
            VmmConfig { role: Role::Boot, epoch: self.state(|state| state.epoch), ..self.config.clone() };
        config.disks = self.disks();
        for new in self.moved().iter() {
            if let Some(disk) = config.spec.disks.get_mut(new.index as usize) {
                disk.image = new.image.clone();
            }
        }
        config
    }

    /// Where its disks lie.
    pub(crate) fn disks(&self) -> Vec<DiskBacking> {
        let mut disks = self.config.disks.clone();
        for new in self.moved().iter() {
            if let Some(disk) = disks.get_mut(new.index as usize) {
                *disk = new.backing.clone();
            }
        }
        disks
    }

    /// Disks have moved to other places.
    pub(crate) fn has_moved(&self, disks: Vec<NewImage>) {
        self.moved().extend(disks);
    }

    fn moved(&self) -> MutexGuard<'_, Vec<NewImage>> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the process in good order, or at once if that takes too long. Returns when nothing of it is left.
    pub(crate) async fn quit(&self) {
        self.state(|state| state.stopping = true);
        // A process that is just ending does not answer any more, and one that hangs is killed below.
        let _ = timeout(QUIT_REPLY_TIMEOUT, self.control.order(&Request::Quit)).await;
        if !self.gone_within(QUIT_TIMEOUT).await {
            tracing::warn!("{}: the VM's process does not quit, and is killed", self.config.name);
            self.kill().await;
        }
    }

    /// Ends the process at once. Returns when nothing of it is left.
    pub(crate) async fn kill(&self) {
        self.process.kill();
        if let Some(Err(error)) = self.config.cgroup.clone().map(|path| Cgroup::at(path).kill()) {
            tracing::debug!("{}: its cgroup was not killed: {error}", self.config.name);
        }
        if !self.gone_within(GONE_TIMEOUT).await {
            tracing::error!(
                "{}: the process {} was killed and does not end",
                self.config.name,
                self.process.pid()
            );
        }
    }

    /// Waits until the process has ended and nothing of it is left, for at most `wait`. Says whether that is so.
    pub(crate) async fn gone_within(&self, wait: Duration) -> bool {
        let mut gone = self.gone.subscribe();
        let in_time = timeout(wait, gone.wait_for(|gone| *gone)).await;
        matches!(in_time, Ok(Ok(_)))
    }

    /// Whether the guest runs in this process, as far as is known. One that stands for its switchover may already run
    /// elsewhere.
    pub(crate) fn is_here(&self) -> bool {
        let runs = self.state(|state| state.vmm == VmmState::Running && !state.handed_over);
        runs && !*self.gone.borrow()
    }

    pub(crate) fn set_gone(&self) {
        self.gone.send_replace(true);
    }

    /// Applies `change` to every port, on a thread where the kernel may take its time.
    pub(crate) async fn ports(
        self: &Arc<Self>,
        change: impl Fn(&Port) -> Result<(), NetError> + Send + 'static,
    ) -> Result<(), NetError> {
        let machine = Arc::clone(self);
        blocking(move || machine.ports.iter().try_for_each(change)).await
    }

    /// Removes what the ended process leaves: taps, cgroup, sockets, files; the logs only if they are not worth keeping.
    pub(crate) async fn clean_up(self: &Arc<Self>, keep_logs: bool) {
        let machine = Arc::clone(self);
        blocking(move || {
            let name = &machine.config.name;
            unplug_all(&machine.ports);
            remove_cgroup(machine.config.cgroup.clone());
            let cleaned = if keep_logs { machine.dir.keep_logs() } else { machine.dir.remove() };
            if let Err(error) = cleaned {
                tracing::warn!("{name}: the VM's directory was not removed: {error}");
            }
        })
        .await;
    }
}

/// Removes taps. What fails is logged: there is nobody else to tell.
pub(crate) fn unplug_all(ports: &[Port]) {
    for port in ports {
        if let Err(error) = net::unplug(&port.tap) {
            tracing::warn!("the tap {} was not removed: {error}", port.tap);
        }
    }
}

/// Removes a VM's cgroup, and ends what is still in it.
pub(crate) fn remove_cgroup(cgroup: Option<PathBuf>) {
    let Some(path) = cgroup else { return };
    if let Err(error) = Cgroup::at(path.clone()).remove() {
        tracing::warn!("the cgroup {} was not removed: {error}", path.display());
    }
}

/// Runs `work` on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
