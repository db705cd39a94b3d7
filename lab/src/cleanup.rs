//! Undoing what was set up, exactly once: when its owner is dropped, or when the process is interrupted.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::IntoRawFd;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

type Undo = Box<dyn FnOnce() + Send>;

static PENDING: Mutex<BTreeMap<u64, Undo>> = Mutex::new(BTreeMap::new());
/// Held while something is being undone, so that an interruption does not end the process in the middle of it.
static UNDOING: Mutex<()> = Mutex::new(());
static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

/// The exit code of an interrupted process, as shells have it for SIGINT.
const INTERRUPTED_EXIT_CODE: i32 = 130;

/// Runs its work when dropped; [`on_interrupt`] makes an interruption run it too.
#[derive(Debug)]
pub struct Cleanup {
    id: u64,
}

impl Cleanup {
    /// Remembers `undo`, which must not drop a `Cleanup` itself. Newer work is undone before older work.
    pub fn new(undo: impl FnOnce() + Send + 'static) -> Self {
        let mut pending = PENDING.lock().unwrap_or_else(PoisonError::into_inner);
        let id = pending.last_key_value().map_or(0, |(last, _)| last + 1);
        pending.insert(id, Box::new(undo));
        Self { id }
    }

    /// There is nothing left to undo.
    pub fn disarm(self) {
        PENDING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        let _one_at_a_time = UNDOING.lock().unwrap_or_else(PoisonError::into_inner);
        let undo = PENDING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        if let Some(undo) = undo {
            undo();
        }
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP undo everything that is pending and end the process with code 130.
pub fn on_interrupt() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let (mut read, write) = std::io::pipe().expect("a pipe can be made at start-up");
        SIGNAL_PIPE.store(write.into_raw_fd(), Ordering::SeqCst);
        let action = SigAction::new(SigHandler::Handler(forward), SaFlags::SA_RESTART, SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            // SAFETY: the handler only calls write(2), which is async-signal-safe.
            unsafe { sigaction(signal, &action) }.expect("SIGINT, SIGTERM and SIGHUP can be handled");
        }
        std::thread::spawn(move || {
            let mut byte = [0];
            if read.read_exact(&mut byte).is_ok() {
                eprintln!("interrupted: cleaning up");
                undo_all();
                std::process::exit(INTERRUPTED_EXIT_CODE);
            }
        });
    });
}

fn undo_all() {
    let _one_at_a_time = UNDOING.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let last = PENDING.lock().unwrap_or_else(PoisonError::into_inner).pop_last();
        let Some((_, undo)) = last else { return };
        undo();
    }
}

extern "C" fn forward(_signal: i32) {
    let byte = [1_u8];
    // SAFETY: the descriptor is the pipe's write end, which is never closed; the buffer is one byte long.
    unsafe { nix::libc::write(SIGNAL_PIPE.load(Ordering::SeqCst), byte.as_ptr().cast(), 1) };
}
