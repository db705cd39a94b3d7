//! What a VM's process is given. The agent opens it, and the process inherits it, since it may open nothing itself.
//!
//! ```text
//!  agent                                             godwit-vmm
//!  open(config) --> Descriptors<OwnedFd>
//!  hand_to(command) --> Descriptors<RawFd> --config--> inherit --> Descriptors<OwnedFd>, all others closed
//!  send(request, connections) --control socket-------> the requests that bring descriptors
//! ```

mod create;
mod images;
mod inherit;
mod pass;
mod sockets;
mod tap;

use std::fs::{File, OpenOptions};
use std::io;
use std::net::TcpListener;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use command_fds::{CommandFdExt, FdMapping};
use godwit_types::Bytes;
use godwit_types::control::{Descriptors, DiskBacking, DiskDescriptors, Role, VmmConfig};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

pub use create::{create_image, measure};
pub use images::{disk_bytes, lock_of};
pub use inherit::{InheritError, inherit};
pub use pass::{receive, send, send_copy};
pub use sockets::{listen, unpace, watch};
pub use tap::attach;

/// The first number that a process inherits, after its standard streams.
const FIRST: RawFd = 3;
const KVM: &str = "/dev/kvm";
const USERFAULT: &str = "/dev/userfaultfd";

/// Why a VM cannot be given what it needs.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    #[error("cannot open the {what} {path}: {cause}; check that it is there, and who may open it")]
    Open { what: &'static str, path: PathBuf, cause: io::Error },
    #[error("cannot attach to the tap {tap}: {cause}")]
    Tap { tap: String, cause: io::Error },
    #[error("cannot listen at {place}: {cause}")]
    Listen { place: String, cause: io::Error },
    #[error("the disk image {path} is not a qcow2 image; correct the disk's format")]
    NotQcow2 { path: PathBuf },
    #[error(
        "the disk image {image} has the backing file {backing}, which is not beside it; put it into the same directory"
    )]
    Elsewhere { image: PathBuf, backing: PathBuf },
    #[error(
        "the disk image {image} has the backing file {backing}, which is a VM's own disk; copy it, or remove its .lock file if no VM uses it"
    )]
    InUse { image: PathBuf, backing: PathBuf },
    #[error(
        "the disk image {0} keeps its data in an external file, which is not supported; convert it with 'qemu-img convert -O qcow2'"
    )]
    DataFile(PathBuf),
    #[error("the disk image {0} has more than {max} backing files; commit some of them", max = images::CHAIN_MAX - 1)]
    TooDeep(PathBuf),
}

/// Opens everything that the configuration names. Lock files are made if they are missing; sockets are bound, and it is
/// the process that listens, so that it is known as their server.
pub fn open(config: &VmmConfig) -> Result<Descriptors<OwnedFd>, ProvisionError> {
    let file = |what, path: &Path, options: &mut OpenOptions| {
        let opened = options.custom_flags(libc::O_CLOEXEC).open(path).map(OwnedFd::from);
        opened.map_err(|cause| ProvisionError::Open { what, path: path.to_owned(), cause })
    };
    let initrd = config.initrd.as_deref();
    let taps = config.nics.iter().map(|nic| {
        tap::attach(&nic.tap).map_err(|cause| ProvisionError::Tap { tap: nic.tap.clone(), cause })
    });
    Ok(Descriptors {
        kvm: file("device", Path::new(KVM), OpenOptions::new().read(true).write(true))?,
        kernel: file("kernel", &config.kernel, OpenOptions::new().read(true))?,
        initrd: initrd.map(|path| file("initrd", path, OpenOptions::new().read(true))).transpose()?,
        disks: config.disks.iter().map(open_disk).collect::<Result<_, _>>()?,
        taps: taps.collect::<Result<_, _>>()?,
        control: bind(&config.control)?,
        console: bind(&config.console_socket)?,
        console_log: file(
            "console's log",
            &config.console_log,
            OpenOptions::new().append(true).create(true),
        )?,
        migration: migration_listener(&config.role)?,
        userfault: matches!(config.role, Role::Incoming { .. }).then(userfault).flatten(),
        kept: None,
        cgroup: None,
    })
}

/// A disk's images, the guest's own first, and its lock file unless the guest may only read.
pub fn open_disk(backing: &DiskBacking) -> Result<DiskDescriptors<OwnedFd>, ProvisionError> {
    let lock = (!backing.read_only).then(|| open_lock(&backing.lock)).transpose();
    let opened = |cause| ProvisionError::Open { what: "lock file", path: backing.lock.clone(), cause };
    Ok(DiskDescriptors { images: images::open(backing)?, lock: lock.map_err(opened)? })
}

/// Gives the descriptors to the process that `command` starts; their numbers there. Ours are closed with `command`.
pub fn hand_to(command: &mut Command, descriptors: Descriptors<OwnedFd>) -> Descriptors<RawFd> {
    let mut mappings = Vec::new();
    let numbered = descriptors.map(|parent_fd| {
        let child_fd = FIRST + mappings.len() as RawFd;
        mappings.push(FdMapping { parent_fd, child_fd });
        Ok::<_, std::convert::Infallible>(child_fd)
    });
    command.fd_mappings(mappings).expect("every descriptor has a number of its own");
    match numbered {
        Ok(numbered) => numbered,
        Err(never) => match never {},
    }
}

/// The lock file, made if it is missing, under a name that lasts.
fn open_lock(path: &Path) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let file = options.create(true).truncate(false).open(path)?;
            path.parent().map_or(Ok(()), sync_directory)?;
            Ok(file.into())
        }
        opened => opened.map(OwnedFd::from),
    }
}

/// Makes a new file's name durable, where the file system lets one do that.
fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory)?.sync_all() {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(()),
        outcome => outcome,
    }
}

fn bind(path: &Path) -> Result<OwnedFd, ProvisionError> {
    let failed = |cause| ProvisionError::Listen { place: path.display().to_string(), cause };
    sockets::bind(path).map_err(failed)
}

/// What a guest's memory follows it by. Without it the process may still have the system call, or say that it has neither.
pub fn userfault() -> Option<OwnedFd> {
    File::open(USERFAULT).map(OwnedFd::from).ok()
}

/// An empty memory file of a fixed size, for the memory of a VM that is not here.
pub fn memory_file(memory: Bytes) -> io::Result<OwnedFd> {
    let file = memfd_create(c"godwit-kept", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let file = File::from(file);
    file.set_len(memory.0)?;
    // Whoever it is given to can fill it, and no more than that.
    let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

fn migration_listener(role: &Role) -> Result<Option<OwnedFd>, ProvisionError> {
    let Role::Incoming { listen, .. } = role else { return Ok(None) };
    let failed = |cause| ProvisionError::Listen { place: listen.to_string(), cause };
    let listener = TcpListener::bind(listen).map_err(failed)?;
    sockets::watch(&listener).map_err(failed)?;
    Ok(Some(listener.into()))
}
