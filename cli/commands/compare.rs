//! `j1 compare`: two evaluations of the same data.

use std::{collections::BTreeMap, fmt::Write, process::ExitCode};

use engine::error::excerpt_of;
use serde_json::json;
use trainer::{
    eval::{
        rescore::{Evaluation, PairText},
        results::Record,
        scores::compare::{Change, Comparison, Difference, Judged, PairChange, Unit},
    },
    judge::verdict::MatchRule,
};

use crate::{
    Failure,
    args::Compare,
    output::{note, print, table},
};

/// Characters of a text of a pair that are shown.
const EXCERPT: usize = 600;
/// Characters of a subset's name that are shown.
const NAME: usize = 21;
/// Characters of a pair's id that are shown.
const ID: usize = 40;
/// Writing to a `String` cannot fail.
const TO_MEMORY: &str = "a string grows";

pub(crate) fn run(args: &Compare) -> Result<ExitCode, Failure> {
    let [base, trained] = [&args.base, &args.trained].map(|path| Evaluation::open(path, None));
    let (base, trained) = (base?, trained?);
    let measured = base.rubrics.is_some() && trained.rubrics.is_some();
    let pooled = measured && base.has_the_pool_of(&trained);
    if measured && !pooled {
        note("criteria are not compared: their measures are of different rows");
    } else if !measured {
        let missing = if base.rubrics.is_none() { &base } else { &trained };
        note(&format!(
            "criteria are not compared: there is no rubrics.jsonl beside {} (the `j1 eval` that made it, run again, writes it)",
            missing.path.display()
        ));
    }
    let [of_base, of_trained] = [&base, &trained]
        .map(|of| Judged { records: &of.records, rubrics: of.rubrics.as_ref().filter(|_| pooled) });
    let rule = args.match_rule.into();
    let comparison = Comparison::new(of_base, of_trained, rule, args.seed)?;
    if args.json {
        let paths = json!([args.base, args.trained]);
        print(&format!(
            "{:#}\n",
            json!({"schema": 1, "evaluations": paths, "comparison": comparison})
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text =
        format!("base     {}\ntrained  {}\n", base.path.display(), trained.path.display());
    text += &numbers(&comparison);
    if args.show > 0 {
        let texts = trained.texts()?.or(base.texts()?);
        if texts.is_none() {
            note(
                "the pairs' own texts are not shown: there is no results.csv beside the judgements",
            );
        }
        let pairs =
            Shown { texts: texts.unwrap_or_default(), base: &base, trained: &trained, rule };
        let improved = comparison.improved();
        writeln!(
            text,
            "\n=== {} of {} pairs with more right judgements: the most improved ===",
            improved.len().min(args.show),
            improved.len()
        )
        .expect(TO_MEMORY);
        improved.into_iter().take(args.show).for_each(|pair| pairs.add(&mut text, pair));
        let drawn = comparison.drawn(args.show);
        writeln!(
            text,
            "\n=== {} of {} pairs, drawn by seed {} ===",
            drawn.len(),
            comparison.pairs.len(),
            args.seed
        )
        .expect(TO_MEMORY);
        drawn.into_iter().for_each(|pair| pairs.add(&mut text, pair));
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The table of numbers, at most 80 columns wide but for a subset's name.
fn numbers(comparison: &Comparison) -> String {
    let Comparison { judgements, rows, rule, left_out: [before, now], gained, lost, .. } =
        comparison;
    let mut text = format!("{judgements} judgements of {rows} rows are in both, match {rule}");
    if before + now > 0 {
        write!(text, "; left out: {before} of base, {now} of trained").expect(TO_MEMORY);
    }
    text += "\n\n";
    let head = |name: &str| {
        [name, "base", "trained", "difference", "95 %", "of"].map(str::to_owned).to_vec()
    };
    let mut lines = vec![head("")];
    lines.extend(
        comparison.measures.iter().map(|measure| line(&measure.name.replace('_', " "), measure)),
    );
    text += &table(&lines);
    writeln!(text, "\n{gained} judgements became right, {lost} are not right any more")
        .expect(TO_MEMORY);
    if !comparison.subsets.is_empty() {
        text += "\n";
        let mut lines = vec![head("accuracy in %")];
        lines[0].extend(["gained", "lost"].map(str::to_owned));
        lines.extend(comparison.subsets.iter().map(subset));
        text += &table(&lines);
    }
    text
}

fn subset(change: &Change) -> Vec<String> {
    let name = change.subset.as_deref().unwrap_or("(no subset)");
    let mut cells = line(&excerpt_of(name, NAME), &change.right);
    cells.iter_mut().for_each(|cell| *cell = cell.replace(" %", ""));
    cells.extend([change.gained.to_string(), change.lost.to_string()]);
    cells
}

fn line(name: &str, measure: &Difference) -> Vec<String> {
    let Difference { base, trained, difference, interval, of, .. } = *measure;
    let (scale, unit) = match measure.unit {
        Unit::Share => (100.0, " %"),
        Unit::Number | Unit::Tokens => (1.0, ""),
    };
    let value = |value: f64| format!("{:.2}{unit}", scale * value);
    let interval = format!("[{:+.2}, {:+.2}]", scale * interval.low, scale * interval.high);
    vec![
        name.to_owned(),
        value(base),
        value(trained),
        format!("{:+.2}", scale * difference),
        interval,
        of.to_string(),
    ]
}

/// What is needed to show pairs as a person reads them.
struct Shown<'a> {
    texts: BTreeMap<u64, PairText>,
    base: &'a Evaluation,
    trained: &'a Evaluation,
    rule: MatchRule,
}

impl Shown<'_> {
    fn add(&self, text: &mut String, pair: &PairChange) {
        let PairChange { row, id, judgements, base, trained, lead } = pair;
        writeln!(
            text,
            "\n--- row {row} ({}): right {base} -> {trained} of {judgements}, the chosen reply's lead {lead:+} ---",
            excerpt_of(id, ID)
        )
        .expect(TO_MEMORY);
        if let Some(texts) = self.texts.get(row) {
            for (name, of) in ["prompt", "chosen", "rejected"].iter().zip(texts) {
                writeln!(text, "{name}: {}", excerpt_of(of.trim(), EXCERPT)).expect(TO_MEMORY);
            }
        }
        for record in self.trained.records.iter().filter(|record| record.row == *row) {
            let before = self.base.records.iter().find(|before| before.key() == record.key());
            if let Some(before) = before {
                self.judgement(text, "base", before);
                self.judgement(text, "trained", record);
            }
        }
    }

    fn judgement(&self, text: &mut String, of: &str, record: &Record) {
        let verdict = match record.scores_by_label(self.rule) {
            Some((chosen, rejected)) => format!("chosen {chosen}, rejected {rejected}"),
            None => "no verdict".to_owned(),
        };
        let vote = if record.vote > 0 { format!(", vote {}", record.vote) } else { String::new() };
        writeln!(text, "[{of}, {}{vote}: {verdict}]\n{}", record.order, record.text.trim())
            .expect(TO_MEMORY);
    }
}
