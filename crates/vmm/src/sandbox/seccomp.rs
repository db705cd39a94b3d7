//! The filters: one for the process, which all threads inherit, and a narrower one for each kind of thread.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

use super::rules::{self, Kind};
use super::{SandboxError, ioctls};
use crate::memory::advice::PIDFD_SELF;

/// The kinds' filters, written before the process is confined. Empty in a process that is not.
static FILTERS: OnceLock<BTreeMap<Kind, BpfProgram>> = OnceLock::new();

/// Flags of every thread that is started, and those of a process or a namespace, which never are.
const THREAD: c_long =
    (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD)
        as c_long;
const NO_THREAD: c_long = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_VFORK
    | libc::CLONE_PTRACE) as c_long;

/// Installs the filter of the process, and makes ready those of its threads.
pub(super) fn confine() -> Result<(), SandboxError> {
    let filters: Result<_, BackendError> =
        Kind::ALL.into_iter().map(|kind| Ok((kind, program(of_kind(kind)?)?))).collect();
    let filters = filters.map_err(SandboxError::Filter)?;
    let process = of_process().and_then(program).map_err(SandboxError::Filter)?;
    let old_threads = no_clone3().map_err(SandboxError::Filter)?;
    FILTERS.get_or_init(|| filters);
    apply_filter(&old_threads).map_err(SandboxError::Install)?;
    apply_filter(&process).map_err(SandboxError::Install)
}

/// Adds the filter of a kind to the thread that calls.
pub(super) fn enter(kind: Kind) -> Result<(), SandboxError> {
    match FILTERS.get().and_then(|filters| filters.get(&kind)) {
        Some(filter) => apply_filter(filter).map_err(SandboxError::Install),
        None => Ok(()),
    }
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn of_kind(kind: Kind) -> Result<Rules, BackendError> {
    let calls = kind.calls().collect();
    rules(calls, kind.ioctls().collect(), kind.starts_threads())
}

/// What any kind needs, and the building of the machine.
fn of_process() -> Result<Rules, BackendError> {
    let calls = Kind::ALL.into_iter().flat_map(Kind::calls).chain(rules::BUILD.iter().copied()).collect();
    let requests =
        Kind::ALL.into_iter().flat_map(Kind::ioctls).chain(ioctls::BUILD.iter().copied()).collect();
    let mut rules = rules(calls, requests, true)?;
    // Asked for by the library that installs the threads' own filters.
    rules.entry(libc::SYS_prctl).or_default().push(rule(0, Is::Eq, libc::PR_SET_NO_NEW_PRIVS as u64)?);
    Ok(rules)
}

fn rules(calls: BTreeSet<c_long>, requests: BTreeSet<u64>, threads: bool) -> Result<Rules, BackendError> {
    let mut rules: Rules = calls.into_iter().map(|call| (call, vec![])).collect();
    let one_of = |argument, values: &[u64]| -> Result<Vec<SeccompRule>, BackendError> {
        values.iter().map(|value| rule(argument, Is::Eq, *value)).collect()
    };
    let requests: Vec<u64> = requests.into_iter().collect();
    rules.insert(libc::SYS_ioctl, one_of(1, &requests)?);
    // Memory is never executable, so that no code comes in.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(2, Is::MaskedEq(libc::PROT_EXEC as u64), 0)?]);
    }
    rules.insert(libc::SYS_prctl, one_of(0, &[libc::PR_SET_NAME as u64, libc::PR_GET_NAME as u64])?);
    let commands = [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_OFD_SETLK,
        libc::F_OFD_GETLK,
    ];
    rules.insert(libc::SYS_fcntl, one_of(1, &commands.map(|command| command as u64))?);
    // Memory of this process alone.
    let own = u64::from(PIDFD_SELF as u32);
    rules.insert(libc::SYS_process_madvise, vec![rule(0, Is::Eq, own)?]);
    // Signals go to threads of this process: vCPUs are kicked by one.
    rules.insert(libc::SYS_tgkill, one_of(0, &[std::process::id().into()])?);
    if threads {
        let flags = Is::MaskedEq((THREAD | NO_THREAD) as u64);
        rules.insert(libc::SYS_clone, vec![rule(0, flags, THREAD as u64)?]);
        // Answered by the other filter.
        rules.insert(libc::SYS_clone3, vec![]);
    }
    Ok(rules)
}

fn rule(argument: u8, operator: Is, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, Length::Dword, operator, value)?])
}

fn program(rules: Rules) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// `clone3` has its flags in memory, where no filter sees them: as on an old kernel there is none, and the C library
/// takes `clone`.
fn no_clone3() -> Result<BpfProgram, BackendError> {
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let rules = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    SeccompFilter::new(rules, SeccompAction::Allow, absent, TargetArch::x86_64)?.try_into()
}
