//! The ioctls by which the machine works, as numbers (<asm-generic/ioctl.h>, <linux/kvm.h>).

use std::mem::size_of;

use kvm_bindings::*;

use crate::devices::virtio::net::TUNSETOFFLOAD;
use crate::memory::uffd;

const WRITE: u64 = 1;
const READ: u64 = 2;
const KVM: u64 = 0xAE;

const fn number(direction: u64, number: u64, bytes: usize) -> u64 {
    direction << 30 | (bytes as u64) << 16 | KVM << 8 | number
}

const fn plain(nr: u64) -> u64 {
    number(0, nr, 0)
}

const fn get<T>(nr: u64) -> u64 {
    number(READ, nr, size_of::<T>())
}

const fn set<T>(nr: u64) -> u64 {
    number(WRITE, nr, size_of::<T>())
}

const fn both<T>(nr: u64) -> u64 {
    number(READ | WRITE, nr, size_of::<T>())
}

/// Running a vCPU, and moving its state in and out.
pub(super) const VCPU: &[u64] = &[
    plain(0x80), // KVM_RUN
    plain(0xc7), // KVM_RESET_DIRTY_RINGS, of its own ring when that is full
    get::<kvm_regs>(0x81),
    set::<kvm_regs>(0x82),
    get::<kvm_sregs>(0x83),
    set::<kvm_sregs>(0x84),
    both::<kvm_msrs>(0x88),
    set::<kvm_msrs>(0x89),
    get::<kvm_fpu>(0x8c),
    set::<kvm_fpu>(0x8d),
    get::<kvm_lapic_state>(0x8e),
    set::<kvm_lapic_state>(0x8f),
    set::<kvm_cpuid2>(0x90),
    get::<kvm_mp_state>(0x98),
    set::<kvm_mp_state>(0x99),
    get::<kvm_vcpu_events>(0x9f),
    set::<kvm_vcpu_events>(0xa0),
    get::<kvm_debugregs>(0xa1),
    set::<kvm_debugregs>(0xa2),
    plain(0xa2), // KVM_SET_TSC_KHZ
    plain(0xa3), // KVM_GET_TSC_KHZ
    get::<kvm_xsave>(0xa4),
    set::<kvm_xsave>(0xa5),
    get::<kvm_xcrs>(0xa6),
    set::<kvm_xcrs>(0xa7),
    plain(0xad), // KVM_KVMCLOCK_CTRL
    get::<kvm_xsave>(0xcf),
    set::<kvm_device_attr>(0xe1),
    set::<kvm_device_attr>(0xe2),
    set::<kvm_device_attr>(0xe3),
];

/// What devices do while the guest runs: interrupts, and doorbells that move with their BARs.
pub(super) const DEVICE: &[u64] = &[
    set::<kvm_irq_level>(0x61),
    set::<kvm_msi>(0xa5),
    set::<kvm_irqfd>(0x76),
    set::<kvm_ioeventfd>(0x79),
    TUNSETOFFLOAD,
];

/// The VM as a whole: memory slots and their dirty log, interrupt controllers, timer, clock.
pub(super) const VM: &[u64] = &[
    set::<kvm_dirty_log>(0x42),
    set::<kvm_userspace_memory_region>(0x46),
    both::<kvm_irqchip>(0x62),
    get::<kvm_irqchip>(0x63),
    set::<kvm_irq_routing>(0x6a),
    set::<kvm_clock_data>(0x7b),
    get::<kvm_clock_data>(0x7c),
    get::<kvm_pit_state2>(0x9f),
    set::<kvm_pit_state2>(0xa0),
    both::<kvm_clear_dirty_log>(0xc0),
    plain(0xc7), // KVM_RESET_DIRTY_RINGS
    plain(0x03), // KVM_CHECK_EXTENSION
];

/// Building the machine, before any guest runs.
pub(super) const BUILD: &[u64] = &[
    plain(0x00), // KVM_GET_API_VERSION
    plain(0x01), // KVM_CREATE_VM
    both::<kvm_msr_list>(0x02),
    plain(0x04), // KVM_GET_VCPU_MMAP_SIZE
    both::<kvm_cpuid2>(0x05),
    both::<kvm_msr_list>(0x0a),
    plain(0x41), // KVM_CREATE_VCPU
    plain(0x47), // KVM_SET_TSS_ADDR
    set::<u64>(0x48),
    plain(0x60), // KVM_CREATE_IRQCHIP
    set::<kvm_pit_config>(0x77),
    set::<kvm_enable_cap>(0xa3),
];

/// Memory that follows its guest: registered, and filled page by page.
pub(super) const USERFAULT: &[u64] = &[uffd::REGISTER, uffd::COPY, uffd::ZEROPAGE];

/// All of it is here, or nothing more of it is needed.
pub(super) const USERFAULT_END: &[u64] = &[uffd::UNREGISTER];

/// A socket that shall not block: `FIONBIO`.
pub(super) const SOCKET: &[u64] = &[0x5421];
