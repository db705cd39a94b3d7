//! How long each kind of waiting may take.

use std::time::Duration;

/// Bounds and intervals of a migration. The default suits real hosts; tests shorten it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Page connections of a source, 1 to [`PAGE_STREAMS_MAX`](crate::wire::PAGE_STREAMS_MAX).
    pub page_streams: u32,
    /// For one connection and its handshake.
    pub connect: Duration,
    /// How long a destination waits for its source's first connection.
    pub accept: Duration,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// A peer that is silent, or that acknowledges nothing while bytes are on their way, is given up after this long.
    pub peer_silent: Duration,
    /// The same while the guest stands: it is better off running here than waiting for a peer that may come back.
    pub peer_silent_stopped: Duration,
    /// How long a destination waits for memory from a source that is heard of otherwise. A source waits with its guest
    /// quiet, or its rate capped, for less.
    pub idle: Duration,
    /// After a page connection broke: how long to wait for the peer's own words on the control connection.
    pub last_words: Duration,
    /// From stopping the guest to PREPARED. Beyond, the migration fails and the guest runs on at the source.
    pub switchover: Duration,
    /// After the grant, how long the source waits for the destination's RESUMED.
    pub resumed: Duration,
    /// How long a source waits for the arbiter's word on its commit before it lets the disks' locks go.
    pub let_go: Duration,
    /// Before a side in doubt asks the arbiter again.
    pub ask_again: Duration,
    /// How long a destination that was granted the VM tries to take its disk locks. Then it asks the arbiter again, or
    /// gives up if COMMITTED has told it that they are free.
    pub run: Duration,
    /// While memory follows a guest that runs at its destination: how long both sides wait for the network to come back.
    pub rejoin: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            page_streams: 1,
            connect: Duration::from_secs(5),
            accept: Duration::from_secs(60),
            heartbeat: Duration::from_millis(500),
            peer_silent: Duration::from_secs(10),
            peer_silent_stopped: Duration::from_secs(3),
            idle: Duration::from_secs(60),
            last_words: Duration::from_millis(500),
            switchover: Duration::from_secs(30),
            resumed: Duration::from_secs(30),
            let_go: Duration::from_secs(3),
            ask_again: Duration::from_millis(200),
            run: Duration::from_secs(10),
            rejoin: Duration::from_secs(3600),
        }
    }
}
