//! The result table for the terminal.

use std::fmt::Write;

use super::{Protocol, Sample, Scores, Share, Timing, Unparsed};
use crate::bootstrap::Interval;
use crate::prompt::OrderPlan;
use crate::rewardbench::{PUBLISHED, SubsetScore};

/// Width of the column of names.
const NAME: usize = 32;

/// Characters that reorder the text around them on a terminal.
const DIRECTION: [char; 9] = [
    '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}',
    '\u{2069}',
];

/// Writing to a `String` cannot fail.
const TO_MEMORY: &str = "a string grows";

pub(super) fn render(scores: &Scores, model: &str, timing: Option<&Timing>) -> String {
    let mut out = String::new();
    let Protocol { rule, order, votes, seed, sample } = scores.protocol;
    let plural = if votes == 1 { "" } else { "s" };
    writeln!(out, "{}", printable(model)).expect(TO_MEMORY);
    writeln!(out, "order {order}, match {rule}, {votes} vote{plural}").expect(TO_MEMORY);
    if let Some(Sample { rows, of }) = sample {
        writeln!(out, "a sample of {rows} of {of} rows, by subset, seed {seed}").expect(TO_MEMORY);
    }
    table(&mut out, scores);
    diagnostics(&mut out, scores, timing);
    published(&mut out);
    if order == OrderPlan::ChosenFirst {
        inflation(&mut out, scores.share_of_a);
    }
    out
}

fn table(out: &mut String, scores: &Scores) {
    let table = &scores.rewardbench;
    writeln!(out, "\n{:NAME$} {:>6} {:>8} {:>8}", "", "rows", "score", "plain").expect(TO_MEMORY);
    let subset = |out: &mut String, subset: &SubsetScore| {
        let name = printable(subset.name.as_deref().unwrap_or("(no subset)"));
        let (score, plain) = (percent(subset.accuracy), percent(subset.plain_accuracy));
        let name = format!("  {name}");
        writeln!(out, "{name:NAME$} {:>6} {score:>8} {plain:>8}", subset.rows).expect(TO_MEMORY);
    };
    for section in &table.sections {
        let rows: u64 = section.subsets.iter().map(|subset| subset.rows).sum();
        let name = section.section.name();
        writeln!(out, "{name:NAME$} {rows:>6} {:>8}", percent(section.score)).expect(TO_MEMORY);
        section.subsets.iter().for_each(|score| subset(out, score));
    }
    if !table.other.is_empty() {
        let title = if table.sections.is_empty() { "Subsets" } else { "other (in no section)" };
        writeln!(out, "{title}").expect(TO_MEMORY);
        table.other.iter().for_each(|score| subset(out, score));
    }
    out.push('\n');
    if let Some(overall) = table.overall {
        let partial = match (table.complete, table.sections.len()) {
            (true, _) => String::new(),
            (false, 4) => "  not the whole benchmark".to_owned(),
            (false, sections) => format!("  {sections} of 4 sections"),
        };
        line(
            out,
            "Overall",
            &format!("{}{partial}", with_interval(overall, scores.overall_interval)),
        );
    }
    if let Some(accuracy) = scores.accuracy {
        line(out, "Mean over rows", &percent(accuracy));
    }
    if let Some(plain) = scores.plain_accuracy {
        line(out, "Plain accuracy", &with_interval(plain, scores.plain_interval));
    }
    if scores.rows == 0 {
        line(out, "Nothing was judged", "");
    }
}

fn diagnostics(out: &mut String, scores: &Scores, timing: Option<&Timing>) {
    out.push('\n');
    let rows = |value: Option<Share>| match value {
        Some(Share { share, of }) => format!("{}  of {of} rows", percent(share)),
        None => format!("{:>6}", "-"),
    };
    line(out, "Chosen reply in slot A", &rows(scores.chosen_first));
    line(out, "Rejected reply in slot A", &rows(scores.rejected_first));
    if scores.protocol.order == OrderPlan::Both {
        line(out, "Both orders prefer the same", &rows(scores.agreement));
        line(out, "Right in both orders", &rows(scores.consistent));
    }
    let share_of_a = scores.share_of_a.map_or(format!("{:>6}", "-"), |Share { share, of }| {
        format!("{}  of {of} judgements that prefer a slot", percent(share))
    });
    line(out, "Verdicts for slot A", &share_of_a);
    line(out, "Ties", &format!("{:>6}", scores.verdicts.ties));
    line(out, "Unparsed, strict", &unparsed(&scores.unparsed_strict));
    line(out, "Unparsed, soft", &unparsed(&scores.unparsed_soft));
    line(out, "Judgements", &format!("{:>6}  of {} rows", scores.judgements, scores.rows));
    if let Some(tokens) = scores.mean_tokens {
        line(out, "Mean length", &format!("{tokens:>6.1} tokens"));
    }
    line(out, "Truncated", &format!("{:>6}", scores.truncated));
    line(out, "Prompts too long", &format!("{:>6}", scores.prompts_too_long));
    if let Some(timing) = timing
        && let Some(speed) = timing.tokens_per_second()
    {
        let (tokens, seconds) = (timing.tokens, timing.seconds);
        line(out, "Speed", &format!("{speed:>6.1} tokens/s  ({tokens} in {seconds:.1} s)"));
    }
}

fn published(out: &mut String) {
    writeln!(out, "\n{:NAME$} {:>6}  measured by", "Published", "score").expect(TO_MEMORY);
    for number in PUBLISHED {
        let (model, score, protocol) = (number.model, number.score, number.protocol);
        writeln!(out, "  {model:<30} {score:>6.2}  {protocol}").expect(TO_MEMORY);
    }
}

/// What `--order chosen-first` hides.
fn inflation(out: &mut String, share_of_a: Option<Share>) {
    out.push_str(
        "\nWith --order chosen-first the chosen reply always stands in slot A, so a preference for slot A\n\
         counts as being right: a judge that always says A scores 100.\n",
    );
    match share_of_a {
        Some(Share { share, .. }) => writeln!(
            out,
            "This judge preferred slot A in {} % of its verdicts; --order both tells how much of that is the slot.",
            percent(share).trim_start()
        ),
        None => writeln!(out, "This judge gave no verdict for either slot."),
    }
    .expect(TO_MEMORY);
}

fn line(out: &mut String, name: &str, value: &str) {
    writeln!(out, "{}", format!("{name:NAME$} {value}").trim_end()).expect(TO_MEMORY);
}

fn percent(share: f64) -> String {
    format!("{:>6.2}", 100.0 * share)
}

fn with_interval(value: f64, interval: Option<Interval>) -> String {
    let interval = interval.map_or(String::new(), |Interval { low, high }| {
        format!("  [{:.2}, {:.2}] 95 %", 100.0 * low, 100.0 * high)
    });
    format!("{}{interval}", percent(value))
}

fn unparsed(unparsed: &Unparsed) -> String {
    let reasons: Vec<_> =
        unparsed.reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    format!("{:>6}  {}", unparsed.total, reasons.join(", "))
}

/// Names come from data: control characters must not reach the terminal, and a long one not break the table.
fn printable(name: &str) -> String {
    let mut text = String::new();
    for (index, c) in name.chars().enumerate() {
        if index == 200 {
            text.push('…');
            break;
        }
        match c.is_control() || DIRECTION.contains(&c) {
            true => text.extend(c.escape_default()),
            false => text.push(c),
        }
    }
    text
}
