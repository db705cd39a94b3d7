//! The one place that prints results. Everything else that is said goes to standard error.
#![allow(clippy::print_stdout)]

use std::fmt::Display;

/// Prints a result.
pub(crate) fn line(text: impl Display) {
    println!("{text}");
}
