//! What the destination has kept of the VM, at the source: digests that come piece by piece, ahead of the pages that go.
//!
//! ```text
//!  destination --DIGESTS--> reader --queue--> pump: a page of the first round whose digest is the same is only named
//! ```
//!
//! The guest writes on meanwhile. A page is looked at after the dirty log has begun, so that one that changes afterwards is
//! sent with the next round, whatever was found.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use godwit_types::{ApiError, Gfn};

use super::flow::Flow;
use super::link::{LinkError, Reader};
use super::threads::spawn;
use crate::machine::PageRange;
use crate::wire::{DigestKey, Digester, Digests, HEADER_BYTES, PIECES_AHEAD_MAX, Tag, WireError};

/// See the module.
pub(super) struct KeptThere {
    digester: Digester,
    queue: Receiver<Result<Digests, LinkError>>,
    piece: Digests,
    /// How long the digests of a piece may take.
    within: Duration,
}

impl KeptThere {
    /// Reads the digests of one page stream on a thread of its own, which ends with the connection. The destination sends
    /// no more than the queue holds, so that the connection never stands.
    pub(super) fn listen(
        stream: u32,
        key: DigestKey,
        reader: Reader,
        flow: Arc<Flow>,
        within: Duration,
    ) -> Result<(Self, JoinHandle<()>), ApiError> {
        let (sender, queue) = sync_channel(PIECES_AHEAD_MAX);
        let thread = spawn(&format!("mig-kept-{stream}"), move || read(reader, &sender, &flow))?;
        Ok((Self { digester: Digester::new(&key), queue, piece: Digests::new(Gfn(0)), within }, thread))
    }

    /// Waits for the digests of the piece that is next.
    pub(super) fn turn_to(&mut self, piece: PageRange) -> Result<(), LinkError> {
        self.piece = self.queue.recv_timeout(self.within).unwrap_or(Err(LinkError::Silent))?;
        let first = self.piece.first();
        if first == piece.start {
            return Ok(());
        }
        let reason = format!("they begin at page {first:?}, not at {:?}", piece.start);
        Err(WireError::malformed("digests", reason).into())
    }

    /// Whether the destination has kept these contents of a page of the piece.
    pub(super) fn has(&self, gfn: Gfn, page: &[u8]) -> bool {
        self.piece.of(gfn).is_some_and(|kept| *kept == self.digester.digest(page))
    }
}

fn read(reader: Reader, queue: &SyncSender<Result<Digests, LinkError>>, flow: &Flow) {
    let mut reader = reader.carrying(Tag::Digests);
    loop {
        let next = match reader.frame() {
            Ok((Tag::Digests, payload)) => {
                flow.other_bytes.fetch_add((HEADER_BYTES + payload.len()) as u64, Relaxed);
                Digests::decode(payload).map_err(LinkError::from)
            }
            Ok((tag, _)) => Err(WireError::OutOfPlace { tag, expected: "digests" }.into()),
            Err(error) => Err(error),
        };
        let last = next.is_err();
        // The pump may have gone, or need no more of them.
        if queue.send(next).is_err() || last {
            return;
        }
    }
}
