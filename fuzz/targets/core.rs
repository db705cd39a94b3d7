//! What the machine's core reads: the CPU in the manifest, the state of vCPUs, interrupt controllers and clock, the
//! disks' lock records, the VM's specification.
#![no_main]

use arbitrary::{Result, Unstructured};
use godwit_fuzz::edited;
use godwit_migration::Section;
use godwit_types::lock::LockRecord;
use godwit_types::vm::VmSpec;
use godwit_vmm::cpu::CpuModel;
use godwit_vmm::device::State;
use godwit_vmm::kvm::clock::ClockState;
use godwit_vmm::kvm::irqchip::{IrqchipState, PitState};
use godwit_vmm::kvm::vcpu::VcpuState;
use libfuzzer_sys::fuzz_target;

/// Sizes of the kernel's structures: registers, special registers, XSAVE, XCRs, debug registers, local APIC, events.
const VCPU_FIELDS: [(u8, usize); 7] =
    [(2, 144), (3, 312), (4, 4096), (5, 392), (6, 128), (7, 1024), (10, 64)];
const CHIP_BYTES: usize = 520;
const PIT_BYTES: usize = 112;
/// Extended registers of the host that loads.
const XSAVE_BYTES: usize = 8192;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    // An input that is too short for what it began is as good as none.
    let _ = run(&mut input);
});

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let fill = input.arbitrary()?;
    match input.int_in_range(0..=5)? {
        0 => cpu(&edited(cpu_model(input)?, input)?),
        1 => {
            let fields =
                VCPU_FIELDS.iter().flat_map(|(field, size)| bytes_field(*field, *size, fill)).collect();
            decoded(input, fields, |state: &VcpuState| {
                assert!(!state.accept(0) || state.accept(XSAVE_BYTES))
            })?;
        }
        2 => {
            let chips = (0..3).flat_map(|id| bytes_field(1, CHIP_BYTES, id)).collect();
            decoded(input, chips, |state: &IrqchipState| drop(state.check()))?;
        }
        3 => decoded(input, bytes_field(1, PIT_BYTES, fill), |state: &PitState| drop(state.check()))?,
        4 => decoded(input, vec![8, 1, 16, 2, 24, 3], |state: &ClockState| {
            let (offset, khz) = (u64::from(fill) << 56, u32::from(fill) << 24);
            let _ = state.tsc_offset(&ClockState::default(), offset, khz);
            let _ = ClockState::default().tsc_offset(state, offset, khz);
        })?,
        _ => {
            let text: &[u8] = input.bytes(input.len())?;
            let _ = serde_json::from_slice::<LockRecord>(text);
            if let Ok(spec) = serde_json::from_slice::<VmSpec>(text) {
                let _ = spec.validate();
            }
        }
    }
    Ok(())
}

/// A CPU that was accepted is compared with another, and given to every vCPU that a VM may have.
fn cpu(bytes: &[u8]) {
    let Ok(cpu) = CpuModel::decode(bytes) else { return };
    assert_eq!(CpuModel::decode(&cpu.encode()).ok().as_ref(), Some(&cpu), "it does not survive a journey");
    assert_eq!(cpu.missing_on(&cpu), [] as [&str; 0], "it would not run where it comes from");
    for (index, vcpus) in [(0, 1), (1, 2), (2, 3), (254, 255)] {
        let _ = cpu.for_vcpu(index, vcpus);
    }
}

/// Leaves whose functions mean something, with any registers.
fn cpu_model(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut bytes = vec![8, 1];
    for _ in 0..input.int_in_range(1..=12)? {
        let function = *input.choose(&[
            0u32,
            1,
            4,
            7,
            0xb,
            0xd,
            0x1f,
            0x4000_0000,
            0x4000_0001,
            0x8000_0000,
            0x8000_0008,
        ])?;
        let mut leaf = vec![8];
        varint(&mut leaf, function);
        leaf.push(16);
        varint(&mut leaf, input.int_in_range(0..=3)?);
        let mut registers = Vec::new();
        for _ in 0..4 {
            varint(&mut registers, input.arbitrary()?);
        }
        leaf.extend([34, registers.len() as u8]);
        leaf.extend(registers);
        bytes.extend([18, leaf.len() as u8]);
        bytes.extend(leaf);
    }
    Ok(bytes)
}

fn decoded<T: State>(input: &mut Unstructured<'_>, valid: Vec<u8>, check: impl Fn(&T)) -> Result<()> {
    let version = if input.ratio(1, 8)? { input.arbitrary()? } else { T::VERSION };
    let payload = edited(valid, input)?;
    let section = Section { device: "core".into(), kind: T::KIND.into(), version, payload };
    if let Ok(state) = T::from_section(&section) {
        check(&state);
    }
    Ok(())
}

/// A protobuf field of bytes.
fn bytes_field(number: u8, size: usize, fill: u8) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    varint(&mut bytes, size as u32);
    bytes.resize(bytes.len() + size, 0);
    let at = bytes.len() - size;
    bytes[at] = fill;
    bytes
}

fn varint(bytes: &mut Vec<u8>, mut value: u32) {
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}
