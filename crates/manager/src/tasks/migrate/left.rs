//! The images that a VM has left at its source, once it was seen running at the destination with its disks.

use godwit_types::api::Empty;
use godwit_types::{ApiError, ErrorCode, HostName};

use super::{ASK_TIMEOUT, Attempt};
use crate::manager::Manager;
use crate::store::{Left, NewEvent};

impl Attempt<'_> {
    /// Has them removed. If that cannot be done now, an event names them, and it is tried again with the host's next reports.
    pub(super) async fn remove_left(&self) -> Result<(), ApiError> {
        let (vm, source, id) = (self.m.vm, self.m.source.clone(), self.m.id);
        let left = self.driver.manager.store.read(move |tx| Ok(tx.left(vm, &source)?)).await?;
        for left in left.into_iter().filter(|left| left.migration == id) {
            let removed = remove_left(&self.driver.manager, &self.m.source, &left).await;
            let (name, host, task) = (self.driver.name.clone(), self.m.source.clone(), self.m.task);
            let event = match removed {
                Ok(()) => continue,
                Err(error) => {
                    let images: Vec<String> = left.order.images.iter().map(ToString::to_string).collect();
                    let message = format!(
                        "{name} has left {} on {host}, which is not removed yet: {}",
                        images.join(", "),
                        error.message
                    );
                    NewEvent::new("vm.disk_left", message)
                }
            };
            let add =
                move |tx: &crate::store::Tx<'_>| Ok(tx.add_event(event.vm(&name).host(&host).task(task))?);
            self.driver.manager.store.note(add).await?;
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
