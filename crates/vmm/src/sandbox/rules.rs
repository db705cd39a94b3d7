//! Which system calls each kind of thread needs. What is not here stops the process.

use libc::*;

use super::ioctls;

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Runs a vCPU, and the devices' registers.
    Vcpu,
    /// Moves data between the guest and a disk, a tap, or nothing.
    Device,
    Console,
    /// Talks to the agent.
    Control,
    /// Moves the VM.
    Migration,
    /// Builds the machine and sees to its life; waits for signals.
    Supervisor,
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::Vcpu, Self::Device, Self::Console, Self::Control, Self::Migration, Self::Supervisor];

    /// Its system calls, whatever their arguments.
    pub(super) fn calls(self) -> impl Iterator<Item = c_long> {
        let groups: &[&[c_long]] = match self {
            Self::Vcpu => &[COMMON, TIMERS],
            Self::Device => &[COMMON, FILES],
            Self::Console => &[COMMON, CONNECTIONS],
            Self::Control => &[COMMON, CONNECTIONS],
            Self::Migration => &[COMMON, CONNECTIONS, FILES],
            Self::Supervisor => &[COMMON, CONNECTIONS, FILES, &[SYS_rt_sigtimedwait]],
        };
        groups.iter().copied().flatten().copied()
    }

    /// Its ioctls.
    pub(super) fn ioctls(self) -> impl Iterator<Item = u64> {
        let groups: &[&[u64]] = match self {
            Self::Vcpu => &[ioctls::VCPU, ioctls::DEVICE],
            Self::Device => &[ioctls::DEVICE],
            Self::Console => &[ioctls::DEVICE, ioctls::SOCKET],
            Self::Control => &[ioctls::DEVICE, ioctls::SOCKET],
            Self::Migration => {
                &[ioctls::DEVICE, ioctls::VM, ioctls::SOCKET, ioctls::USERFAULT, ioctls::USERFAULT_END]
            }
            Self::Supervisor => &[ioctls::DEVICE, ioctls::VM, ioctls::SOCKET, ioctls::USERFAULT_END],
        };
        groups.iter().copied().flatten().copied()
    }

    /// Whether it starts threads.
    pub(super) const fn starts_threads(self) -> bool {
        matches!(self, Self::Control | Self::Migration | Self::Supervisor)
    }
}

/// The allocator, locks, time, eventfds, the end of a thread and of the process. With conditions, in `seccomp`: `mmap`,
/// `mprotect`, `process_madvise`, `prctl`, `tgkill`, `fcntl`.
const COMMON: &[c_long] = &[
    SYS_read,
    SYS_write,
    SYS_close,
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_brk,
    SYS_futex,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_rseq,
    SYS_set_robust_list,
    SYS_sigaltstack,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_restart_syscall,
    SYS_getpid,
    SYS_gettid,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_getrandom,
    SYS_poll,
    SYS_ppoll,
    SYS_exit,
    SYS_exit_group,
];

/// A vCPU that is held for a part of the time takes itself out of the guest.
const TIMERS: &[c_long] = &[SYS_timer_create, SYS_timer_settime, SYS_timer_delete];

/// Images, the guest's memory file, taps, and the doorbells that a device's thread waits for.
const FILES: &[c_long] = &[
    SYS_readv,
    SYS_writev,
    SYS_pread64,
    SYS_pwrite64,
    SYS_preadv,
    SYS_pwritev,
    SYS_lseek,
    SYS_fallocate,
    SYS_ftruncate,
    SYS_fsync,
    SYS_fdatasync,
    SYS_fadvise64,
    SYS_fstat,
    SYS_fstatfs,
    // By their descriptors alone, which no rule can see; a path would tell of a file that it is there, and not open it.
    SYS_newfstatat,
    SYS_statx,
    SYS_epoll_wait,
    SYS_epoll_pwait,
    SYS_epoll_ctl,
];

/// Connections that were opened by others, or are accepted.
const CONNECTIONS: &[c_long] = &[
    SYS_accept4,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_sendto,
    SYS_sendmsg,
    SYS_readv,
    SYS_writev,
    SYS_shutdown,
    SYS_setsockopt,
    SYS_getsockopt,
    SYS_getsockname,
    SYS_getpeername,
];

/// What only the building of the machine needs, on the one thread that there is then.
pub(super) const BUILD: &[c_long] = &[
    SYS_eventfd2,
    SYS_epoll_create1,
    SYS_rt_sigaction,
    // A thread's own, narrower filter.
    SYS_seccomp,
];
