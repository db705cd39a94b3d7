//! The bytes between two VMMs, version 1.
//!
//! A migration uses one control connection and N page connections, all opened by the source. On each, both sides
//! first send a [`Preamble`]; the highest version that both speak is used. Then everything is a frame:
//!
//! ```text
//!  0      1          4            8                 16
//!  | tag  | zeros    | length u32 | check u64        | payload, `length` bytes        all integers little endian
//!
//!  control   source: HELLO(control, manifest)   heartbeats   STATE   COMMITTED        | ERROR at any time
//!            dest.:  WELCOME  READY  acks       heartbeats   PREPARED        RESUMED  | ERROR at any time
//!  pages i   source: HELLO(pages i)  PAGES ... ROUND_END  PAGES ... ROUND_END  ...
//!            dest.:  WELCOME  DIGESTS ... if it has kept memory of this VM
//! ```
//!
//! `check` is XXH3-64 of the payload, seeded with the header's first eight bytes: it finds damage, not malice. Every
//! length is bounded before anything is allocated; see the `_MAX` constants. Messages are protobuf with numbered
//! fields, so that fields can be added; unknown tags and unknown page kinds are refused.
//!
//! Acknowledgements are cumulative and travel on the control connection; a page stream never waits for one as long
//! as its window is open.

mod digester;
mod digests;
mod error;
mod frame;
mod hello;
mod message;
mod missing;
mod pages;
mod preamble;
mod state;

pub use digester::{DIGEST_BYTES, Digest, DigestKey, Digester};
pub use digests::{Digests, PIECE_PAGES, PIECES_AHEAD_MAX};
pub use error::WireError;
pub use frame::{HEADER_BYTES, Header, Tag};
pub use hello::{Hello, MANIFEST_RANGES_MAX, PAGE_STREAMS_MAX, Role};
pub use message::{
    Ack, Committed, Control, Digest128, Done, ERROR_TEXT_BYTES_MAX, Failure, Heartbeat, Prepared, Ready,
    Resumed, WANT_PAGES_MAX, Want, Welcome, Whole,
};
pub use missing::{MISSING_BYTES_MAX, Missing, missing};
pub use pages::{PageKind, PageRecord, RAW_PAGES_MAX, RUNS_MAX, RoundEnd, Run};
pub use preamble::{MAGIC, PREAMBLE_BYTES, Preamble, VERSION_MAX, VERSION_MIN};
pub use state::{DeviceState, SECTION_BYTES_MAX, SECTION_NAME_BYTES_MAX, SECTIONS_MAX};
