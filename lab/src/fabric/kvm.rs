//! Whether this machine can run guests itself.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;

use crate::{LabError, Result};

const KVM: &str = "/dev/kvm";
/// `KVM_GET_API_VERSION` and `KVM_CREATE_VM` (linux/kvm.h).
const GET_API_VERSION: u64 = 0xae00;
const CREATE_VM: u64 = 0xae01;
/// The only version there has been since 2007.
const API_VERSION: i32 = 12;

/// Why a fabric cannot run guests on this machine, if it cannot.
pub fn require_root_and_kvm() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(LabError::Unsupported("network namespaces and taps need root: run it as root".into()));
    }
    usable(Path::new(KVM)).map_err(|why| {
        LabError::Unsupported(format!("{why}: load kvm_amd or kvm_intel, or use a machine with KVM"))
    })
}

fn usable(device: &Path) -> Result<(), String> {
    let at = device.display();
    let opened = OpenOptions::new().read(true).write(true).open(device);
    let kvm = opened.map_err(|error| format!("{at} cannot be opened ({error})"))?;
    match ask(&kvm, GET_API_VERSION) {
        Ok(API_VERSION) => {}
        Ok(version) => return Err(format!("{at} speaks version {version} of KVM's API, not {API_VERSION}")),
        Err(error) => return Err(format!("{at} is not KVM ({error})")),
    }
    let vm = ask(&kvm, CREATE_VM).map_err(|error| format!("{at} makes no VMs ({error})"))?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    drop(unsafe { File::from_raw_fd(vm) });
    Ok(())
}

/// A request whose argument is 0.
fn ask(kvm: &File, request: u64) -> io::Result<i32> {
    // SAFETY: both requests take a plain number; on a device that is not KVM the kernel answers with an error.
    let answer = unsafe { nix::libc::ioctl(kvm.as_raw_fd(), request, 0) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_no_kvm_is_named() {
        let missing = usable(Path::new("/dev/no-such-device")).unwrap_err();
        assert!(missing.contains("cannot be opened"), "{missing}");
        let other = usable(Path::new("/dev/null")).unwrap_err();
        assert!(other.contains("/dev/null is not KVM"), "{other}");
    }
}
