//! The one place that prints: documents as JSON, or text for people.
#![allow(clippy::print_stdout)]

use std::fmt::Display;
use std::io::{IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use godwit_types::ApiError;
use serde::Serialize;

use crate::cli::Global;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

impl Format {
    /// As it was asked for.
    pub(crate) fn of(global: &Global) -> Self {
        if global.json { Self::Json } else { Self::Text }
    }

    /// Prints a document: as JSON, or as `text` makes of it.
    pub(crate) fn print<T: Serialize>(
        self,
        document: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), ApiError> {
        match self {
            Self::Json => line(serde_json::to_string_pretty(document).map_err(unprintable)?),
            Self::Text => line(text(document)),
        }
    }

    /// Prints one document of a stream, on one line.
    pub(crate) fn print_line<T: Serialize>(
        self,
        document: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), ApiError> {
        match self {
            Self::Json => line(serde_json::to_string(document).map_err(unprintable)?),
            Self::Text => line(text(document)),
        }
    }
}

/// A table without borders, as wide as its contents or the terminal.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    if !std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table.add_rows(rows);
    table.trim_fmt()
}

/// `key  value` lines with the values aligned.
pub(crate) fn fields(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let lines: Vec<String> = rows.iter().map(|(key, value)| format!("{key:width$}  {value}")).collect();
    lines.join("\n")
}

/// Prints an error for people, on standard error.
pub(crate) fn error(error: &ApiError) {
    eprintln!("godwit: {}", error.message);
    if let Some(remedy) = &error.remedy {
        eprintln!("  {remedy}");
    }
}

/// A hint on standard error that a program does not want.
pub(crate) fn note(text: impl Display) {
    eprintln!("{text}");
}

/// Prints a text as it is.
pub(crate) fn line(text: impl Display) -> Result<(), ApiError> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        // Whoever closed the pipe has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(unprintable(error)),
        Ok(()) => Ok(()),
    }
}

fn unprintable(error: impl Display) -> ApiError {
    ApiError::new(godwit_types::ErrorCode::Failed, format!("the result could not be printed: {error}"))
}
