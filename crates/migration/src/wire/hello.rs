//! The first frame of every connection: which migration it belongs to, and what it is for.

use godwit_types::{Epoch, Gfn, HostName, MigrationId, VmId};
use prost::Message;
use uuid::Uuid;

use super::error::WireError;
use crate::disks::DiskRange;
use crate::machine::{Manifest, PageRange};

/// Most page streams of one migration.
pub const PAGE_STREAMS_MAX: u32 = 64;
/// Most RAM ranges in a manifest.
pub const MANIFEST_RANGES_MAX: usize = 1024;
/// Most disks that move with a VM.
const MANIFEST_DISKS_MAX: usize = 64;

/// A source's first frame on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub migration: MigrationId,
    /// The epoch at which the destination will run the VM.
    pub epoch: Epoch,
    /// The source host's name, for messages.
    pub source: String,
    /// Counts the source's attempts to connect: 0 at first, more after the network has failed during post-copy.
    pub session: u32,
    pub role: Role,
}

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    Control {
        manifest: Manifest,
        page_streams: u32,
        /// Part of memory may follow when the guest runs at the destination.
        post_copy: bool,
        /// The source understands digests of what the destination has kept.
        reuse: bool,
        /// Memory is to be compared at the end: RESUMED, or WHOLE, is to carry its digest.
        verify: bool,
    },
    Pages {
        stream: u32,
    },
}

#[derive(Clone, PartialEq, prost::Message)]
struct HelloMessage {
    #[prost(bytes = "vec", tag = "1")]
    migration: Vec<u8>,
    #[prost(uint64, tag = "2")]
    epoch: u64,
    #[prost(string, tag = "3")]
    source: String,
    #[prost(oneof = "RoleMessage", tags = "4, 5")]
    role: Option<RoleMessage>,
    #[prost(uint32, tag = "6")]
    session: u32,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum RoleMessage {
    #[prost(message, tag = "4")]
    Control(ControlRole),
    #[prost(message, tag = "5")]
    Pages(PagesRole),
}

#[derive(Clone, PartialEq, prost::Message)]
struct ControlRole {
    #[prost(uint32, tag = "1")]
    page_streams: u32,
    #[prost(bytes = "vec", tag = "2")]
    vm: Vec<u8>,
    #[prost(uint64, tag = "3")]
    vm_epoch: u64,
    #[prost(bytes = "vec", tag = "4")]
    spec_json: Vec<u8>,
    /// First frame and length of each range, one after the other.
    #[prost(uint64, repeated, tag = "5")]
    ranges: Vec<u64>,
    #[prost(bytes = "vec", tag = "6")]
    cpu: Vec<u8>,
    #[prost(bool, tag = "7")]
    post_copy: bool,
    #[prost(bool, tag = "8")]
    reuse: bool,
    #[prost(bool, tag = "9")]
    verify: bool,
    /// Number, first page and length of each disk that moves, one after the other.
    #[prost(uint64, repeated, tag = "10")]
    disks: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct PagesRole {
    #[prost(uint32, tag = "1")]
    stream: u32,
}

impl Hello {
    pub fn encode(&self) -> Vec<u8> {
        let role = match &self.role {
            Role::Control { manifest, page_streams, post_copy, reuse, verify } => {
                RoleMessage::Control(ControlRole {
                    page_streams: *page_streams,
                    vm: manifest.vm.0.as_bytes().to_vec(),
                    vm_epoch: manifest.epoch.0,
                    spec_json: manifest.spec_json.clone(),
                    ranges: manifest.ranges.iter().flat_map(|range| [range.start.0, range.pages]).collect(),
                    cpu: manifest.cpu.clone(),
                    post_copy: *post_copy,
                    reuse: *reuse,
                    verify: *verify,
                    disks: manifest
                        .disks
                        .iter()
                        .flat_map(|disk| [disk.index.into(), disk.range.start.0, disk.range.pages])
                        .collect(),
                })
            }
            Role::Pages { stream } => RoleMessage::Pages(PagesRole { stream: *stream }),
        };
        let migration = self.migration.0.as_bytes().to_vec();
        let (epoch, source, session) = (self.epoch.0, self.source.clone(), self.session);
        HelloMessage { migration, epoch, source, role: Some(role), session }.encode_to_vec()
    }

    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let message = HelloMessage::decode(payload).map_err(malformed)?;
        let role = match message.role.ok_or_else(|| malformed("a role is missing"))? {
            RoleMessage::Control(control) => control.decode()?,
            RoleMessage::Pages(pages) => Role::Pages { stream: pages.stream },
        };
        Ok(Self {
            migration: MigrationId(uuid(&message.migration)?),
            epoch: Epoch(message.epoch),
            source: message.source.parse::<HostName>().map_err(malformed)?.to_string(),
            session: message.session,
            role,
        })
    }
}

impl ControlRole {
    fn decode(self) -> Result<Role, WireError> {
        if !(1..=PAGE_STREAMS_MAX).contains(&self.page_streams) {
            return Err(malformed(format!(
                "{} page streams; 1 to {PAGE_STREAMS_MAX} are allowed",
                self.page_streams
            )));
        }
        let vm = VmId(uuid(&self.vm)?);
        let (ranges, disks) = (ranges(&self.ranges)?, disks(&self.ranges, &self.disks)?);
        let (epoch, spec_json, cpu) = (Epoch(self.vm_epoch), self.spec_json, self.cpu);
        let manifest = Manifest { vm, epoch, spec_json, ranges, disks, cpu };
        Ok(Role::Control {
            manifest,
            page_streams: self.page_streams,
            post_copy: self.post_copy,
            reuse: self.reuse,
            verify: self.verify,
        })
    }
}

/// Ascending, without overlap, none empty, none beyond the last address.
fn ranges(numbers: &[u64]) -> Result<Vec<PageRange>, WireError> {
    if numbers.len() > MANIFEST_RANGES_MAX * 2 || !numbers.len().is_multiple_of(2) {
        return Err(malformed(format!("{} numbers for memory ranges", numbers.len())));
    }
    let mut end = 0;
    let mut ranges = Vec::with_capacity(numbers.len() / 2);
    for pair in numbers.chunks_exact(2) {
        let range = PageRange { start: Gfn(pair[0]), pages: pair[1] };
        let next = range.start.0.checked_add(range.pages).filter(|next| *next <= Gfn(u64::MAX).0 >> 12);
        match next {
            Some(next) if range.pages > 0 && range.start.0 >= end => end = next,
            _ => return Err(malformed("memory ranges overlap, are empty, or lie beyond the last address")),
        }
        ranges.push(range);
    }
    Ok(ranges)
}

/// Above RAM, under the same rules, each disk at most once.
fn disks(ram: &[u64], numbers: &[u64]) -> Result<Vec<DiskRange>, WireError> {
    if numbers.len() > MANIFEST_DISKS_MAX * 3 || !numbers.len().is_multiple_of(3) {
        return Err(malformed(format!("{} numbers for disks", numbers.len())));
    }
    let pages = numbers.chunks_exact(3).flat_map(|disk| [disk[1], disk[2]]);
    let all: Vec<u64> = ram.iter().copied().chain(pages).collect();
    let beyond_ram = ranges(&all)?.split_off(ram.len() / 2);
    let mut last = None;
    let disk = |(disk, range): (&[u64], PageRange)| match u32::try_from(disk[0]) {
        Ok(index) if last.replace(index).is_none_or(|last| last < index) => Ok(DiskRange { index, range }),
        _ => Err(malformed("disks are not in their order")),
    };
    numbers.chunks_exact(3).zip(beyond_ram).map(disk).collect()
}

fn uuid(bytes: &[u8]) -> Result<Uuid, WireError> {
    Uuid::from_slice(bytes).map_err(malformed)
}

fn malformed(reason: impl ToString) -> WireError {
    WireError::malformed("hello", reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hello(role: Role) -> Hello {
        let migration = MigrationId(Uuid::from_u128(7));
        Hello { migration, epoch: Epoch(3), source: "host-a".into(), session: 2, role }
    }

    fn control(ranges: Vec<PageRange>, page_streams: u32) -> Hello {
        let disks = crate::disks::lay_out(&ranges, [(1, 5000), (2, 1 << 30)]);
        control_with(ranges, disks, page_streams)
    }

    fn control_with(ranges: Vec<PageRange>, disks: Vec<DiskRange>, page_streams: u32) -> Hello {
        let (vm, epoch, spec_json) = (VmId(Uuid::from_u128(9)), Epoch(2), b"{}".to_vec());
        let manifest = Manifest { vm, epoch, spec_json, ranges, disks, cpu: vec![1, 2] };
        hello(Role::Control { manifest, page_streams, post_copy: true, reuse: true, verify: true })
    }

    #[test]
    fn overlapping_empty_and_overflowing_ranges_are_refused() {
        let range = |start, pages| PageRange { start: Gfn(start), pages };
        for bad in [
            vec![range(0, 10), range(9, 2)],
            vec![range(10, 1), range(0, 1)],
            vec![range(0, 0)],
            vec![range(u64::MAX, 2)],
            vec![range(1, u64::MAX >> 12)],
        ] {
            assert!(Hello::decode(&control_with(bad, Vec::new(), 1).encode()).is_err());
        }
        let disk = |index, start, pages| DiskRange { index, range: range(start, pages) };
        for bad in [
            vec![disk(0, 9, 10)],
            vec![disk(0, 10, 0)],
            vec![disk(0, 10, 5), disk(1, 14, 1)],
            vec![disk(1, 10, 5), disk(1, 20, 5)],
            vec![disk(0, u64::MAX, 2)],
        ] {
            assert!(Hello::decode(&control_with(vec![range(0, 10)], bad, 1).encode()).is_err());
        }
        for streams in [0, PAGE_STREAMS_MAX + 1] {
            assert!(Hello::decode(&control(vec![], streams).encode()).is_err());
        }
    }

    #[test]
    fn a_source_cannot_fill_the_log_with_its_name() {
        for name in ["", "two\nlines", &"x".repeat(64)] {
            let hello = Hello { source: name.into(), ..hello(Role::Pages { stream: 0 }) };
            let error = Hello::decode(&hello.encode()).unwrap_err().to_string();
            assert!(error.len() < 300, "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_hello_survives_the_wire(gaps in prop::collection::vec((0u64..1000, 1u64..1000), 0..9), stream: u32) {
            let mut end = 0;
            let ranges: Vec<_> = gaps
                .iter()
                .map(|(gap, pages)| {
                    let range = PageRange { start: Gfn(end + gap), pages: *pages };
                    end += gap + pages;
                    range
                })
                .collect();
            for sent in [control(ranges, 4), hello(Role::Pages { stream })] {
                prop_assert_eq!(Hello::decode(&sent.encode()), Ok(sent));
            }
        }

        #[test]
        fn arbitrary_hello_bytes_are_an_answer_not_a_crash(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Hello::decode(&bytes);
        }
    }
}
