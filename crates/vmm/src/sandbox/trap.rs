//! The end of a process that has tried what it may not: one line on standard error, then an exit code of its own.
//!
//! The kernel would end it silently (`KILL_PROCESS`); whoever finds a stopped VM wants to know whether it was an attack or a
//! filter that is too narrow. The system call is not executed in either case, and no thread may replace the handler.

use std::ffi::CStr;
use std::io;

use godwit_types::control::SANDBOX_EXIT_CODE;
use vmm_sys_util::signal::register_signal_handler;

/// Longest name of a thread, in bytes, with the closing zero.
const NAME_BYTES: usize = 16;

/// What those who take over a process try first.
const NAMES: [(libc::c_long, &str); 20] = [
    (libc::SYS_open, "open"),
    (libc::SYS_openat, "openat"),
    (libc::SYS_openat2, "openat2"),
    (libc::SYS_socket, "socket"),
    (libc::SYS_connect, "connect"),
    (libc::SYS_bind, "bind"),
    (libc::SYS_listen, "listen"),
    (libc::SYS_fork, "fork"),
    (libc::SYS_vfork, "vfork"),
    (libc::SYS_clone, "clone"),
    (libc::SYS_execve, "execve"),
    (libc::SYS_execveat, "execveat"),
    (libc::SYS_ptrace, "ptrace"),
    (libc::SYS_process_vm_readv, "process_vm_readv"),
    (libc::SYS_process_vm_writev, "process_vm_writev"),
    (libc::SYS_mount, "mount"),
    (libc::SYS_bpf, "bpf"),
    (libc::SYS_ioctl, "ioctl"),
    (libc::SYS_mmap, "mmap"),
    (libc::SYS_mprotect, "mprotect"),
];

/// From now on, a forbidden system call ends the process.
pub(super) fn install() -> io::Result<()> {
    register_signal_handler(libc::SIGSYS, stop).map_err(Into::into)
}

extern "C" fn stop(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a live siginfo, whose fields for SIGSYS are an address and then the number.
    let number = libc::c_long::from(unsafe { (*info.cast::<SysInfo>()).number });
    // SAFETY: with SA_SIGINFO, which the signal was registered with, this is a live ucontext.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let second = registers[libc::REG_RSI as usize];
    let mut name = [0u8; NAME_BYTES];
    // SAFETY: the call writes at most so many bytes.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr(), 0, 0, 0) };
    let thread = CStr::from_bytes_until_nul(&name).map_or(&b"?"[..], CStr::to_bytes);
    let (mut digits, mut more_digits) = ([0u8; 20], [0u8; 20]);
    let call = NAMES.iter().find(|(known, _)| *known == number);
    let call = call.map_or_else(|| decimal(number, &mut digits), |(_, name)| name.as_bytes());
    let parts: [&[u8]; 7] = [
        b"godwit-vmm: the sandbox stopped the thread '",
        thread,
        b"', which tried the system call ",
        call,
        b" with the second argument ",
        decimal(second, &mut more_digits),
        b"\n",
    ];
    let mut line = Line { bytes: [0; 160], length: 0 };
    parts.iter().for_each(|part| line.append(part));
    // SAFETY: write and _exit may be called in a signal handler; the line is live.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.length);
        libc::_exit(SANDBOX_EXIT_CODE);
    }
}

/// The beginning of a `siginfo_t` for SIGSYS, from <asm-generic/siginfo.h>.
#[repr(C)]
struct SysInfo {
    signal: [libc::c_int; 4],
    address: *mut libc::c_void,
    number: libc::c_int,
}

/// A line that is put together without allocating.
struct Line {
    bytes: [u8; 160],
    length: usize,
}

impl Line {
    fn append(&mut self, part: &[u8]) {
        let room = &mut self.bytes[self.length..];
        let count = part.len().min(room.len());
        room[..count].copy_from_slice(&part[..count]);
        self.length += count;
    }
}

/// A number's digits, written without allocating.
fn decimal(number: libc::c_long, digits: &mut [u8; 20]) -> &[u8] {
    let (mut rest, mut at) = (number.unsigned_abs(), digits.len());
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 || at == 0 {
            return &digits[at..];
        }
    }
}
