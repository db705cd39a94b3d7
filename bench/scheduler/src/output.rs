//! Rows as a table, or one JSON object a line.

use std::io::Write;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::error::{BenchError, Result};

/// Prints a row, if JSON is asked for.
pub(crate) fn tell(json: bool, row: &impl Serialize) -> Result<()> {
    if json {
        print(&serde_json::to_string(row).map_err(BenchError::Print)?);
    }
    Ok(())
}

/// A reader that has gone away has seen enough.
pub(crate) fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// The first two columns are text, those after them numbers.
pub(crate) fn table(header: &[&str], lines: impl Iterator<Item = Vec<String>>) -> String {
    const TEXTS: usize = 2;
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header).add_rows(lines);
    for column in table.column_iter_mut().skip(TEXTS) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}
