//! What a VM's process may not do, tried by processes of its kind.
//!
//! The test binary runs itself: one process for each deed and kind of thread, which enters the real sandbox and tries.

use std::ffi::c_long;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};

use godwit_migration::bitmap::PageBitmap;
use godwit_migration::{Absent as _, GuestMemory as _, PageRange};
use godwit_types::control::SANDBOX_EXIT_CODE;
use godwit_types::{Bytes, Gfn};
use godwit_vmm::memory::{AbsentRam, Ram, Userfault};
use godwit_vmm::sandbox::{self, Kind};

/// Environment variable: what the process is to try, and as which kind of thread.
const ORDER: &str = "GODWIT_SANDBOX_TEST";
/// The user of these processes, if the test is root.
const USER: u32 = 1_900_300_000;
const THREAD: &str = "tries";
const SURVIVED: &str = "nothing has stopped it";

/// A system call with its arguments.
type Deed = (&'static str, c_long, [c_long; 4]);

const PATH: &std::ffi::CStr = c"/etc/passwd";
/// The second of a `KVM_CREATE_VM`.
const KVM_CREATE_VM: c_long = 0xAE01;

/// Everything that those who take over a process would like to do.
fn deeds() -> Vec<Deed> {
    let path = PATH.as_ptr() as c_long;
    let nowhere = [-1, 0, 0, 0];
    vec![
        ("open", libc::SYS_open, [path, 0, 0, 0]),
        ("openat", libc::SYS_openat, [libc::AT_FDCWD.into(), path, 0, 0]),
        ("openat2", libc::SYS_openat2, [libc::AT_FDCWD.into(), path, 0, 0]),
        ("socket", libc::SYS_socket, [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0, 0]),
        ("connect", libc::SYS_connect, nowhere),
        ("bind", libc::SYS_bind, nowhere),
        ("listen", libc::SYS_listen, nowhere),
        ("fork", libc::SYS_fork, [0; 4]),
        ("vfork", libc::SYS_vfork, [0; 4]),
        ("clone", libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0]),
        ("execve", libc::SYS_execve, [path, 0, 0, 0]),
        ("execveat", libc::SYS_execveat, [libc::AT_FDCWD.into(), path, 0, 0]),
        ("ptrace", libc::SYS_ptrace, [libc::PTRACE_TRACEME.into(), 0, 0, 0]),
        ("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0, 0]),
        ("process_vm_writev", libc::SYS_process_vm_writev, [1, 0, 0, 0]),
        ("mount", libc::SYS_mount, [0; 4]),
        ("bpf", libc::SYS_bpf, [0; 4]),
        // A handler of its own, which would outlive the next attempt.
        ("13", libc::SYS_rt_sigaction, [libc::SIGSYS.into(), 0, 0, 8]),
        ("234", libc::SYS_tgkill, [1, 1, libc::SIGTERM.into(), 0]),
        ("440", libc::SYS_process_madvise, [1, 0, 0, libc::MADV_DONTNEED.into()]),
        ("62", libc::SYS_kill, [1, libc::SIGTERM.into(), 0, 0]),
        ("ioctl", libc::SYS_ioctl, [0, libc::TIOCSTI as c_long, 0, 0]),
        ("ioctl", libc::SYS_ioctl, [0, KVM_CREATE_VM, 0, 0]),
        ("mmap", libc::SYS_mmap, [0, 4096, (libc::PROT_READ | libc::PROT_EXEC).into(), 0x22]),
        ("mprotect", libc::SYS_mprotect, [0, 4096, libc::PROT_EXEC.into(), 0]),
    ]
}

/// Not a test, but the process that the others start; on its own it has nothing to do.
#[test]
fn process() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let user = running_as_root().then_some(USER);
    if let Some(address) = order.strip_prefix("landlock ") {
        return try_landlock(address.parse().unwrap());
    }
    if order == "memory" {
        return drop_memory(user);
    }
    let (kind, deed) = order.split_once(' ').unwrap();
    let kind = Kind::ALL[kind.parse::<usize>().unwrap()];
    let (_, number, [a, b, c, d]) = deeds()[deed.parse::<usize>().unwrap()];
    sandbox::confine(user, None).unwrap();
    let tries = move || {
        sandbox::enter(kind);
        // SAFETY: it is refused; if it is not, the process has nothing that could be harmed.
        unsafe { libc::syscall(number, a, b, c, d) };
    };
    std::thread::Builder::new().name(THREAD.into()).spawn(tries).unwrap().join().unwrap();
    eprintln!("{SURVIVED}");
}

fn run(order: &str) -> Output {
    let binary = std::env::current_exe().unwrap();
    // On one thread: the process confines itself before it has another.
    let arguments = ["--exact", "process", "--nocapture", "--test-threads=1"];
    Command::new(binary).args(arguments).env(ORDER, order).output().unwrap()
}

fn running_as_root() -> bool {
    // SAFETY: the call always succeeds.
    unsafe { libc::geteuid() == 0 }
}

#[test]
fn whatever_no_thread_needs_stops_the_process_with_a_word_on_what_it_was() {
    for (kind, of) in Kind::ALL.into_iter().enumerate() {
        for (deed, (name, ..)) in deeds().into_iter().enumerate() {
            let Output { status, stderr, .. } = run(&format!("{kind} {deed}"));
            let error = String::from_utf8_lossy(&stderr);
            assert_eq!(status.code(), Some(SANDBOX_EXIT_CODE), "{name} of a {of:?}: {error}");
            let word = format!("the thread '{THREAD}', which tried the system call {name} ");
            assert!(error.contains(&word), "{name} of a {of:?}: {error}");
        }
    }
}

#[test]
fn memory_that_is_to_follow_is_dropped_in_the_sandbox() {
    if let Err(error) = File::open("/dev/userfaultfd") {
        return eprintln!("SKIPPED: needs /dev/userfaultfd: {error}");
    }
    let output = run("memory");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains(SURVIVED), "{output:?}");
}

/// Scattered pages and a long run, as post-copy does.
fn drop_memory(user: Option<u32>) {
    let device = File::open("/dev/userfaultfd").unwrap();
    let userfault = Userfault::open(Some(device.into())).unwrap();
    let ram = Ram::new(Bytes::mib(16)).unwrap();
    ram.write(Gfn(0), &vec![7; 16 << 20]).unwrap();
    let mut missing = PageBitmap::covering(ram.ranges());
    (0..3000).step_by(2).for_each(|page| missing.insert(Gfn(page)));
    missing.insert_range(PageRange { start: Gfn(3000), pages: 1000 });
    sandbox::confine(user, None).unwrap();
    let drops = move || {
        sandbox::enter(Kind::Migration);
        let absent = AbsentRam::new(userfault, &ram, &missing).unwrap();
        absent.end();
        for (gfn, value) in [(0, 0), (1, 7), (2998, 0), (2999, 7), (3000, 0), (3999, 0), (4000, 7)] {
            let page = ram.bytes(PageRange { start: Gfn(gfn), pages: 1 }).unwrap();
            assert_eq!(page[0], value, "page {gfn}");
        }
    };
    std::thread::Builder::new().name(THREAD.into()).spawn(drops).unwrap().join().unwrap();
    eprintln!("{SURVIVED}");
}

#[test]
fn landlock_alone_refuses_files_and_connections() {
    // SAFETY: with this flag, the call returns a version and touches nothing.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) };
    if version < 4 {
        return eprintln!("SKIPPED: this kernel's Landlock has no rules for the network (version {version})");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let output = run(&format!("landlock {}", listener.local_addr().unwrap()));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains(SURVIVED), "{output:?}");
}

fn try_landlock(address: SocketAddr) {
    let (inherited, mut other) = UnixStream::pair().unwrap();
    sandbox::forbid_files_and_network().unwrap();
    let refused = |tried: std::io::Result<()>| {
        assert_eq!(tried.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    };
    refused(File::open("/etc/passwd").map(drop));
    refused(std::fs::read_dir("/").map(drop));
    refused(std::fs::write("/tmp/godwit-sandbox-test", "x"));
    refused(TcpStream::connect(address).map(drop));
    refused(TcpListener::bind("127.0.0.1:0").map(drop));
    std::io::Write::write_all(&mut &inherited, b"x").unwrap();
    std::io::Read::read_exact(&mut other, &mut [0]).unwrap();
    eprintln!("{SURVIVED}");
}
