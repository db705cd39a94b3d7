//! What a migration's peer can write on a connection, through the reader that both sides use.
#![no_main]

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use godwit_fuzz::machine::Model;
use godwit_fuzz::stream::Pieces;
use godwit_fuzz::{edited, message};
use godwit_migration::codec::{Packer, Packing};
use godwit_migration::driver::fuzzing;
use godwit_migration::wire::{
    DeviceState, HEADER_BYTES, Header, PREAMBLE_BYTES, PageKind, PageRecord, Preamble, RoundEnd, Tag,
};
use godwit_migration::{PageRange, Section, wire};
use godwit_types::Gfn;
use libfuzzer_sys::fuzz_target;

/// Most frames of one connection.
const FRAMES_MAX: usize = 12;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    // An input that is too short for what it began is as good as none.
    let _ = connection(&mut input);
});

fn connection(input: &mut Unstructured<'_>) -> Result<()> {
    preamble(input.arbitrary()?);
    let sizes: Vec<u8> = input.arbitrary()?;
    let (mut bytes, mut pages) = (Vec::new(), 0);
    for _ in 0..input.int_in_range(0..=FRAMES_MAX)? {
        let (tag, payload, contents) = frame(input, &mut pages)?;
        let payload = edited(payload, input)?;
        if let Ok(header) = Header::encode(tag, &payload) {
            bytes.extend(edited_sometimes(header.to_vec(), input)?);
            bytes.extend(payload);
            bytes.extend(contents);
        }
    }
    bytes.extend_from_slice(input.bytes(input.len())?);
    fuzzing::read_frames(Pieces::new(bytes.clone(), sizes.clone()));
    fuzzing::receive_pages(Pieces::new(bytes, sizes), Arc::new(Model::default()));
    Ok(())
}

/// Both sides come to the same version, or neither does.
fn preamble(bytes: [u8; PREAMBLE_BYTES]) {
    let magic = Preamble::OURS.encode();
    for bytes in [bytes, [&magic[..8], &bytes[8..]].concat().try_into().expect("as long as before")] {
        if let Ok(theirs) = Preamble::decode(&bytes) {
            assert_eq!(Preamble::OURS.agree(theirs).ok(), theirs.agree(Preamble::OURS).ok());
        }
    }
}

/// Headers are seldom damaged: behind a damaged one nothing is read.
fn edited_sometimes(header: Vec<u8>, input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    if input.ratio(1, 16)? {
        let edited = edited(header, input)?;
        if let Some(Ok(header)) = edited.first_chunk::<HEADER_BYTES>().map(Header::decode) {
            assert!(header.length <= header.tag.payload_bytes_max());
        }
        return Ok(edited);
    }
    Ok(header)
}

/// A frame as a healthy peer would send it, or nearly, and the contents that follow it.
fn frame(input: &mut Unstructured<'_>, pages: &mut u64) -> Result<(Tag, Vec<u8>, Vec<u8>)> {
    let (tag, payload) = match input.int_in_range(0..=6)? {
        0 => (Tag::Hello, message::hello(input)?.encode()),
        1 => (Tag::Control, message::control(input)?.to_payload()),
        2 => (Tag::State, state(input)?.encode()),
        5 => (Tag::Missing, missing(input)?),
        3 | 4 => {
            let (payload, contents) = page_record(input, pages)?;
            return Ok((Tag::Pages, payload, contents));
        }
        _ => (Tag::RoundEnd, RoundEnd { round: input.int_in_range(0..=3)?, pages: *pages }.encode().to_vec()),
    };
    Ok((tag, payload, Vec::new()))
}

/// The first frame of a list of pages that are, or are not, those of the model.
fn missing(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let (mut runs, mut end) = (Vec::new(), 0);
    for _ in 0..input.int_in_range(0..=4)? {
        let start = Gfn(end + input.int_in_range(0..=9)?);
        let pages = input.int_in_range(1..=5)?;
        end = start.0 + pages;
        runs.push(PageRange { start, pages });
    }
    Ok(wire::missing(runs.into_iter()).swap_remove(0))
}

fn state(input: &mut Unstructured<'_>) -> Result<DeviceState> {
    let mut sections = Vec::new();
    for _ in 0..input.int_in_range(0..=3)? {
        let (device, kind) = (input.arbitrary()?, input.arbitrary()?);
        sections.push(Section { device, kind, version: input.arbitrary()?, payload: input.arbitrary()? });
    }
    Ok(DeviceState { last_round: input.arbitrary()?, sections })
}

fn page_record(input: &mut Unstructured<'_>, pages: &mut u64) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut packer = Packer::default();
    let mut record = PageRecord::default();
    record.begin(input.int_in_range(1..=3)?);
    for _ in 0..input.int_in_range(0..=4)? {
        let kind = *input.choose(&[PageKind::Raw, PageKind::Zero, PageKind::Delta, PageKind::Reused])?;
        record.push(Gfn(input.int_in_range(0..=21)?), kind);
    }
    *pages += record.pages;
    let plain = vec![7; record.raw_bytes() as usize];
    let (codec, contents) = packer.pack(*input.choose(&Packing::ALL)?, &plain);
    (record.codec, record.contents_bytes) = (codec, contents.len() as u32);
    let mut payload = Vec::new();
    record.encode_into(&mut payload);
    Ok((payload, contents.to_vec()))
}
