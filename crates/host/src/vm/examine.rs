//! Whether a VM can be here: before it is started, and for whoever only wants to know.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use godwit_types::agent::{AskAdmission, LocalState};
use godwit_types::check::{Check, Finding};
use godwit_types::vm::VmSpec;
use godwit_types::{Bytes, Epoch, VmId};
use tokio::time::timeout;

use super::admission::{Backing, Candidate};
use super::machine::blocking;
use crate::agent::Agent;
use crate::facts;

/// How long the datastores may take to show the VM's files to whoever only asks.
const ASKED_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a process that has handed the VM over may take to end: it still holds memory, and cannot run the VM again.
const HANDED_OVER_END_TIMEOUT: Duration = Duration::from_secs(1);
/// How long one that waits for an arrival may be here still: the next heartbeat's answer discards what was aborted while
/// this host was cut off.
const ABORTED_END_TIMEOUT: Duration = Duration::from_secs(3);

/// `POST /v1/vms/{id}/admission`: everything that keeps a migration from arriving. Changes nothing, and promises nothing.
pub(crate) async fn admission(agent: Arc<Agent>, vm: VmId, asked: AskAdmission) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(machine) = agent.vms.live(vm) {
        let local = machine.report();
        let gone = match local.state {
            // It cannot run the VM again.
            LocalState::HandedOver => {
                machine.gone_within(HANDED_OVER_END_TIMEOUT).await;
                true
            }
            // The last has given up its arrival, and its process is about to end.
            LocalState::Incoming | LocalState::Prepared | LocalState::Stopped => {
                machine.gone_within(ABORTED_END_TIMEOUT).await
            }
            _ => false,
        };
        if !gone {
            let (name, host) = (&local.name, &agent.config.name);
            let reason = format!(
                "a process of {name} is on {host} already, at epoch {} ({:?})",
                local.epoch, local.state
            );
            found.push(Finding::blocked(Check::Vm, reason, "wait for the VM's task to end: godwit vm show"));
        }
    }
    let examined = agent.examine(vm, (&asked.spec, &asked.disks), asked.epoch, ASKED_TIMEOUT).await;
    found.extend(examined.err().into_iter().flatten());
    found
}

impl Agent {
    /// What this host provides for the VM, which arrives with some of its disks, or all that it lacks. The datastores may take as long as `patience`.
    pub(super) async fn examine(
        self: &Arc<Self>,
        vm: VmId,
        (spec, arriving): (&VmSpec, &BTreeSet<u32>),
        epoch: Epoch,
        patience: Duration,
    ) -> Result<Backing, Vec<Finding>> {
        let (agent, spec, arriving) = (Arc::clone(self), spec.clone(), arriving.clone());
        let examined = blocking(move || agent.candidate(vm, &spec, epoch, &arriving).examine());
        timeout(patience, examined).await.unwrap_or_else(|_| {
            let (name, seconds) = (&self.config.name, patience.as_secs());
            let reason = format!("a datastore of {name} did not answer within {seconds} s");
            let remedy = "check its mounts and the storage behind them";
            Err(vec![Finding::blocked(Check::Datastores, reason, remedy)])
        })
    }
    /// The VM, and what there is for it at this moment.
    pub(super) fn candidate<'a>(
        &'a self,
        vm: VmId,
        spec: &'a VmSpec,
        epoch: Epoch,
        arriving: &'a BTreeSet<u32>,
    ) -> Candidate<'a> {
        let promised = self.vms.memory_promised();
        let available = facts::memory_available().0.saturating_add(self.keep.held().0);
        let memory = Bytes(available.saturating_sub(promised.0));
        let made = self.arrivals.made(vm);
        Candidate { config: &self.config, vm, spec, epoch, arriving, made, kvm: facts::kvm(), memory }
    }
}
