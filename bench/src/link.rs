//! The network between the hosts: what goes over it, and how fast it may.

use std::process::Command;
use std::time::Duration;

use godwit_lab::fabric::MANAGEMENT_INTERFACE;
use godwit_lab::namespace::Namespace;
use godwit_lab::{LabError, exec};
use serde_json::Value;

use crate::engine::Bed;
use crate::error::{BenchError, Result};

const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// What may be sent at once, and how long a packet may wait. More than a timer tick's worth at 10 Gbit/s.
const BURST: &str = "4mb";
const LATENCY: &str = "20ms";

/// Bytes that the source has sent so far, headers and all: the same measure for every engine.
pub(crate) fn sent_bytes(bed: &Bed) -> Result<u64> {
    let namespace = bed.fabric.host_namespace(&bed.source)?;
    let mut command = Command::new("ip");
    command.args(["-n", namespace.name(), "-s", "-json", "link", "show", "dev", MANAGEMENT_INTERFACE]);
    let text = exec::run(&mut command, COMMAND_LIMIT)?;
    parse_sent(&text).ok_or(BenchError::NoReport("count of bytes on the host's interface"))
}

/// A cap on what each host sends. Lifted when dropped.
pub(crate) struct Cap<'a> {
    bed: &'a Bed,
}

impl<'a> Cap<'a> {
    /// No cap if there is no rate.
    pub(crate) fn set(bed: &'a Bed, bits_per_s: Option<u64>) -> Result<Option<Self>> {
        let Some(rate) = bits_per_s else { return Ok(None) };
        let cap = Self { bed };
        let rate = format!("{rate}bit");
        for namespace in cap.namespaces()? {
            tc(
                namespace,
                &["replace", "dev", MANAGEMENT_INTERFACE, "root", "tbf"],
                &["rate", &rate, "burst", BURST, "latency", LATENCY],
            )?;
        }
        Ok(Some(cap))
    }

    fn namespaces(&self) -> Result<[&'a Namespace; 2], LabError> {
        let namespace = |host| self.bed.fabric.host_namespace(host);
        Ok([namespace(&self.bed.source)?, namespace(&self.bed.destination)?])
    }
}

impl Drop for Cap<'_> {
    fn drop(&mut self) {
        for namespace in self.namespaces().into_iter().flatten() {
            if let Err(error) = tc(namespace, &["del", "dev", MANAGEMENT_INTERFACE, "root"], &[]) {
                eprintln!("warning: the cap on the link stays: {error}");
            }
        }
    }
}

fn tc(namespace: &Namespace, what: &[&str], how: &[&str]) -> Result<()> {
    let mut command = namespace.command("tc");
    command.arg("qdisc").args(what).args(how);
    Ok(exec::run(&mut command, COMMAND_LIMIT).map(drop)?)
}

fn parse_sent(text: &str) -> Option<u64> {
    let links: Value = serde_json::from_str(text).ok()?;
    links.pointer("/0/stats64/tx/bytes")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interfaces_count_is_read() {
        let text = r#"[{"ifname":"mgmt0","stats64":{"rx":{"bytes":1},"tx":{"bytes":4567,"packets":8}}}]"#;
        assert_eq!(parse_sent(text), Some(4567));
        assert_eq!(parse_sent("[]"), None);
        assert_eq!(parse_sent("no such device"), None);
    }
}
