//! What plans promise.

mod cases;
mod decision;
mod mandatory;
mod voluntary;
