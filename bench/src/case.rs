//! What moves: one case is one VM with one load.

use clap::ValueEnum;
use godwit_types::{Bytes, PAGE_SIZE_BYTES};

/// How many eighths of a VM's memory are filled. The rest is left to kernels and page tables.
const FILLED_EIGHTHS: u64 = 7;
/// What the machine keeps for everything but the two sides' memory.
const RESERVE: Bytes = Bytes::mib(1024);
/// A hot load rewrites its part this fast: 100 MiB/s.
const HOT_PAGES_PER_S: u64 = 25_600;
/// A light load rewrites its part this fast: 4 MiB/s.
const LIGHT_PAGES_PER_S: u64 = 1024;

/// How long a guest takes to rewrite its [`Load::Part`]: slow against a migration.
const PART_SECONDS: u64 = 30;

/// A VM and its load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) memory_mib: u64,
    pub(crate) vcpus: u8,
    pub(crate) load: Load,
    /// What the memory is filled with: `random` or `compressible`.
    pub(crate) content: &'static str,
    /// Cap on what each host sends, in bits per second.
    pub(crate) link_bits_per_s: Option<u64>,
    /// Whether it is part of the quick round.
    pub(crate) quick: bool,
}

/// What the guest does to its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Load {
    /// Nothing but checking it now and then.
    Idle,
    /// A tenth of it is rewritten, at 100 MiB/s.
    Hot,
    /// The same, at 200 MiB/s.
    Hotter,
    /// The same, at 4 MiB/s, which many guests can do at once.
    Light,
    /// All of it is rewritten, as fast as can be.
    Rewrite,
    /// So much of what is filled is rewritten again and again, each time within [`PART_SECONDS`].
    #[value(skip)]
    Part { percent: u64 },
}

impl Load {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Hot => "hot",
            Self::Hotter => "hotter",
            Self::Rewrite => "rewrite",
            Self::Light => "light",
            Self::Part { .. } => "part",
        }
    }
}

/// A small one; all others are made from it.
pub(crate) const SMALL: Case = Case {
    name: "",
    memory_mib: 512,
    vcpus: 1,
    load: Load::Idle,
    content: "random",
    link_bits_per_s: None,
    quick: true,
};
const LARGE: Case = Case { memory_mib: 2048, quick: false, ..SMALL };

/// One that goes away and comes back.
pub(crate) const RETURN: Case = Case { name: "return", load: Load::Part { percent: 5 }, ..SMALL };

/// All cases, in the order of their runs.
pub(crate) const CASES: [Case; 16] = [
    Case { name: "idle-512m", ..SMALL },
    Case { name: "hot-512m", load: Load::Hot, ..SMALL },
    Case { name: "rewrite-512m", load: Load::Rewrite, ..SMALL },
    Case { name: "idle-2g", ..LARGE },
    Case { name: "hot-2g", load: Load::Hot, ..LARGE },
    Case { name: "rewrite-2g", load: Load::Rewrite, ..LARGE },
    Case { name: "hot-2g-compressible", load: Load::Hot, content: "compressible", ..LARGE },
    Case { name: "hot-2g-2cpu", load: Load::Hot, vcpus: 2, ..LARGE },
    Case { name: "rewrite-2g-2cpu", load: Load::Rewrite, vcpus: 2, ..LARGE },
    Case { name: "hot-4g", load: Load::Hot, memory_mib: 4096, ..LARGE },
    // How cost grows: against `hot-512m`, twice the memory, then of that twice the vCPUs, and twice the pages a second.
    Case { name: "hot-1g", load: Load::Hot, memory_mib: 1024, ..LARGE },
    Case { name: "hot-1g-2cpu", load: Load::Hot, memory_mib: 1024, vcpus: 2, ..LARGE },
    Case { name: "hotter-1g", load: Load::Hotter, memory_mib: 1024, ..LARGE },
    Case { name: "hot-2g-10gbit", load: Load::Hot, link_bits_per_s: Some(10_000_000_000), ..LARGE },
    Case {
        name: "hot-512m-1gbit",
        load: Load::Hot,
        link_bits_per_s: Some(1_000_000_000),
        quick: false,
        ..SMALL
    },
    Case {
        name: "hot-512m-1gbit-compressible",
        load: Load::Hot,
        content: "compressible",
        link_bits_per_s: Some(1_000_000_000),
        quick: false,
        ..SMALL
    },
];

impl Case {
    /// What a run takes of the machine: source and destination have the whole VM each, for a moment.
    pub(crate) fn needed_bytes(&self) -> u64 {
        2 * Bytes::mib(self.memory_mib).0 + RESERVE.0
    }

    /// The memory that is filled.
    pub(crate) fn working_set(&self) -> Bytes {
        Bytes::mib(self.memory_mib * FILLED_EIGHTHS / 8)
    }

    /// The pages that are rewritten again and again, of a load that has such a part.
    pub(crate) fn changing_pages(&self) -> u64 {
        match self.load {
            Load::Part { percent } => self.working_set().pages() * percent / 100,
            Load::Idle | Load::Hot | Load::Hotter | Load::Light | Load::Rewrite => 0,
        }
    }

    /// The guest's command line. Its own disk is none of its load: what is measured is memory.
    pub(crate) fn command_line(&self) -> String {
        let (filled, content) = (self.working_set().0, self.content);
        let load = match self.load {
            Load::Idle => "godwit.rate=idle".to_owned(),
            Load::Hot => self.hot(HOT_PAGES_PER_S),
            Load::Hotter => self.hot(2 * HOT_PAGES_PER_S),
            Load::Light => self.hot(LIGHT_PAGES_PER_S),
            Load::Rewrite => "godwit.rate=0".to_owned(),
            Load::Part { .. } => {
                let pages = self.changing_pages();
                let hot = pages * PAGE_SIZE_BYTES;
                format!("godwit.rate={} godwit.hot={hot}", pages.div_ceil(PART_SECONDS))
            }
        };
        format!("godwit.ws={filled} godwit.content={content} {load} godwit.disk=off godwit.pulse=on")
    }

    fn hot(&self, pages_per_s: u64) -> String {
        format!("godwit.rate={pages_per_s} godwit.hot={}", Bytes::mib(self.memory_mib).0 / 10)
    }
}

#[cfg(test)]
mod tests {
    use godwit_guest_contract::params::{Parameters, Rate};

    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own_and_the_guest_understands_it() {
        for (index, case) in CASES.iter().chain([&RETURN]).enumerate() {
            assert!(
                CASES.iter().take(index).all(|other| other.name != case.name),
                "{} is there twice",
                case.name
            );
            let line = case.command_line();
            let parameters = Parameters::parse(&line).unwrap();
            assert!(parameters.pulse && !parameters.disk);
            assert_eq!(parameters.working_set, case.working_set().0);
            assert_eq!(parameters.rate == Rate::Idle, case.load == Load::Idle);
            let part = matches!(case.load, Load::Hot | Load::Hotter | Load::Part { .. });
            assert_eq!(parameters.hot.is_some(), part);
        }
    }
}
