//! `vm set` and `host set`, and how settings are shown.

use std::collections::BTreeSet;

use godwit_scheduler::entitlement::Controls;
use godwit_scheduler::policy::Automation;
use godwit_scheduler::settings::{HostSettings, VmSettings};
use godwit_scheduler::{PerResource, Resource};
use godwit_types::ApiError;
use godwit_types::power::{PowerDriver, REDFISH_PORT, WAKE_DEFAULT};
use serde_json::{Map, Value, json};

use super::Session;
use crate::cli::{ControlOptions, DriverName, HostSet, VmSet};
use crate::output::fields;
use crate::parse::Duration;

pub(crate) async fn set_vm(session: &Session, options: VmSet) -> Result<(), ApiError> {
    let path = format!("/v1/vms/{}/settings", options.vm);
    let settings: VmSettings = session.client.post(&path, &vm_changes(&options)).await?;
    session.format.print(&settings, |settings| {
        let mut rows = vec![("vm", options.vm.to_string())];
        rows.extend(of_vm(settings));
        fields(&rows)
    })
}

pub(crate) async fn set_host(session: &Session, options: HostSet) -> Result<(), ApiError> {
    let path = format!("/v1/hosts/{}/settings", options.host);
    let settings: HostSettings = session.client.post(&path, &host_changes(&options)).await?;
    session.format.print(&settings, |settings| {
        let mut rows = vec![("host", options.host.to_string())];
        rows.extend(of_host(settings));
        fields(&rows)
    })
}

fn vm_changes(options: &VmSet) -> Value {
    let mut changes = json!({ "controls": changed_controls(&options.controls) });
    if options.no_pool {
        changes["pool"] = Value::Null;
    } else if let Some(pool) = &options.pool {
        changes["pool"] = json!(pool);
    }
    if let Some(automation) = options.automation {
        changes["automation"] = json!(automation);
    }
    changes
}

fn host_changes(options: &HostSet) -> Value {
    let mut changes = Map::new();
    if options.no_labels || !options.labels.is_empty() {
        changes.insert("labels".into(), json!(options.labels.iter().collect::<BTreeSet<_>>()));
    }
    if options.no_domain {
        changes.insert("domain".into(), Value::Null);
    } else if let Some(domain) = &options.domain {
        changes.insert("domain".into(), json!(domain));
    }
    if let Some(driver) = driver(options) {
        changes.insert("driver".into(), json!(driver));
    }
    changes.extend(options.storage_iops.map(|limit| ("storage_ops_per_s".into(), json!(limit.0))));
    changes.extend(options.network.map(|limit| ("network_bits_per_s".into(), json!(limit.0))));
    let mut power = Map::new();
    power.extend(options.watts.iter().map(|watts| ("watts".into(), json!(watts.0))));
    power.extend(options.standby_watts.map(|watts| ("standby_watts".into(), json!(watts))));
    power.extend(options.wake_time.map(|time| ("wake_ms".into(), json!(time.ms))));
    if !power.is_empty() {
        changes.insert("power".into(), power.into());
    }
    Value::Object(changes)
}

/// The driver named; the command line sees to it that what it needs is given.
fn driver(options: &HostSet) -> Option<PowerDriver> {
    Some(match options.power_driver? {
        DriverName::None => PowerDriver::None,
        DriverName::Ipmi => PowerDriver::Ipmi {
            address: options.ipmi_address.clone()?,
            user: options.ipmi_user.clone()?,
            password: options.ipmi_password.clone()?,
        },
        DriverName::Redfish => {
            let redfish = &options.redfish;
            PowerDriver::Redfish {
                address: redfish.redfish_address.clone()?,
                port: redfish.redfish_port.unwrap_or(REDFISH_PORT),
                user: redfish.redfish_user.clone()?,
                password: redfish.redfish_password.clone()?,
                system: redfish.redfish_system.clone(),
                fingerprint: redfish.redfish_fingerprint,
                force_off: redfish.redfish_force_off,
            }
        }
        DriverName::WakeOnLan => {
            PowerDriver::WakeOnLan { mac: options.wake_mac?, to: options.wake_to.unwrap_or(WAKE_DEFAULT) }
        }
        DriverName::Simulated => PowerDriver::Simulated { program: options.power_program.clone()? },
    })
}

/// What is named, by resource.
pub(super) fn changed_controls(options: &ControlOptions) -> Value {
    let changed = |reservation: Option<u64>, limit: Option<crate::parse::Limit>, shares: Option<u32>| {
        let mut changes = Map::new();
        changes.extend(reservation.map(|amount| ("reservation".into(), json!(amount))));
        changes.extend(limit.map(|limit| ("limit".into(), json!(limit.0))));
        changes.extend(shares.map(|shares| ("shares".into(), json!(shares))));
        changes
    };
    let reserved = options.memory_reservation.map(|bytes| bytes.0);
    let resources = [
        ("cpu", changed(options.cpu_reservation, options.cpu_limit, options.cpu_shares)),
        ("memory", changed(reserved, options.memory_limit, options.memory_shares)),
    ];
    let named = resources.into_iter().filter(|(_, changes)| !changes.is_empty());
    Value::Object(named.map(|(resource, changes)| (resource.into(), changes.into())).collect())
}

/// What a VM's settings are, in words.
pub(super) fn of_vm(settings: &VmSettings) -> Vec<(&'static str, String)> {
    let pool = settings.pool.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    let mut rows = vec![("automation", automation(settings.automation).into()), ("pool", pool)];
    rows.extend(controls(&settings.controls));
    rows
}

/// What a host's settings are, in words.
pub(super) fn of_host(settings: &HostSettings) -> Vec<(&'static str, String)> {
    let HostSettings { labels, domain, driver, power, network_bits_per_s, storage_ops_per_s } = settings;
    let labels: Vec<_> = labels.iter().map(|label| label.as_str()).collect();
    let mut rows = Vec::new();
    rows.extend((!labels.is_empty()).then(|| ("labels", labels.join(", "))));
    rows.extend(domain.iter().map(|domain| ("domain", domain.to_string())));
    rows.extend(network_bits_per_s.map(|bits| ("network speed", format!("{} Mbit/s", bits / 1_000_000))));
    let disks = storage_ops_per_s.map_or_else(
        || "not known, and not weighed: see godwit host set --storage-iops".to_owned(),
        |operations| format!("up to {operations} operations/s"),
    );
    rows.push(("storage I/O", disks));
    let switched = match driver {
        PowerDriver::None => "by people alone".to_owned(),
        PowerDriver::Ipmi { address, user, password } => {
            format!("by IPMI at {address} as {user}, password in power/{password}")
        }
        PowerDriver::Redfish { address, port, user, password, system, fingerprint, force_off } => {
            let system = system.as_ref().map_or_else(String::new, |system| format!(", system {system}"));
            let trusted = if fingerprint.is_some() { "pinned certificate" } else { "trusted certificate" };
            let cut = if *force_off { ", switched off as if its power were cut" } else { "" };
            format!(
                "by Redfish at {address}:{port} as {user}, password in power/{password}{system}, {trusted}{cut}"
            )
        }
        PowerDriver::WakeOnLan { mac, to } => format!("woken by a packet for {mac} to {to}"),
        PowerDriver::Simulated { program } => format!("by the program power/{program}"),
    };
    rows.push(("switched", switched));
    if *driver != PowerDriver::None {
        let watts: Vec<_> = power.watts.iter().map(ToString::to_string).collect();
        let (wake, standby) = (Duration { ms: power.wake_ms }, power.standby_watts);
        rows.push(("draws", format!("{} W, {standby} W switched off, awake in {wake}", watts.join(", "))));
    }
    rows
}

/// What is laid down for each resource for which anything is.
pub(super) fn controls(controls: &PerResource<Controls>) -> Vec<(&'static str, String)> {
    let names = ["cpu controls", "memory controls", "network controls", "storage controls"];
    let rows = names.into_iter().zip(Resource::ALL);
    rows.filter(|(_, resource)| controls[*resource] != Controls::default())
        .map(|(name, resource)| (name, control(resource, &controls[resource])))
        .collect()
}

/// Reservation, limit and shares of a resource.
pub(super) fn control(resource: Resource, controls: &Controls) -> String {
    let Controls { reservation, limit, shares } = *controls;
    let limit = limit.map_or_else(String::new, |limit| format!(", at most {}", resource.show(limit)));
    format!("{} reserved{limit}, {shares} shares", resource.show(reservation))
}

pub(super) const fn automation(automation: Automation) -> &'static str {
    match automation {
        Automation::Inherit => "as the cluster's policy says",
        Automation::Manual => "manual",
        Automation::Partial => "partial",
        Automation::Full => "full",
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, HostVerb, Verb, VmVerb};

    fn asked(line: &str) -> Value {
        match Cli::parse_from(line.split_whitespace()).verb {
            Verb::Vm(VmVerb::Set(options)) => vm_changes(&options),
            Verb::Host(HostVerb::Set(options)) => host_changes(&options),
            _ => panic!("{line} is another verb"),
        }
    }

    #[test]
    fn only_what_is_named_of_a_vm_is_changed() {
        assert_eq!(asked("godwit vm set v"), json!({"controls": {}}));
        assert_eq!(
            asked("godwit vm set v --no-pool --automation full --memory-reservation 1GiB"),
            json!({"pool": null, "automation": "full", "controls": {"memory": {"reservation": 1 << 30}}})
        );
    }

    #[test]
    fn only_what_is_named_of_a_host_is_changed() {
        assert_eq!(asked("godwit host set h"), json!({}));
        assert_eq!(
            asked("godwit host set h --no-labels --domain r1 --watts 90,180 --wake-time 2m"),
            json!({"labels": [], "domain": "r1", "power": {"watts": [90, 180], "wake_ms": 120_000}})
        );
        assert_eq!(
            asked("godwit host set h --power-driver wake-on-lan --wake-mac 52:54:00:00:00:01"),
            json!({"driver": {"kind": "wake_on_lan", "mac": "52:54:00:00:00:01", "to": "255.255.255.255:9"}})
        );
        assert_eq!(
            asked(
                "godwit host set h --power-driver redfish --redfish-address bmc --redfish-user u --redfish-password p"
            ),
            json!({"driver": {"kind": "redfish", "address": "bmc", "port": 443, "user": "u", "password": "p", "force_off": false}})
        );
        assert_eq!(asked("godwit host set h --power-driver none"), json!({"driver": {"kind": "none"}}));
        assert_eq!(
            asked("godwit host set h --storage-iops 50000 --network none"),
            json!({"storage_ops_per_s": 50_000, "network_bits_per_s": null})
        );
    }
}
