//! `j1 data`: preference pairs checked and split, or looked at.

use std::{
    io::IsTerminal,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use engine::error::excerpt_of;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use trainer::data::prepare::{
    Inspection, PrepareError, PrepareOptions, PrepareProgress, PrepareReport, inspect, prepare,
};

use crate::{
    Failure,
    args::{DataCommand, Inspect, Prepare},
    interrupt,
    output::{note, print, table},
    session::data_source,
};

/// Characters of a text that `inspect` shows.
const SHOWN: usize = 160;

pub(crate) fn run(command: &DataCommand) -> Result<ExitCode, Failure> {
    let done = match command {
        DataCommand::Prepare(args) => run_prepare(args),
        DataCommand::Inspect(args) => run_inspect(args),
    };
    match done {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if matches!(error.downcast_ref(), Some(PrepareError::Interrupted)) => {
            note(&error.to_string());
            Ok(interrupt::status())
        }
        Err(error) => Err(error),
    }
}

fn run_prepare(args: &Prepare) -> Result<(), Failure> {
    let input = data_source(&args.input)?;
    let exclude = args.exclude.iter().map(|spec| data_source(spec)).collect::<Result<_, _>>()?;
    let options = PrepareOptions {
        held_out: args.held_out,
        seed: args.seed,
        max_chars: args.max_chars,
        exclude,
        keep_overlap: args.keep_overlap,
        columns: args.columns.clone().unwrap_or_default(),
    };
    let mut bar = Bar::start();
    let report =
        prepare(&input, &args.out, &options, interrupt::flag(), &mut |state| bar.show(state));
    bar.finish();
    let report = report?;
    match args.json {
        true => print(&format!("{:#}\n", report.json))?,
        false => print(&prepared(&report, &options))?,
    }
    let out = args.out.display();
    note(&format!("wrote train.jsonl, held_out.jsonl and prepare.json to {out}"));
    Ok(())
}

fn prepared(report: &PrepareReport, options: &PrepareOptions) -> String {
    let [train, held_out] = report.written();
    let row = |cells: [&str; 3]| cells.map(String::from).to_vec();
    let mut rows = vec![row(["source", "train", "held out"])];
    for (source, [train, held_out]) in &report.sources {
        rows.push(row([&short(source, 60), &train.to_string(), &held_out.to_string()]));
    }
    rows.push(row(["all", &train.to_string(), &held_out.to_string()]));
    let mut text = table(&rows);
    text += &dropped(report.rows, &report.dropped, "dropped");
    if !options.exclude.is_empty() {
        let kept = if options.keep_overlap { "; they were kept" } else { "" };
        text += &format!("{} rows overlap with a benchmark{kept}\n", report.overlap);
    }
    text
}

/// How many rows were dropped for what, and where the first ones are.
fn dropped(
    all: usize,
    reasons: &std::collections::BTreeMap<
        trainer::data::prepare::DropReason,
        trainer::data::prepare::Dropped,
    >,
    what: &str,
) -> String {
    let count: usize = reasons.values().map(|dropped| dropped.rows).sum();
    let mut text = format!("\n{count} of {all} rows {what}\n");
    for (reason, dropped) in reasons {
        let more = if dropped.rows > dropped.first.len() { ", ..." } else { "" };
        text += &format!(
            "{:>8}  {} ({}{more})\n",
            dropped.rows,
            reason.explanation(),
            dropped.first.join(", ")
        );
    }
    text
}

fn run_inspect(args: &Inspect) -> Result<(), Failure> {
    let source = data_source(&args.input)?;
    let columns = args.columns.clone().unwrap_or_default();
    let mut bar = Bar::start();
    let seen =
        inspect(&source, &columns, args.rows, interrupt::flag(), &mut |state| bar.show(state));
    bar.finish();
    let seen = seen?;
    match args.json {
        true => print(&format!("{:#}\n", seen.to_json()))?,
        false => print(&inspected(source.path(), &seen))?,
    }
    Ok(())
}

fn inspected(path: &Path, seen: &Inspection) -> String {
    let format = format!("{:?}", seen.format).to_lowercase();
    let mut text = format!("{}: {} rows, {format}\n\n", path.display(), seen.rows);

    let row = |cells: &[&str]| cells.iter().map(|cell| cell.to_string()).collect::<Vec<_>>();
    let mut rows = vec![row(&["column", "rows", ""])];
    for (name, (count, read)) in &seen.columns {
        let what = if *read { "read" } else { "ignored" };
        rows.push(row(&[&short(name, 60), &count.to_string(), what]));
    }
    text += &table(&rows);

    let mut rows = vec![row(&["length", "mean", "50 %", "90 %", "99 %", "longest"])];
    for (name, lengths) in &seen.lengths {
        let [p50, p90, p99] = lengths.percentiles.map(|n| n.to_string());
        let mean = format!("{:.1}", lengths.mean);
        rows.push(row(&[name, &mean, &p50, &p90, &p99, &lengths.max.to_string()]));
    }
    text += &format!("\n{}", table(&rows));
    let which = if seen.labeled { "the chosen reply" } else { "reply a" };
    text += &format!(
        "in characters; {which} is the longer one in {:.1} % of the pairs\n",
        100.0 * seen.chosen_longer
    );
    if !seen.labeled {
        text += "no label says which reply is better: j1 judge reads this, eval and train need chosen and \
                 rejected\n";
    }

    let all: usize = seen.sources.values().sum();
    let mut sources: Vec<_> = seen.sources.iter().collect();
    sources.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), *name));
    let mut rows = vec![row(&["source", "rows", "share"])];
    for (name, count) in sources {
        let share = format!("{:.1} %", 100.0 * *count as f64 / all.max(1) as f64);
        rows.push(row(&[&short(name, 60), &count.to_string(), &share]));
    }
    text += &format!("\n{}", table(&rows));
    text += &dropped(seen.rows, &seen.dropped, "would be dropped by j1 data prepare");
    text += &format!("{} rows have the prompt of an earlier one\n", seen.repeated_prompts);

    for example in &seen.examples {
        text += &format!("\n{}\n", short(example["id"].as_str().unwrap_or(""), SHOWN));
        for turn in example["prompt"].as_array().into_iter().flatten() {
            text += &field(turn["role"].as_str().unwrap_or(""), &turn["content"]);
        }
        let [first, second] = if seen.labeled { ["chosen", "rejected"] } else { ["a", "b"] };
        text += &field(first, &example["chosen"]);
        text += &field(second, &example["rejected"]);
    }
    text
}

fn field(name: &str, value: &Value) -> String {
    format!("  {}: {}\n", short(name, 60), short(value.as_str().unwrap_or(""), SHOWN))
}

/// The beginning of a text on one line, without what could steer a terminal.
fn short(text: &str, most: usize) -> String {
    let line: String = text.chars().map(|c| if c.is_whitespace() { ' ' } else { c }).collect();
    excerpt_of(&line, most)
}

/// Rows read so far: a spinner on a terminal, else a line now and then.
struct Bar {
    bar: ProgressBar,
    lines: bool,
    last_line: Instant,
}

impl Bar {
    fn start() -> Bar {
        let bar = ProgressBar::new_spinner();
        bar.set_style(
            ProgressStyle::with_template("{spinner} {msg} {pos} rows  {elapsed_precise}")
                .expect("a fixed template"),
        );
        Bar { bar, lines: !std::io::stderr().is_terminal(), last_line: Instant::now() }
    }

    fn show(&mut self, state: PrepareProgress) {
        if !self.lines {
            self.bar.set_message(state.doing);
            self.bar.set_position(state.rows as u64);
        } else if self.last_line.elapsed() > Duration::from_secs(30) {
            note(&format!("{} {} rows", state.doing, state.rows));
            self.last_line = Instant::now();
        }
    }

    fn finish(self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_shown_on_one_line() {
        assert_eq!(short("a\n\tb\u{1b}[2J\u{202e}", 20), "a  b\\u{1b}[2J\\u{202e}");
        assert_eq!(short("éé", 2), "éé");
        assert_eq!(short("ééé", 2), "éé…");
    }
}
