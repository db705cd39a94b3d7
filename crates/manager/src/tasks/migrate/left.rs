//! The images that a VM has left behind: when it was seen running elsewhere with its disks, or these had moved.

use godwit_types::api::Empty;
use godwit_types::{ApiError, ErrorCode, HostName, MigrationId};

use super::ASK_TIMEOUT;
use crate::manager::Manager;
use crate::store::{Left, NewEvent};
use crate::tasks::Driver;

impl Driver {
    /// Has those removed that were left at `host` by this migration, or move of storage. If that cannot be done now, an event
    /// names them, and it is tried again with the host's next reports.
    pub(in crate::tasks) async fn remove_left(
        &self,
        host: &HostName,
        by: MigrationId,
    ) -> Result<(), ApiError> {
        let (vm, at) = (self.vm, host.clone());
        let left = self.manager.store.read(move |tx| Ok(tx.left(vm, &at)?)).await?;
        for left in left.into_iter().filter(|left| left.migration == by) {
            let Err(error) = remove_left(&self.manager, host, &left).await else { continue };
            let images: Vec<String> = left.order.images.iter().map(ToString::to_string).collect();
            let (name, images) = (&self.name, images.join(", "));
            let message =
                format!("{name} has left {images} on {host}, which is not removed yet: {}", error.message);
            let event = NewEvent::new("vm.disk_left", message).vm(name).host(host).task(self.task.id);
            self.manager.store.note(move |tx| Ok(tx.add_event(event)?)).await?;
        }
        Ok(())
    }
}

/// Has what a VM has left at a host removed, and records that it is.
pub(crate) async fn remove_left(manager: &Manager, host: &HostName, left: &Left) -> Result<(), ApiError> {
    let agent = manager.agent(host).await?.with_timeout(ASK_TIMEOUT);
    agent.post::<_, Empty>(&format!("/v1/vms/{}/left", left.vm), &left.order).await.map(drop).or_else(
        |error| {
            // It is not what the VM has left any more, and nobody's to remove.
            if error.code == ErrorCode::Refused {
                tracing::warn!("{host} keeps what VM {} has left: {error}", left.vm);
                return Ok(());
            }
            Err(error)
        },
    )?;
    let migration = left.migration;
    manager.store.note(move |tx| Ok(tx.set_nothing_left(migration)?)).await
}
