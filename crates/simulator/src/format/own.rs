//! The trace's own format: JSON, one document a line.
//!
//! ```text
//!   {"trace":1,"interval_s":300}                                            first
//!   {"host":"h1","cpu_mhz":166400,"memory":549755813888}                    see HostRecord for the rest
//!   {"vm":"web","vcpus":2,"memory":4294967296,"cpu_mhz":[800,950,700]}      see VmRecord for the rest
//!   {"rule":{"name":"apart","must":true,"kind":{"kind":"apart","vms":["web","web2"]}}}
//!   {"pool":{...}}
//! ```
//!
//! Amounts are whole numbers in the units that their names say, memory in bytes.

use std::collections::BTreeSet;

use godwit_scheduler::entitlement::Pool;
use godwit_scheduler::rules::Rule;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{FormatError, lines};
use crate::trace::Trace;

/// The format's version.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    trace: u32,
    interval_s: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct RuleLine {
    rule: Rule,
}

#[derive(Debug, Serialize, Deserialize)]
struct PoolLine {
    pool: Pool,
}

/// Reads a trace, or hosts alone.
pub fn read(text: &str) -> Result<Trace, FormatError> {
    let mut trace = Trace::default();
    let mut names = BTreeSet::new();
    for (index, line) in lines(text) {
        let value: Value = serde_json::from_str(line)
            .map_err(|error| FormatError::at(index, format!("not JSON: {error}")))?;
        let has = |key: &str| value.get(key).is_some();
        let mut twice = |kind: &str, name: &str| match names.insert(format!("{kind} '{name}'")) {
            true => Ok(()),
            false => Err(FormatError::at(index, format!("{kind} '{name}' is there twice"))),
        };
        if has("trace") {
            let head: Head = document(index, value)?;
            if head.trace != VERSION || head.interval_s == 0 {
                let what = format!("expected a trace of version {VERSION} with an interval of at least 1 s");
                return Err(FormatError::at(index, what));
            }
            trace.interval_ms = u64::from(head.interval_s) * 1000;
        } else if has("vm") {
            trace.vms.push(document(index, value)?);
            trace.vms.last().map_or(Ok(()), |vm| twice("VM", vm.name.as_str()))?;
        } else if has("rule") {
            trace.rules.push(document::<RuleLine>(index, value)?.rule);
        } else if has("pool") {
            trace.pools.push(document::<PoolLine>(index, value)?.pool);
        } else if has("host") {
            trace.hosts.push(document(index, value)?);
            trace.hosts.last().map_or(Ok(()), |host| twice("host", host.name.as_str()))?;
        } else {
            let what = "neither a \"trace\", a \"host\", a \"vm\", a \"rule\" nor a \"pool\"";
            return Err(FormatError::at(index, what));
        }
    }
    if trace.interval_ms == 0 && !trace.vms.is_empty() {
        return Err(FormatError::at(0, format!("expected {{\"trace\":{VERSION},\"interval_s\":...}}")));
    }
    Ok(trace)
}

fn document<T: DeserializeOwned>(index: usize, value: Value) -> Result<T, FormatError> {
    serde_json::from_value(value).map_err(|error| FormatError::at(index, error.to_string()))
}

/// Writes what [`read`] reads.
pub fn write(trace: &Trace) -> Result<String, serde_json::Error> {
    let interval_s = u32::try_from(trace.interval_ms / 1000).unwrap_or(u32::MAX).max(1);
    let mut lines = vec![serde_json::to_string(&Head { trace: VERSION, interval_s })?];
    for host in &trace.hosts {
        lines.push(serde_json::to_string(host)?);
    }
    for pool in &trace.pools {
        lines.push(serde_json::to_string(&PoolLine { pool: pool.clone() })?);
    }
    for rule in &trace.rules {
        lines.push(serde_json::to_string(&RuleLine { rule: rule.clone() })?);
    }
    for vm in &trace.vms {
        lines.push(serde_json::to_string(vm)?);
    }
    Ok(lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"{"trace":1,"interval_s":300}
{"host":"h1","cpu_mhz":4000,"memory":1024,"watts":[90,130]}
{"rule":{"name":"apart","must":true,"kind":{"kind":"apart","vms":["a","b"]}}}

{"vm":"a","host":"h1","vcpus":2,"memory":512,"cpu_mhz":[800,950]}
{"vm":"b","vcpus":1,"memory":256,"cpu_mhz":[5],"memory_used":[1,2,3]}
"#;

    #[test]
    fn what_is_written_is_read_again() {
        let trace = read(WHOLE).unwrap();
        assert_eq!((trace.hosts.len(), trace.vms.len(), trace.rules.len()), (1, 2, 1));
        assert_eq!((trace.interval_ms, trace.steps()), (300_000, 3));
        assert_eq!(read(&write(&trace).unwrap()).unwrap(), trace);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let wrong = |text: &str| read(text).unwrap_err().to_string();
        assert!(wrong("{\"trace\":2,\"interval_s\":1}").contains("line 1: expected a trace of version 1"));
        assert!(wrong("\n{\"wm\":1}").contains("line 2: neither"));
        assert!(wrong("{").contains("line 1: not JSON"));
        let odd = WHOLE.replace("\"vcpus\":1", "\"vcpus\":1,\"cores\":3");
        assert!(wrong(&odd).contains("line 6: unknown field `cores`"), "{}", wrong(&odd));
        let twice = WHOLE.replace("\"vm\":\"b\"", "\"vm\":\"a\"");
        assert!(wrong(&twice).contains("line 6: VM 'a' is there twice"));
        let headless = WHOLE.lines().skip(1).collect::<Vec<_>>().join("\n");
        assert!(wrong(&headless).contains("interval_s"));
    }
}
