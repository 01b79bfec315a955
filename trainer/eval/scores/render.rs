//! The result table for the terminal.

use std::fmt::Write;

use engine::error::excerpt_of;

use super::{Protocol, Sample, Scores, Share, Summed, Timing};
use crate::eval::bootstrap::Interval;
use crate::eval::rewardbench::{PUBLISHED, SubsetScore};
use crate::eval::rubrics::Mean;
use crate::judge::prompt::OrderPlan;
use crate::judge::verdict::MatchRule;

/// Width of the column of names.
pub(super) const NAME: usize = 32;
/// The most columns of a line, but for a long name.
const WIDTH: usize = 80;

/// Characters of a name that comes from data, at most: a long one must not break the table.
pub(super) const LONGEST: usize = 200;

/// Writing to a `String` cannot fail.
pub(super) const TO_MEMORY: &str = "a string grows";

pub(super) fn render(scores: &Scores, model: &str, timing: Option<&Timing>) -> String {
    let mut out = String::new();
    let Protocol { rule, order, votes, seed, sample } = scores.protocol;
    let plural = if votes == 1 { "" } else { "s" };
    writeln!(out, "{}", excerpt_of(model, LONGEST)).expect(TO_MEMORY);
    writeln!(out, "order {order}, match {rule}, {votes} vote{plural}").expect(TO_MEMORY);
    if let Some(Sample { rows, of }) = sample {
        writeln!(out, "a sample of {rows} of {of} rows, by subset, seed {seed}").expect(TO_MEMORY);
    }
    if let Some(several) = &scores.several {
        several.render(&mut out);
    }
    table(&mut out, scores);
    diagnostics(&mut out, scores, timing);
    // Those are of RewardBench's first version.
    if scores.several.is_none() {
        published(&mut out, scores);
    }
    if order == OrderPlan::ChosenFirst {
        inflation(&mut out, scores.share_of_a);
    }
    out
}

fn table(out: &mut String, scores: &Scores) {
    let table = &scores.rewardbench;
    writeln!(out, "\n{:NAME$} {:>6} {:>9} {:>12}", "", "rows", "accuracy", "RewardBench")
        .expect(TO_MEMORY);
    let subset = |out: &mut String, subset: &SubsetScore| {
        let name = excerpt_of(subset.name.as_deref().unwrap_or("(no subset)"), LONGEST);
        let (score, plain) = (percent(subset.accuracy), percent(subset.plain_accuracy));
        let name = format!("  {name}");
        writeln!(out, "{name:NAME$} {:>6} {plain:>9} {score:>12}", subset.rows).expect(TO_MEMORY);
    };
    for section in &table.sections {
        let rows: u64 = section.subsets.iter().map(|subset| subset.rows).sum();
        let name = section.section.name();
        let score = percent(section.score);
        writeln!(out, "{name:NAME$} {rows:>6} {:>9} {score:>12}", "").expect(TO_MEMORY);
        section.subsets.iter().for_each(|score| subset(out, score));
    }
    if !table.other.is_empty() {
        let title = if table.sections.is_empty() { "Subsets" } else { "other (in no section)" };
        writeln!(out, "{title}").expect(TO_MEMORY);
        table.other.iter().for_each(|score| subset(out, score));
    }
    out.push('\n');
    if scores.rows == 0 {
        line(out, "Nothing was judged", "");
    }
    if let Some(plain) = scores.plain_accuracy {
        line(out, "Accuracy (plain)", &with_interval(plain, scores.plain_interval));
    }
    let nothing = scores.unparsed().total == scores.judgements;
    let said = if nothing { "  no verdict was read" } else { "" };
    if let Some(overall) = table.overall {
        let interval = scores.overall_interval.filter(|_| !nothing);
        let value = format!("{}{said}", with_interval(overall, interval));
        line(out, "RewardBench score, overall", &value);
    }
    if let Some(accuracy) = scores.accuracy {
        line(out, "RewardBench score, all rows", &format!("{}{said}", percent(accuracy)));
    }
    let partial = match (table.complete, table.sections.len()) {
        (true, _) | (false, 0) => "",
        (false, 4) => "; not the whole benchmark",
        (false, 3) => "; 3 of 4 sections",
        (false, 2) => "; 2 of 4 sections",
        (false, _) => "; 1 of 4 sections",
    };
    if scores.rows > 0 {
        writeln!(
            out,
            "  accuracy: right is 1, a tie or no verdict 0; RewardBench: a tie or no verdict"
        )
        .expect(TO_MEMORY);
        writeln!(out, "  is 0.5, sections weighted as the benchmark weights them{partial}")
            .expect(TO_MEMORY);
    }
    if let Some(warning) = scores.warning() {
        wrapped(out, "WARNING: ", &warning);
    }
}

fn diagnostics(out: &mut String, scores: &Scores, timing: Option<&Timing>) {
    out.push('\n');
    let rows = |value: Option<Share>| match value {
        Some(Share { share, of }) => format!("{}  of {of} rows", percent(share)),
        None => format!("{:>6}", "-"),
    };
    let rule = scores.protocol.rule;
    line(out, "Accuracy, chosen in slot A", &rows(scores.chosen_first));
    line(out, "Accuracy, rejected in slot A", &rows(scores.rejected_first));
    if scores.protocol.order == OrderPlan::Both {
        line(out, "Both orders prefer the same", &rows(scores.agreement));
        line(out, "Right in both orders", &rows(scores.consistent));
    }
    if let Some(summed) = scores.summed {
        let Summed { right, ties, wrong, unparsed } = summed;
        line(out, "Right by both orders' sum", &percent(summed.accuracy()));
        writeln!(
            out,
            "  {right} right, {ties} ties, {wrong} wrong, {unparsed} without a verdict in an order"
        )
        .expect(TO_MEMORY);
    }
    let share_of_a = scores.share_of_a.map_or(format!("{:>6}", "-"), |Share { share, of }| {
        format!("{}  of {of} that prefer a slot", percent(share))
    });
    line(out, "Verdicts for slot A", &share_of_a);
    let of_all = |count: u64| {
        let share = count as f64 / scores.judgements.max(1) as f64;
        format!("{count:>6}  {:.1} % of {}", 100.0 * share, judgements(scores.judgements))
    };
    line(out, "Ties", &of_all(scores.verdicts.ties));
    line(out, "Unparsed", &of_all(scores.unparsed().total));
    for (reason, count) in &scores.unparsed().reasons {
        writeln!(out, "  {count:>6}  {}", reason.sentence()).expect(TO_MEMORY);
    }
    let other = &scores.other_rule;
    let unparsed = match rule {
        MatchRule::Strict => scores.unparsed_soft.total,
        MatchRule::Soft => scores.unparsed_strict.total,
    };
    if let Some(plain) = other.plain_accuracy {
        let ties = other.verdicts.ties;
        let value = format!("{}  accuracy, {unparsed} unparsed, {ties} ties", percent(plain));
        line(out, &format!("The {} rule reads", other.rule), &value);
    }
    line(out, "Judgements", &format!("{:>6}  of {} rows", scores.judgements, scores.rows));
    if let Some(tokens) = scores.mean_tokens {
        line(out, "Mean length", &format!("{tokens:>6.1} tokens"));
    }
    line(out, "Truncated", &format!("{:>6}", scores.truncated));
    line(out, "Prompts too long", &format!("{:>6}", scores.prompts_too_long));
    if let Some(rubrics) = &scores.rubrics {
        let bits = |mean: Mean| {
            format!(
                "{:>6.2}  [{:.2}, {:.2}] 95 %",
                mean.mean, mean.interval.low, mean.interval.high
            )
        };
        let most = (rubrics.sources as f64).log2();
        line(
            out,
            "Criteria match their row",
            &format!("{}, of {most:.2} bits", bits(rubrics.bits)),
        );
        line(out, "  shuffled", &bits(rubrics.bits_shuffled));
        let share = |share: f64| percent(share).trim_start().to_owned();
        let own = rubrics.own_criteria.map_or("-".to_owned(), share);
        let (echoed, copied) = (share(rubrics.echoed), share(rubrics.copied));
        let parts = format!(
            "{own} % own, {echoed} % echoed, {copied} % copied, {} missing",
            rubrics.missing
        );
        writeln!(out, "  {parts}").expect(TO_MEMORY);
    }
    if let Some(timing) = timing
        && let Some(speed) = timing.tokens_per_second()
    {
        let (tokens, seconds) = (timing.tokens, timing.seconds);
        line(out, "Speed", &format!("{speed:>6.1} tokens/s  ({tokens} in {seconds:.1} s)"));
    }
}

fn judgements(count: u64) -> String {
    format!("{count} judgement{}", if count == 1 { "" } else { "s" })
}

fn published(out: &mut String, scores: &Scores) {
    writeln!(out, "\n{:NAME$} {:>6}  measured by", "Published", "score").expect(TO_MEMORY);
    for number in PUBLISHED {
        let (model, score, protocol) = (number.model, number.score, number.protocol);
        writeln!(out, "  {model:<30} {score:>6.2}  {protocol}").expect(TO_MEMORY);
    }
    let ours = match (scores.chosen_first, scores.protocol.votes) {
        (Some(Share { share, .. }), 1) => {
            let share = percent(share);
            format!("compare with \"Accuracy, chosen in slot A\" above, {}", share.trim_start())
        }
        _ => "compare with the accuracy of one vote with the chosen reply first".to_owned(),
    };
    wrapped(
        out,
        "",
        &format!(
            "j1-nano and j1-micro {ours}, if all of RewardBench was judged, with their prompt: the bundled one has its form \
             in our own words. The others were measured in other ways."
        ),
    );
}

/// What judging with the chosen reply first hides.
fn inflation(out: &mut String, share_of_a: Option<Share>) {
    let preferred = match share_of_a {
        Some(Share { share, .. }) => format!(
            "This judge preferred slot A in {} % of its verdicts; judging in both orders tells how much of that is the slot.",
            percent(share).trim_start()
        ),
        None => "This judge gave no verdict for either slot.".to_owned(),
    };
    out.push('\n');
    wrapped(
        out,
        "",
        &format!(
            "The chosen reply always stood in slot A, so a preference for slot A counts as \
             being right: a judge that always says A scores 100. {preferred}"
        ),
    );
}

/// A paragraph of lines that a narrow terminal shows whole.
fn wrapped(out: &mut String, start: &str, text: &str) {
    let mut line = start.to_owned();
    for word in text.split_whitespace() {
        let width = line.chars().count() + 1 + word.chars().count();
        if width > WIDTH {
            writeln!(out, "{}", line.trim_end()).expect(TO_MEMORY);
            line.clear();
        }
        if !line.is_empty() && !line.ends_with(' ') {
            line.push(' ');
        }
        line.push_str(word);
    }
    writeln!(out, "{line}").expect(TO_MEMORY);
}

fn line(out: &mut String, name: &str, value: &str) {
    writeln!(out, "{}", format!("{name:NAME$} {value}").trim_end()).expect(TO_MEMORY);
}

pub(super) fn percent(share: f64) -> String {
    format!("{:>6.2}", 100.0 * share)
}

fn with_interval(value: f64, interval: Option<Interval>) -> String {
    let interval = interval.map_or(String::new(), |Interval { low, high }| {
        format!("  [{:.2}, {:.2}] 95 %", 100.0 * low, 100.0 * high)
    });
    format!("{}{interval}", percent(value))
}
