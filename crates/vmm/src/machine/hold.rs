//! Holding a vCPU back for a part of the time, so that it writes less.
//!
//! ```text
//!             its slice is over: a timer's signal takes it out of the guest
//!   running -----------------------------------------------------------------> held
//!      ^                                                                        |
//!      +------------------------------------------------------------------------+
//!         held for its part of the time that it ran, or there is a command
//! ```
//!
//! A slice and what follows it take 10 ms together, so that the guest's timers go on. It is held for its part of the time
//! that it has really run, and whatever it slept too long is taken off the next time: so it is never held for more than
//! its part, however busy the host is. All of it is the vCPU's own thread's; one that is not held looks at one variable.

use std::io;
use std::mem;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use vmm_sys_util::signal::SIGRTMIN;

/// A slice and the hold after it.
const PERIOD: Duration = Duration::from_millis(10);
/// The whole, of which a share is a part.
const WHOLE: u32 = 1000;
/// The largest share: a guest that does not run at all is not slowed, but stopped.
const SHARE_MAX: u16 = 990;

/// See the module.
pub(super) struct Hold {
    /// Its part of the time, in permille.
    share: u32,
    slice: Option<Slice>,
    /// What it has slept too long.
    over: Duration,
    /// How long it was held in all, in nanoseconds.
    held: Arc<AtomicU64>,
    timer: Option<Timer>,
}

#[derive(Clone, Copy)]
struct Slice {
    began: Instant,
    ends: Instant,
}

impl Hold {
    /// Of a vCPU that is not held; `held` counts nanoseconds.
    pub(super) const fn new(held: Arc<AtomicU64>) -> Self {
        Self { share: 0, slice: None, over: Duration::ZERO, held, timer: None }
    }

    /// From now on it is held for this part of the time, in permille. Called by the vCPU's thread.
    pub(super) fn set(&mut self, share: u16) {
        self.share = share.min(SHARE_MAX).into();
        if self.share == 0 {
            (self.slice, self.over, self.timer) = (None, Duration::ZERO, None);
            return;
        }
        if self.timer.is_none() {
            match Timer::new() {
                Ok(timer) => self.timer = Some(timer),
                Err(error) => {
                    tracing::warn!("a vCPU cannot be slowed: no timer can be had: {error}");
                    self.share = 0;
                    return;
                }
            }
        }
        self.begin_slice();
    }

    /// How long it is to be held now; none while its slice lasts.
    pub(super) fn due(&self) -> Option<Duration> {
        let slice = self.slice?;
        let now = Instant::now();
        (now >= slice.ends).then(|| part(now - slice.began, self.share).saturating_sub(self.over))
    }

    /// It was held, as `due` had said, since `began`.
    pub(super) fn was_held(&mut self, due: Duration, began: Instant) {
        let slept = began.elapsed();
        self.held.fetch_add(slept.min(due).as_nanos() as u64, Relaxed);
        // Longer than it was to be: it has not been held for that, but waited for the processor.
        self.over = slept.saturating_sub(due).min(PERIOD);
        self.begin_slice();
    }

    fn begin_slice(&mut self) {
        let length = PERIOD * (WHOLE - self.share) / WHOLE;
        let began = Instant::now();
        self.slice = Some(Slice { began, ends: began + length });
        if let Some(Err(error)) = self.timer.as_ref().map(|timer| timer.arm(length)) {
            tracing::warn!("a vCPU is slowed less than it should be: {error}");
        }
    }
}

/// How long somebody is held who has run for so long.
fn part(ran: Duration, share: u32) -> Duration {
    (ran * share / (WHOLE - share)).min(PERIOD)
}

/// Sends this thread the signal that takes its vCPU out of the guest.
struct Timer(libc::timer_t);

// SAFETY: a timer's id is a number, which any thread may use.
unsafe impl Send for Timer {}

impl Timer {
    fn new() -> io::Result<Self> {
        // SAFETY: the structure is plain data.
        let mut event: libc::sigevent = unsafe { mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGRTMIN();
        // SAFETY: the call always succeeds.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = ptr::null_mut();
        // SAFETY: both point to what the call reads and writes.
        match unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) } {
            0 => Ok(Self(timer)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Once, after so long.
    fn arm(&self, after: Duration) -> io::Result<()> {
        let it_value = libc::timespec {
            tv_sec: after.as_secs() as libc::time_t,
            // A time of zero would disarm it.
            tv_nsec: libc::c_long::from(after.subsec_nanos().max(1)),
        };
        let once = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        // SAFETY: the timer exists until `self` is dropped.
        match unsafe { libc::timer_settime(self.0, 0, &once, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and not used any more.
        unsafe { libc::timer_delete(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_hold_is_its_share_of_all_the_time_and_short() {
        assert_eq!([part(ms(5), 500), part(ms(2), 800), part(ms(9), 100)], [ms(5), ms(8), ms(1)]);
        assert_eq!(
            part(Duration::from_secs(9), 800),
            PERIOD,
            "a vCPU that was not scheduled is not punished"
        );
        assert_eq!(part(Duration::from_secs(9), SHARE_MAX.into()), PERIOD);
    }

    /// Whatever the machine that this runs on does meanwhile.
    #[test]
    fn nobody_is_held_for_more_than_its_share_and_nobody_once_it_is_lifted() {
        vmm_sys_util::signal::register_signal_handler(SIGRTMIN(), ignore).unwrap();
        let held = Arc::new(AtomicU64::new(0));
        let mut hold = Hold::new(Arc::clone(&held));
        assert_eq!(hold.due(), None);
        let began = Instant::now();
        hold.set(700);
        while held.load(Relaxed) < 30_000_000 {
            let Some(due) = hold.due() else { continue };
            let since = Instant::now();
            std::thread::sleep(due);
            hold.was_held(due, since);
        }
        let all = began.elapsed().as_nanos() as u64;
        assert!(held.load(Relaxed) <= all * 7 / 10, "{held:?} of {all} ns");
        hold.set(0);
        assert_eq!(hold.due(), None);
    }

    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
}
