//! A VM under QEMU: one QEMU in each host's namespace, the destination's waiting before the request.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use godwit_lab::cluster::Cluster;
use godwit_lab::emulated;
use godwit_types::HostName;
use serde_json::{Value, json};

use crate::case::Case;
use crate::engine::{Bed, Engine, Moved, Reported, Running, Terms};
use crate::error::{BenchError, Result};
use crate::qmp::Qmp;

const PORT: u16 = 4444;
/// How long the destination may take to say that the VM runs, once the source is done.
const RESUME_LIMIT: Duration = Duration::from_secs(10);
const MULTIFD_CHANNELS: u32 = 4;

pub(crate) struct QemuVm {
    engine: Engine,
    source: Side,
    destination: Side,
    destination_address: Ipv4Addr,
    moved: bool,
}

impl QemuVm {
    /// Starts both QEMUs; the VM boots on the source.
    pub(crate) fn boot(bed: &Bed, case: &Case, name: &str, engine: Engine) -> Result<Self> {
        let disk = bed.make_disk(name)?;
        let side = |host: &HostName, more: &[&str]| Side::start(bed, case, name, host, &disk, more);
        let mut vm = Self {
            engine,
            source: side(&bed.source, &[])?,
            destination: side(&bed.destination, &["-incoming", "defer"])?,
            destination_address: bed.fabric.host_address(&bed.destination)?,
            moved: false,
        };
        vm.configure()?;
        Ok(vm)
    }

    /// The setting that the engine stands for, on both sides.
    fn configure(&mut self) -> Result<()> {
        let mut capabilities = vec!["events"];
        let mut parameters = json!({});
        match self.engine {
            Engine::Godwit | Engine::GodwitPlain | Engine::GodwitPostcopy | Engine::QemuDefault => {}
            Engine::QemuUncapped => parameters["max-bandwidth"] = 0.into(),
            Engine::QemuMultifd => {
                capabilities.push("multifd");
                parameters = json!({"max-bandwidth": 0, "multifd-channels": MULTIFD_CHANNELS});
            }
            Engine::QemuPostcopy => {
                capabilities.push("postcopy-ram");
                parameters["max-bandwidth"] = 0.into();
            }
        }
        let on = |name: &&str| json!({"capability": name, "state": true});
        let capabilities: Vec<Value> = capabilities.iter().map(on).collect();
        for side in [&mut self.source, &mut self.destination] {
            side.qmp.execute("migrate-set-capabilities", json!({"capabilities": capabilities}))?;
            side.qmp.execute("migrate-set-parameters", parameters.clone())?;
        }
        let uri = format!("tcp:{}:{PORT}", self.destination_address);
        self.destination.qmp.execute("migrate-incoming", json!({"uri": uri})).map(drop)
    }

    /// Waits for the source's end of the migration. `None`: not before the deadline.
    fn follow(&mut self, deadline: Instant) -> Result<Option<Instant>> {
        while let Some(event) = self.source.qmp.next_event(deadline)? {
            match event.status.as_deref() {
                Some("active") if self.engine == Engine::QemuPostcopy => {
                    self.source.qmp.execute("migrate-start-postcopy", json!({}))?;
                }
                Some("completed") => return Ok(Some(event.at)),
                Some("failed") => {
                    let told = self.source.qmp.execute("query-migrate", json!({}))?;
                    return Err(BenchError::MigrationFailed(told.to_string()));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// When the VM began to run at the destination.
    fn resumed(&mut self) -> Result<Instant> {
        let deadline = Instant::now() + RESUME_LIMIT;
        while let Some(event) = self.destination.qmp.next_event(deadline)? {
            if event.name == "RESUME" {
                return Ok(event.at);
            }
        }
        Err(BenchError::Timeout { what: "the VM's start at the destination".into(), limit: RESUME_LIMIT })
    }
}

impl Running for QemuVm {
    fn consoles(&self) -> [PathBuf; 2] {
        [self.source.console.clone(), self.destination.console.clone()]
    }

    fn migrate(&mut self, terms: Terms) -> Result<Moved> {
        let uri = format!("tcp:{}:{PORT}", self.destination_address);
        if let Some(ms) = terms.blackout_ms_max {
            self.source.qmp.execute("migrate-set-parameters", json!({"downtime-limit": ms}))?;
        }
        let begun = Instant::now();
        self.source.qmp.execute("migrate", json!({"uri": uri}))?;
        let Some(completed) = self.follow(begun + terms.limit)? else {
            self.source.qmp.execute("migrate_cancel", json!({}))?;
            return Ok(Moved { begun, ended: Instant::now(), converged: false, reported: None });
        };
        let ended = completed.max(self.resumed()?);
        self.moved = true;
        let told = self.source.qmp.execute("query-migrate", json!({}))?;
        let number = |key: &str| told.get(key).and_then(Value::as_f64);
        let reported = number("total-time").zip(number("downtime"));
        let reported =
            reported.map(|(total_ms, blackout_ms)| Reported { total_ms, blackout_ms, foretold: None });
        Ok(Moved { begun, ended, converged: true, reported })
    }

    fn type_byte(&mut self, byte: u8) -> Result<()> {
        let serial = if self.moved { &self.destination.serial } else { &self.source.serial };
        let typed = UnixStream::connect(serial).and_then(|mut stream| stream.write_all(&[byte]));
        typed.map_err(BenchError::io(format!("type at {}", serial.display())))
    }

    /// What is left is in the fabric's folder, which goes with it.
    fn end(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// One QEMU. Dropping it kills it.
struct Side {
    child: Child,
    qmp: Qmp,
    serial: PathBuf,
    console: PathBuf,
}

impl Side {
    fn start(
        bed: &Bed,
        case: &Case,
        name: &str,
        host: &HostName,
        disk: &Path,
        more: &[&str],
    ) -> Result<Self> {
        let file = |kind: &str| bed.fabric.logs().join(format!("{name}-{host}.{kind}"));
        let (socket, serial, console) = (file("qmp"), file("serial"), file("console"));
        let mut qemu = emulated::qemu()?;
        // Its firmware is qboot: where ring 0 is emulated, SeaBIOS takes seconds to find that there is nothing to find.
        qemu.args(["-accel", "kvm", "-M", "pc", "-cpu", "host,-arch-capabilities", "-bios", "qboot.rom"]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        qemu.args(["-m", &case.memory_mib.to_string(), "-smp", &case.vcpus.to_string()]);
        qemu.arg("-kernel").arg(bed.fabric.datastore().join(&bed.kernel));
        qemu.args(["-append", &case.command_line()]);
        let drive = format!("file={},format=raw,if=none,id=disk", disk.display());
        qemu.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"]);
        let log = console.display();
        let chardev = format!("socket,id=serial,path={},server=on,wait=off,logfile={log}", serial.display());
        qemu.args(["-chardev", &chardev, "-serial", "chardev:serial"]);
        qemu.args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        qemu.args(more);
        let mut child = spawn(bed, host, &qemu, file("log"))?;
        match Qmp::connect(&socket) {
            Ok(qmp) => Ok(Self { child, qmp, serial, console }),
            Err(error) => {
                end(&mut child);
                eprintln!("QEMU: {}", godwit_lab::logs::tail(&file("log")));
                Err(error)
            }
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Runs it in the host's namespace, away from the terminal's signals.
fn spawn(bed: &Bed, host: &HostName, qemu: &Command, log: PathBuf) -> Result<Child> {
    let opening = || BenchError::io(format!("open {}", log.display()));
    let output = File::create(&log).map_err(opening())?;
    let errors = output.try_clone().map_err(opening())?;
    let mut command = bed.fabric.host_namespace(host)?.command(qemu.get_program());
    command.args(qemu.get_args());
    command.envs(qemu.get_envs().filter_map(|(key, value)| Some((key, value?))));
    command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
    command.spawn().map_err(BenchError::io("start QEMU"))
}

fn end(child: &mut Child) {
    // One that has ended already is as good as killed; it is reaped either way.
    let _ = child.kill();
    let _ = child.wait();
}
