//! TLS 1.3 between the two sides of a migration.
//!
//! rustls shakes hands; the records (RFC 8446, section 5) are sealed and opened here, in two halves that share nothing but
//! the renewal of keys. So pages are copied once, from guest memory into the record that leaves, and opened where they
//! arrived, and the thread that sends never waits for the one that receives.
//!
//! ```text
//!   session.rs   both sides prove that they have the migration's key, with raw public keys (RFC 7250)
//!   record.rs    Sealer, Opener: AES-128-GCM where the CPU has instructions for it, else ChaCha20-Poly1305
//! ```

mod identity;
mod record;
mod session;

pub use session::Session;
