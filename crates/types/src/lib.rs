//! Words that every part of Godwit shares: ids, units, specifications and API documents.
//!
//! Nothing here does I/O. A type lives here when two processes exchange it: the CLI and the
//! manager ([`vm`], [`host`], [`task`], [`event`]), the manager and a host's agent ([`agent`],
//! [`ownership`]), the agent and `godwit-vmm` ([`control`]).

pub mod agent;
pub mod api;
pub mod baseline;
pub mod capability;
pub mod check;
pub mod control;
pub mod cpu;
pub mod error;
pub mod event;
pub mod forecast;
pub mod host;
pub mod ids;
pub mod key;
pub mod lock;
pub mod migration;
pub mod ownership;
pub mod power;
pub mod storage;
pub mod task;
pub mod units;
pub mod usage;
pub mod vm;

pub use error::{ApiError, ErrorCode};
pub use ids::{Epoch, HostName, MigrationId, Name, TaskId, VmId, VmName};
pub use key::MigrationKey;
pub use units::{Bytes, Gfn, PAGE_SIZE_BYTES};
