//! From the plan to a source that has begun.

use std::time::Duration;

use godwit_faults::Step;
use godwit_types::agent::{GuestAddress, Incoming, MovedDisk, PrepareIncoming, StartOutgoing};
use godwit_types::api::Empty;
use godwit_types::capability::{DiskFacts, GuestFacts};
use godwit_types::forecast::Forecast;
use godwit_types::key::MIGRATION_KEY_BYTES;
use godwit_types::migration::Budget;
use godwit_types::{ApiError, Bytes, ErrorCode, MigrationKey, VmId, VmName};

use super::bandwidth::allowed;
use super::{Attempt, Side};
use crate::manager::unknown_vm;
use crate::moving::{Moving, Wish};
use crate::store::{HostRow, NewEvent, VmRow};
use crate::tasks::cancelled_error;
use crate::{plan, reached};

/// How long the guest is watched for the forecast, in milliseconds; less if the destination is ready sooner.
const SAMPLE_MS: u32 = 300;
/// How long an agent may take to say how large disks are.
const MEASURE_TIMEOUT: Duration = Duration::from_secs(8);
/// How long an agent may take to build the destination's machine, or to begin on the source.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(30);

impl Attempt<'_> {
    /// Builds the destination's machine and starts the source. The inner error is the reason to abort.
    pub(super) async fn prepare(&mut self) -> Result<Result<(), ApiError>, ApiError> {
        if self.driver.resumed {
            let error =
                ApiError::new(ErrorCode::Failed, "the manager was restarted before the migration began");
            return Ok(Err(error.remedy("migrate again")));
        }
        let begun = self.driver.unless_cancelled(self.begin()).await?;
        Ok(begun.unwrap_or_else(|| Err(cancelled_error("the migration"))))
    }

    async fn begin(&self) -> Result<(), ApiError> {
        let m = self.m.clone();
        let rows = self.driver.manager.store.read(move |tx| {
            let Wish { budget, .. } = tx.task_request(m.task)?;
            let budget = Budget { bandwidth_bytes_per_s_max: allowed(tx, &m)?, ..budget };
            Ok((tx.vm(&m.vm.to_string())?, budget, tx.host(&m.source)?, tx.moving(m.id)?))
        });
        let (vm, budget, source, moving) = rows.await?;
        let vm = vm.ok_or_else(|| unknown_vm(&self.m.vm.to_string()))?;
        let disks = self.measure(moving.as_ref()).await?;
        let held = disks.iter().map(|(_, facts)| facts.allocated.0).sum();
        let addresses = source.map(|host| addresses(&host, self.m.vm)).unwrap_or_default();
        let forecast = async {
            self.note_forecast(&budget, Bytes(held)).await;
            Ok(())
        };
        let moved =
            disks.iter().map(|(index, facts)| MovedDisk { index: *index, size: facts.size }).collect();
        let vm = VmRow { spec: moving.map_or(vm.spec, |moving| moving.spec), ..vm };
        tokio::try_join!(self.start_both(vm, addresses, budget.clone(), moved), forecast).map(|_| ())
    }

    /// How large the disks are that move, as their host's agent says now.
    async fn measure(&self, moving: Option<&Moving>) -> Result<Vec<(u32, DiskFacts)>, ApiError> {
        let Some(moving) = moving else { return Ok(Vec::new()) };
        let source = self.driver.agent(&self.m.source).await?.with_timeout(MEASURE_TIMEOUT);
        let guest: GuestFacts = source.get(&format!("/v1/vms/{}/guest", self.m.vm)).await?;
        let size = |index: &u32| Some((*index, *guest.disks.get(*index as usize)?));
        let sizes: Option<Vec<_>> = moving.disks.iter().map(size).collect();
        sizes.ok_or_else(|| {
            let message = format!("{} does not say how large the VM's disks are", self.m.source);
            ApiError::new(ErrorCode::Failed, message).remedy("check its datastores, then migrate again")
        })
    }

    /// Says what the migration is expected to cost. It goes on whether that can be said or not.
    async fn note_forecast(&self, budget: &Budget, disks: Bytes) {
        let (m, manager) = (&self.m, &self.driver.manager);
        let foreseen =
            plan::foresee(manager, m.vm, (&m.source, &m.destination), (budget, disks), SAMPLE_MS).await;
        let (name, task, host) = (self.driver.name.clone(), m.task, m.source.clone());
        let noted = manager.store.note(move |tx| {
            let (kind, message) = match &foreseen {
                Ok(forecast) => {
                    tx.set_task_forecast(task, forecast)?;
                    told(&name, forecast)
                }
                Err(error) => ("vm.forecast", format!("no forecast for {name}: {error}")),
            };
            Ok(tx.add_event(NewEvent::new(kind, message).vm(&name).host(&host).task(task))?)
        });
        if let Err(error) = noted.await {
            tracing::warn!("the forecast was not recorded: {error}");
        }
    }

    async fn start_both(
        &self,
        vm: VmRow,
        addresses: Vec<GuestAddress>,
        budget: Budget,
        disks: Vec<MovedDisk>,
    ) -> Result<(), ApiError> {
        let key = (!budget.plain).then(draw_key).transpose()?;
        let moved = disks.iter().map(|disk| disk.index).collect();
        let incoming = PrepareIncoming {
            key: key.clone(),
            migration: self.m.id,
            name: vm.name,
            spec: vm.spec,
            epoch: self.m.epoch.next(),
            source: self.m.source.clone(),
            addresses,
            disks,
        };
        reached(Step::ManagerPlanned).await;
        let destination = self.driver.agent(&self.m.destination).await?.with_timeout(PREPARE_TIMEOUT);
        let Incoming { address } = destination.post(&self.path(Side::Incoming), &incoming).await?;
        reached(Step::ManagerPrepared).await;
        let id = self.m.id;
        // First the record, so that a source that was told is always followed.
        if !self.driver.manager.store.write(move |tx| Ok(tx.begin_migration(id)?)).await? {
            return Err(ApiError::new(ErrorCode::Failed, "the migration was aborted meanwhile"));
        }
        let outgoing = StartOutgoing {
            migration: id,
            destination: self.m.destination.clone(),
            address,
            key,
            disks: moved,
            budget,
        };
        let source = self.driver.agent(&self.m.source).await?.with_timeout(PREPARE_TIMEOUT);
        let begun = source.post::<_, Empty>(&self.path(Side::Outgoing), &outgoing).await;
        reached(Step::ManagerBegun).await;
        match begun {
            // Whether it began is seen by following it.
            Err(error) if error.code == ErrorCode::Unreachable => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

/// A forecast as an event.
fn told(name: &VmName, forecast: &Forecast) -> (&'static str, String) {
    let Forecast { total_ms, blackout_ms, outlook, reason, .. } = forecast;
    let message = format!(
        "{name} should move in {:.1} s ({:.1} to {:.1}) with a blackout of {:.0} ms ({:.0} to {:.0})",
        total_ms.expected / 1e3,
        total_ms.low / 1e3,
        total_ms.high / 1e3,
        blackout_ms.expected,
        blackout_ms.low,
        blackout_ms.high
    );
    match reason {
        Some(reason) if !outlook.is_expected() => {
            ("vm.migration_warning", format!("{name} will probably not keep to its budget: {reason}"))
        }
        _ => ("vm.forecast", message),
    }
}

/// A new migration's secret.
fn draw_key() -> Result<MigrationKey, ApiError> {
    let mut bytes = [0; MIGRATION_KEY_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| {
        ApiError::new(ErrorCode::Internal, format!("no random numbers for the migration's key: {error}"))
    })?;
    Ok(MigrationKey::from_bytes(bytes))
}

/// Where the guest was last seen on the network.
fn addresses(source: &HostRow, vm: VmId) -> Vec<GuestAddress> {
    source.vms.iter().find(|local| local.id == vm).map(|local| local.addresses.clone()).unwrap_or_default()
}
