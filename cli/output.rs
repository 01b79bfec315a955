//! Writing results to stdout, and tables. All that the program says goes through here: nothing that a stranger wrote reaches a
//! terminal as it is.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use engine::error::printable;
use indicatif::{HumanDuration, ProgressState, ProgressStyle};
use terminal_size::{Width, terminal_size_of};

/// Width of a file, and of a terminal that does not tell its own.
const USUAL_WIDTH: usize = 80;

/// Writes `text` to stdout at once: as it is to a file or a pipe, [`printable`] to a terminal. A reader that has gone
/// away (`j1 .. | head`) is an error of kind `BrokenPipe`, which `main` turns into a quiet end.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let shown = if stdout.is_terminal() { printable(text) } else { text.into() };
    stdout.write_all(shown.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| {
        // The system's text alone ("No space left on device") would not say on what.
        io::Error::new(error.kind(), format!("cannot write to stdout: {error}"))
    })
}

/// Writes a line to stderr, [`printable`]. Where it cannot be written, nothing can be said, and a long run does not
/// end for it, as with `eprintln!` it would.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{}", printable(line));
}

/// Writes a sentence to stderr: on a terminal broken between words, in a file on one line, so that it is found. What is to
/// be typed goes through [`note`]: a terminal copies its line as one.
pub(crate) fn sentence(text: &str) {
    match io::stderr().is_terminal() {
        true => wrapped(text, width(), "  ").iter().for_each(|line| note(line)),
        false => note(text),
    }
}

/// Characters in a line of stderr. It is asked for each time: windows change.
pub(crate) fn width() -> usize {
    terminal_size_of(io::stderr()).map_or(USUAL_WIDTH, |(Width(columns), _)| columns.into())
}

/// Lines of at most `width` characters of what a stranger may have written: [`printable`], broken between words where that
/// is possible. All lines but the first begin with `indent`.
pub(crate) fn wrapped(text: &str, width: usize, indent: &str) -> Vec<String> {
    let options = textwrap::Options::new(width.max(1))
        .subsequent_indent(indent)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    let text = printable(text).replace('\t', "    ");
    textwrap::wrap(&text, options).into_iter().map(|line| line.into_owned()).collect()
}

/// A progress bar's style. `{left}` is the time that is left, as far as it is known.
pub(crate) fn bar_style(template: &str) -> ProgressStyle {
    let left = |state: &ProgressState, out: &mut dyn fmt::Write| {
        // Nothing can be done about a bar that cannot be written.
        let _ = out.write_str(&time_left(state.per_sec(), state.eta()));
    };
    ProgressStyle::with_template(template).expect("a fixed template").with_key("left", left)
}

/// How long something takes yet at a rate that may not be known, before the first result.
pub(crate) fn time_left(per_second: f64, left: std::time::Duration) -> String {
    match per_second > 0.0 && per_second.is_finite() {
        true => format!("{:#} left", HumanDuration(left)),
        false => "estimating".to_string(),
    }
}

/// Columns of text, left-aligned first column, others right-aligned, two spaces between.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width - cell.chars().count());
            match column {
                0 => line += &format!("{cell}{padding}"),
                _ => line += &format!("  {padding}{cell}"),
            }
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// `1.5 GiB`, `117 MiB`, `3 KiB`.
pub(crate) fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        c if c >= 1024.0_f64.powi(3) => format!("{:.2} GiB", c / 1024.0_f64.powi(3)),
        c if c >= 1024.0_f64.powi(2) => format!("{:.0} MiB", c / 1024.0_f64.powi(2)),
        c => format!("{:.0} KiB", c / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let row = |cells: &[&str]| cells.iter().map(|cell| cell.to_string()).collect();
        let text = table(&[row(&["a", "n"]), row(&["long", "1"]), row(&["é", "100"])]);
        assert_eq!(text, "a       n\nlong    1\né     100\n");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn the_time_left_is_not_known_at_first() {
        let left = std::time::Duration::from_secs(40);
        assert_eq!(time_left(0.0, std::time::Duration::ZERO), "estimating");
        assert_eq!(time_left(2.0, left), "40s left");
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(bytes(1 << 30), "1.00 GiB");
        assert_eq!(bytes(117 << 20), "117 MiB");
        assert_eq!(bytes(0), "0 KiB");
    }
}
