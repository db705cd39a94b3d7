//! The one contract of every device: life cycle, and saving and restoring its state.

use godwit_migration::Section;
use godwit_types::capability::reads_section;

/// A device of the machine, as the machine's life cycle sees it.
///
/// ```text
///                reset                       save (any number of times)
///              +-------+                    +--------+
///              v       |                    v        |
///   built --> running -+---- pause ---->  paused ----+---- resume ----> running
///   built --> restore --> paused
/// ```
pub trait Device: Send + Sync {
    /// The device's place in the machine, unique in the VM, such as `pci-00.2/virtio-net`.
    fn name(&self) -> &str;

    /// Why the device cannot migrate now, if so.
    fn migration_blocker(&self) -> Option<String> {
        None
    }

    /// Stops its threads from touching guest memory and finishes the I/O in flight; the vCPUs are already stopped.
    /// Bounded in time. On error the device runs on.
    fn pause(&self) -> Result<(), DeviceError>;

    /// Starts its threads again, and looks at its queues once, since a kick may have been lost.
    fn resume(&self) -> Result<(), DeviceError>;

    /// The state of a paused device. Changes nothing.
    fn save(&self) -> Result<Section, DeviceError>;

    /// Takes over a saved state, all of it or nothing, checking every field as hostile input. The device is newly
    /// built and paused, and stays paused.
    fn restore(&self, section: &Section) -> Result<(), DeviceError>;

    /// Back to the state after power-on. The vCPUs are stopped.
    fn reset(&self);
}

/// A step of a device that failed.
#[derive(Debug, thiserror::Error)]
#[error("{device}: {reason}")]
pub struct DeviceError {
    pub device: String,
    pub reason: String,
}

/// A device's saved state: a protobuf message with numbered fields, a kind and a version.
///
/// Version `N` reads sections of version `N` and `N - 1`. A new optional field needs no new version.
pub trait State: prost::Message + Default {
    const KIND: &'static str;
    const VERSION: u16;

    /// Packs the state of the device called `device`.
    fn to_section(&self, device: &str) -> Section {
        Section {
            device: device.to_owned(),
            kind: Self::KIND.to_owned(),
            version: Self::VERSION,
            payload: self.encode_to_vec(),
        }
    }

    /// Unpacks a section; its kind, version and encoding must fit.
    fn from_section(section: &Section) -> Result<Self, DeviceError> {
        let refuse = |reason: String| DeviceError { device: section.device.clone(), reason };
        if section.kind != Self::KIND {
            return Err(refuse(format!("the saved state is of a {}, not of a {}", section.kind, Self::KIND)));
        }
        if !reads_section(Self::VERSION, section.version) {
            return Err(refuse(format!(
                "the saved state has version {}; this build reads version {} and the one before: install a release that is at most one away",
                section.version,
                Self::VERSION
            )));
        }
        Self::decode(section.payload.as_slice())
            .map_err(|error| refuse(format!("the saved state is damaged: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    struct Nothing {}

    impl State for Nothing {
        const KIND: &'static str = "nothing";
        const VERSION: u16 = 2;
    }

    #[test]
    fn only_sections_of_this_version_and_the_one_before_are_read() {
        let read = |version| Nothing::from_section(&Section { version, ..Nothing {}.to_section("a") });
        assert!(read(2).is_ok() && read(1).is_ok());
        for version in [0, 3, u16::MAX] {
            assert!(read(version).is_err(), "version {version} was read");
        }
    }
}
