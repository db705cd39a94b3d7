//! The frame around an axum router: who may ask, what a bad request is told, how connections begin and end.

mod auth;
mod documents;
mod serve;

pub use auth::require_token;
pub use documents::{ErrorResponse, Json, Path, Query, with_error_documents};
pub use serve::serve;
