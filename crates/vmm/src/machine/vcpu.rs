//! A vCPU's thread.
//!
//! ```text
//!            run
//!   parked --------> running --+ exits: port, MMIO
//!     ^ |              |  ^____|
//!     | | call         | stop, or the vCPU cannot go on
//!     +-+   <----------+
//! ```
//!
//! Commands travel in a channel; `kicked` tells a running vCPU to look into it, and a signal takes it out of the guest.
//! No wake-up is lost: the vCPU clears `immediate_exit`, then looks at `kicked`, then enters the guest; a signal that
//! arrives after the look sets `immediate_exit`, and one that arrives before it comes after `kicked` was set. The timer of a
//! vCPU that is held for a part of the time (`hold`) sends the same signal.

use std::cell::Cell;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem};

use godwit_migration::MachineError;
use kvm_bindings::{KVM_EXIT_DIRTY_RING_FULL, KVM_INTERNAL_ERROR_EMULATION, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::doorbell::Doorbell;
use super::hold::Hold;
use crate::bus::Bus;
use crate::devices::legacy::Platform;
use crate::kvm::chain;
use crate::kvm::dirty_log::DirtyLog;
use crate::sandbox::{self, Kind};

/// Commands that may wait; the machine gives one at a time and waits for it.
const COMMANDS_MAX: usize = 8;
/// How long a vCPU may take to leave the guest or to answer. Devices answer accesses at once, so this is a defect.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The address spaces that a vCPU reaches.
#[derive(Clone, Default)]
pub(super) struct Buses {
    pub(super) mmio: Arc<Bus>,
    pub(super) pio: Arc<Bus>,
}

/// A vCPU's thread, as the machine holds it. Dropping it ends the thread.
pub(super) struct Vcpu {
    index: u8,
    commands: Option<SyncSender<Command>>,
    kicked: Arc<AtomicBool>,
    /// How long it was held, in nanoseconds.
    held: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// An answer that a vCPU will give.
pub(super) struct Answer<T> {
    index: u8,
    answer: Receiver<T>,
}

enum Command {
    Run,
    Stop(SyncSender<()>),
    /// To be held for this part of the time, in permille, until the next stop.
    Hold(u16),
    Call(Box<dyn FnOnce(&VcpuFd) + Send>),
}

thread_local! {
    /// The run structure of this thread's vCPU, for the signal handler.
    static RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// Installs the handler of the signal that takes vCPUs out of the guest. Once per process, before any vCPU runs.
pub(super) fn install_kick() -> io::Result<()> {
    register_signal_handler(SIGRTMIN(), on_kick).map_err(Into::into)
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let run = RUN.get();
    if !run.is_null() {
        // SAFETY: the pointer is this thread's own and is cleared before the mapping goes; the field is one byte, which
        // the kernel reads at the next entry.
        unsafe { ptr::addr_of_mut!((*run).immediate_exit).write_volatile(1) };
    }
}

impl Vcpu {
    /// Starts a parked vCPU.
    pub(super) fn spawn(
        index: u8,
        fd: VcpuFd,
        buses: Buses,
        doorbell: Arc<Doorbell>,
        log: Arc<DirtyLog>,
    ) -> io::Result<Self> {
        let (commands, orders) = sync_channel(COMMANDS_MAX);
        let (kicked, held) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let hold = Hold::new(Arc::clone(&held));
        let core = Core { index, fd, buses, doorbell, log, hold, orders, kicked: Arc::clone(&kicked) };
        let thread = thread::Builder::new().name(format!("vcpu-{index}")).spawn(move || core.main())?;
        Ok(Self { index, commands: Some(commands), kicked, held, thread: Some(thread) })
    }

    /// Enters the guest.
    pub(super) fn run(&self) {
        self.send(Command::Run);
    }

    /// Leaves the guest; afterwards no access of the vCPU is half done.
    pub(super) fn stop(&self) -> Answer<()> {
        let (done, answer) = sync_channel(1);
        self.send(Command::Stop(done));
        Answer { index: self.index, answer }
    }

    /// From now on it is held for this part of the time, in permille, until it is told otherwise or stopped.
    pub(super) fn hold(&self, share: u16) {
        // One that has not looked at its last orders yet is told again with the next reading of the log.
        if self.commands.as_ref().is_some_and(|commands| commands.try_send(Command::Hold(share)).is_ok()) {
            self.kick();
        }
    }

    /// How long it was held, in all its life.
    pub(super) fn held(&self) -> Duration {
        Duration::from_nanos(self.held.load(Ordering::Relaxed))
    }

    /// Does something with the vCPU on its own thread. The vCPU is stopped.
    pub(super) fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&VcpuFd) -> T + Send + 'static,
    ) -> Answer<T> {
        let (done, answer) = sync_channel(1);
        self.send(Command::Call(Box::new(move |fd| {
            // Nobody waits any more only after a timeout, which was reported.
            let _ = done.send(work(fd));
        })));
        Answer { index: self.index, answer }
    }

    fn send(&self, command: Command) {
        // A thread that has ended shows when its answer is waited for.
        if let Some(commands) = &self.commands {
            let _ = commands.send(command);
        }
        self.kick();
    }

    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        if let Some(thread) = &self.thread {
            let _ = thread.kill(SIGRTMIN());
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        drop(self.commands.take());
        self.kick();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl<T> Answer<T> {
    /// Waits for it.
    pub(super) fn wait(self) -> Result<T, MachineError> {
        self.answer.recv_timeout(ANSWER_MAX).map_err(|error| MachineError {
            step: format!("waiting for vCPU {}", self.index),
            reason: match error {
                RecvTimeoutError::Timeout => format!("it does not stop within {} s", ANSWER_MAX.as_secs()),
                RecvTimeoutError::Disconnected => "its thread has ended".into(),
            },
        })
    }
}

/// The thread's side.
struct Core {
    index: u8,
    fd: VcpuFd,
    buses: Buses,
    doorbell: Arc<Doorbell>,
    log: Arc<DirtyLog>,
    hold: Hold,
    orders: Receiver<Command>,
    kicked: Arc<AtomicBool>,
}

/// Whether a vCPU can enter the guest again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Enter,
    Park,
    /// A signal has taken it out.
    Look,
}

impl Core {
    fn main(mut self) {
        sandbox::enter(Kind::Vcpu);
        RUN.set(self.fd.get_kvm_run());
        let mut running = false;
        while let Some(command) = if running { self.enter() } else { self.orders.recv().ok().map(Some) } {
            match command {
                None => {
                    running = false;
                    self.hold.set(0);
                }
                Some(Command::Run) => running = true,
                Some(Command::Stop(done)) => {
                    self.hold.set(0);
                    if mem::take(&mut running) {
                        self.finish_access();
                    }
                    let _ = done.send(());
                }
                Some(Command::Hold(share)) if running => self.hold.set(share),
                Some(Command::Hold(_)) => {}
                Some(Command::Call(work)) => work(&self.fd),
            }
        }
        RUN.set(ptr::null_mut());
    }

    /// Runs the guest until there is a command (`Some(Some)`), until it cannot go on (`Some(None)`), or until the
    /// machine goes away (`None`).
    fn enter(&mut self) -> Option<Option<Command>> {
        use std::sync::mpsc::TryRecvError::{Disconnected, Empty};
        loop {
            self.fd.set_kvm_immediate_exit(0);
            if self.kicked.swap(false, Ordering::SeqCst) {
                match self.orders.try_recv() {
                    Ok(command) => {
                        // There may be another one behind it.
                        self.kicked.store(true, Ordering::SeqCst);
                        return Some(Some(command));
                    }
                    Err(Empty) => {}
                    Err(Disconnected) => return None,
                }
            }
            if let Some(due) = self.hold.due() {
                match self.held(due) {
                    Ok(command) => return Some(Some(command)),
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return None,
                }
            }
            if self.step() == Next::Park {
                return Some(None);
            }
        }
    }

    /// Stays out of the guest for so long, or until there is a command.
    fn held(&mut self, due: Duration) -> Result<Command, RecvTimeoutError> {
        let began = Instant::now();
        let command = self.orders.recv_timeout(due);
        self.hold.was_held(due, began);
        if command.is_ok() {
            // There may be another one behind it.
            self.kicked.store(true, Ordering::SeqCst);
        }
        command
    }

    /// Completes an access that the guest has begun: its result is in the run structure until the next entry.
    fn finish_access(&mut self) {
        loop {
            self.fd.set_kvm_immediate_exit(1);
            if self.step() != Next::Enter {
                break;
            }
        }
        self.fd.set_kvm_immediate_exit(0);
    }

    /// Enters the guest once and serves its exit.
    fn step(&mut self) -> Next {
        let problem = match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                self.buses.pio.read(port.into(), data);
                return Next::Enter;
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                self.buses.pio.write(port.into(), data);
                return Next::Enter;
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.buses.mmio.read(address, data);
                return Next::Enter;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.buses.mmio.write(address, data);
                return Next::Enter;
            }
            Ok(VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::Nmi | VcpuExit::IoapicEoi(_)) => {
                return Next::Enter;
            }
            Ok(VcpuExit::Intr) => return Next::Look,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Next::Look,
            // A triple fault, which resets a PC.
            Ok(VcpuExit::Shutdown) => {
                tracing::warn!("vCPU {} met a triple fault; the machine resets", self.index);
                self.doorbell.reset();
                return Next::Park;
            }
            Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => match self.log.make_room(self.index) {
                Ok(()) => return Next::Enter,
                Err(error) => chain(&error),
            },
            Ok(VcpuExit::SystemEvent(kind, _)) => format!("system event {kind}"),
            Ok(VcpuExit::InternalError) => self.internal_error(),
            Ok(exit) => format!("{exit:?}"),
            Err(error) => error.to_string(),
        };
        let at = self
            .fd
            .get_regs()
            .map_or_else(|_| "an unknown address".into(), |regs| format!("{:#x}", regs.rip));
        let reason = format!("vCPU {} cannot go on at {at}: {problem}", self.index);
        self.doorbell.ring(|pending| pending.failed = Some(reason));
        Next::Park
    }

    fn internal_error(&mut self) -> String {
        // SAFETY: the exit's reason says that this member of the union is the one that is set.
        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        match suberror {
            KVM_INTERNAL_ERROR_EMULATION => {
                "KVM cannot emulate an instruction; on a host with PVM only guests made for it run".into()
            }
            other => format!("KVM internal error {other}"),
        }
    }
}
