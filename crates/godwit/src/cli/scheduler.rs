//! The verbs of `scheduler` and of `host maintenance`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use godwit_scheduler::planner::Goal;
use godwit_scheduler::what_if::Change;
use godwit_types::{HostName, Name, VmName};

#[derive(Debug, Subcommand)]
pub(crate) enum MaintenanceVerb {
    /// Move all VMs away from a host, and keep it empty. Ctrl-C cancels; VMs that have left then stay where they are.
    ///
    /// From the first moment on no VM is started on it or moved to it. The scheduler chooses where each VM goes, whatever the
    /// automation. A VM that cannot leave is named with the reason, and the command waits until it can.
    #[command(after_help = "\
Examples:
  godwit host maintenance enter host-a
  godwit host maintenance enter host-a --dry-run
  godwit host maintenance enter host-a --move-disks
  godwit host maintenance enter host-a --no-wait --json | jq .id")]
    Enter {
        host: HostName,
        /// Only say where its VMs would go, and which could not. Ends with exit code 1 if one could not.
        #[arg(long)]
        dry_run: bool,
        /// Let VMs take disks along that other hosts do not reach; else they stay, and are named.
        #[arg(long)]
        move_disks: bool,
        /// Begin, print the task and return.
        #[arg(long, conflicts_with = "dry_run")]
        no_wait: bool,
    },
    /// Let a host take VMs again, be it empty or not yet. Moves that are under way go on.
    #[command(after_help = "Example:\n  godwit host maintenance exit host-a")]
    Exit { host: HostName },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SchedulerVerb {
    /// Show what the scheduler may do by itself, how the cluster is, and what it leaves alone.
    #[command(after_help = "Example:\n  godwit scheduler status --json")]
    Status,
    /// Have the scheduler look at the cluster now, and record what it decides.
    ///
    /// Where automation is full, steps up to the policy's threshold are done at once; the others wait to be applied. What
    /// empties another host than one in maintenance, or makes room for a VM, always waits.
    #[command(after_help = "\
Examples:
  godwit scheduler run
  godwit scheduler run --dry-run --json | jq .plan.steps
  godwit scheduler run --goal evacuate:host-a,host-b --dry-run
  godwit scheduler run --goal make-room:big1")]
    Run {
        /// `balance`, `evacuate:HOST,..` or `make-room:VM`.
        #[arg(long, default_value = "balance", value_name = "GOAL", value_parser = goal)]
        goal: Goal,
        /// Only say what it would do: nothing is recorded, recommended or done.
        #[arg(long)]
        dry_run: bool,
    },
    /// List the steps that wait to be applied or rejected.
    #[command(after_help = "\
Examples:
  godwit scheduler recommendations
  godwit scheduler recommendations --json | jq '.[].id'")]
    Recommendations,
    /// Do what a decision recommends: the steps named, with those that they wait for, or all.
    #[command(after_help = "\
Examples:
  godwit scheduler apply 12
  godwit scheduler apply 12 0 3")]
    Apply {
        decision: u64,
        /// Steps by their numbers, as `godwit scheduler show` lists them [default: all that are recommended].
        #[arg(value_name = "STEP")]
        steps: Vec<usize>,
    },
    /// Do not do what a decision recommends. Its VMs are then left alone for the policy's cool-down.
    #[command(after_help = "Example:\n  godwit scheduler reject 12 3")]
    Reject {
        decision: u64,
        /// Steps by their numbers [default: all that are recommended].
        #[arg(value_name = "STEP")]
        steps: Vec<usize>,
    },
    /// List the last decisions, newest first.
    #[command(after_help = "Example:\n  godwit scheduler decisions --limit 100 --json | jq '.[].cause'")]
    Decisions {
        #[arg(long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
        limit: u32,
    },
    /// Show a decision: what it was made for, its steps with their reasons, and what became of them.
    ///
    /// With --json also the cluster as it was known then, the policy and the seed: all that the plan follows from.
    #[command(after_help = "Example:\n  godwit scheduler show 12 --json | jq .decision.snapshot")]
    Show { decision: u64 },
    /// Make a decision again from what was known then, and compare. Nothing is done.
    ///
    /// Without options the same plan must come out, to the bit, unless the engine has changed. Ends with exit code 1 if the
    /// plan is another.
    #[command(after_help = "\
Examples:
  godwit scheduler replay 12
  godwit scheduler replay 12 --policy stricter.json
  godwit scheduler replay 12 --as-of 2026-11-24T12:00:00Z")]
    Replay {
        decision: u64,
        /// Under the policy in this JSON file; what it does not name is as by default.
        #[arg(long, value_name = "FILE", conflicts_with = "as_of")]
        policy: Option<PathBuf>,
        /// Under the policy that was in force at this time.
        #[arg(long, value_name = "TIME", value_parser = unix_ms)]
        as_of: Option<u64>,
    },
    /// Explain why a VM is where it is: what it wants, is entitled to and receives, and what speaks against each host.
    #[command(after_help = "Example:\n  godwit scheduler explain web1")]
    Explain { vm: VmName },
    /// Say what would be if something were otherwise: how the cluster would be, and what the scheduler would do. Nothing is done.
    ///
    /// VMs that would have no host are placed; if none has to be, the cluster is balanced.
    #[command(after_help = "\
Examples:
  godwit scheduler what-if --lose-host host-a
  godwit scheduler what-if --add-host host-b=2 --demand 150%
  godwit scheduler what-if --add-vm web1=20 --json | jq .plan.unmoved
  godwit scheduler what-if --maintenance host-a --policy stricter.json")]
    WhatIf(WhatIf),
}

#[derive(Debug, Args)]
pub(crate) struct WhatIf {
    /// Hosts more that are like this one, 1 if no number is given. May be repeated.
    #[arg(long = "add-host", value_name = "LIKE[=COUNT]", value_parser = several)]
    pub add_hosts: Vec<(Name, u32)>,
    /// A host less. May be repeated.
    #[arg(long = "lose-host", value_name = "HOST")]
    pub lose_hosts: Vec<HostName>,
    /// A host that is to be emptied. May be repeated.
    #[arg(long, value_name = "HOST")]
    pub maintenance: Vec<HostName>,
    /// VMs more that are like this one, which runs. May be repeated.
    #[arg(long = "add-vm", value_name = "LIKE[=COUNT]", value_parser = several)]
    pub add_vms: Vec<(Name, u32)>,
    /// What all VMs want, in per cent of what they want now.
    #[arg(long, value_name = "PERCENT", value_parser = permille)]
    pub demand: Option<u32>,
    /// Under the policy in this JSON file; what it does not name is as by default.
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

impl WhatIf {
    /// Demand comes last, so that it is also that of VMs which are added.
    pub(crate) fn changes(&self) -> Vec<Change> {
        let hosts =
            self.add_hosts.iter().map(|(like, count)| Change::AddHosts { like: like.clone(), count: *count });
        let lost = self.lose_hosts.iter().map(|host| Change::LoseHost { host: host.clone() });
        let emptied = self.maintenance.iter().map(|host| Change::Maintenance { host: host.clone() });
        let vms =
            self.add_vms.iter().map(|(like, count)| Change::AddVms { like: like.clone(), count: *count });
        let demand = self.demand.map(|permille| Change::ScaleDemand { permille, vms: BTreeSet::new() });
        hosts.chain(lost).chain(emptied).chain(vms).chain(demand).collect()
    }
}

fn several(text: &str) -> Result<(Name, u32), String> {
    let (like, count) = text.split_once('=').unwrap_or((text, "1"));
    let like = like.parse().map_err(|error: godwit_types::ids::InvalidName| error.to_string())?;
    let count = count.parse().map_err(|_| format!("'{count}' is no number of them"))?;
    Ok((like, count))
}

fn permille(text: &str) -> Result<u32, String> {
    let percent = text.strip_suffix('%').unwrap_or(text).parse::<u32>().ok();
    percent
        .and_then(|percent| percent.checked_mul(10))
        .ok_or_else(|| format!("'{text}' is no part: write it as 150%"))
}

fn goal(text: &str) -> Result<Goal, String> {
    let name = |text: &str| text.parse::<HostName>().map_err(|error| error.to_string());
    match text.split_once(':') {
        None if text == "balance" => Ok(Goal::Balance),
        Some(("evacuate", hosts)) => {
            Ok(Goal::Evacuate { hosts: hosts.split(',').map(name).collect::<Result<_, _>>()? })
        }
        Some(("make-room", vm)) => Ok(Goal::MakeRoom { vm: name(vm)? }),
        _ => Err(format!("'{text}' is no goal: write balance, evacuate:HOST,.. or make-room:VM")),
    }
}

/// A time as people write it, in milliseconds since 1970.
fn unix_ms(text: &str) -> Result<u64, String> {
    let time: jiff::Timestamp =
        text.parse().map_err(|_| format!("'{text}' is no time: write it as 2026-11-24T12:00:00Z"))?;
    u64::try_from(time.as_millisecond()).map_err(|_| format!("'{text}' is before 1970"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_read_as_they_are_written() {
        assert_eq!(goal("balance"), Ok(Goal::Balance));
        let hosts = vec!["a".parse().unwrap(), "b".parse().unwrap()];
        assert_eq!(goal("evacuate:a,b"), Ok(Goal::Evacuate { hosts }));
        assert_eq!(goal("make-room:web1"), Ok(Goal::MakeRoom { vm: "web1".parse().unwrap() }));
        for bad in ["", "place", "evacuate", "evacuate:", "evacuate:a,,b", "make-room:a/b"] {
            assert!(goal(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn what_would_be_otherwise_is_read_with_its_number() {
        assert_eq!(several("web1=20"), Ok(("web1".parse().unwrap(), 20)));
        assert_eq!(several("web1"), Ok(("web1".parse().unwrap(), 1)));
        assert!(several("web1=many").is_err() && several("=3").is_err());
        assert_eq!([permille("150%"), permille("50")], [Ok(1500), Ok(500)]);
        assert!(permille("much").is_err());
    }

    #[test]
    fn a_time_is_read_with_its_zone() {
        assert_eq!(unix_ms("1970-01-01T00:00:01Z"), Ok(1000));
        assert!(unix_ms("noon").is_err() && unix_ms("1969-12-31T23:59:59Z").is_err());
    }
}
