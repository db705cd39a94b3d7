//! Traces as texts.

mod bitbrains;
mod own;
mod planetlab;

pub use bitbrains::{Bitbrains, bitbrains};
pub use own::{read as own, write};
pub use planetlab::planetlab;

/// What is wrong with a trace, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct FormatError {
    /// From 1.
    pub line: usize,
    pub what: String,
}

impl FormatError {
    /// About the line at that place, from 0.
    fn at(index: usize, what: impl Into<String>) -> Self {
        Self { line: index + 1, what: what.into() }
    }
}

/// The values of a line, all read alike.
fn values<T>(
    index: usize,
    words: &mut std::str::Split<'_, char>,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, FormatError> {
    let each = words.map(|word| {
        read(word.trim())
            .ok_or_else(|| FormatError::at(index, format!("'{word}' is not a value of the series")))
    });
    each.collect()
}

/// Lines that are not empty, each with its place.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty())
}
