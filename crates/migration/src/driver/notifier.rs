//! Reports progress from a thread of its own, so that a slow listener never slows a migration.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use godwit_types::migration::MigrationProgress;

#[derive(Default)]
struct Latest {
    progress: Option<MigrationProgress>,
    closed: bool,
}

/// Keeps only the newest progress that the listener has not taken yet.
pub(super) struct Notifier {
    shared: Arc<(Mutex<Latest>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Notifier {
    pub(super) fn start(listener: Box<dyn Fn(MigrationProgress) + Send>) -> std::io::Result<Self> {
        let shared = Arc::new((Mutex::new(Latest::default()), Condvar::new()));
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("mig-progress".into()).spawn(move || {
            while let Some(progress) = next(&theirs) {
                listener(progress);
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(super) fn report(&self, progress: MigrationProgress) {
        self.change(|latest| latest.progress = Some(progress));
    }

    fn change(&self, change: impl FnOnce(&mut Latest)) {
        change(&mut self.shared.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.1.notify_one();
    }
}

/// Waits until the listener has been told the newest progress.
impl Drop for Notifier {
    fn drop(&mut self) {
        self.change(|latest| latest.closed = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn next((latest, changed): &(Mutex<Latest>, Condvar)) -> Option<MigrationProgress> {
    let mut latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if let Some(progress) = latest.progress.take() {
            return Some(progress);
        }
        if latest.closed {
            return None;
        }
        latest = changed.wait(latest).unwrap_or_else(PoisonError::into_inner);
    }
}
