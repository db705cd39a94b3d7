//! The verbs and options by which people lay down rules, pools, the policy and settings.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use godwit_scheduler::policy::Automation;
use godwit_types::power::Fingerprint;
use godwit_types::vm::MacAddress;
use godwit_types::{Bytes, HostName, Name, VmName};

use crate::parse::{
    Duration, HostOption, Limit, Switch, WattsOption, automation, bits_limit, bytes_limit, count_limit, mhz,
    mhz_limit,
};

#[derive(Debug, Subcommand)]
pub(crate) enum RuleVerb {
    /// Lay down where VMs may run. A rule is never broken, unless it says --should: then it is kept if that does not cost much.
    #[command(after_help = "\
Examples:
  godwit rule add databases --apart db1,db2,db3
  godwit rule add shop --together web1,cache1 --should
  godwit rule add two-at-most --max-per-host 2 --vms web1,web2,web3,web4
  godwit rule add over-racks --spread 3 --vms db1,db2,db3
  godwit rule add licence --run-on host-a,label:licensed --vms db1,db2
  godwit rule add not-there --not-on host-c --vms web1 --should")]
    Add(Box<RuleAdd>),
    /// List the rules.
    #[command(after_help = "Example:\n  godwit rule ls")]
    Ls,
    /// Show one rule.
    #[command(after_help = "Example:\n  godwit rule show databases --json")]
    Show { rule: Name },
    /// Remove a rule. No VM moves because of that alone.
    #[command(after_help = "Example:\n  godwit rule rm databases")]
    Rm { rule: Name },
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("kind").required(true)))]
pub(crate) struct RuleAdd {
    pub name: Name,
    /// No two of these VMs on one host.
    #[arg(long, value_name = "VM,VM..", value_delimiter = ',', group = "kind", conflicts_with = "vms")]
    pub apart: Vec<VmName>,
    /// All of these VMs on one host.
    #[arg(long, value_name = "VM,VM..", value_delimiter = ',', group = "kind", conflicts_with = "vms")]
    pub together: Vec<VmName>,
    /// At most so many of the VMs on one host.
    #[arg(long, value_name = "COUNT", group = "kind", requires = "vms")]
    pub max_per_host: Option<u32>,
    /// The VMs over at least so many failure domains, as evenly as can be: see `godwit host set --domain`.
    #[arg(long, value_name = "DOMAINS", group = "kind", requires = "vms")]
    pub spread: Option<u32>,
    /// The VMs on these hosts alone, each named, or `label:NAME` for all that have a label: see `godwit host set --label`.
    #[arg(long, value_name = "HOST,..", value_delimiter = ',', group = "kind", requires = "vms")]
    pub run_on: Vec<HostOption>,
    /// The VMs not on these hosts.
    #[arg(long, value_name = "HOST,..", value_delimiter = ',', group = "kind", requires = "vms")]
    pub not_on: Vec<HostOption>,
    /// The VMs that the rule is about.
    #[arg(long, value_name = "VM,..", value_delimiter = ',')]
    pub vms: Vec<VmName>,
    /// Keep to it where that does not cost much, and break it where it does.
    #[arg(long)]
    pub should: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolVerb {
    /// Make a resource pool, or change one. What is not named stays; a new pool is expandable and reserves nothing.
    ///
    /// Refused if a reservation could not be honoured any more.
    #[command(after_help = "\
Examples:
  godwit pool set production --cpu-shares 4000 --memory-reservation 64GiB
  godwit pool set databases --parent production --cpu-reservation 8GHz --memory-limit 96GiB --not-expandable
  godwit pool set databases --memory-limit none
  godwit pool set databases --no-parent --scalable-shares
  godwit vm set db1 --pool databases")]
    Set(Box<PoolSet>),
    /// List the pools, each below the one that it is in.
    #[command(after_help = "Example:\n  godwit pool ls")]
    Ls,
    /// Show one pool, and what is in it.
    #[command(after_help = "Example:\n  godwit pool show databases --json | jq .members")]
    Show { pool: Name },
    /// Remove a pool that nothing is in.
    #[command(after_help = "Example:\n  godwit pool rm databases")]
    Rm { pool: Name },
}

#[derive(Debug, Args)]
pub(crate) struct PoolSet {
    pub name: Name,
    /// The pool that it is in.
    #[arg(long, value_name = "POOL", conflicts_with = "no_parent")]
    pub parent: Option<Name>,
    /// Directly below the cluster.
    #[arg(long)]
    pub no_parent: bool,
    #[command(flatten)]
    pub controls: ControlOptions,
    /// What is in it may reserve more than the pool does, from the pool above.
    #[arg(long, conflicts_with = "not_expandable")]
    pub expandable: bool,
    /// What is in it reserves no more than the pool does.
    #[arg(long)]
    pub not_expandable: bool,
    /// Its shares count once for each VM in it, so that more VMs do not mean less for each.
    #[arg(long, conflicts_with = "no_scalable_shares")]
    pub scalable_shares: bool,
    /// Its shares are the pool's, however many VMs are in it.
    #[arg(long)]
    pub no_scalable_shares: bool,
}

/// How much a pool or a VM is to have.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ControlOptions {
    /// CPU that it has in any case, such as 500MHz or 2GHz.
    #[arg(long, value_name = "MHZ", value_parser = mhz)]
    pub cpu_reservation: Option<u64>,
    /// The most CPU that it gets; or `none`.
    #[arg(long, value_name = "MHZ", value_parser = mhz_limit)]
    pub cpu_limit: Option<Limit>,
    /// Its weight for CPU against its neighbours in the same pool, 1000 at first.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub cpu_shares: Option<u32>,
    /// Memory that it has in any case, such as 4GiB.
    #[arg(long, value_name = "SIZE")]
    pub memory_reservation: Option<Bytes>,
    /// The most memory that it gets; or `none`.
    #[arg(long, value_name = "SIZE", value_parser = bytes_limit)]
    pub memory_limit: Option<Limit>,
    /// Its weight for memory against its neighbours in the same pool, 1000 at first.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub memory_shares: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct VmSet {
    pub vm: VmName,
    /// The pool that it is in.
    #[arg(long, conflicts_with = "no_pool")]
    pub pool: Option<Name>,
    /// In no pool, directly below the cluster.
    #[arg(long)]
    pub no_pool: bool,
    /// What the scheduler may do with it by itself: `manual` (recommend), `partial` (choose where it starts), `full` (move it, too), or
    /// `inherit` from the cluster's policy.
    #[arg(long, value_name = "HOW", value_parser = automation)]
    pub automation: Option<Automation>,
    #[command(flatten)]
    pub controls: ControlOptions,
}

#[derive(Debug, Args)]
pub(crate) struct HostSet {
    pub host: HostName,
    /// A name that rules may give to several hosts. May be repeated; all of them replace those that it had.
    #[arg(long = "label", value_name = "LABEL", conflicts_with = "no_labels")]
    pub labels: Vec<Name>,
    #[arg(long)]
    pub no_labels: bool,
    /// With which other hosts it would be lost at once: a rack, a power feed.
    #[arg(long, conflicts_with = "no_domain")]
    pub domain: Option<Name>,
    #[arg(long)]
    pub no_domain: bool,
    /// What switches it off and on.
    #[arg(long, value_enum, value_name = "DRIVER")]
    pub power_driver: Option<DriverName>,
    /// With ipmi: the name or address of its management controller.
    #[arg(long, value_name = "ADDRESS", required_if_eq("power_driver", "ipmi"), requires = "power_driver")]
    pub ipmi_address: Option<String>,
    /// With ipmi: the user there.
    #[arg(long, value_name = "USER", required_if_eq("power_driver", "ipmi"), requires = "power_driver")]
    pub ipmi_user: Option<String>,
    /// With ipmi: the file with the password, in `power/` in the manager's state. Only its owner may read it.
    #[arg(long, value_name = "FILE", required_if_eq("power_driver", "ipmi"), requires = "power_driver")]
    pub ipmi_password: Option<Name>,
    #[command(flatten)]
    pub redfish: RedfishOptions,
    /// With wake-on-lan: the address of the network card that wakes it.
    #[arg(
        long,
        value_name = "MAC",
        required_if_eq("power_driver", "wake-on-lan"),
        requires = "power_driver"
    )]
    pub wake_mac: Option<MacAddress>,
    /// With wake-on-lan: where the magic packet goes [default: 255.255.255.255:9, the manager's own network].
    #[arg(long, value_name = "ADDRESS:PORT", requires = "power_driver")]
    pub wake_to: Option<SocketAddr>,
    /// With simulated: the program, in `power/` in the manager's state, that is called with `wake`, `standby` or `state`, and the host.
    #[arg(long, value_name = "FILE", required_if_eq("power_driver", "simulated"), requires = "power_driver")]
    pub power_program: Option<Name>,
    /// What it draws, evenly from idle to fully used.
    #[arg(long, value_name = "IDLE,..,FULL")]
    pub watts: Option<WattsOption>,
    /// What it draws while it is switched off.
    #[arg(long, value_name = "WATTS")]
    pub standby_watts: Option<u32>,
    /// Reads and writes per second that its disks can do; or `none`, and they are not weighed.
    #[arg(long, value_name = "COUNT", value_parser = count_limit)]
    pub storage_iops: Option<Limit>,
    /// How fast its network is, such as 10Gbit, where its interface does not say it or says it wrong; or `none`.
    #[arg(long, value_name = "SPEED", value_parser = bits_limit)]
    pub network: Option<Limit>,
    /// How long it takes to be there once it was woken.
    #[arg(long, value_name = "DURATION")]
    pub wake_time: Option<Duration>,
}

/// What the power driver redfish is given.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RedfishOptions {
    /// With redfish: the name or address of its management controller.
    #[arg(
        long,
        value_name = "ADDRESS",
        required_if_eq("power_driver", "redfish"),
        requires = "power_driver"
    )]
    pub redfish_address: Option<String>,
    /// With redfish: the port there [default: 443].
    #[arg(long, value_name = "PORT", requires = "power_driver")]
    pub redfish_port: Option<u16>,
    /// With redfish: the user there.
    #[arg(long, value_name = "USER", required_if_eq("power_driver", "redfish"), requires = "power_driver")]
    pub redfish_user: Option<String>,
    /// With redfish: the file with the password, in `power/` in the manager's state. Only its owner may read it.
    #[arg(long, value_name = "FILE", required_if_eq("power_driver", "redfish"), requires = "power_driver")]
    pub redfish_password: Option<Name>,
    /// With redfish: the id of the computer, if the controller has several.
    #[arg(long, value_name = "ID", requires = "power_driver")]
    pub redfish_system: Option<String>,
    /// With redfish: the SHA-256 fingerprint of the controller's certificate. Without, the manager's machine must trust whoever has
    /// signed that.
    #[arg(long, value_name = "SHA256", requires = "power_driver")]
    pub redfish_fingerprint: Option<Fingerprint>,
    /// With redfish: switch it off as if its power were cut, without asking its software.
    #[arg(long, requires = "power_driver")]
    pub redfish_force_off: bool,
}

/// A power driver without what it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DriverName {
    None,
    Ipmi,
    Redfish,
    WakeOnLan,
    Simulated,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CpuBaselineVerb {
    /// Show the baseline, and what hosts lack of it.
    #[command(after_help = "Example:\n  godwit cpu-baseline show --json | jq .hosts")]
    Show,
    /// Choose it. It is that of VMs which are defined from now on without a CPU of their own (`godwit vm create --cpu`).
    #[command(after_help = "\
Examples:
  godwit cpu-baseline set hosts
  godwit cpu-baseline set hosts --of host-a,host-b
  godwit cpu-baseline set x86-64-v2")]
    Set {
        /// What hosts have in common now, or x86-64-v2.
        #[arg(value_enum)]
        what: CpuBaselineWord,
        /// With hosts: of these alone, and not of all.
        #[arg(long, value_name = "HOST,..", value_delimiter = ',')]
        of: Vec<HostName>,
    },
    /// Let new VMs see all that the host offers on which they start.
    #[command(after_help = "Example:\n  godwit cpu-baseline clear")]
    Clear,
}

/// What a baseline is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CpuBaselineWord {
    Hosts,
    #[value(name = "x86-64-v2")]
    X86_64V2,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyVerb {
    /// Show what the scheduler may do by itself, and within which bounds.
    #[command(after_help = "\
Examples:
  godwit policy show
  godwit policy show --json > policy.json")]
    Show,
    /// Change the policy: to what a file says, or what is named, or both. What neither names stays, but a file is a whole policy.
    #[command(after_help = "\
Examples:
  godwit policy set --automation full --threshold 3
  godwit policy set --power on --power-target 60 --power-band 20
  godwit policy set policy.json
  godwit policy show --json > policy.json")]
    Set(Box<PolicySet>),
}

#[derive(Debug, Default, Args)]
pub(crate) struct PolicySet {
    /// A policy as JSON; what it does not name is as it is at first.
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// What the scheduler does by itself: `manual` (recommend), `partial` (choose where VMs start), or `full` (move them, too).
    #[arg(long, value_name = "HOW", value_parser = automation)]
    pub automation: Option<Automation>,
    /// What is worth a step: from 1, only what must be, to 5, whatever helps.
    #[arg(long, value_name = "1-5")]
    pub threshold: Option<u8>,
    /// A host that was not heard of for longer neither gives nor gets VMs.
    #[arg(long, value_name = "DURATION")]
    pub stale: Option<Duration>,
    /// Most VMs that one plan moves, in thousandths of all.
    #[arg(long, value_name = "PERMILLE")]
    pub moved_max: Option<u32>,
    /// A VM that has moved stays for at least so long, twice as long after each further move within a day.
    #[arg(long, value_name = "DURATION")]
    pub cooldown: Option<Duration>,
    /// Hosts whose loss is prepared for.
    #[arg(long, value_name = "HOSTS")]
    pub failures_to_tolerate: Option<u32>,
    /// For how long demand is taken to stay as it is.
    #[arg(long, value_name = "DURATION")]
    pub stable: Option<Duration>,
    /// Proposals of the search for each VM; more find more.
    #[arg(long, value_name = "COUNT")]
    pub proposals: Option<u32>,
    /// Whether VMs that are moved take disks along that other hosts do not reach.
    #[arg(long, value_enum, value_name = "ON|OFF")]
    pub move_disks: Option<Switch>,
    /// Whether hosts that are not needed are switched off.
    #[arg(long, value_enum, value_name = "ON|OFF")]
    pub power: Option<Switch>,
    /// Hosts are to be used for so much of what they have.
    #[arg(long, value_name = "PERCENT")]
    pub power_target: Option<u32>,
    /// Give or take so much.
    #[arg(long, value_name = "PERCENT")]
    pub power_band: Option<u32>,
    /// Hosts that always stay on.
    #[arg(long, value_name = "HOSTS")]
    pub power_hosts_on: Option<u32>,
    /// A host stays on for at least so long after it was woken.
    #[arg(long, value_name = "DURATION")]
    pub power_uptime: Option<Duration>,
    /// Power saved must be worth so many times what it costs.
    #[arg(long, value_name = "FACTOR")]
    pub power_benefit: Option<u32>,
}

#[cfg(test)]
#[path = "rulebook_tests.rs"]
mod tests;
