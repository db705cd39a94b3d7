//! The agent: what its parts share.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use godwit_types::capability::VmmOffer;
use godwit_types::host::{DatastoreOffer, HostReport, KvmFlavour};
use godwit_types::usage::HostUsage;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::config::HostConfig;
use crate::facts;
use crate::manager::Manager;
use crate::standby::Leaving;
use crate::vm::{Arrivals, Cgroups, Copies, Keep, Registry, blocking};

/// One host's agent.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) config: HostConfig,
    /// The `godwit-vmm` binary.
    pub(crate) vmm: PathBuf,
    pub(crate) manager: Manager,
    pub(crate) vms: Registry,
    pub(crate) cgroups: Cgroups,
    /// Memory of VMs that have left.
    pub(crate) keep: Keep,
    /// Images of VMs that arrive with their disks.
    pub(crate) arrivals: Arrivals,
    /// Disks of VMs that do not run, on their way to another datastore.
    pub(crate) copies: Copies,
    /// Held while a VM is admitted.
    pub(crate) admission: tokio::sync::Mutex<()>,
    /// Whether this host is about to be switched off.
    pub(crate) leaving: Leaving,
    /// Something changed that the manager should hear at once.
    pub(crate) changed: Notify,
    /// What the migrations away may send may have changed.
    pub(crate) traffic: Notify,
    /// As last seen; a datastore that hangs does not hold up reports.
    datastores: Mutex<Vec<DatastoreOffer>>,
    /// As the VMM last said.
    offer: Mutex<Option<VmmOffer>>,
    /// As last measured.
    usage: Mutex<Option<HostUsage>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Agent {
    pub(crate) fn new(config: HostConfig, vmm: PathBuf, manager: Manager) -> Self {
        let cgroups = Cgroups::find(&config.cgroup, &config.name);
        let keep = Keep::new(config.keep);
        let arrivals = Arrivals::load(&config.state_dir);
        Self {
            config,
            vmm,
            manager,
            vms: Registry::default(),
            cgroups,
            keep,
            arrivals,
            copies: Copies::default(),
            admission: tokio::sync::Mutex::default(),
            leaving: Leaving::default(),
            changed: Notify::new(),
            traffic: Notify::new(),
            datastores: Mutex::default(),
            offer: Mutex::default(),
            usage: Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    /// Runs `task` until it ends or the agent does.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!("a task of the agent ended: {error}");
            }
        }
        tasks.spawn(task);
    }

    /// Ends all tasks. The VMs run on.
    pub(crate) async fn shut_down(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }

    /// What the manager is told.
    pub(crate) fn report(&self) -> HostReport {
        let datastores = self.datastores.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let offer = self.offer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let usage = *self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        let facts = facts::gather(&self.config, datastores, offer, &self.keep, usage);
        HostReport {
            name: self.config.name.clone(),
            agent: self.config.advertise,
            facts,
            vms: self.vms.report(),
            leftovers: self.arrivals.leftovers(|vm| self.vms.is_here(vm)),
        }
    }

    /// The host was measured.
    pub(crate) fn set_usage(&self, usage: Option<HostUsage>) {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = usage;
    }

    /// Asks the VMM what it can run here: another kernel module, microcode or binary may have come.
    pub(crate) async fn look_at_vmm(&self) {
        let asked = facts::vmm_offer(&self.vmm).await;
        let mut offer = self.offer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(why) = &asked
            && (offer.is_some() || facts::kvm().flavour != KvmFlavour::None)
        {
            tracing::warn!("{} does not say what it can run here: {why}", self.vmm.display());
        }
        let now = asked.ok();
        if *offer != now {
            *offer = now;
            self.changed.notify_one();
        }
    }

    /// Gives up kept memory that is too old, or that the host needs.
    pub(crate) async fn tidy_kept_memory(self: &Arc<Self>) {
        let agent = Arc::clone(self);
        let available = facts::memory_available();
        // Closing a file in memory takes as long as giving back its pages does.
        if blocking(move || agent.keep.tidy(available, facts::memory())).await {
            self.changed.notify_one();
        }
    }

    /// Looks at the datastores. Takes as long as they do.
    pub(crate) async fn look_at_datastores(self: &Arc<Self>) {
        let agent = Arc::clone(self);
        let seen = blocking(move || facts::datastores(&agent.config)).await;
        let before = std::mem::replace(
            &mut *self.datastores.lock().unwrap_or_else(PoisonError::into_inner),
            seen.clone(),
        );
        let lost = |now: &&DatastoreOffer| {
            now.size.0 == 0 && before.iter().find(|was| was.name == now.name).is_none_or(|was| was.size.0 > 0)
        };
        for now in seen.iter().filter(lost) {
            tracing::warn!("the datastore {} cannot be reached at {}: is it mounted?", now.name, now.path);
        }
    }
}
