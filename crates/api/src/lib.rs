//! What every speaker of Godwit's HTTP APIs shares: plain HTTP/1.1, JSON documents, a bearer token, errors as
//! [`godwit_types::ApiError`] documents.
//!
//! * [`Client`] asks; [`Events`] follows the event stream; [`Client::upgrade`] opens a raw byte stream.
//! * [`Token`] is the secret that both sides hold in a file.
//! * [`server`] (feature `server`) is the frame around an axum router.

mod client;
mod events;
#[cfg(feature = "server")]
pub mod server;
mod token;
mod url;

pub use client::{Client, Upgraded};
pub use events::Events;
pub use token::{Token, TokenError};
pub use url::{BaseUrl, InvalidUrl};

/// Longest request body that a server reads, in bytes.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Longest response body that a client reads, in bytes.
pub const RESPONSE_BYTES_MAX: usize = 16 << 20;
/// The protocol named in the `Upgrade` header of a console.
pub const CONSOLE_PROTOCOL: &str = "godwit-console";
