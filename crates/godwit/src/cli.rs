//! The command line: every verb and option, and nothing that acts.

#[cfg(test)]
mod examples;
mod rulebook;
pub(crate) mod scheduler;
pub(crate) mod simulate;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use godwit_api::BaseUrl;
use godwit_types::migration::OnDeadline;
use godwit_types::vm::{CpuProfile, DatastorePath, MachineType};
use godwit_types::{Bytes, HostName, Name, TaskId, VmName};

pub(crate) use rulebook::{
    ControlOptions, CpuBaselineVerb, CpuBaselineWord, DriverName, HostSet, PolicySet, PolicyVerb, PoolSet,
    PoolVerb, RuleAdd, RuleVerb, VmSet,
};

use self::scheduler::{MaintenanceVerb, SchedulerVerb};
use self::simulate::{Export, Simulate};
use crate::parse::{DatastoreOption, DiskOption, Duration, NetworkOption, NicOption, RateOption, UserRange};

/// More migrations at once than a host can be told to take part in: each takes threads and memory of its own.
const MOVES_MAX: i64 = 64;

const EXIT_CODES: &str = "\
Exit codes:
  0  done                        5  refused: a precondition does not hold
  1  tried, and failed           6  the manager or a host cannot be reached
  2  the request is malformed    7  the token is missing or wrong
  3  no such VM, host or task    8  cancelled
  4  exists already, or is busy";

/// Moves running virtual machines between Linux/KVM hosts so that nobody using the guest notices.
#[derive(Debug, Parser)]
#[command(name = "godwit", version, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb that talks to the manager.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The manager's address.
    #[arg(
        long,
        global = true,
        env = "GODWIT_MANAGER",
        default_value = "http://127.0.0.1:7400",
        value_name = "URL"
    )]
    pub manager: BaseUrl,
    /// File with the token that the manager made on its first run.
    #[arg(long, global = true, env = "GODWIT_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Print the API's JSON documents instead of text.
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// The cluster's brain: inventory, tasks, and who may run what.
    #[command(subcommand)]
    Manager(ManagerVerb),
    /// Hosts: run this machine's agent, or look at the hosts of the cluster.
    #[command(subcommand)]
    Host(HostVerb),
    /// Virtual machines.
    #[command(subcommand)]
    Vm(VmVerb),
    /// Where VMs should run: what the scheduler has decided and why, what it recommends, what it would do.
    #[command(subcommand)]
    Scheduler(SchedulerVerb),
    /// Rules: where VMs may run.
    #[command(subcommand)]
    Rule(RuleVerb),
    /// Resource pools: who is to have how much.
    #[command(subcommand)]
    Pool(PoolVerb),
    /// The policy: what the scheduler may do by itself.
    #[command(subcommand)]
    Policy(PolicyVerb),
    /// The CPU that new VMs see: what all hosts have, so that they move between any two of them.
    #[command(subcommand)]
    CpuBaseline(CpuBaselineVerb),
    /// Tasks: what the manager is doing and has done.
    #[command(subcommand)]
    Task(TaskVerb),
    /// What happened in the cluster, in order.
    #[command(after_help = "Examples:\n  godwit events\n  godwit events --follow --json | jq .message")]
    Events {
        /// Keep printing events as they happen, until Ctrl-C.
        #[arg(long, short)]
        follow: bool,
        /// Begin after this sequence number.
        #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
        after: u64,
    },
    /// Run the scheduler over a trace: what it would do, what that costs, and how content VMs would be. Needs no manager.
    Simulate(Box<Simulate>),
    /// Write the cluster as it is as a trace, to be simulated.
    Export(Export),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ManagerVerb {
    /// Run the manager in the foreground until Ctrl-C.
    #[command(
        after_help = "Example:\n  godwit manager run --listen 10.0.0.1:7400 --state /var/lib/godwit/manager"
    )]
    Run {
        #[arg(long, default_value = "127.0.0.1:7400", value_name = "ADDRESS:PORT")]
        listen: SocketAddr,
        /// Directory of the store; made if it is missing.
        #[arg(long, default_value = "/var/lib/godwit/manager", value_name = "DIR")]
        state: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum HostVerb {
    /// Run this machine's agent in the foreground until Ctrl-C. Its VMs keep running when it ends.
    #[command(after_help = "\
Example:
  godwit host run --name host-a --manager http://10.0.0.1:7400 --token-file /etc/godwit/token \\
      --advertise 10.0.0.2:7401 --network guests=br0,uplink=eth1 --datastore shared=/mnt/vms")]
    Run(Box<HostRun>),
    /// List the hosts.
    #[command(after_help = "\
Examples:
  godwit host ls
  godwit host ls --json | jq -r '.[] | select(.vms == 0) | .name'")]
    Ls,
    /// Show one host: its facts, networks, datastores and settings.
    #[command(after_help = "\
Examples:
  godwit host show host-a
  godwit host show host-a --json | jq .facts")]
    Show { host: HostName },
    /// Empty a host to patch it, and let it take VMs again.
    #[command(subcommand)]
    Maintenance(MaintenanceVerb),
    /// Change a host's settings: what is not named stays.
    #[command(after_help = "\
Examples:
  godwit host set host-a --label ssd --label licensed --domain rack1
  godwit host set host-a --storage-iops 50000 --network 10Gbit
  godwit host set host-a --power-driver ipmi --ipmi-address 10.0.0.7 --ipmi-user godwit --ipmi-password host-a
  godwit host set host-a --power-driver redfish --redfish-address 10.0.0.7 --redfish-user godwit \\
      --redfish-password host-a --redfish-fingerprint 50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c
  godwit host set host-a --power-driver wake-on-lan --wake-mac 52:54:00:00:00:01 --watts 90,180
  godwit host set host-a --power-driver simulated --power-program lab
  godwit host set host-a --power-driver none --no-labels --no-domain")]
    Set(Box<HostSet>),
    /// Say whether a host is on, by its power driver and not by its reports.
    #[command(after_help = "Example:\n  godwit host power host-a")]
    Power { host: HostName },
    /// Wake a host by its power driver, and wait until its agent reports.
    #[command(
        after_help = "Example:\n  godwit host set host-a --power-driver wake-on-lan --wake-mac 52:54:00:00:00:01\n  godwit host wake host-a"
    )]
    Wake(HostSwitch),
    /// Send a host that is empty to standby by its power driver. It gets no VM until it is woken.
    #[command(after_help = "Example:\n  godwit host maintenance enter host-a\n  godwit host standby host-a")]
    Standby(HostSwitch),
}

/// A host that is to be switched.
#[derive(Debug, Args)]
pub(crate) struct HostSwitch {
    pub host: HostName,
    /// Do not wait until it is done.
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct HostRun {
    /// The host's name in the cluster.
    #[arg(long)]
    pub name: HostName,
    /// Where the agent's API listens.
    #[arg(long, default_value = "0.0.0.0:7401", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Where the manager reaches the agent's API.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub advertise: SocketAddr,
    /// Where incoming migrations listen [default: the advertised address].
    #[arg(long, value_name = "ADDRESS")]
    pub migration_address: Option<IpAddr>,
    /// Directory of the agent's state; made if it is missing.
    #[arg(long, default_value = "/var/lib/godwit/host", value_name = "DIR")]
    pub state: PathBuf,
    /// A guest network and its bridge, which is made if it is missing. May be repeated.
    #[arg(long = "network", value_name = "NAME=BRIDGE[,uplink=INTERFACE]")]
    pub networks: Vec<NetworkOption>,
    /// A datastore and where it is mounted. May be repeated.
    #[arg(long = "datastore", value_name = "NAME=DIR")]
    pub datastores: Vec<DatastoreOption>,
    /// Users that VMs run as, one each; of nobody else. Without effect if the agent is not root.
    #[arg(long, value_name = "FIRST-LAST", default_value = "1900000000-1900004095")]
    pub vm_users: UserRange,
    /// Where VMs' cgroups are made, below the root of the hierarchy of version 2.
    #[arg(long, value_name = "PATH", default_value = "godwit")]
    pub cgroup: PathBuf,
    /// Migrations away from here at a time, and as many to here [default: 2 to 8, by the speed of the migration address's
    /// network and the cores].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=MOVES_MAX))]
    pub max_migrations: Option<u32>,
    /// Most bytes per second that all migrations away from here send, shared evenly among them, and as much for those to here,
    /// such as 500MiB [default: no cap]. One whose guest stands for its switchover is never held back.
    #[arg(long, value_name = "SIZE", value_parser = crate::parse::rate)]
    pub migration_bandwidth: Option<Bytes>,
    /// How long to keep the memory of VMs that have left, so that one that comes back is sent only what has changed;
    /// 0s: not at all.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub keep_memory: Duration,
    /// Keep at most so much of it [default: half of this host's memory]. It is given up, oldest first, when a VM needs it.
    #[arg(long, value_name = "SIZE")]
    pub keep_memory_max: Option<Bytes>,
    /// What switches this host off when it is sent to standby and a magic packet can wake it: a program and its arguments,
    /// without quoting. To suspend it instead: 'systemctl suspend'.
    #[arg(long, value_name = "COMMAND", default_value = "systemctl poweroff")]
    pub standby_command: String,
    /// The godwit-vmm binary [default: beside this one].
    #[arg(long, value_name = "FILE")]
    pub vmm: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmVerb {
    /// Define a VM. It is not started yet.
    #[command(after_help = "\
Example:
  godwit vm create web1 --kernel shared/vmlinuz --initrd shared/initrd.img --cmdline 'console=ttyS0 quiet' \\
      --memory 512MiB --vcpus 2 --disk shared/web1.qcow2,format=qcow2 --nic network=guests")]
    Create(Box<VmCreate>),
    /// Start a VM.
    #[command(after_help = "\
Examples:
  godwit vm start web1
  godwit vm start web1 --host host-a")]
    Start {
        vm: VmName,
        /// The host to start it on [default: the scheduler chooses].
        #[arg(long, alias = "on")]
        host: Option<HostName>,
    },
    /// Stop a VM by its power button.
    #[command(after_help = "\
Examples:
  godwit vm stop web1 --timeout 5m
  godwit vm stop web1 --force")]
    Stop {
        vm: VmName,
        /// End it at once, as if its power were cut.
        #[arg(long)]
        force: bool,
        /// How long the guest may take.
        #[arg(long, default_value = "60s")]
        timeout: Duration,
    },
    /// List the VMs.
    #[command(after_help = "\
Examples:
  godwit vm ls
  godwit vm ls --json | jq -r '.[] | select(.state == \"running\") | .name'")]
    Ls,
    /// Show one VM, and its settings.
    #[command(after_help = "\
Examples:
  godwit vm show web1
  godwit vm show web1 --json | jq .spec.disks")]
    Show { vm: VmName },
    /// Change a VM's settings: what is not named stays. Refused if a reservation could not be honoured any more.
    #[command(after_help = "\
Examples:
  godwit vm set db1 --pool databases
  godwit vm set db1 --automation manual --cpu-reservation 2GHz
  godwit vm set db1 --no-pool --memory-limit none")]
    Set(Box<VmSet>),
    /// Attach to a VM's console: what the guest prints on ttyS0 and hvc0. Ctrl-] detaches.
    ///
    /// What is typed goes to hvc0 once the guest has printed there, else to ttyS0.
    #[command(after_help = "Example:\n  godwit vm console web1")]
    Console { vm: VmName },
    /// Move running VMs to another host. Ctrl-C cancels; a VM that has not moved then stays where it is.
    ///
    /// As many move at once as the hosts take (`godwit host show`); the others wait for their turn, in order. With several VMs,
    /// `--json` prints a list, and the exit code is 0 if all of them have moved.
    ///
    /// It says what it expects, and begins whatever that is: at worst it is cancelled at the deadline, and the VM stays.
    /// `--plan` says it in full and moves nothing; it ends with exit code 0 if the VM can move and is expected to keep
    /// to the budget, and with 1 if not.
    #[command(after_help = "\
Examples:
  godwit vm migrate web1 --to host-b
  godwit vm migrate web1 web2 web3 --to host-b
  godwit vm migrate web1 --to host-b --verify
  godwit vm migrate web1 --to host-b --plan
  godwit vm migrate web1 --to host-b --move-disks
  godwit vm migrate web1 --to host-b --move-disks=fast --deadline 1h
  godwit vm migrate web1 --to host-b --max-blackout 20ms --plan --sample 3s --json | jq .forecast.outlook
  godwit vm migrate web1 --to host-b --max-blackout 50ms --deadline 5m --on-deadline cancel
  godwit vm migrate web1 --to host-b --max-slowdown 40%")]
    Migrate(VmMigrate),
    /// Move a VM's disks to another datastore of its host. The guest goes on, and notices nothing.
    ///
    /// What the disks hold is copied while the guest uses them, or by the host that had the VM last if it does not run; sparse images stay sparse, raw ones raw, and qcow2 ones qcow2.
    /// Each keeps its path, in the other datastore. When both images hold the same, the VM's definition changes, and the old
    /// images are removed once the VM was seen to use the new ones, or at once if it does not run. Ctrl-C cancels before that: the disks stay where they
    /// are, and the new images are removed.
    #[command(after_help = "\
Examples:
  godwit vm move-storage web1 --to fast
  godwit vm move-storage web1 --to fast --disk slow/web1-data.qcow2
  godwit vm move-storage web1 --to archive --max-bandwidth 100MiB --detach
  godwit vm move-storage web1 --to fast --json | jq .state")]
    MoveStorage(VmMoveStorage),
    /// Say whether a running VM could move, and everything that is against it. Moves and reserves nothing.
    ///
    /// Ends with exit code 0 if the host named, or at least one, can take the VM now, and with 1 if not.
    #[command(after_help = "\
Examples:
  godwit vm check-migration web1
  godwit vm check-migration web1 --to host-b
  godwit vm check-migration web1 --json | jq '.hosts[] | select(.verdict != \"blocked\") | .host'")]
    CheckMigration {
        vm: VmName,
        /// Look at this host alone [default: all hosts].
        #[arg(long, value_name = "HOST")]
        to: Option<HostName>,
        /// Look also whether its memory can follow it: see `godwit vm migrate --post-copy`.
        #[arg(long)]
        post_copy: bool,
        /// Look whether disks can move along: see `godwit vm migrate --move-disks`.
        #[arg(long, value_name = "DATASTORE", num_args = 0..=1, require_equals = true)]
        move_disks: Option<Option<Name>>,
        /// Show what was found to be well, too.
        #[arg(long)]
        all: bool,
    },
    /// Remove a stopped VM's definition. Its disks stay.
    #[command(after_help = "Example:\n  godwit vm rm web1")]
    Rm { vm: VmName },
}

#[derive(Debug, Args)]
pub(crate) struct VmCreate {
    pub name: VmName,
    /// A bzImage, or an ELF with a PVH note, in a datastore.
    #[arg(long, value_name = "DATASTORE/PATH")]
    pub kernel: DatastorePath,
    #[arg(long, value_name = "DATASTORE/PATH")]
    pub initrd: Option<DatastorePath>,
    /// The kernel's command line.
    #[arg(long, default_value = "", value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: String,
    #[arg(long, default_value = "256MiB", value_name = "SIZE")]
    pub memory: Bytes,
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    pub vcpus: u8,
    /// A disk image. May be repeated.
    #[arg(long = "disk", value_name = "DATASTORE/PATH[,format=raw|qcow2][,readonly]")]
    pub disks: Vec<DiskOption>,
    /// A network card. May be repeated.
    #[arg(long = "nic", value_name = "network=NAME[,mac=MAC]")]
    pub nics: Vec<NicOption>,
    /// The CPU that the guest sees: `cluster`, the cluster's baseline if there is one (see `godwit cpu-baseline`), `host`, all that its
    /// host offers, or `x86-64-v2`, to move between unlike hosts.
    #[arg(long, default_value = "cluster", value_name = "PROFILE", value_parser = crate::parse::cpu_profile)]
    pub cpu: CpuProfile,
    /// The machine that the guest sees: `godwit-2`, or `godwit-1`, whose free memory is not given back, to move to hosts
    /// that know no other.
    #[arg(long, default_value = MachineType::NEWEST.name(), value_name = "TYPE", value_parser = crate::parse::machine)]
    pub machine: MachineType,
}

#[derive(Debug, Args)]
pub(crate) struct VmMigrate {
    /// The VMs, in the order in which they are to begin.
    #[arg(required = true, value_name = "VM")]
    pub vms: Vec<VmName>,
    /// The destination, of all of them.
    #[arg(long, value_name = "HOST")]
    pub to: HostName,
    /// Switch over when the predicted blackout is at most this.
    #[arg(long, default_value = "50ms", value_name = "DURATION")]
    pub max_blackout: Duration,
    /// How long to wait for that prediction.
    #[arg(long, default_value = "10m", value_name = "DURATION")]
    pub deadline: Duration,
    /// What to do at the deadline: `cancel`, or `switch` over with a longer blackout.
    #[arg(long, default_value = "cancel", value_name = "WHAT", value_parser = crate::parse::on_deadline)]
    pub on_deadline: OnDeadline,
    /// If the guest writes faster than its memory moves: switch over all the same, with a short blackout, and let the rest
    /// of its memory follow while it runs at the destination. It waits for each page that it touches before it is there.
    /// If the source's host or its VM process dies before all has followed, the VM is lost; a network that fails
    /// meanwhile is waited for, up to an hour.
    #[arg(long)]
    pub post_copy: bool,
    /// If the guest writes faster than its memory moves: how much of its speed each vCPU that writes may lose, up to 99%, so
    /// that it is caught up with. No more is taken than that needs, from the heaviest writers first; who only reads loses
    /// nothing. With --post-copy or at the deadline, this is tried before.
    #[arg(long, default_value = "0%", value_name = "PERCENT", value_parser = crate::parse::slowdown)]
    pub max_slowdown: u8,
    /// Let disks move with the VM that the destination does not share, into its datastore of the same name or into the one
    /// named. Once the VM was seen running there, they are removed here. Until then nothing is lost if the migration fails.
    #[arg(long, value_name = "DATASTORE", num_args = 0..=1, require_equals = true, conflicts_with = "post_copy")]
    pub move_disks: Option<Option<Name>>,
    /// Most bytes per second on the wire while its guest runs, such as 100MiB [default: no cap but that of the hosts].
    #[arg(long, value_name = "SIZE", value_parser = crate::parse::rate)]
    pub max_bandwidth: Option<Bytes>,
    /// Send memory in clear instead of encrypted, on a network that nobody else can read or change.
    #[arg(long)]
    pub plain: bool,
    /// Once the guest has left, compare all of its memory with what arrived. It costs processor time on both hosts, none of
    /// it while the guest stands. If memory differs, the report and an event say so, and the exit code is 1.
    #[arg(long)]
    pub verify: bool,
    /// Start the migration, print its task and return.
    #[arg(long)]
    pub detach: bool,
    /// Only say what the migration would cost, and everything that is against it. Moves and reserves nothing.
    #[arg(long, conflicts_with = "detach")]
    pub plan: bool,
    /// How long a plan watches what the guest writes, up to 10s. That slows each first write to a page a little.
    #[arg(long, default_value = "1s", value_name = "DURATION", requires = "plan")]
    pub sample: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct VmMoveStorage {
    pub vm: VmName,
    /// The datastore to move to, as its host offers it: see `godwit host show`.
    #[arg(long, value_name = "DATASTORE")]
    pub to: Name,
    /// Move this disk alone, named by where it lies now. May be repeated [default: all that lie elsewhere and that the guest
    /// can write].
    #[arg(long = "disk", value_name = "DATASTORE/PATH")]
    pub disks: Vec<DatastorePath>,
    /// Copy at most so many bytes per second, such as 100MiB [default: no cap]. What the guest writes meanwhile comes on top.
    #[arg(long, value_name = "SIZE", value_parser = crate::parse::rate)]
    pub max_bandwidth: Option<Bytes>,
    /// Start the move, print its task and return.
    #[arg(long)]
    pub detach: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TaskVerb {
    /// List the tasks, newest last.
    #[command(after_help = "\
Examples:
  godwit task ls
  godwit task ls --json | jq -r '.[] | select(.state == \"waiting\") | .id'")]
    Ls,
    /// Show one task: progress, report or error.
    #[command(after_help = "\
Examples:
  godwit task show 0b6f4c1e-8b4e-4d6a-9f3e-2f1d1c6a5b7e
  godwit task show 0b6f4c1e-8b4e-4d6a-9f3e-2f1d1c6a5b7e --json | jq .report.blackout")]
    Show { task: TaskId },
    /// Cancel a task. A migration can be cancelled until its commit, and a move of disks until the VM's definition changes.
    #[command(after_help = "Example:\n  godwit task cancel 0b6f4c1e-8b4e-4d6a-9f3e-2f1d1c6a5b7e")]
    Cancel { task: TaskId },
    /// Change what a migration may send, while it waits or runs.
    #[command(after_help = "\
Examples:
  godwit task set-bandwidth 0b6f4c1e-8b4e-4d6a-9f3e-2f1d1c6a5b7e 100MiB
  godwit task set-bandwidth 0b6f4c1e-8b4e-4d6a-9f3e-2f1d1c6a5b7e none")]
    SetBandwidth {
        task: TaskId,
        /// Most bytes per second on the wire while its guest runs, such as 100MiB; or `none`: no cap but that of the hosts.
        #[arg(value_name = "SIZE")]
        rate: RateOption,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_datastore_for_disks_that_move_along_is_named_behind_an_equals_sign_alone() {
        let options = |line: &str| match Cli::try_parse_from(line.split_whitespace()).unwrap().verb {
            Verb::Vm(VmVerb::Migrate(options)) => (options.vms[0].to_string(), options.move_disks),
            other => panic!("{other:?}"),
        };
        let web1 = || "web1".to_owned();
        assert_eq!(options("godwit vm migrate --move-disks web1 --to host-b"), (web1(), Some(None)));
        let fast = Some(Some("fast".parse().unwrap()));
        assert_eq!(options("godwit vm migrate --move-disks=fast web1 --to host-b"), (web1(), fast));
        assert_eq!(options("godwit vm migrate web1 --to host-b"), (web1(), None));
    }
}
