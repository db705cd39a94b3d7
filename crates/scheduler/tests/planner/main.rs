//! What plans promise.

mod cases;
mod mandatory;
mod voluntary;
