//! `export`: the cluster as it is, as a trace of one step.

use godwit_scheduler::rules::Rule;
use godwit_scheduler::settings::{HostSettings, VmSettings};
use godwit_simulator::Trace;
use godwit_simulator::format::write;
use godwit_simulator::trace::{HostRecord, VmRecord};
use godwit_types::host::{Host, HostState};
use godwit_types::vm::{Vm, VmState};
use godwit_types::{ApiError, ErrorCode, VmName};

use super::Session;
use crate::cli::simulate::Export;
use crate::output::{self, note};

/// How fast a CPU is taken to be that nobody has measured, in MHz.
const CPU_MHZ: u32 = 2600;
/// What VMs use is measured over a minute, and a trace of one value holds it for as long as a trace's step.
const INTERVAL_MS: u64 = 300_000;

pub(crate) async fn run(session: &Session, options: &Export) -> Result<(), ApiError> {
    let hosts: Vec<Host> = session.client.get("/v1/hosts").await?;
    let vms: Vec<Vm> = session.client.get("/v1/vms").await?;
    let down = hosts.iter().filter(|host| host.state == HostState::Down).count();
    let unmeasured = vms.iter().filter(|vm| runs(vm) && vm.usage.is_none()).count();
    if down > 0 {
        note(format_args!("{down} hosts are left out, which are down"));
    }
    if unmeasured > 0 {
        note(format_args!(
            "{unmeasured} VMs are taken to use nothing of their CPUs, since they were not measured"
        ));
    }
    let failed = |error: &dyn std::fmt::Display| {
        ApiError::new(ErrorCode::Failed, format!("cannot write the trace: {error}"))
    };
    let mut trace = trace(&hosts, &vms);
    lay_down(session, &mut trace).await?;
    let text = write(&trace).map_err(|error| failed(&error))?;
    match &options.out {
        Some(path) => std::fs::write(path, text).map_err(|error| failed(&error)),
        None => output::line(text.trim_end()),
    }
}

/// Hosts that are up, and the VMs that run on them.
fn trace(hosts: &[Host], vms: &[Vm]) -> Trace {
    let up: Vec<&Host> = hosts.iter().filter(|host| host.state == HostState::Up).collect();
    let of = |vm: &Vm| up.iter().copied().find(|host| Some(&host.name) == vm.owner.as_ref());
    let vms = vms.iter().filter(|vm| runs(vm)).filter_map(|vm| Some(self::vm(vm, of(vm)?)));
    Trace {
        interval_ms: INTERVAL_MS,
        vms: vms.collect(),
        hosts: up.iter().map(|found| host(found)).collect(),
        ..Trace::default()
    }
}

/// Adds what people have laid down: rules about the VMs that run, pools, and settings.
async fn lay_down(session: &Session, trace: &mut Trace) -> Result<(), ApiError> {
    let rules: Vec<Rule> = session.client.get("/v1/rules").await?;
    trace.rules = rules.into_iter().filter_map(|rule| about(rule, &trace.vms)).collect();
    trace.pools = session.client.get("/v1/pools").await?;
    for host in &mut trace.hosts {
        let path = format!("/v1/hosts/{}/settings", host.name);
        set_host(host, session.client.get(&path).await?);
    }
    for vm in &mut trace.vms {
        let settings: VmSettings = session.client.get(&format!("/v1/vms/{}/settings", vm.name)).await?;
        (vm.pool, vm.controls) = (settings.pool, settings.controls);
    }
    Ok(())
}

/// What a rule says of the VMs that are in the trace; none if it says nothing of them.
fn about(rule: Rule, vms: &[VmRecord]) -> Option<Rule> {
    let gone: Vec<VmName> =
        rule.vms().iter().filter(|vm| vms.iter().all(|known| known.name != **vm)).cloned().collect();
    gone.iter().try_fold(rule, |rule, vm| rule.without(vm))
}

fn set_host(host: &mut HostRecord, settings: HostSettings) {
    if let Some(power) = settings.power_model() {
        host.wake_s = u32::try_from(power.wake_ms.div_ceil(1000)).unwrap_or(u32::MAX);
        (host.watts, host.standby_watts) = (power.watts, power.standby_watts);
    }
    (host.labels, host.domain) = (settings.labels, settings.domain);
}

fn runs(vm: &Vm) -> bool {
    matches!(vm.state, VmState::Running | VmState::Migrating)
}

fn cpu_mhz(host: &Host) -> u64 {
    host.facts.usage.map_or(CPU_MHZ, |usage| usage.cpu_mhz).into()
}

fn host(host: &Host) -> HostRecord {
    let facts = &host.facts;
    let mut record =
        HostRecord::new(host.name.clone(), cpu_mhz(host) * u64::from(facts.cpus), facts.memory.0);
    record.moves_max = facts.migration.moves_max;
    let link = facts.migration.link_bits_per_s.map(|bits| bits / 8);
    let rate = facts.migration.bandwidth_bytes_per_s_max.into_iter().chain(link).min();
    record.migration_bytes_per_s = rate.unwrap_or(record.migration_bytes_per_s);
    record.network_bytes_per_s = link.map_or(record.network_bytes_per_s, |link| 2 * link);
    record
}

fn vm(vm: &Vm, host: &Host) -> VmRecord {
    let used = vm.usage.map_or(0, |usage| {
        let permille = u64::from(usage.cpu_run_permille) + u64::from(usage.cpu_wait_permille);
        permille * cpu_mhz(host) / 1000
    });
    let mut record = VmRecord::new(vm.name.clone(), vm.spec.vcpus.into(), vm.spec.memory.0, vec![used]);
    record.host = Some(host.name.clone());
    if let Some(usage) = vm.usage {
        record.memory_used = vec![usage.memory.0.min(vm.spec.memory.0)];
        record.network_bytes_per_s = vec![usage.network_bytes_per_s];
        record.storage_ops_per_s = vec![usage.storage_ops_per_s];
    }
    record
}

#[cfg(test)]
mod tests {
    use godwit_simulator::format::own;
    use serde_json::json;

    use super::*;

    fn host(name: &str, state: &str) -> Host {
        serde_json::from_value(json!({
            "name": name, "state": state, "agent": "10.0.0.1:7401", "last_seen_ms": 0, "vms": 1,
            "facts": {
                "version": "1", "kernel": "6", "cpu_model": "x", "cpus": 4, "memory": 8192, "memory_available": 4096,
                "kvm": {"flavour": "vmx"}, "networks": [], "datastores": [], "clock_unix_ms": 0,
                "migration": {"moves_max": 3, "link_bits_per_s": 8000},
                "usage": {
                    "over_ms": 60000, "cpu_permille": 500, "cpu_pressure_permille": 0,
                    "memory_pressure_permille": 0, "cpu_mhz": 2000,
                },
            },
        }))
        .unwrap()
    }

    fn vm(name: &str, owner: &str, state: &str) -> Vm {
        serde_json::from_value(json!({
            "id": "0b6f4c1e-8b4e-4d6a-9f3e-2f1d1c6a5b7e", "name": name, "state": state, "owner": owner, "epoch": 1,
            "task": null, "last_event": null,
            "spec": {"vcpus": 2, "memory": 1024, "boot": {"kernel": "shared/vmlinuz"}},
            "usage": {
                "over_ms": 60000, "cpu_run_permille": 700, "cpu_wait_permille": 50, "memory": 2000,
                "network_bytes_per_s": 5, "storage_ops_per_s": 6,
            },
        }))
        .unwrap()
    }

    #[test]
    fn rules_speak_of_the_vms_that_run_and_hosts_draw_what_people_have_said() {
        let vms = [super::vm(&vm("x", "a", "running"), &host("a", "up"))];
        let rule = |vms: &[&str]| -> Rule {
            serde_json::from_value(json!({"name": "r", "must": true, "kind": {"kind": "apart", "vms": vms}}))
                .unwrap()
        };
        assert_eq!(about(rule(&["x", "y"]), &vms), Some(rule(&["x"])));
        assert_eq!(about(rule(&["y"]), &vms), None);
        let mut record = super::host(&host("a", "up"));
        let settings = json!({
            "labels": ["ssd"], "domain": "rack1", "driver": {"kind": "simulated", "program": "lab"},
            "power": {"watts": [90, 180], "standby_watts": 4, "wake_ms": 1500},
        });
        set_host(&mut record, serde_json::from_value(settings).unwrap());
        assert_eq!((record.watts, record.standby_watts, record.wake_s), (vec![90, 180], 4, 2));
        assert_eq!((record.labels.len(), record.domain.unwrap().as_str()), (1, "rack1"));
    }

    #[test]
    fn hosts_that_are_up_and_vms_that_run_are_a_trace_that_can_be_read() {
        let hosts = [host("a", "up"), host("b", "down")];
        let vms = [vm("x", "a", "running"), vm("y", "a", "stopped"), vm("z", "b", "running")];
        let trace = own(&write(&trace(&hosts, &vms)).unwrap()).unwrap();
        assert_eq!((trace.hosts.len(), trace.vms.len(), trace.steps()), (1, 1, 1));
        assert_eq!((trace.hosts[0].cpu_mhz, trace.hosts[0].migration_bytes_per_s), (8000, 1000));
        // 750 thousandths of a CPU of 2000 MHz; no more memory than the VM has.
        let demand = trace.vms[0].demand(0);
        assert_eq!((demand.cpu, demand.memory, demand.network, demand.storage), (1500, 1024, 5, 6));
    }
}
