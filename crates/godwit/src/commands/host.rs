//! `host ls` and `host show`.

use godwit_scheduler::settings::HostSettings;
use godwit_types::capability::VmmOffer;
use godwit_types::host::{Host, HostState, KvmFlavour, Maintenance, MigrationLimits, StandbyPhase};
use godwit_types::usage::HostUsage;
use godwit_types::{ApiError, Bytes, HostName};
use serde::Serialize;

use super::{Session, cpu_baseline, settings};
use crate::output::{fields, table};

pub(crate) async fn ls(session: &Session) -> Result<(), ApiError> {
    let hosts: Vec<Host> = session.client.get("/v1/hosts").await?;
    session.format.print(&hosts, |hosts| {
        let row = |host: &Host| {
            vec![
                host.name.to_string(),
                state(host),
                flavour(host.facts.kvm.flavour).into(),
                host.facts.cpus.to_string(),
                format!("{} of {}", host.facts.memory_available, host.facts.memory),
                host.vms.to_string(),
            ]
        };
        table(&["HOST", "STATE", "KVM", "CPUS", "MEMORY FREE", "VMS"], hosts.iter().map(row))
    })
}

pub(crate) async fn show(session: &Session, name: &HostName) -> Result<(), ApiError> {
    let host: Host = session.client.get(&format!("/v1/hosts/{name}")).await?;
    let settings: HostSettings = session.client.get(&format!("/v1/hosts/{name}/settings")).await?;
    let cpu_baseline = cpu_baseline::of_host(session, name).await?;
    session.format.print(&Shown { host, settings, cpu_baseline }, describe)
}

/// A host with its settings.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    host: Host,
    settings: HostSettings,
    /// What it lacks of the cluster's baseline, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_baseline: Option<String>,
}

fn describe(Shown { host, settings, cpu_baseline }: &Shown) -> String {
    let facts = &host.facts;
    let kvm = match &facts.kvm.limits {
        Some(limits) => format!("{} ({limits})", flavour(facts.kvm.flavour)),
        None => flavour(facts.kvm.flavour).into(),
    };
    let mut rows = vec![
        ("host", host.name.to_string()),
        ("state", format!("{}, last heard from {} ms ago", state(host), host.last_seen_ms)),
        ("agent", host.agent.to_string()),
        ("version", facts.version.clone()),
        ("kernel", facts.kernel.clone()),
        ("cpu", format!("{} x {}", facts.cpus, facts.cpu_model)),
        ("kvm", kvm),
        ("memory", format!("{} free of {}", facts.memory_available, facts.memory)),
        ("vms", host.vms.to_string()),
        ("migrations", migrations(&facts.migration)),
    ];
    rows.extend(facts.usage.iter().map(|usage| ("used", used(usage))));
    for kept in &facts.kept {
        let seconds = kept.age_ms / 1000;
        rows.push(("kept", format!("{} of {}, which has left {seconds} s ago", kept.memory, kept.name)));
    }
    rows.extend(facts.vmm.iter().map(|vmm| ("vmm", offer(vmm))));
    rows.extend(cpu_baseline.iter().map(|baseline| ("cpu baseline", baseline.clone())));
    for network in &facts.networks {
        let uplink = network.uplink.as_ref().map(|uplink| format!(", uplink {uplink}")).unwrap_or_default();
        rows.push(("network", format!("{} on bridge {}{uplink}", network.name, network.bridge)));
    }
    for store in &facts.datastores {
        rows.push((
            "datastore",
            format!("{} at {}, {} free of {}", store.name, store.path, store.free, store.size),
        ));
    }
    rows.extend(settings::of_host(settings));
    fields(&rows)
}

fn used(usage: &HostUsage) -> String {
    let part = |permille: u32| f64::from(permille) / 10.0;
    format!(
        "{:.2} CPUs of {} MHz; some task waited for a CPU {:.1} %, and for memory {:.1} %, of the time",
        f64::from(usage.cpu_permille) / 1000.0,
        usage.cpu_mhz,
        part(usage.cpu_pressure_permille),
        part(usage.memory_pressure_permille)
    )
}

/// How much it moves at once.
fn migrations(limits: &MigrationLimits) -> String {
    let cap = limits
        .bandwidth_bytes_per_s_max
        .map_or_else(|| "no cap".to_owned(), |rate| format!("{}/s", Bytes(rate)));
    let link = limits
        .link_bits_per_s
        .map_or_else(String::new, |bits| format!(", network of {} Mbit/s", bits / 1_000_000));
    format!("up to {} at once each way, {cap}{link}", limits.moves_max)
}

/// What its VMM can run; the features themselves are in the document.
fn offer(vmm: &VmmOffer) -> String {
    let VmmOffer { release, protocol, machines, vcpus_max, cpu, .. } = vmm;
    let tsc = cpu.tsc.map_or_else(String::new, |tsc| {
        format!(", TSC at {} kHz{}", tsc.khz, if tsc.scalable { ", scalable" } else { "" })
    });
    format!(
        "Godwit {release}, migration protocol {}-{}, {}, up to {vcpus_max} vCPUs, {} CPU features{tsc}",
        protocol.min,
        protocol.max,
        machines.join(" "),
        cpu.features.len() + cpu.msr_features.len(),
    )
}

/// Whether it is heard from, and whether it is to be empty.
fn state(host: &Host) -> String {
    let heard = match host.state {
        HostState::Up => "up",
        HostState::Down => "down",
    };
    let heard = match host.standby.map(|standby| standby.phase) {
        None => heard,
        Some(StandbyPhase::Going) => "going to standby",
        Some(StandbyPhase::Off) => "in standby",
        Some(StandbyPhase::Waking) => "waking",
    };
    match host.maintenance {
        None => heard.to_owned(),
        Some(Maintenance { empty: true, .. }) => format!("{heard}, in maintenance"),
        Some(Maintenance { empty: false, .. }) => format!("{heard}, entering maintenance"),
    }
}

const fn flavour(flavour: KvmFlavour) -> &'static str {
    match flavour {
        KvmFlavour::Vmx => "vmx",
        KvmFlavour::Svm => "svm",
        KvmFlavour::Pvm => "pvm",
        KvmFlavour::None => "none",
    }
}
