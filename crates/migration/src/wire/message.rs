//! Control messages. Field numbers are for ever: a number is never used again for something else.

use godwit_types::{ApiError, ErrorCode};
use prost::Message;

use super::digester::DigestKey;
use super::error::WireError;
use crate::proof::MemoryDigest;

/// Longest error text that is sent, in bytes; longer ones are cut.
pub const ERROR_TEXT_BYTES_MAX: usize = 8 << 10;

/// Most pages that one message asks for.
pub const WANT_PAGES_MAX: usize = 256;

/// A message on the control connection.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Control {
    /// Destination: the handshake of this connection is accepted.
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    /// Destination: all streams are open, everything is in place for the switchover.
    #[prost(message, tag = "2")]
    Ready(Ready),
    /// Either side: still here. The destination echoes the source's stamp.
    #[prost(message, tag = "3")]
    Heartbeat(Heartbeat),
    /// Destination: how far one page stream has been written into memory.
    #[prost(message, tag = "4")]
    Ack(Ack),
    /// Destination: holds everything, has loaded it, waits for the commit.
    #[prost(message, tag = "5")]
    Prepared(Prepared),
    /// Source: the commit was granted and the disk locks are dropped.
    #[prost(message, tag = "6")]
    Committed(Committed),
    /// Destination: the VM runs there.
    #[prost(message, tag = "7")]
    Resumed(Resumed),
    /// Either side: it has given up, and why.
    #[prost(message, tag = "8")]
    Error(Failure),
    /// Destination: the guest waits for these pages.
    #[prost(message, tag = "9")]
    Want(Want),
    /// Destination: it has all of memory, and needs nothing more.
    #[prost(message, tag = "10")]
    Whole(Whole),
    /// Source: it knows, and ends.
    #[prost(message, tag = "11")]
    Done(Done),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Envelope {
    #[prost(oneof = "Control", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    body: Option<Control>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Welcome {
    /// On the control connection: memory may follow after the guest.
    #[prost(bool, tag = "1")]
    pub post_copy: bool,
    /// On a page stream: digests of kept pages follow, made with this key of 32 bytes. Empty: none follow.
    #[prost(bytes = "vec", tag = "2")]
    pub digest_key: Vec<u8>,
    /// On the control connection: memory's digest will come, as it was asked for.
    #[prost(bool, tag = "3")]
    pub verify: bool,
}

impl Welcome {
    /// The key of the digests that follow, if any do.
    pub fn key(&self) -> Result<Option<DigestKey>, WireError> {
        match self.digest_key.as_slice() {
            [] => Ok(None),
            key => key.try_into().map(Some).map_err(|_| WireError::malformed("key", "not of 32 bytes")),
        }
    }
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Ready {}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Heartbeat {
    /// Microseconds of the source's clock when it sent the heartbeat that this one is, or answers.
    #[prost(uint64, tag = "1")]
    pub source_us: u64,
    /// In an answer: microseconds since 1970 by the destination's clock; 0 by releases that do not say.
    #[prost(uint64, tag = "2")]
    pub unix_us: u64,
}

/// Cumulative since the stream's beginning.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Ack {
    #[prost(uint32, tag = "1")]
    pub stream: u32,
    /// Frames received and written, in bytes on the wire after the handshake.
    #[prost(uint64, tag = "2")]
    pub wire_bytes: u64,
    /// Pages written or zeroed.
    #[prost(uint64, tag = "3")]
    pub pages: u64,
    /// The last round whose end has been reached; 0 is none.
    #[prost(uint32, tag = "4")]
    pub round: u32,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Prepared {
    /// How far the guest's clock, by both hosts' real time, is ahead of where it should be, in nanoseconds; if known.
    #[prost(sint64, optional, tag = "1")]
    pub clock_error_ns: Option<i64>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Committed {
    /// The epoch that the arbiter granted.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Resumed {
    /// By the destination's clock, from COMMITTED to the first vCPU running, in microseconds.
    #[prost(uint64, tag = "1")]
    pub took_us: u64,
    /// How long ago that was when this was sent, in microseconds; 0 with memory that follows, unless it is said again on a new
    /// connection.
    #[prost(uint64, tag = "2")]
    pub ago_us: u64,
    /// Of the time since COMMITTED: until the claim was granted, in microseconds.
    #[prost(uint64, tag = "3")]
    pub claim_us: u64,
    /// Then until the disk locks were taken, in microseconds.
    #[prost(uint64, tag = "4")]
    pub locks_us: u64,
    /// Of all memory, as it was when the guest began to run; if that was asked for, and none of it is to follow.
    #[prost(message, optional, tag = "5")]
    pub memory: Option<Digest128>,
    /// From the first vCPU running until the guest's first packet left, in microseconds; if one has, before this was sent.
    #[prost(uint64, optional, tag = "6")]
    pub first_packet_us: Option<u64>,
}

/// A digest of all memory; see [`crate::proof`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Digest128 {
    #[prost(fixed64, tag = "1")]
    pub low: u64,
    #[prost(fixed64, tag = "2")]
    pub high: u64,
}

impl From<MemoryDigest> for Digest128 {
    fn from(MemoryDigest(digest): MemoryDigest) -> Self {
        Self { low: digest as u64, high: (digest >> 64) as u64 }
    }
}

impl From<Digest128> for MemoryDigest {
    fn from(digest: Digest128) -> Self {
        Self(u128::from(digest.high) << 64 | u128::from(digest.low))
    }
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Want {
    /// Guest frame numbers; a source looks at the first [`WANT_PAGES_MAX`].
    #[prost(uint64, repeated, tag = "1")]
    pub pages: Vec<u64>,
}

/// What it was like at the destination until everything was there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Whole {
    /// Pages that were waited for.
    #[prost(uint64, tag = "1")]
    pub faults: u64,
    /// How long they were waited for: the sum, in microseconds.
    #[prost(uint64, tag = "2")]
    pub waited_us: u64,
    /// The longest wait, in microseconds.
    #[prost(uint64, tag = "3")]
    pub longest_us: u64,
    /// Of all memory as it was at the stop, if that was asked for and the guest has not begun anew since.
    #[prost(message, optional, tag = "4")]
    pub memory: Option<Digest128>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Done {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Failure {
    #[prost(uint32, tag = "1")]
    pub code: u32,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(string, optional, tag = "3")]
    pub remedy: Option<String>,
}

impl Control {
    /// The payload of a frame.
    pub fn to_payload(&self) -> Vec<u8> {
        Envelope { body: Some(self.clone()) }.encode_to_vec()
    }

    /// The message in a frame's payload.
    pub fn from_payload(payload: &[u8]) -> Result<Self, WireError> {
        let envelope =
            Envelope::decode(payload).map_err(|error| WireError::malformed("control message", error))?;
        envelope.body.ok_or_else(|| WireError::malformed("control message", "of an unknown kind"))
    }

    /// The message's name, as the protocol's drawing has it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Welcome(_) => "WELCOME",
            Self::Ready(_) => "READY",
            Self::Heartbeat(_) => "a heartbeat",
            Self::Ack(_) => "an acknowledgement",
            Self::Prepared(_) => "PREPARED",
            Self::Committed(_) => "COMMITTED",
            Self::Resumed(_) => "RESUMED",
            Self::Error(_) => "ERROR",
            Self::Want(_) => "WANT",
            Self::Whole(_) => "WHOLE",
            Self::Done(_) => "DONE",
        }
    }

    /// An error in a form that fits a frame.
    pub fn error(error: &ApiError) -> Self {
        Self::Error(Failure {
            code: ERROR_CODES.iter().find(|(code, _)| *code == error.code).map_or(0, |(_, number)| *number),
            message: bounded(&error.message),
            remedy: error.remedy.as_deref().map(bounded),
        })
    }
}

const ERROR_CODES: [(ErrorCode, u32); 9] = [
    (ErrorCode::Invalid, 1),
    (ErrorCode::Unauthorized, 2),
    (ErrorCode::NotFound, 3),
    (ErrorCode::Conflict, 4),
    (ErrorCode::Refused, 5),
    (ErrorCode::Cancelled, 6),
    (ErrorCode::Unreachable, 7),
    (ErrorCode::Failed, 8),
    (ErrorCode::Internal, 9),
];

impl Failure {
    /// The peer's error as this side's user reads it; `peer` is who said it, such as `host b (destination)`.
    pub fn into_error(self, peer: &str) -> ApiError {
        let code = ERROR_CODES.iter().find(|(_, number)| *number == self.code);
        ApiError {
            code: code.map_or(ErrorCode::Failed, |(code, _)| *code),
            message: format!("{peer}: {}", bounded(&self.message)),
            remedy: self.remedy.as_deref().map(bounded),
        }
    }
}

fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(ERROR_TEXT_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::Tag;
    use super::*;

    #[test]
    fn every_error_code_reaches_the_other_side() {
        for (code, _) in ERROR_CODES {
            let sent = ApiError::new(code, "no").remedy("do");
            let Control::Error(failure) = Control::from_payload(&Control::error(&sent).to_payload()).unwrap()
            else {
                panic!("an error arrived as something else");
            };
            let expected = ApiError { message: "host b: no".into(), ..sent };
            assert_eq!(failure.into_error("host b"), expected);
        }
    }

    #[test]
    fn the_longest_error_still_fits_a_frame() {
        let error = ApiError::new(ErrorCode::Failed, "ü".repeat(100_000)).remedy("x".repeat(100_000));
        assert!(Control::error(&error).to_payload().len() <= Tag::Control.payload_bytes_max());
    }

    #[test]
    fn a_message_of_an_unknown_kind_is_refused() {
        let unknown = [0xfa, 0x01, 0x00];
        assert!(matches!(Control::from_payload(&unknown), Err(WireError::Malformed { .. })));
    }

    proptest! {
        #[test]
        fn acknowledgements_survive_the_wire(stream: u32, wire_bytes: u64, pages: u64, round: u32) {
            let sent = Control::Ack(Ack { stream, wire_bytes, pages, round });
            prop_assert_eq!(Control::from_payload(&sent.to_payload()), Ok(sent));
        }

        #[test]
        fn digests_of_memory_survive_the_wire(digest: u128) {
            let sent = Resumed { memory: Some(MemoryDigest(digest).into()), ..Resumed::default() };
            let Ok(Control::Resumed(came)) = Control::from_payload(&Control::Resumed(sent).to_payload()) else {
                panic!("RESUMED arrived as something else");
            };
            prop_assert_eq!(came.memory.map(MemoryDigest::from), Some(MemoryDigest(digest)));
        }

        #[test]
        fn arbitrary_control_bytes_are_an_answer_not_a_crash(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Control::from_payload(&bytes);
        }
    }
}
