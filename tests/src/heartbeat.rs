//! A guest's heart, watched from the network and on its disk: two guests that run at once would be seen as one whose
//! beats go back, or whose acknowledged writes are not there.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use godwit_lab::load;
use godwit_lab::namespace::Namespace;
use godwit_lab::{LabError, Result};

const PAUSE: Duration = Duration::from_millis(20);

/// The watch, until it is ended.
pub struct Heartbeats {
    stop: Arc<AtomicBool>,
    watcher: Option<JoinHandle<Result<()>>>,
}

impl Heartbeats {
    /// Begins to watch, to be ended before the guest boots anew. A guest that does not answer is asked again. Its disk is in
    /// one of `images`.
    pub fn watch(client: &Namespace, guest: Ipv4Addr, images: Vec<PathBuf>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (client, stopping) = (client.clone(), Arc::clone(&stop));
        let watcher = std::thread::spawn(move || {
            let mut beats = 0;
            while !stopping.load(Ordering::Relaxed) {
                if let Ok(report) = load::fetch(&client, guest) {
                    if report.beats < beats {
                        let (was, is) = (beats, report.beats);
                        let error = format!("the guest's beats went back from {was} to {is}: two guests run");
                        return Err(LabError::Broken(error));
                    }
                    beats = report.beats;
                    if report.disk.acked > 0 {
                        in_one_of(&images, |image| load::has_last_write(image, report.disk.acked))?;
                    }
                }
                std::thread::sleep(PAUSE);
            }
            Ok(())
        });
        Self { stop, watcher: Some(watcher) }
    }

    /// Ends the watch, and tells what was seen.
    pub fn end(mut self) -> Result<()> {
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.watcher.take().map(JoinHandle::join) {
            Some(Ok(seen)) => seen,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

/// Of images that a disk may be in, one must hold what is looked for.
fn in_one_of(images: &[PathBuf], holds: impl Fn(&Path) -> Result<()>) -> Result<()> {
    let mut looked = images.iter().map(|image| holds(image));
    let first = looked.next().unwrap_or(Ok(()));
    if first.is_ok() || looked.any(|found| found.is_ok()) { Ok(()) } else { first }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        let _ = self.join();
    }
}
