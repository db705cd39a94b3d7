//! Who is where: VMs on hosts, migrations under way, hosts that wake.

use godwit_scheduler::snapshot::{HostState, MigrationRoom, Needs, Snapshot, Vm, Writes};
use godwit_scheduler::{PerResource, policy, snapshot};

use crate::trace::{HostRecord, Trace, VmRecord};

/// For how long moves are remembered.
const REMEMBERED_MS: u64 = 86_400_000;
/// A VM that is back where it came from within this time has moved in vain.
const VAIN_MS: u64 = 3_600_000;

/// See the module. Hosts and VMs are in the trace's order.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) hosts: Vec<Machine>,
    pub(crate) guests: Vec<Guest>,
}

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) state: HostState,
    since_ms: u64,
    /// When it was last sent to standby or woken.
    switched_ms: Option<u64>,
    /// In no order that means anything.
    pub(crate) guests: Vec<usize>,
    /// What its guests and those on their way to it have of its memory, in bytes.
    memory: u64,
}

#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) host: Option<usize>,
    /// Where it is on its way to.
    to: Option<usize>,
    memory: u64,
    /// When it was moved, and from where.
    moved: Vec<(u64, usize)>,
}

/// What became of something that was to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// A move, and it took the VM back to where it was less than an hour ago; or a host is switched back within an hour.
    InVain,
    /// It could not be done as things are.
    Refused,
}

impl Cluster {
    /// All hosts on; VMs where the trace has them, if their memory fits, and nowhere else.
    pub(crate) fn new(trace: &Trace) -> Self {
        let hosts = trace.hosts.iter().map(|_| Machine {
            state: HostState::On,
            since_ms: 0,
            switched_ms: None,
            guests: Vec::new(),
            memory: 0,
        });
        let guests = trace.vms.iter();
        let mut cluster = Self {
            hosts: hosts.collect(),
            guests: guests
                .map(|vm| Guest { host: None, to: None, memory: vm.memory, moved: Vec::new() })
                .collect(),
        };
        for (guest, vm) in trace.vms.iter().enumerate() {
            if let Some(host) = trace.hosts.iter().position(|host| Some(&host.name) == vm.host.as_ref()) {
                cluster.place(guest, host, &trace.hosts[host]);
            }
        }
        cluster
    }

    /// A VM that is nowhere starts there.
    pub(crate) fn place(&mut self, guest: usize, host: usize, record: &HostRecord) -> Outcome {
        if self.guests[guest].host.is_some() || !self.has_room(guest, host, record) {
            return Outcome::Refused;
        }
        self.hosts[host].memory += self.guests[guest].memory;
        self.hosts[host].guests.push(guest);
        self.guests[guest].host = Some(host);
        Outcome::Done
    }

    /// A migration begins: its memory is taken at both ends.
    pub(crate) fn depart(&mut self, guest: usize, to: usize, record: &HostRecord) -> Outcome {
        let Guest { host, to: busy, .. } = self.guests[guest];
        if host.is_none_or(|from| from == to) || busy.is_some() || !self.has_room(guest, to, record) {
            return Outcome::Refused;
        }
        self.hosts[to].memory += self.guests[guest].memory;
        self.guests[guest].to = Some(to);
        Outcome::Done
    }

    /// A migration ends, and the VM runs at its destination. Gives the hosts that it concerns.
    pub(crate) fn arrive(&mut self, guest: usize, at_ms: u64) -> (Outcome, Vec<usize>) {
        let Guest { host: Some(from), to: Some(to), memory, .. } = self.guests[guest] else {
            return (Outcome::Refused, Vec::new());
        };
        self.hosts[from].guests.retain(|other| *other != guest);
        self.hosts[from].memory -= memory;
        self.hosts[to].guests.push(guest);
        let guest = &mut self.guests[guest];
        (guest.host, guest.to) = (Some(to), None);
        let last = guest.moved.last();
        let vain = last.is_some_and(|(when, home)| *home == to && at_ms - when <= VAIN_MS);
        guest.moved.push((at_ms, from));
        (if vain { Outcome::InVain } else { Outcome::Done }, vec![from, to])
    }

    /// Sets a host's state: an empty one goes to standby, one that is in standby wakes, one that wakes is there.
    pub(crate) fn switch(&mut self, host: usize, state: HostState, at_ms: u64) -> Outcome {
        let machine = &mut self.hosts[host];
        let may = match state {
            HostState::Standby => machine.state == HostState::On && machine.memory == 0,
            HostState::Waking => machine.state == HostState::Standby,
            HostState::On => machine.state == HostState::Waking,
            HostState::Maintenance | HostState::Lost => false,
        };
        if !may {
            return Outcome::Refused;
        }
        let is_back =
            state != HostState::On && machine.switched_ms.is_some_and(|last| at_ms - last <= VAIN_MS);
        if state != HostState::On {
            machine.switched_ms = Some(at_ms);
        }
        (machine.state, machine.since_ms) = (state, at_ms);
        if is_back { Outcome::InVain } else { Outcome::Done }
    }

    fn has_room(&self, guest: usize, host: usize, record: &HostRecord) -> bool {
        let machine = &self.hosts[host];
        machine.state == HostState::On && machine.memory + self.guests[guest].memory <= record.memory
    }

    /// What the scheduler is told.
    pub(crate) fn snapshot(&self, trace: &Trace, demand: &[PerResource<u64>], at_ms: u64) -> Snapshot {
        let hosts = trace.hosts.iter().zip(&self.hosts).enumerate();
        let vms = trace.vms.iter().zip(&self.guests).zip(demand);
        Snapshot {
            at_unix_ms: at_ms,
            hosts: hosts.map(|(index, (record, machine))| self.host(index, record, machine, at_ms)).collect(),
            vms: vms.map(|((record, guest), demand)| vm(trace, record, guest, *demand, at_ms)).collect(),
            pools: trace.pools.clone(),
            rules: trace.rules.clone(),
        }
    }

    /// Memory of VMs on their way to a host is not free there.
    fn host(&self, index: usize, record: &HostRecord, machine: &Machine, at_ms: u64) -> snapshot::Host {
        let arriving = self.guests.iter().filter(|guest| guest.to == Some(index));
        let arriving: u64 = arriving.map(|guest| guest.memory).sum();
        let mut capacity = record.capacity();
        capacity.memory = capacity.memory.saturating_sub(arriving);
        snapshot::Host {
            name: record.name.clone(),
            state: machine.state,
            since_unix_ms: machine.since_ms,
            seen_unix_ms: at_ms,
            capacity,
            cpu_class: None,
            networks: Default::default(),
            datastores: Default::default(),
            rooms: Default::default(),
            move_disks: false,
            domain: record.domain.clone(),
            labels: record.labels.clone(),
            migration: MigrationRoom {
                moves_max: record.moves_max,
                bytes_per_s: record.migration_bytes_per_s,
                is_assumed: false,
            },
            power: record.power(),
        }
    }

    /// Whether every VM is on one host at most, those lists agree, and no host's memory is overrun.
    pub(crate) fn is_sound(&self, trace: &Trace) -> bool {
        let mut found = vec![None; self.guests.len()];
        for (index, machine) in self.hosts.iter().enumerate() {
            if machine.memory > trace.hosts[index].memory {
                return false;
            }
            for guest in &machine.guests {
                if found[*guest].replace(index).is_some() {
                    return false;
                }
            }
        }
        found.iter().zip(&self.guests).all(|(found, guest)| *found == guest.host)
    }
}

fn vm(trace: &Trace, record: &VmRecord, guest: &Guest, demand: PerResource<u64>, at_ms: u64) -> Vm {
    let recent = guest.moved.iter().map(|(when, _)| *when).filter(|when| at_ms - when < REMEMBERED_MS);
    let to = guest.to.map(|to| format!("it is on its way to '{}'", trace.hosts[to].name));
    Vm {
        name: record.name.clone(),
        host: guest.host.map(|host| trace.hosts[host].name.clone()),
        pool: record.pool.clone(),
        controls: record.controls,
        demand,
        expected: PerResource::default(),
        demand_long: demand,
        recent_mhz: Vec::new(),
        ahead_mhz: Vec::new(),
        measured_unix_ms: Some(at_ms),
        vcpus: record.vcpus,
        memory: record.memory,
        needs: Needs::default(),
        disks: Vec::new(),
        pinned: to,
        automation: policy::Automation::Full,
        writes: Writes { used: demand.memory, hot: 0, bytes_per_s: record.memory_written_bytes_per_s },
        moved_unix_ms: recent.collect(),
    }
}
