//! Which VM is on which host, and what that leaves of the hosts: arrays of whole numbers, cheap to change.
//!
//! Whatever loads a host is a *dimension*: a resource, or another figure that is to be balanced. The caller chooses them, their
//! order and their units. Hosts and VMs are called by their places in the caller's lists.

/// What a host has of one dimension, in its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// What its use is seen as a part of; at least 1.
    pub whole: u64,
    /// What the host uses itself.
    pub own: u64,
    /// No VM comes if more than this would then be used; `u64::MAX` if it does not matter.
    pub most: u64,
}

/// A VM as it is when planning begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    pub host: usize,
    /// What it uses of each dimension, wherever it is.
    pub loads: Vec<u64>,
}

/// Why hosts and VMs are no cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    #[error(
        "{what} {index} has {found} dimensions, and the first host {expected}: give all of them the same"
    )]
    Dimensions { what: &'static str, index: usize, found: usize, expected: usize },
    #[error("host {host} has nothing of dimension {dimension}: leave it out, or give it at least 1")]
    NothingOf { host: usize, dimension: usize },
    #[error("VM {vm} is on host {host}, which does not exist")]
    NoSuchHost { vm: usize, host: usize },
    #[error("the loads of dimension {dimension} are too large: count it in a larger unit")]
    TooLarge { dimension: usize },
    #[error("there are more than {} VMs or hosts: plan parts of the cluster by themselves", MEMBERS_MAX)]
    TooMany,
}

/// Most hosts, and most VMs: scores are exact up to here.
pub const MEMBERS_MAX: usize = 1 << 20;

/// A change of places. It is meant for the cluster as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// The VM goes to another host.
    Relocate { vm: usize, to: usize },
    /// Two VMs of different hosts change places.
    Swap { one: usize, other: usize },
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    dimensions: usize,
    /// One row of dimensions for each host, and for each VM.
    rooms: Vec<Room>,
    used: Vec<u64>,
    loads: Vec<u64>,
    /// Of each VM, its host, and where it stands among the guests there.
    host: Vec<u32>,
    slot: Vec<u32>,
    guests: Vec<Vec<u32>>,
}

impl Cluster {
    /// Hosts with their dimensions, and VMs on them.
    pub fn new(hosts: &[Vec<Room>], vms: &[Guest]) -> Result<Self, ClusterError> {
        let dimensions = hosts.first().map_or(0, Vec::len);
        check(dimensions, hosts, vms)?;
        let rooms: Vec<Room> = hosts.iter().flatten().copied().collect();
        let mut cluster = Self {
            dimensions,
            used: rooms.iter().map(|room| room.own).collect(),
            rooms,
            loads: vms.iter().flat_map(|vm| vm.loads.iter().copied()).collect(),
            host: Vec::with_capacity(vms.len()),
            slot: Vec::with_capacity(vms.len()),
            guests: vec![Vec::new(); hosts.len()],
        };
        for (vm, guest) in vms.iter().enumerate() {
            // Fewer than `MEMBERS_MAX` of each, so 32 bits are enough.
            cluster.host.push(guest.host as u32);
            cluster.slot.push(cluster.guests[guest.host].len() as u32);
            cluster.guests[guest.host].push(vm as u32);
            for dimension in 0..dimensions {
                cluster.used[guest.host * dimensions + dimension] += guest.loads[dimension];
            }
        }
        Ok(cluster)
    }

    pub fn hosts(&self) -> usize {
        self.guests.len()
    }

    pub fn vms(&self) -> usize {
        self.host.len()
    }

    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Where the VM is.
    pub fn host_of(&self, vm: usize) -> usize {
        self.host[vm] as usize
    }

    /// The VMs of a host, in no order that means anything.
    pub fn guests(&self, host: usize) -> &[u32] {
        &self.guests[host]
    }

    /// What is used of a host's dimension, and what it has.
    pub fn used(&self, host: usize, dimension: usize) -> (u64, &Room) {
        let at = host * self.dimensions + dimension;
        (self.used[at], &self.rooms[at])
    }

    /// The two hosts that a move changes: the one that loses the VM, or the first VM, and the one that gets it.
    pub fn ends(&self, change: Move) -> (usize, usize) {
        match change {
            Move::Relocate { vm, to } => (self.host_of(vm), to),
            Move::Swap { one, other } => (self.host_of(one), self.host_of(other)),
        }
    }

    /// What is used of a dimension of the two ends after the move, which must not be the same host.
    pub fn used_after(&self, change: Move, dimension: usize) -> (u64, u64) {
        let (from, to) = self.ends(change);
        let (leaves, comes) = match change {
            Move::Relocate { vm, .. } => (self.load(vm, dimension), 0),
            Move::Swap { one, other } => (self.load(one, dimension), self.load(other, dimension)),
        };
        let used = |host: usize| self.used[host * self.dimensions + dimension];
        (used(from) - leaves + comes, used(to) - comes + leaves)
    }

    /// Whether the move changes anything, and each host has the room for what comes. One that has too little may still lose.
    pub fn allows(&self, change: Move) -> bool {
        let (from, to) = self.ends(change);
        from != to
            && (0..self.dimensions).all(|dimension| {
                let fits = |host: usize, after: u64| {
                    let (used, room) = self.used(host, dimension);
                    after <= room.most || after <= used
                };
                let (at_from, at_to) = self.used_after(change, dimension);
                fits(from, at_from) && fits(to, at_to)
            })
    }

    /// Makes the move, whether it is allowed or not.
    pub fn apply(&mut self, change: Move) {
        let (from, to) = self.ends(change);
        if from == to {
            return;
        }
        for dimension in 0..self.dimensions {
            let (at_from, at_to) = self.used_after(change, dimension);
            self.used[from * self.dimensions + dimension] = at_from;
            self.used[to * self.dimensions + dimension] = at_to;
        }
        match change {
            Move::Relocate { vm, to } => self.settle(vm, to),
            Move::Swap { one, other } => {
                self.settle(one, to);
                self.settle(other, from);
            }
        }
    }

    /// What a VM uses of a dimension.
    pub fn load(&self, vm: usize, dimension: usize) -> u64 {
        self.loads[vm * self.dimensions + dimension]
    }

    fn settle(&mut self, vm: usize, to: usize) {
        let (from, slot) = (self.host_of(vm), self.slot[vm] as usize);
        self.guests[from].swap_remove(slot);
        if let Some(last) = self.guests[from].get(slot) {
            self.slot[*last as usize] = slot as u32;
        }
        self.host[vm] = to as u32;
        self.slot[vm] = self.guests[to].len() as u32;
        self.guests[to].push(vm as u32);
    }
}

fn check(expected: usize, hosts: &[Vec<Room>], vms: &[Guest]) -> Result<(), ClusterError> {
    if hosts.len().max(vms.len()) > MEMBERS_MAX {
        return Err(ClusterError::TooMany);
    }
    let rows = hosts.iter().map(Vec::len).enumerate().map(|(index, found)| ("host", index, found));
    let loads = vms.iter().map(|vm| vm.loads.len()).enumerate().map(|(index, found)| ("VM", index, found));
    if let Some((what, index, found)) = rows.chain(loads).find(|(_, _, found)| *found != expected) {
        return Err(ClusterError::Dimensions { what, index, found, expected });
    }
    for (host, rooms) in hosts.iter().enumerate() {
        if let Some(dimension) = rooms.iter().position(|room| room.whole == 0) {
            return Err(ClusterError::NothingOf { host, dimension });
        }
    }
    if let Some((vm, guest)) = vms.iter().enumerate().find(|(_, vm)| vm.host >= hosts.len()) {
        return Err(ClusterError::NoSuchHost { vm, host: guest.host });
    }
    // All of it on one host must still be a number.
    let sum = |dimension: usize| {
        let own = hosts.iter().map(|rooms| u128::from(rooms[dimension].own)).max().unwrap_or(0);
        own + vms.iter().map(|vm| u128::from(vm.loads[dimension])).sum::<u128>()
    };
    match (0..expected).find(|dimension| sum(*dimension) > u64::MAX.into()) {
        Some(dimension) => Err(ClusterError::TooLarge { dimension }),
        None => Ok(()),
    }
}
