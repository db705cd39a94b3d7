//! The verbs of `vm`, except for `migrate`, `move-storage` and `check-migration`, which have files of their own.

use godwit_scheduler::settings::VmSettings;
use godwit_types::task::Task;
use godwit_types::usage::VmUsage;
use godwit_types::vm::{BootSpec, CreateVm, Vm, VmSpec, VmState};
use godwit_types::{ApiError, Bytes, ErrorCode, VmName};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Session, check, migrate, settings, storage, task};
use crate::cli::{VmCreate, VmVerb};
use crate::output::{fields, table};

pub(crate) async fn run(session: &Session, verb: VmVerb) -> Result<(), ApiError> {
    match verb {
        VmVerb::Create(options) => create(session, *options).await,
        VmVerb::Start { vm, host } => {
            let task: Task =
                session.client.post(&format!("/v1/vms/{vm}/start"), &json!({ "host": host })).await?;
            task::finish(session, task).await
        }
        VmVerb::Stop { vm, force, timeout } => {
            let request = json!({ "force": force, "timeout_ms": timeout.ms });
            let task: Task = session.client.post(&format!("/v1/vms/{vm}/stop"), &request).await?;
            task::finish(session, task).await
        }
        VmVerb::Ls => ls(session).await,
        VmVerb::Show { vm } => show(session, &vm).await,
        VmVerb::Set(options) => settings::set_vm(session, *options).await,
        VmVerb::Console { vm } => {
            let path = format!("/v1/vms/{vm}/console");
            crate::console::attach(session.client.upgrade(&path, godwit_api::CONSOLE_PROTOCOL).await?).await
        }
        VmVerb::Migrate(options) => migrate::run(session, options).await,
        VmVerb::MoveStorage(options) => storage::run(session, options).await,
        VmVerb::CheckMigration { vm, to, post_copy, move_disks, all } => {
            check::run(session, &vm, to.as_ref(), (post_copy, move_disks), all).await
        }
        VmVerb::Rm { vm } => {
            let removed: Value = session.client.delete(&format!("/v1/vms/{vm}")).await?;
            session.format.print(&removed, |_| format!("{vm} is removed; its disks are kept"))
        }
    }
}

async fn create(session: &Session, options: VmCreate) -> Result<(), ApiError> {
    let spec = VmSpec {
        vcpus: options.vcpus,
        memory: options.memory,
        boot: BootSpec { kernel: options.kernel, initrd: options.initrd, cmdline: options.cmdline },
        disks: options.disks.into_iter().map(|disk| disk.0).collect(),
        nics: options.nics.into_iter().map(|nic| nic.0).collect(),
        machine: options.machine,
        cpu: options.cpu,
    };
    spec.validate().map_err(|error| ApiError::new(ErrorCode::Invalid, error.to_string()))?;
    let vm: Vm = session.client.post("/v1/vms", &CreateVm { name: options.name, spec }).await?;
    session
        .format
        .print(&vm, |vm| format!("{} is defined; start it with: godwit vm start {}", vm.name, vm.name))
}

async fn ls(session: &Session) -> Result<(), ApiError> {
    let vms: Vec<Vm> = session.client.get("/v1/vms").await?;
    session.format.print(&vms, |vms| {
        let row = |vm: &Vm| {
            vec![
                vm.name.to_string(),
                state(vm.state).into(),
                owner(vm),
                vm.spec.vcpus.to_string(),
                vm.spec.memory.to_string(),
                vm.epoch.to_string(),
            ]
        };
        table(&["VM", "STATE", "HOST", "VCPUS", "MEMORY", "EPOCH"], vms.iter().map(row))
    })
}

async fn show(session: &Session, name: &VmName) -> Result<(), ApiError> {
    let vm: Vm = session.client.get(&format!("/v1/vms/{name}")).await?;
    let settings: VmSettings = session.client.get(&format!("/v1/vms/{name}/settings")).await?;
    session.format.print(&Shown { vm, settings }, describe)
}

/// A VM with its settings.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    vm: Vm,
    settings: VmSettings,
}

fn describe(Shown { vm, settings }: &Shown) -> String {
    let spec = &vm.spec;
    let mut rows = vec![
        ("vm", vm.name.to_string()),
        ("id", vm.id.to_string()),
        ("state", state(vm.state).into()),
        ("owner", format!("{} at epoch {}", owner(vm), vm.epoch)),
        ("size", format!("{} vCPUs, {}", spec.vcpus, spec.memory)),
        ("machine", spec.machine.name().into()),
        ("cpu", spec.cpu.to_string()),
        ("kernel", spec.boot.kernel.to_string()),
    ];
    rows.extend(spec.boot.initrd.iter().map(|initrd| ("initrd", initrd.to_string())));
    rows.push(("cmdline", spec.boot.cmdline.clone()));
    for disk in &spec.disks {
        let read_only = if disk.read_only { ", read-only" } else { "" };
        rows.push(("disk", format!("{} ({:?}{read_only})", disk.image, disk.format).to_lowercase()));
    }
    for nic in &spec.nics {
        let mac = nic.mac.map_or_else(|| "no address yet".to_owned(), |mac| mac.to_string());
        rows.push(("network", format!("{} as {mac}", nic.network)));
    }
    rows.extend(settings::of_vm(settings));
    rows.extend(vm.usage.iter().flat_map(usage));
    rows.extend(vm.task.iter().map(|task| ("task", task.to_string())));
    rows.extend(vm.last_event.iter().map(|event| ("last event", event.clone())));
    fields(&rows)
}

fn usage(usage: &VmUsage) -> [(&'static str, String); 4] {
    let cpus = |permille: u32| format!("{:.2}", f64::from(permille) / 1000.0);
    [
        (
            "cpu used",
            format!("{} CPUs, {} waited for", cpus(usage.cpu_run_permille), cpus(usage.cpu_wait_permille)),
        ),
        ("memory used", usage.memory.to_string()),
        ("network used", format!("{}/s", Bytes(usage.network_bytes_per_s))),
        ("disks used", format!("{} operations/s", usage.storage_ops_per_s)),
    ]
}

fn owner(vm: &Vm) -> String {
    vm.owner.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)
}

const fn state(state: VmState) -> &'static str {
    match state {
        VmState::Stopped => "stopped",
        VmState::Starting => "starting",
        VmState::Running => "running",
        VmState::Stopping => "stopping",
        VmState::Migrating => "migrating",
        VmState::Crashed => "crashed",
        VmState::Unknown => "unknown",
    }
}
