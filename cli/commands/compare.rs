//! `j1 compare`: two evaluations of the same data.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write,
    process::ExitCode,
};

use engine::error::excerpt_of;
use serde_json::json;
use trainer::{
    eval::{
        rescore::{Evaluation, PairText},
        results::{Key, Record},
        scores::compare::{Change, Comparison, Difference, Judged, PairChange, Unit},
    },
    judge::{prompt::OrderPlan, verdict::MatchRule},
};

use crate::{
    Failure,
    args::Compare,
    output::{print, sentence, table},
};

/// Characters of a text of a pair that are shown.
const EXCERPT: usize = 600;
/// Characters of a subset's name that are shown.
const NAME: usize = 20;
/// Characters of a pair's id that are shown.
const ID: usize = 40;
/// Writing to a `String` cannot fail.
const TO_MEMORY: &str = "a string grows";

pub(crate) fn run(args: &Compare) -> Result<ExitCode, Failure> {
    let (base, trained) = (Evaluation::open(&args.base)?, Evaluation::open(&args.trained)?);
    if base.is_of_other_data(&trained)? {
        let [base, trained] = [&base.path, &trained.path].map(|path| path.display());
        return Err(format!("{base} and {trained} are of different data").into());
    }
    let comparable = can_compare_criteria(&base, &trained);
    let [of_base, of_trained] = [&base, &trained].map(|of| Judged {
        records: &of.records,
        rubrics: of.rubrics.as_ref().filter(|_| comparable),
    });
    let rule = args.match_rule.into();
    let comparison = Comparison::new(of_base, of_trained, rule, args.seed)?;
    if comparison.protocol.order == OrderPlan::ChosenFirst {
        sentence(
            "the chosen reply always stood in slot A, so that a preference for slot A counts as being right: `j1 eval \
             --order both` judges both orders",
        );
    }
    if args.json {
        let paths = json!([args.base, args.trained]);
        let all = json!({"schema": 1, "evaluations": paths, "comparison": comparison});
        print(&format!("{all:#}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text =
        format!("base     {}\ntrained  {}\n", base.path.display(), trained.path.display());
    text += &numbers(&comparison);
    if args.show > 0 {
        show(&mut text, &comparison, args.show, &base, &trained);
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Whether the criteria of both can be compared; says why not.
fn can_compare_criteria(base: &Evaluation, trained: &Evaluation) -> bool {
    let missing = [base, trained].into_iter().find(|of| of.rubrics.is_none());
    let why = match missing {
        Some(of) => format!(
            "{} has no rubrics.jsonl beside it (a directory of `j1 eval` gets it when its command is run again)",
            of.path.display()
        ),
        None if !base.measures_as(trained) => {
            "they were measured with other rows or another template".to_owned()
        }
        None => return true,
    };
    sentence(&format!("criteria are not compared: {why}"));
    false
}

/// The table of numbers.
fn numbers(comparison: &Comparison) -> String {
    let Comparison { judgements, rows, protocol, left_out: [before, now], gained, lost, .. } =
        comparison;
    let mut text = format!(
        "in both: {} of {}, match {}",
        counted(*judgements, "judgement"),
        counted(*rows, "row"),
        protocol.rule
    );
    if before + now > 0 {
        write!(text, "; left out: {before} of base, {now} of trained").expect(TO_MEMORY);
    }
    let cells = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect();
    let mut lines = vec![cells(&["", "base", "trained", "change", "95 %", "of"])];
    let name = |measure: &Difference| measure.name.replace('_', " ");
    lines.extend(comparison.measures.iter().map(|measure| line(&name(measure), measure)));
    write!(text, "\n\n{}", table(&lines)).expect(TO_MEMORY);
    writeln!(
        text,
        "\n{} became right, {lost} are not right any more",
        counted(*gained, "judgement")
    )
    .expect(TO_MEMORY);
    if !comparison.subsets.is_empty() {
        let mut lines =
            vec![cells(&["accuracy in %", "base", "trained", "change", "95 %", "gained", "lost"])];
        lines.extend(comparison.subsets.iter().map(subset));
        write!(text, "\n{}", table(&lines)).expect(TO_MEMORY);
    }
    text
}

/// `1 row`, `2 rows`.
fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn subset(change: &Change) -> Vec<String> {
    let name = excerpt_of(change.subset.as_deref().unwrap_or("(no subset)"), NAME);
    let mut cells = line(&name, &change.accuracy);
    cells.pop();
    cells[1..].iter_mut().for_each(|cell| *cell = cell.replace(" %", ""));
    cells.extend([change.gained.to_string(), change.lost.to_string()]);
    cells
}

/// Name, value of both, change, its interval, of how many.
fn line(name: &str, measure: &Difference) -> Vec<String> {
    let (scale, unit, digits) = match measure.unit {
        Unit::Share => (100.0, " %", 2),
        Unit::Number => (1.0, "", 2),
        Unit::Tokens => (1.0, "", 1),
    };
    let or_none = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
    let value = |value: f64| format!("{:.digits$}{unit}", scale * value);
    let change = |change: f64| format!("{:+.digits$}", scale * change);
    let [of_base, of_trained] = measure.of;
    vec![
        name.to_owned(),
        or_none(measure.base.map(value)),
        or_none(measure.trained.map(value)),
        or_none(measure.difference.map(change)),
        or_none(measure.interval.map(|it| format!("[{}, {}]", change(it.low), change(it.high)))),
        match of_base == of_trained {
            true => of_base.to_string(),
            false => format!("{of_base}, {of_trained}"),
        },
    ]
}

/// Adds both judgements of the pairs that improved most, and of some that are drawn.
fn show(
    text: &mut String,
    comparison: &Comparison,
    count: usize,
    base: &Evaluation,
    trained: &Evaluation,
) {
    let improved = comparison.improved();
    let (most, drawn) = (&improved[..improved.len().min(count)], comparison.drawn(count));
    let rows: BTreeSet<u64> = most.iter().chain(&drawn).map(|pair| pair.row).collect();
    let found = [trained, base].into_iter().find_map(|of| of.texts(&rows).ok().flatten());
    if found.is_none() {
        sentence(
            "the prompts and replies of the pairs are not shown: neither directory has a results.csv of its judgements",
        );
    }
    let by_key = |of: &Evaluation| -> HashMap<Key, Record> {
        let wanted = of.records.iter().filter(|record| rows.contains(&record.row));
        wanted.map(|record| (record.key(), record.clone())).collect()
    };
    let shown = Shown {
        texts: found.unwrap_or_default(),
        base: by_key(base),
        trained: trained.records.iter().filter(|record| rows.contains(&record.row)).collect(),
        rule: comparison.protocol.rule,
    };
    writeln!(
        text,
        "\n=== the {} that got better most, of {} ===",
        counted(most.len() as u64, "pair"),
        improved.len()
    )
    .expect(TO_MEMORY);
    most.iter().for_each(|pair| shown.add(text, pair));
    writeln!(
        text,
        "\n=== {} of {}, drawn by seed {} ===",
        counted(drawn.len() as u64, "pair"),
        comparison.pairs.len(),
        comparison.protocol.seed
    )
    .expect(TO_MEMORY);
    drawn.iter().for_each(|pair| shown.add(text, pair));
}

/// What is needed to show pairs as a person reads them.
struct Shown<'a> {
    texts: BTreeMap<u64, PairText>,
    base: HashMap<Key, Record>,
    /// By row.
    trained: Vec<&'a Record>,
    rule: MatchRule,
}

impl Shown<'_> {
    fn add(&self, text: &mut String, pair: &PairChange) {
        let PairChange { row, id, judgements, base, trained, lead } = pair;
        // Decimals of scores add up to a trace of rounding.
        let lead = (lead * 100.0).round() / 100.0;
        writeln!(
            text,
            "\n--- row {row} ({}): right {base} -> {trained} of {judgements}, the chosen reply's lead changed by {lead:+} ---",
            excerpt_of(id, ID)
        )
        .expect(TO_MEMORY);
        if let Some(texts) = self.texts.get(row) {
            for (name, of) in ["prompt", "chosen", "rejected"].iter().zip(texts) {
                writeln!(text, "{name}: {}", excerpt_of(of.trim(), EXCERPT)).expect(TO_MEMORY);
            }
        }
        let first = self.trained.partition_point(|record| record.row < *row);
        for record in self.trained[first..].iter().take_while(|record| record.row == *row) {
            if let Some(before) = self.base.get(&record.key()) {
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
