//! The tables of benches/README.md, made of records. tests/tidy.rs holds them to it, so that none is written by hand.

use std::fmt::Write as _;

use super::record::{self, Row, cells};

/// The page that shows the tables, from the root.
pub(crate) const PAGE: &str = "benches/README.md";

/// A table that the page shows: the rows whose kernel is one of these. Other rows stand in the record alone.
const TABLES: [(&str, &[&str]); 4] = [
    ("peaks", &["peak"]),
    ("model", &["prefill", "decode"]),
    ("train", &["lora-step", "grpo-update"]),
    ("kernels", &["matmul", "attention"]),
];

/// The rows of one of the page's tables, as Markdown.
fn markdown(table: &str, rows: &[Row]) -> Result<String, String> {
    let Some((_, kernels)) = TABLES.iter().find(|(name, _)| *name == table) else {
        return Err(format!("there is no table {table:?}"));
    };
    let wanted =
        |row: &&Row| row.id.split('/').nth(1).is_some_and(|kernel| kernels.contains(&kernel));
    let rows: Vec<[String; 5]> = rows.iter().filter(wanted).map(cells).collect();
    let titles = ["id", "median", "rate", "of the peak", "memory"];
    // Columns in which nothing stands are left out.
    let shown: Vec<usize> =
        (0..5).filter(|&column| rows.iter().any(|row| !row[column].is_empty())).collect();
    let line = |cell: &dyn Fn(usize) -> String| {
        format!(
            "| {} |\n",
            shown.iter().map(|&column| cell(column)).collect::<Vec<_>>().join(" | ")
        )
    };
    let mut out = line(&|column| titles[column].to_owned());
    out += &line(&|column| if column == 0 { "---" } else { "---:" }.to_owned());
    for row in &rows {
        out += &line(&|column| row[column].clone());
    }
    Ok(out)
}

const CLOSE: &str = "<!-- /bench -->";

/// `page` with every table between `<!-- bench:TABLE FILE -->` and `<!-- /bench -->` made again: of the record
/// that the marker names, or of `record`, which is then named there. `load` gives a record's text.
pub(crate) fn tables(
    page: &str,
    record: Option<&str>,
    load: &dyn Fn(&str) -> Result<String, String>,
) -> Result<String, String> {
    const OPEN: &str = "<!-- bench:";
    let mut out = String::new();
    let mut rest = page;
    while let Some(at) = rest.find(OPEN) {
        out += &rest[..at];
        let marker = rest[at + OPEN.len()..].split_once(" -->\n");
        let (marker, body) = marker.ok_or("a marker of a table without an end")?;
        let (table, named) = marker.split_once(' ').ok_or("a marker of a table names no record")?;
        let (_, after) = body.split_once(CLOSE).ok_or(format!("table {table} has no {CLOSE}"))?;
        let file = record.unwrap_or(named);
        let rows = record::parse(&load(file)?).map_err(|error| format!("{file}: {error}"))?;
        write!(out, "{OPEN}{table} {file} -->\n\n{}\n{CLOSE}", markdown(table, &rows)?)
            .expect("a String grows");
        rest = after;
    }
    Ok(out + rest)
}
