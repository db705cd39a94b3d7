//! Hosts as the scheduler is shown them: what they have for VMs, and which are alike.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use godwit_scheduler::PerResource;
use godwit_scheduler::settings::HostSettings;
use godwit_scheduler::snapshot::{Disk, Host, HostState, MigrationRoom, Room};
use godwit_types::capability::{DiskFacts, VmmOffer};
use godwit_types::host::{DatastoreOffer, KvmFlavour, StandbyPhase};
use godwit_types::ids::NAME_BYTES_MAX;
use godwit_types::migration::MOVED_DISKS_MAX;
use godwit_types::vm::{CpuProfile, DiskSpec, VmSpec};
use godwit_types::{HostName, Name};
use uuid::Uuid;

use crate::link;
use crate::store::HostRow;

/// Memory that a host keeps for itself: a part of what it has, up to a bound.
const OWN_MEMORY_PART: u64 = 16;
const OWN_MEMORY_MAX: u64 = 4 << 30;
/// Speed of a CPU of which no host has told, in MHz.
pub(super) const CPU_MHZ_ASSUMED: u32 = 2_000;
/// The host, which was last woken at `woken_unix_ms`, if ever.
pub(super) fn shown(
    row: &HostRow,
    settings: HostSettings,
    kinds: &Kinds,
    woken_unix_ms: Option<u64>,
) -> Host {
    let limits = &row.facts.migration;
    let bits_per_s = settings.network_bits_per_s.or(limits.link_bits_per_s);
    let state = match (row.standby.map(|standby| standby.phase), row.maintenance) {
        // It is not to be woken for VMs that it would not get.
        (Some(_), Some(_)) => HostState::Maintenance,
        (Some(StandbyPhase::Waking), None) => HostState::Waking,
        (Some(StandbyPhase::Going | StandbyPhase::Off), None) => HostState::Standby,
        _ if !row.up => HostState::Lost,
        (None, Some(_)) => HostState::Maintenance,
        (None, None) => HostState::On,
    };
    Host {
        name: row.name.clone(),
        state,
        since_unix_ms: since_unix_ms(row).or(woken_unix_ms).unwrap_or(0),
        seen_unix_ms: row.last_seen_unix_ms,
        capacity: PerResource {
            cpu: u64::from(row.facts.cpus) * u64::from(cpu_mhz(row)),
            memory: memory(row),
            // As much in as out.
            network: bits_per_s.map_or(0, |bits| (bits / 8).saturating_mul(2)),
            storage: settings.storage_ops_per_s.unwrap_or(0),
        },
        cpu_class: kinds.class_of(&row.name).cloned(),
        networks: row.facts.networks.iter().map(|network| network.name.clone()).collect(),
        datastores: kinds.datastores(row),
        rooms: kinds.rooms(row),
        move_disks: row.maintenance.is_some_and(|entered| entered.move_disks),
        power: settings.power_model(),
        domain: settings.domain,
        labels: settings.labels,
        migration: MigrationRoom {
            moves_max: limits.moves_max,
            ..link::room(bits_per_s, limits.bandwidth_bytes_per_s_max)
        },
    }
}

/// Since when it is in its state, if that is none in which it runs VMs.
fn since_unix_ms(row: &HostRow) -> Option<u64> {
    let entered = row.maintenance.map(|entered| entered.since_unix_ms);
    row.standby.map(|standby| standby.since_unix_ms).or(entered)
}

pub(super) fn cpu_mhz(row: &HostRow) -> u32 {
    row.facts.usage.map_or(CPU_MHZ_ASSUMED, |usage| usage.cpu_mhz.max(1))
}

/// What VMs can have: not what the host keeps for itself, nor what other programs on it hold.
fn memory(row: &HostRow) -> u64 {
    let all = row.facts.memory.0;
    let own = (all / OWN_MEMORY_PART).min(OWN_MEMORY_MAX);
    let held: u64 = row.vms.iter().filter_map(|local| local.usage).map(|usage| usage.memory.0).sum();
    (all - own).min(row.facts.memory_available.0.saturating_add(held))
}

/// Which hosts are alike, and which datastores of one name are not.
#[derive(Debug)]
pub(super) struct Kinds {
    /// By host, the first host with the same CPU and VMM: its name is that of the class.
    classes: BTreeMap<HostName, Name>,
    /// By class.
    offers: BTreeMap<Name, (KvmFlavour, Option<VmmOffer>)>,
    /// Datastores that have a name in common with another: its name and id, and the name that tells it from the others.
    unlike: BTreeMap<(Name, Uuid), Name>,
    /// Whether guests with a CPU profile that have started on hosts of one class go on on those of another, as far as it was asked: many
    /// VMs have the same.
    cpus: RefCell<HashMap<CpuProfile, Pairs>>,
}

/// Of two classes, from one to the other.
type Pairs = BTreeMap<(Name, Name), bool>;

impl Kinds {
    pub(super) fn of(rows: &[HostRow]) -> Self {
        let (mut classes, mut offers) = (BTreeMap::new(), BTreeMap::<Name, _>::new());
        for row in rows {
            let offer = (row.facts.kvm.flavour, row.facts.vmm.clone());
            let known = offers.iter().find(|(_, known)| **known == offer).map(|(name, _)| name.clone());
            let class = known.unwrap_or_else(|| row.name.clone());
            offers.entry(class.clone()).or_insert(offer);
            classes.insert(row.name.clone(), class);
        }
        Self { classes, offers, unlike: unlike(rows), cpus: RefCell::default() }
    }

    fn class_of(&self, host: &HostName) -> Option<&Name> {
        self.classes.get(host)
    }

    /// The classes on which a VM that runs on `host` can go on. What its guest has seen is no more than its profile takes of what
    /// that offers.
    pub(super) fn reachable(&self, host: &HostName, spec: &VmSpec) -> BTreeSet<Name> {
        let Some(own) = self.class_of(host) else { return BTreeSet::new() };
        let fits = |class: &Name| class == own || self.goes_on(own, class, spec);
        self.offers.keys().filter(|class| fits(class)).cloned().collect()
    }

    fn goes_on(&self, from: &Name, to: &Name, spec: &VmSpec) -> bool {
        let [Some((ours, Some(mine))), Some((theirs, Some(other)))] =
            [from, to].map(|class| self.offers.get(class))
        else {
            return false;
        };
        ours == theirs
            && mine.protocol.meets(other.protocol)
            && runs(other, spec)
            && self.cpu_goes_on(&spec.cpu, (from, mine), (to, other))
    }

    fn cpu_goes_on(
        &self,
        profile: &CpuProfile,
        (from, mine): (&Name, &VmmOffer),
        (to, other): (&Name, &VmmOffer),
    ) -> bool {
        let mut cpus = self.cpus.borrow_mut();
        if !cpus.contains_key(profile) {
            cpus.insert(profile.clone(), Pairs::new());
        }
        let goes_on = || {
            let missing = profile.seen_on(&mine.cpu).missing_on(&other.cpu, to.as_str());
            missing.iter().all(|finding| !finding.is_blocked())
        };
        let pairs = cpus.get_mut(profile);
        pairs.is_some_and(|pairs| *pairs.entry((from.clone(), to.clone())).or_insert_with(goes_on))
    }

    /// The classes on which a VM can start.
    pub(super) fn startable(&self, spec: &VmSpec) -> BTreeSet<Name> {
        let fits = |(flavour, offer): &(KvmFlavour, Option<VmmOffer>)| {
            *flavour != KvmFlavour::None && offer.as_ref().is_none_or(|offer| runs(offer, spec))
        };
        self.offers.iter().filter(|(_, offer)| fits(offer)).map(|(class, _)| class.clone()).collect()
    }

    /// The names of all that the host reaches.
    fn datastores(&self, row: &HostRow) -> BTreeSet<Name> {
        let mut names = BTreeSet::new();
        for store in &row.facts.datastores {
            names.insert(store.name.clone());
            match store.id {
                Some(id) => names.extend(self.unlike.get(&(store.name.clone(), id)).cloned()),
                // It is taken for any of them.
                None => {
                    let alike = self.unlike.iter().filter(|((name, _), _)| *name == store.name);
                    names.extend(alike.map(|(_, told)| told.clone()));
                }
            }
        }
        names
    }

    /// What the host finds under the names of its datastores, and what is free there.
    fn rooms(&self, row: &HostRow) -> BTreeMap<Name, Room> {
        let room = |store: &DatastoreOffer| {
            // Of what has no identity nobody knows where it is.
            let told = self.unlike.get(&(store.name.clone(), store.id?));
            let storage = told.unwrap_or(&store.name).clone();
            Some((store.name.clone(), Room { storage, free: store.free.0 }))
        };
        row.facts.datastores.iter().filter_map(room).collect()
    }

    /// Disks of a VM that some hosts do not reach, and that could move with it: what they hold is known, and they lie by themselves.
    pub(super) fn disks(&self, spec: &VmSpec, host: &HostRow, facts: &[DiskFacts]) -> Vec<Disk> {
        let disk = |(disk, facts): (&DiskSpec, &DiskFacts)| {
            let (datastore, storage) = (disk.image.datastore.clone(), self.unlike_of(disk, host)?.clone());
            let moves = !facts.layered && facts.size <= MOVED_DISKS_MAX;
            moves.then_some(Disk { datastore, storage, bytes: facts.allocated.0 })
        };
        let found: Vec<Disk> = spec.disks.iter().zip(facts).filter_map(disk).collect();
        // With one that stays behind, the VM would, too.
        let all = spec.disks.iter().filter(|disk| self.unlike_of(disk, host).is_some()).count();
        if found.len() == all { found } else { Vec::new() }
    }

    /// What a VM needs whose host, the last if it does not run, is `host`.
    pub(super) fn needed_datastores(&self, spec: &VmSpec, host: Option<&HostRow>) -> BTreeSet<Name> {
        let mut needed: BTreeSet<Name> = crate::fit::needed_datastores(spec).into_iter().cloned().collect();
        let unlike = |disk| self.unlike_of(disk, host?);
        needed.extend(spec.disks.iter().filter_map(unlike).cloned());
        needed
    }

    /// The storage on which a disk that is written lies on `host`, if others have another one by the same name.
    fn unlike_of(&self, disk: &DiskSpec, host: &HostRow) -> Option<&Name> {
        let name = &disk.image.datastore;
        let id = crate::moving::offer(host, name).filter(|_| !disk.read_only)?.id?;
        self.unlike.get(&(name.clone(), id))
    }
}

fn runs(offer: &VmmOffer, spec: &VmSpec) -> bool {
    offer.vcpus_max >= u32::from(spec.vcpus)
        && offer.machines.iter().any(|known| known == spec.machine.name())
        && spec.cpu.missing_on(&offer.cpu, "").is_empty()
}

/// Names for storages that go by one name on several hosts: that of the first host that has it is added.
fn unlike(rows: &[HostRow]) -> BTreeMap<(Name, Uuid), Name> {
    let mut first = BTreeMap::<Name, BTreeMap<Uuid, &HostName>>::new();
    for row in rows {
        for store in &row.facts.datastores {
            let known = first.entry(store.name.clone()).or_default();
            store.id.map(|id| known.entry(id).or_insert(&row.name));
        }
    }
    let several = first.into_iter().filter(|(_, ids)| ids.len() > 1);
    let told = several.flat_map(|(name, ids)| {
        ids.into_iter().filter_map(move |(id, host)| {
            let text: String = format!("{name}.{host}").chars().take(NAME_BYTES_MAX).collect();
            Some(((name.clone(), id), text.parse().ok()?))
        })
    });
    told.collect()
}
