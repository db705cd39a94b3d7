//! Entries of the capability list.

/// A capability: its ID, and everything behind the ID and the link byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    pub id: u8,
    pub body: Vec<u8>,
    /// Which bits of the body the guest may change.
    pub writable: Vec<u8>,
}

impl Capability {
    /// A capability of which the guest may change nothing.
    pub fn fixed(id: u8, body: Vec<u8>) -> Self {
        let writable = vec![0; body.len()];
        Self { id, body, writable }
    }
}
