//! The in-kernel interrupt controllers and timer: PICs, I/O APIC, PIT.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;

use super::abi::Abi;
use super::{KvmError, call};
use crate::device::State;

const CHIPS: [(u32, &str); 3] = [
    (KVM_IRQCHIP_PIC_MASTER, "the first PIC"),
    (KVM_IRQCHIP_PIC_SLAVE, "the second PIC"),
    (KVM_IRQCHIP_IOAPIC, "the I/O APIC"),
];

/// The state of both PICs and the I/O APIC, each a `struct kvm_irqchip`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IrqchipState {
    #[prost(bytes = "vec", repeated, tag = "1")]
    chips: Vec<Vec<u8>>,
}

impl State for IrqchipState {
    const KIND: &'static str = "kvm-irqchip";
    const VERSION: u16 = 1;
}

/// The state of the timer, a `struct kvm_pit_state2`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PitState {
    #[prost(bytes = "vec", tag = "1")]
    pit: Vec<u8>,
}

impl State for PitState {
    const KIND: &'static str = "kvm-pit";
    const VERSION: u16 = 1;
}

/// Masks every line of both PICs. Firmware leaves them so; KVM's reset state has them open and wired to LINT0.
pub fn mask_pic(vm: &VmFd) -> Result<(), KvmError> {
    for (id, name) in &CHIPS[..2] {
        let mut chip = get_chip(vm, *id, name)?;
        chip.chip.pic.imr = 0xff;
        vm.set_irqchip(&chip).map_err(call(format!("masking {name}")))?;
    }
    Ok(())
}

impl IrqchipState {
    /// Reads the controllers.
    pub fn save(vm: &VmFd) -> Result<Self, KvmError> {
        let chips = CHIPS
            .iter()
            .map(|(id, name)| Ok(get_chip(vm, *id, name)?.to_bytes()))
            .collect::<Result<_, KvmError>>()?;
        Ok(Self { chips })
    }

    /// Whether this describes the three controllers.
    pub fn check(&self) -> Result<(), String> {
        let ids: Option<Vec<u32>> =
            self.chips.iter().map(|bytes| kvm_irqchip::from_bytes(bytes).map(|chip| chip.chip_id)).collect();
        match ids {
            Some(ids) if ids == CHIPS.map(|(id, _)| id) => Ok(()),
            _ => Err("it does not hold two PICs and an I/O APIC".into()),
        }
    }

    /// Sets the controllers; [`IrqchipState::check`] has passed.
    pub fn restore(&self, vm: &VmFd) -> Result<(), KvmError> {
        for (bytes, (_, name)) in self.chips.iter().zip(CHIPS) {
            let chip = kvm_irqchip::from_bytes(bytes).unwrap_or_else(Abi::zeroed);
            vm.set_irqchip(&chip).map_err(call(format!("restoring {name}")))?;
        }
        Ok(())
    }
}

impl PitState {
    /// Reads the timer.
    pub fn save(vm: &VmFd) -> Result<Self, KvmError> {
        Ok(Self { pit: vm.get_pit2().map_err(call("saving the timer"))?.to_bytes() })
    }

    /// Whether this describes a timer.
    pub fn check(&self) -> Result<(), String> {
        kvm_pit_state2::from_bytes(&self.pit).map(drop).ok_or_else(|| "its length is wrong".into())
    }

    /// Sets the timer; [`PitState::check`] has passed.
    pub fn restore(&self, vm: &VmFd) -> Result<(), KvmError> {
        let pit = kvm_pit_state2::from_bytes(&self.pit).unwrap_or_else(Abi::zeroed);
        vm.set_pit2(&pit).map_err(call("restoring the timer"))
    }
}

fn get_chip(vm: &VmFd, chip_id: u32, name: &str) -> Result<kvm_irqchip, KvmError> {
    let mut chip = kvm_irqchip { chip_id, ..Abi::zeroed() };
    vm.get_irqchip(&mut chip).map_err(call(format!("saving {name}")))?;
    Ok(chip)
}
