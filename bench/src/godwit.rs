//! A VM under Godwit: manager, agents and VMMs as they are released, asked through the command line.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use godwit_lab::LabError;
use godwit_lab::cluster::{Cluster, DATASTORE};
use godwit_types::migration::MigrationReport;
use godwit_types::task::{Task, TaskState};
use godwit_types::vm::Vm;
use godwit_types::{Bytes, HostName};

use crate::case::Case;
use crate::engine::{Bed, Foretold, Moved, Reported, Running, Terms};
use crate::error::{BenchError, Result};

/// How much longer than the bound a migration that did not converge may take to end as cancelled.
const CANCEL_LIMIT: Duration = Duration::from_secs(30);
/// A migration that fails this shortly before its bound, or later, has not converged.
const DEADLINE_SLACK: Duration = Duration::from_millis(500);
const VERB_LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct GodwitVm<'a> {
    bed: &'a Bed,
    vm: Vm,
    disk: PathBuf,
    on: HostName,
    option: Option<&'static str>,
}

impl<'a> GodwitVm<'a> {
    /// Defines the VM and starts it on the source; it will be moved with this option.
    pub(crate) fn boot(bed: &'a Bed, case: &Case, name: &str, option: Option<&'static str>) -> Result<Self> {
        let cluster: &dyn Cluster = &bed.fabric;
        let disk = bed.make_disk(name)?;
        let kernel = format!("{DATASTORE}/{}", bed.kernel);
        let (memory, vcpus) = (Bytes::mib(case.memory_mib).to_string(), case.vcpus.to_string());
        let (image, cmdline) = (format!("{DATASTORE}/{name}.raw,format=raw"), case.command_line());
        let mut verb = vec!["vm", "create", name, "--kernel", &kernel, "--memory", &memory];
        verb.extend(["--vcpus", &vcpus, "--disk", &image, "--cmdline", &cmdline]);
        let vm: Vm = cluster.cli().ask(&verb)?;
        cluster.start(name, &bed.source)?;
        Ok(Self { bed, vm, disk, on: bed.source.clone(), option })
    }

    /// It was moved to the bed's destination by other means than [`Running::migrate`].
    pub(crate) fn has_moved(&mut self) {
        self.on = self.bed.destination.clone();
    }

    fn file(&self, host: &HostName, name: &str) -> PathBuf {
        self.bed.fabric.host_state(host).join("vms").join(self.vm.id.to_string()).join(name)
    }

    fn cluster(&self) -> &dyn Cluster {
        &self.bed.fabric
    }

    /// Moves it to the other host, which it must reach; what its engine says of that.
    pub(crate) fn move_on(&mut self, terms: Terms) -> Result<MigrationReport> {
        let to = if self.on == self.bed.source { &self.bed.destination } else { &self.bed.source };
        let task = self.run_task(to, terms, Instant::now())?.ok_or(BenchError::NoReport("end in time"))?;
        self.on = to.clone();
        task.report.ok_or(BenchError::NoReport("report in its task"))
    }

    /// The task of a migration that has ended, if it converged.
    fn run_task(&self, to: &HostName, terms: Terms, begun: Instant) -> Result<Option<Task>> {
        let Terms { limit, blackout_ms_max } = terms;
        let deadline = format!("{}ms", limit.as_millis());
        let (name, to) = (self.vm.name.to_string(), to.as_str());
        let budget = blackout_ms_max.map(|ms| format!("{ms}ms"));
        let mut verb = vec!["vm", "migrate", &name, "--to", to, "--deadline", &deadline];
        verb.extend(budget.iter().flat_map(|budget| ["--max-blackout", budget]));
        verb.extend(self.option);
        match self.cluster().cli().wait_for::<Task>(&verb, limit + CANCEL_LIMIT) {
            Ok(task) => Ok(Some(task)),
            Err(LabError::Cli(_)) if begun.elapsed() + DEADLINE_SLACK > limit => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Running for GodwitVm<'_> {
    fn consoles(&self) -> [PathBuf; 2] {
        [&self.bed.source, &self.bed.destination].map(|host| self.file(host, "console.log"))
    }

    /// The time is that of the manager's task: the command line asks for its end only now and then.
    fn migrate(&mut self, terms: Terms) -> Result<Moved> {
        let (begun, begun_unix) = (Instant::now(), unix_now());
        let Some(task) = self.run_task(&self.bed.destination, terms, begun)? else {
            return Ok(Moved { begun, ended: begun + terms.limit, converged: false, reported: None });
        };
        let (TaskState::Succeeded, Some(report), Some(finished)) =
            (task.state, task.report, task.finished_unix_ms)
        else {
            return Err(BenchError::NoReport("report in its task"));
        };
        self.on = self.bed.destination.clone();
        let after = |unix_ms: u64| begun + Duration::from_millis(unix_ms).saturating_sub(begun_unix);
        let (begun, ended) = (after(task.started_unix_ms), after(finished));
        let foretold = report.predicted.map(|predicted| Foretold {
            total_ms: predicted.total_ms.expected,
            blackout_ms: predicted.blackout_ms.expected,
        });
        let reported =
            Reported { total_ms: report.total_ms, blackout_ms: report.blackout.total_ms, foretold };
        Ok(Moved { begun, ended, converged: true, reported: Some(reported) })
    }

    fn type_byte(&mut self, byte: u8) -> Result<()> {
        let console = self.file(&self.on, "console.sock");
        let typed = UnixStream::connect(&console).and_then(|mut stream| stream.write_all(&[byte]));
        typed.map_err(BenchError::io(format!("type at {}", console.display())))
    }

    fn end(self: Box<Self>) -> Result<()> {
        let name = self.vm.name.to_string();
        self.cluster().stop(&name)?;
        self.cluster().cli().text(&["vm", "rm", &name], VERB_LIMIT)?;
        std::fs::remove_file(&self.disk).map_err(BenchError::io(format!("remove {}", self.disk.display())))
    }
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
