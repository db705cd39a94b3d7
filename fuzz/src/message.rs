//! Messages as a healthy peer would write them, with any numbers in them.

use std::time::Duration;

use arbitrary::{Result, Unstructured};
use godwit_migration::proof::MemoryDigest;
use godwit_migration::wire::{
    Ack, Committed, Control, Digest128, Done, Failure, Heartbeat, Hello, Prepared, Ready, Resumed, Role,
    Want, Welcome, Whole,
};
use godwit_migration::{Link, MachineError, Manifest};
use godwit_types::{ApiError, Epoch, ErrorCode, MigrationId, VmId};
use uuid::Uuid;

use crate::machine::RANGES;

/// Page streams of a migration.
pub const STREAMS: u32 = 2;

/// A control message of either side.
pub fn control(input: &mut Unstructured<'_>) -> Result<Control> {
    Ok(match input.int_in_range(0..=10)? {
        0 => Control::Welcome(Welcome {
            post_copy: input.arbitrary()?,
            digest_key: input.arbitrary()?,
            verify: input.arbitrary()?,
        }),
        1 => Control::Ready(Ready {}),
        2 => Control::Heartbeat(Heartbeat { source_us: input.arbitrary()?, unix_us: input.arbitrary()? }),
        3 => Control::Ack(ack(input)?),
        4 => Control::Prepared(Prepared { clock_error_ns: input.arbitrary()? }),
        5 => Control::Committed(Committed { epoch: input.arbitrary()? }),
        6 => Control::Resumed(Resumed {
            took_us: input.arbitrary()?,
            ago_us: input.arbitrary()?,
            claim_us: input.arbitrary()?,
            locks_us: input.arbitrary()?,
            memory: memory(input)?,
            first_packet_us: input.arbitrary()?,
        }),
        7 => Control::Want(Want { pages: input.arbitrary()? }),
        8 => Control::Whole(whole(input)?),
        9 => Control::Done(Done {}),
        _ => Control::Error(Failure {
            code: input.arbitrary()?,
            message: input.arbitrary()?,
            remedy: input.arbitrary()?,
        }),
    })
}

/// What a destination says of its waiting.
pub fn whole(input: &mut Unstructured<'_>) -> Result<Whole> {
    Ok(Whole {
        faults: input.arbitrary()?,
        waited_us: input.arbitrary()?,
        longest_us: input.arbitrary()?,
        memory: memory(input)?,
    })
}

fn memory(input: &mut Unstructured<'_>) -> Result<Option<Digest128>> {
    Ok(if input.arbitrary()? { Some(MemoryDigest(input.arbitrary()?).into()) } else { None })
}

/// How far a stream is, plausible or not.
pub fn ack(input: &mut Unstructured<'_>) -> Result<Ack> {
    let round = if input.arbitrary()? { input.int_in_range(0..=4)? } else { input.arbitrary()? };
    let (wire_bytes, pages) = (input.arbitrary()?, input.arbitrary()?);
    Ok(Ack { stream: input.int_in_range(0..=2)?, wire_bytes, pages, round })
}

/// The first frame of a connection.
pub fn hello(input: &mut Unstructured<'_>) -> Result<Hello> {
    let role = if input.ratio(1, 4)? {
        Role::Pages { stream: input.int_in_range(0..=70)? }
    } else {
        let (spec_json, cpu) = (input.arbitrary()?, input.arbitrary()?);
        let epoch = Epoch(if input.arbitrary()? { 1 } else { input.arbitrary()? });
        let manifest =
            Manifest { vm: VmId(Uuid::nil()), epoch, spec_json, ranges: RANGES.into(), disks: vec![], cpu };
        Role::Control {
            manifest,
            page_streams: input.int_in_range(0..=3)?,
            post_copy: input.arbitrary()?,
            reuse: input.arbitrary()?,
            verify: input.arbitrary()?,
        }
    };
    let epoch = Epoch(if input.arbitrary()? { 2 } else { input.arbitrary()? });
    Ok(Hello {
        migration: MigrationId(Uuid::nil()),
        epoch,
        source: input.arbitrary()?,
        session: input.arbitrary()?,
        role,
    })
}

/// The first frame of the source that both state machines are set up for.
pub fn healthy_hello() -> Hello {
    let (vm, epoch) = (VmId(Uuid::nil()), Epoch(1));
    let manifest =
        Manifest { vm, epoch, spec_json: vec![], ranges: RANGES.into(), disks: vec![], cpu: vec![] };
    let role = Role::Control { manifest, page_streams: STREAMS, post_copy: true, reuse: true, verify: true };
    Hello { migration: MigrationId(Uuid::nil()), epoch: Epoch(2), source: "a".into(), session: 0, role }
}

/// Any connection of a migration.
pub fn link(input: &mut Unstructured<'_>) -> Result<Link> {
    Ok(if input.arbitrary()? { Link::Control } else { Link::Pages(input.int_in_range(0..=2)?) })
}

/// A connection's end.
pub fn lost() -> ApiError {
    ApiError::new(ErrorCode::Unreachable, "lost")
}

/// Success or failure of a step of the machine.
pub fn outcome(input: &mut Unstructured<'_>) -> Result<std::result::Result<(), MachineError>> {
    let failed = MachineError { step: "a step".into(), reason: "it failed".into() };
    Ok(if input.ratio(1, 4)? { Err(failed) } else { Ok(()) })
}

/// An outcome, with how long a part of it took.
pub fn timed(input: &mut Unstructured<'_>) -> Result<std::result::Result<Duration, MachineError>> {
    let took = Duration::from_micros(input.arbitrary()?);
    Ok(outcome(input)?.map(|()| took))
}
