//! `godwit vm console`, attached.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use godwit_lab::cluster::Cluster;
use godwit_lab::{LabError, Result, exec};

use crate::ensure;

/// The command has no way to say that it is attached but on a terminal.
const ATTACH_PAUSE: Duration = Duration::from_secs(1);

/// The command, and what it has said so far.
pub struct Console {
    child: Child,
    /// The console ends when its input does.
    input: ChildStdin,
    said: Arc<Mutex<Vec<u8>>>,
    listener: Option<JoinHandle<()>>,
}

impl Console {
    /// Attaches, and waits until it surely is.
    pub fn attach(cluster: &dyn Cluster, vm: &str) -> Result<Self> {
        let mut command = cluster.cli().command(&["vm", "console", vm])?;
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(LabError::io("run `godwit vm console`"))?;
        let mut output = child.stdout.take().expect("its output is a pipe");
        let input = child.stdin.take().expect("its input is a pipe");
        let said = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&said);
        let listener = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                sink.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&bytes[..count]);
            }
        });
        std::thread::sleep(ATTACH_PAUSE);
        Ok(Self { child, input, said, listener: Some(listener) })
    }

    /// Waits until the Linux guest's shell answers on the virtio console: what is typed before may be lost.
    pub fn await_shell(&mut self, limit: Duration) -> Result<()> {
        let answers = exec::poll(limit, ATTACH_PAUSE, || {
            self.enter("echo shell on $(tty)")?;
            Ok(self.text().contains("shell on /dev/hvc0").then_some(()))
        })?;
        answers.ok_or_else(|| LabError::Broken(format!("no shell answers but {:?}", self.text())))
    }

    /// Types a line at the guest.
    pub fn enter(&mut self, line: &str) -> Result<()> {
        let typed = self.input.write_all(format!("{line}\r").as_bytes());
        typed.and_then(|()| self.input.flush()).map_err(LabError::io("type at the console"))
    }

    /// Waits until the guest has said `words`.
    pub fn expect(&self, words: &str, limit: Duration) -> Result<()> {
        let found = exec::poll(limit, exec::POLL, || Ok(self.text().contains(words).then_some(())))?;
        found.ok_or_else(|| {
            LabError::Broken(format!("the console does not say {words:?} but {:?}", self.text()))
        })
    }

    /// Everything it says until it ends by itself, with its VM.
    pub fn until_its_end(mut self, limit: Duration) -> Result<String> {
        let ended = exec::wait(&mut self.child, limit)?;
        self.end();
        let text = self.text();
        ensure(ended.is_some(), format!("the console did not end with its VM; it said {text:?}"))?;
        Ok(text)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    fn end(&mut self) {
        // What has already ended needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.end();
    }
}
