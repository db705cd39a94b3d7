//! What plans promise.

mod arbitrary;
mod cases;
mod decision;
mod findings;
mod mandatory;
mod properties;
mod voluntary;
mod world;
