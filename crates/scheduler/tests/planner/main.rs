//! What plans promise.

mod arbitrary;
mod cases;
mod decision;
mod disks;
mod findings;
mod mandatory;
mod power;
mod properties;
mod voluntary;
mod what_if;
mod world;
