//! What the targets share: hostile input made from the fuzzer's bytes, and what must hold whatever it is.

pub mod destination;
mod edit;
pub mod guest;
pub mod machine;
pub mod message;
pub mod source;
pub mod stream;

pub use edit::edited;
