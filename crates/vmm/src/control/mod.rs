//! The control socket of a running VM; its documents are in `godwit_types::control`.

pub mod desk;
pub mod hub;
pub mod server;
mod storage;

use std::os::fd::OwnedFd;

use godwit_types::control::{Reply, Request};

/// Serves every request but [`Request::Subscribe`], with the descriptors that came with it. Called from the clients' threads; must not block for long.
pub type Handler = dyn Fn(Request, Vec<OwnedFd>) -> Reply + Send + Sync;
