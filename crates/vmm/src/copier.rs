//! `godwit-vmm --copy`: copies disks of a VM that does not run, in a process that is confined as a VM's is.
//!
//! ```text
//!  order, descriptors --> confined --> disks locked at the VM's epoch --> copied as those of a running VM: StorageMove
//!                                                                          |
//!      each status is told; the last is --- in sync, or why not ----------'        the socket closed: ends at once
//! ```
//!
//! No guest writes meanwhile, since the locks are held: once the images are in sync they stay so.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use godwit_types::control::{COPY_DESCRIPTORS, CopyDisk, CopyDisks, DiskDescriptors, LINE_BYTES_MAX};
use godwit_types::storage::{StoragePhase, StorageStatus};
use godwit_types::{ApiError, ErrorCode};

use crate::devices::disk::Disk;
use crate::kvm::chain;
use crate::machine::{StorageMove, Target};
use crate::sandbox::{self, Kind};

/// Time between two words on how it gets on.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// Serves the order that comes over the socket. An error is one of the socket's: all others are told over it.
pub fn run(mut agent: UnixStream) -> io::Result<()> {
    let (order, descriptors) = receive(&agent)?;
    // A read that finds nothing in time is when to tell more; one that finds the end is the agent's.
    agent.set_read_timeout(Some(TELL_EVERY))?;
    let migration = order.migration;
    let (disks, moving) = match begin(order, descriptors) {
        Ok(begun) => begun,
        Err(error) => {
            let ended = StorageStatus { ended: Some(error), ..StorageStatus::begins(migration) };
            return tell(&mut agent, &ended);
        }
    };
    loop {
        let status = moving.status();
        let is_over = status.ended.is_some() || status.progress.phase == StoragePhase::InSync;
        if is_over {
            disks.iter().for_each(|disk| disk.release());
        }
        tell(&mut agent, &status)?;
        if is_over {
            return Ok(());
        }
        match agent.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => return Ok(()),
        }
    }
}

/// The disks, locked and open, and their move.
type Begun = (Vec<Arc<Disk>>, Arc<StorageMove>);

fn begin(order: CopyDisks, descriptors: Vec<OwnedFd>) -> Result<Begun, ApiError> {
    let failed = |error: String| ApiError::new(ErrorCode::Failed, error);
    sandbox::confine(order.user, None).map_err(|error| failed(chain(&error)))?;
    let (vm, host, epoch) = (order.vm, order.host, order.epoch);
    let mut descriptors = descriptors.into_iter();
    let mut moving = Vec::new();
    for CopyDisk { from, to } in order.disks {
        let mut files = |path| {
            let (image, lock) = descriptors.next().zip(descriptors.next())?;
            Some(DiskDescriptors { images: vec![(path, image)], lock: Some(lock) })
        };
        let given = files(from.path.clone()).zip(files(to.backing.path.clone()));
        let (source, target) = given.ok_or_else(|| failed("a disk came without its files".into()))?;
        let disk = Disk::new(from, source, vm, host.clone()).map_err(|error| failed(error.to_string()))?;
        disk.take(epoch).map_err(|error| failed(error.to_string()))?;
        let target = Target { index: to.index, image: to.image, backing: to.backing, files: target };
        moving.push((Arc::new(disk), target));
    }
    let disks = moving.iter().map(|(disk, _)| Arc::clone(disk)).collect();
    let moving = StorageMove::begin(order.migration, epoch, moving, order.bytes_per_s_max)?;
    // Now that there is another thread: for the first one the C library sets up its signals.
    sandbox::enter(Kind::Migration);
    Ok((disks, moving))
}

fn tell(agent: &mut UnixStream, status: &StorageStatus) -> io::Result<()> {
    let mut line = serde_json::to_vec(status)?;
    line.push(b'\n');
    agent.write_all(&line)
}

/// The order, and all that comes with it.
fn receive(agent: &UnixStream) -> io::Result<(CopyDisks, Vec<OwnedFd>)> {
    let (mut line, mut descriptors) = (Vec::new(), Vec::new());
    let mut order: Option<CopyDisks> = None;
    let mut buffer = [0; 4096];
    loop {
        if let Some(order) = order.take_if(|order| descriptors.len() >= order.disks.len() * COPY_DESCRIPTORS)
        {
            return Ok((order, descriptors));
        }
        let (bytes, came) = godwit_provision::receive(agent, &mut buffer)?;
        if bytes == 0 || line.len() > LINE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no whole order has come"));
        }
        descriptors.extend(came);
        if order.is_none() {
            line.extend_from_slice(&buffer[..bytes]);
            let end = line.iter().position(|byte| *byte == b'\n');
            order = end.map(|end| serde_json::from_slice(&line[..end])).transpose()?;
        }
    }
}
