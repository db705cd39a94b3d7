//! Devices at fixed ports: what remains of the PC.

pub mod keyboard;
pub mod pm;
pub mod rtc;
pub mod serial;

/// What the guest asks of its platform. Called from vCPU threads; must not block.
pub trait Platform: Send + Sync {
    /// Reset the machine.
    fn reset(&self);
    /// Power the machine off.
    fn power_off(&self);
}
