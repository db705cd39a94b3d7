//! Whole `godwit-vmm` processes with small guests, on this machine's KVM.

mod disk_along;
mod golden;
mod life;
mod linux;
mod migration;
mod reference;
mod return_trip;
mod slow;
mod storage;
mod support;
mod survey;
mod ways;
