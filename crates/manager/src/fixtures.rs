//! Hosts and VMs for tests.

use std::collections::BTreeMap;

use godwit_types::capability::{GuestFacts, ProtocolRange, VmmOffer};
use godwit_types::cpu::{CpuFacts, TscFacts};
use godwit_types::host::{DatastoreOffer, HostFacts, KvmFacts, KvmFlavour, NetworkOffer};
use godwit_types::vm::{BootSpec, CpuProfile, DiskFormat, DiskSpec, MachineType, NicSpec, VmSpec};
use godwit_types::{Bytes, VmId};
use uuid::Uuid;

use crate::store::{HostRow, Power, VmRow};

/// A VM of 128 MiB with a disk in the datastore `shared` and a card in the network `lan`.
pub(crate) fn spec() -> VmSpec {
    VmSpec {
        vcpus: 1,
        memory: Bytes::mib(128),
        boot: BootSpec { kernel: "shared/vmlinuz".parse().unwrap(), initrd: None, cmdline: String::new() },
        disks: vec![DiskSpec {
            image: "shared/web1.raw".parse().unwrap(),
            format: DiskFormat::Raw,
            read_only: false,
        }],
        nics: vec![NicSpec { network: "lan".parse().unwrap(), mac: None }],
        machine: MachineType::Godwit1,
        cpu: CpuProfile::Host,
    }
}

/// A running VM of [`spec`].
pub(crate) fn vm(name: &str) -> VmRow {
    let id = VmId(Uuid::new_v4());
    VmRow { id, name: name.parse().unwrap(), spec: spec(), power: Power::Running, last_event: None }
}

fn cpu() -> CpuFacts {
    CpuFacts {
        vendor: "AuthenticAMD".into(),
        features: ["avx2", "sse2"].map(str::to_owned).into(),
        msr_features: ["rdcl-no".to_owned()].into(),
        physical_bits: 48,
        xsave_bytes: 832,
        tsc: Some(TscFacts { khz: 2_000_000, scalable: false }),
    }
}

fn offer() -> VmmOffer {
    VmmOffer {
        release: "0.1.0".into(),
        protocol: ProtocolRange { min: 1, max: 1 },
        machines: vec!["godwit-1".into()],
        sections: BTreeMap::from([("kvm-vcpu".into(), 1)]),
        vcpus_max: 64,
        cpu: cpu(),
        no_post_copy: None,
    }
}

/// A guest that runs on [`host`], and can run on any like it.
pub(crate) fn guest() -> GuestFacts {
    let VmmOffer { release, protocol, sections, cpu, .. } = offer();
    GuestFacts {
        release,
        protocol,
        sections,
        cpu,
        blockers: vec![],
        moves_disks: true,
        moves_storage: true,
        disks: vec![],
    }
}

/// A host that is up and can run [`spec`].
pub(crate) fn host(name: &str) -> HostRow {
    let facts = HostFacts {
        kept: Vec::new(),
        version: "0.1.0".into(),
        kernel: "6.1".into(),
        cpu_model: "a CPU".into(),
        cpus: 2,
        memory: Bytes::mib(4096),
        memory_available: Bytes::mib(2048),
        kvm: KvmFacts { flavour: KvmFlavour::Svm, limits: None },
        vmm: Some(offer()),
        networks: vec![NetworkOffer { name: "lan".parse().unwrap(), bridge: "br0".into(), uplink: None }],
        datastores: vec![DatastoreOffer {
            name: "shared".parse().unwrap(),
            path: "/srv/shared".into(),
            size: Bytes::mib(100_000),
            free: Bytes::mib(50_000),
            id: None,
        }],
        migration: Default::default(),
        usage: None,
        clock_unix_ms: 0,
    };
    HostRow {
        name: name.parse().unwrap(),
        agent: "127.0.0.1:7401".parse().unwrap(),
        facts,
        vms: vec![],
        strays: BTreeMap::new(),
        up: true,
        clock_skew_ms: 0,
        last_seen_unix_ms: 0,
        maintenance: None,
        standby: None,
    }
}
