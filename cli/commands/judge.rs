//! `j1 judge`: one pair of replies or a file of them, with the reasoning.

mod print_prompt;
mod replies;

use std::{collections::BTreeMap, io, path::Path, process::ExitCode};

use indicatif::ProgressBar;
use serde_json::{Value, json};
use trainer::{
    data::{self, Message, Pair, Replies, Wanted},
    eval::results::{Finish, Record},
    judge::{
        CallbackError, JudgeEvent, RunStatus, Task,
        prompt::{Order, OrderPlan},
        tasks_of,
        verdict::{MatchRule, UnparsedReason, Verdict, parts},
    },
};

use crate::{
    Failure,
    args::{Judge, JudgeOrder},
    commands::judge::print_prompt::{print_prompts, print_template},
    interrupt,
    output::{bar_style, note, print},
    session::{Session, data_source},
};

/// The version of what `--json` prints.
const SCHEMA: u32 = 1;

pub(crate) fn run(args: &Judge) -> Result<ExitCode, Failure> {
    if args.print_template {
        print_template(args)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.reply.is_empty() {
        let (prompt, replies) = several(args)?;
        return replies::run(args, &prompt, &replies);
    }
    let pairs = pairs(args)?;
    let model = args.model.as_deref().expect("clap requires it without --print-template");
    if args.print_prompt {
        print_prompts(args, model, &pairs)?;
        return Ok(ExitCode::SUCCESS);
    }
    let session = Session::open(model, &args.runtime, &args.generation)?;
    let judge = session.judge(None)?;
    let tasks = tasks(args, &pairs);
    let mut report = Report::new(args, &pairs, &tasks, args.match_rule.into());
    let end = judge.run(&pairs, &tasks, interrupt::flag(), &mut |event| {
        match event {
            JudgeEvent::Text { task, text } => report.text(task, text),
            JudgeEvent::Step(_) => Ok(()),
            JudgeEvent::Done(task, record) => report.done(task, record),
        }
        .map_err(CallbackError::from)
    })?;
    Ok(match end {
        RunStatus::Complete if args.fail_unparsed && report.without_verdict > 0 => {
            let (without, all) = (report.without_verdict, pairs.len());
            note(&format!("--fail-unparsed: {without} of {all} pairs have no verdict"));
            ExitCode::FAILURE
        }
        RunStatus::Complete => ExitCode::SUCCESS,
        RunStatus::Interrupted => interrupt::status(),
    })
}

/// The pairs on the command line or in the file. Reply A takes the place of the chosen one.
fn pairs(args: &Judge) -> Result<Vec<Pair>, Failure> {
    if let Some(spec) = &args.data {
        let limit = args.limit.map(|limit| limit as usize);
        let columns = args.columns.clone().unwrap_or_default();
        let wanted = Wanted { replies: Replies::Any, columns, ..Wanted::default() };
        return Ok(data::read_with(&data_source(spec)?, limit, &wanted)?);
    }
    let [prompt, a, b] = [&args.prompt, &args.a, &args.b]
        .map(|value| value.as_deref().expect("clap requires prompt, a and b together"));
    let mut texts = texts(&[("--prompt", prompt), ("--a", a), ("--b", b)])?.into_iter();
    let mut next = || texts.next().expect("three texts");
    Ok(vec![Pair {
        id: "pair".to_string(),
        row: 0,
        prompt: vec![Message::new("user", &next())],
        chosen: next(),
        rejected: next(),
        subset: None,
        candidates: None,
    }])
}

/// The prompt and the replies on the command line, where there are several.
fn several(args: &Judge) -> Result<(String, Vec<String>), Failure> {
    if args.reply.len() < 2 {
        return Err("--reply: at least two are wanted, as a judge compares".into());
    }
    let prompt = args.prompt.as_deref().expect("clap requires it with --reply");
    let replies = args.reply.iter().map(|reply| ("--reply", reply.as_str()));
    let mut texts =
        texts(&std::iter::once(("--prompt", prompt)).chain(replies).collect::<Vec<_>>())?;
    Ok((texts.remove(0), texts))
}

/// The texts that flags give, in files or as they are.
pub(crate) fn texts(values: &[(&str, &str)]) -> Result<Vec<String>, Failure> {
    if values.iter().filter(|(_, value)| *value == "@-").count() > 1 {
        return Err("standard input can be read once: give @- for one of the texts".into());
    }
    let text = |&(flag, value): &(&str, &str)| -> Result<String, Failure> {
        match value.strip_prefix('@') {
            Some(text) if text.starts_with('@') => Ok(text.to_string()),
            Some("-") => io::read_to_string(io::stdin()).map_err(|error| {
                format!("cannot read standard input, which {flag} names with @-: {error}").into()
            }),
            Some(path) => std::fs::read_to_string(Path::new(path)).map_err(|error| {
                format!(
                    "cannot read {path}, which {flag} names with @: {error}; for a text that begins with @, \
                     write @@"
                )
                .into()
            }),
            None => Ok(value.to_string()),
        }
    };
    values.iter().map(text).collect()
}

fn tasks(args: &Judge, pairs: &[Pair]) -> Vec<Task> {
    let order = match (args.order.unwrap_or(JudgeOrder::Given), args.votes) {
        (JudgeOrder::Both, _) => OrderPlan::Both,
        (JudgeOrder::Given, 1) => OrderPlan::ChosenFirst,
        // SPCT shuffles the replies for each sample.
        (JudgeOrder::Given, _) => OrderPlan::Random,
    };
    let (votes, seed) = (args.votes, args.generation.seed);
    let of_pair = |(index, pair): (usize, &Pair)| tasks_of(index, pair.row, order, votes, seed);
    pairs.iter().enumerate().flat_map(of_pair).collect()
}

/// Prints judgements in the order of the tasks, whatever the order they are written in: the first
/// that is not printed yet streams, the others wait.
struct Report<'a> {
    args: &'a Judge,
    pairs: &'a [Pair],
    tasks: &'a [Task],
    rule: MatchRule,
    /// Index of the task that streams.
    current: usize,
    /// Text of tasks that wait, and whether the current one's heading is out.
    waiting: BTreeMap<usize, String>,
    headed: bool,
    records: BTreeMap<usize, Record>,
    /// Pairs that ended without a verdict.
    without_verdict: usize,
    /// Where the text does not stream there would be nothing to see for a long time.
    bar: ProgressBar,
}

impl<'a> Report<'a> {
    fn new(args: &'a Judge, pairs: &'a [Pair], tasks: &'a [Task], rule: MatchRule) -> Report<'a> {
        let (waiting, records) = Default::default();
        let bar = match args.json {
            true => ProgressBar::new(tasks.len() as u64),
            false => ProgressBar::hidden(),
        };
        bar.set_style(bar_style("[{bar:30}] {pos}/{len} judgements  {elapsed_precise}, {left}"));
        bar.tick();
        let (current, without_verdict, headed) = (0, 0, false);
        Report { args, pairs, tasks, rule, current, waiting, headed, records, without_verdict, bar }
    }

    fn index(&self, task: Task) -> usize {
        self.tasks.iter().position(|&other| other == task).expect("a task of this run")
    }

    fn text(&mut self, task: Task, text: &str) -> io::Result<()> {
        if self.args.json {
            return Ok(());
        }
        let index = self.index(task);
        if index == self.current {
            self.stream(text)
        } else {
            self.waiting.entry(index).or_default().push_str(text);
            Ok(())
        }
    }

    fn stream(&mut self, text: &str) -> io::Result<()> {
        if !self.headed {
            self.headed = true;
            print(&self.heading())?;
        }
        print(text)
    }

    fn heading(&self) -> String {
        let task = self.tasks[self.current];
        let slot = match task.order {
            Order::ChosenFirst => "reply A first",
            Order::RejectedFirst => "reply B first",
        };
        let mut heading = format!("── {} · {slot}", self.pairs[task.pair].id);
        if self.args.votes > 1 {
            heading += &format!(" · vote {} of {}", task.vote + 1, self.args.votes);
        }
        heading + " ──\n"
    }

    fn done(&mut self, task: Task, record: Record) -> io::Result<()> {
        let index = self.index(task);
        self.bar.inc(1);
        self.records.insert(index, record);
        while let Some(record) = self.records.get(&self.current) {
            let slots = self.tasks.iter().any(|task| task.order == Order::RejectedFirst);
            let end = end(record, self.rule, slots);
            if !self.args.json {
                let text = self.waiting.remove(&self.current).unwrap_or_default();
                self.stream(&text)?;
                print(&end)?;
            }
            let pair = self.tasks[self.current].pair;
            self.current += 1;
            self.headed = false;
            if self.tasks.get(self.current).is_none_or(|next| next.pair != pair) {
                self.conclude(pair)?;
            } else if let Some(text) = self.waiting.remove(&self.current) {
                self.stream(&text)?;
            }
        }
        Ok(())
    }

    /// The outcome of a pair, all of whose judgements are there.
    fn conclude(&mut self, pair: usize) -> io::Result<()> {
        let records: Vec<Record> = (0..self.tasks.len())
            .filter(|&index| self.tasks[index].pair == pair)
            .filter_map(|index| self.records.remove(&index))
            .collect();
        let outcomes = [self.rule, self.rule.other()].map(|rule| Outcome::of(&records, rule));
        let [outcome, other] = &outcomes;
        self.without_verdict += usize::from(outcome.winner().is_none());
        match self.args.json {
            true => {
                let line = to_json(&self.pairs[pair], &records, outcome, other);
                self.bar.suspend(|| print(&format!("{line}\n")))
            }
            false => print(&format!("{}{}\n\n", outcome.sentence(), other.beside(outcome))),
        }
    }
}

/// The line after a judgement: its scores by this rule and by the other one.
fn end(record: &Record, rule: MatchRule, slots: bool) -> String {
    let scores = |rule: MatchRule| {
        let (slot_a, slot_b) = record.verdict(rule).scores()?;
        let (a, b) = record.order.by_label((slot_a, slot_b));
        Some(match slots {
            true => format!("slots A {slot_a}, B {slot_b} -> your A {a}, your B {b}"),
            false => format!("scores: A {a}, B {b}"),
        })
    };
    let verdict = match record.verdict(rule) {
        Verdict::Scores(..) => scores(rule).expect("it has scores"),
        Verdict::Unparsed(reason) => format!("no verdict: {}", reason.sentence()),
    };
    let (read, other) = (record.verdict(rule), record.verdict(rule.other()));
    let beside = match (read, other) {
        _ if read.scores() == other.scores() => String::new(),
        (_, Verdict::Scores(..)) => {
            format!("; {} reads {}", rule.other(), scores(rule.other()).expect("it has scores"))
        }
        (_, Verdict::Unparsed(reason)) => format!("; {}: {}", rule.other(), reason.sentence()),
    };
    let cut = match (record.finish, read) {
        (Finish::Length, Verdict::Scores(..)) => ", cut at --max-new-tokens",
        _ => "",
    };
    format!("\n[{verdict}{beside}; {} tokens{cut}]\n", record.tokens)
}

/// The scores of all judgements of one pair together, by one rule.
struct Outcome {
    rule: MatchRule,
    /// Sums over the judgements with a verdict; reply A first, wherever it stood.
    sums: (f64, f64),
    verdicts: usize,
    judgements: usize,
    /// Whether both orders prefer the same reply, if both were judged and have verdicts.
    agree: Option<bool>,
}

impl Outcome {
    fn of(records: &[Record], rule: MatchRule) -> Outcome {
        let sum = |order: Option<Order>| {
            let of_order = records.iter().filter(|r| order.is_none_or(|order| r.order == order));
            let scores = of_order.filter_map(|record| record.scores_by_label(rule));
            scores.fold((0.0, 0.0, 0), |(a, b, n), scores| (a + scores.0, b + scores.1, n + 1))
        };
        let (a, b, verdicts) = sum(None);
        let preference = |order| match sum(Some(order)) {
            (_, _, 0) => None,
            (a, b, _) => a.partial_cmp(&b),
        };
        let preferences = (preference(Order::ChosenFirst), preference(Order::RejectedFirst));
        let agree = match preferences {
            (Some(first), Some(second)) => Some(first == second),
            _ => None,
        };
        Outcome { rule, sums: (a, b), verdicts, judgements: records.len(), agree }
    }

    fn winner(&self) -> Option<&'static str> {
        let (a, b) = self.sums;
        match self.verdicts {
            0 => None,
            _ if a > b => Some("A"),
            _ if b > a => Some("B"),
            _ => Some("tie"),
        }
    }

    /// Means over the judgements with a verdict, if there are any.
    fn means(&self) -> Option<(f64, f64)> {
        let count = self.verdicts as f64;
        (self.verdicts > 0).then(|| (self.sums.0 / count, self.sums.1 / count))
    }

    fn sentence(&self) -> String {
        let mut sentence = match (self.winner(), self.means()) {
            (Some(winner), Some((a, b))) => {
                let (a, b) = (shown(a), shown(b));
                match winner {
                    "tie" => format!("Tie, {a} each"),
                    _ => format!("Reply {winner} is better, {a} to {b} (A to B)"),
                }
            }
            _ => "No verdict could be read".to_string(),
        };
        if self.judgements > 1 && self.verdicts > 0 {
            let (a, b) = self.sums;
            sentence += &format!(
                " on average over {} of {} judgements (sums {} to {})",
                self.verdicts,
                self.judgements,
                shown(a),
                shown(b)
            );
        } else if self.judgements > 1 {
            sentence += &format!(" in {} judgements", self.judgements);
        }
        match self.agree {
            Some(true) => sentence += "; both orders agree",
            Some(false) => sentence += "; the orders disagree",
            None => {}
        }
        sentence + "."
    }

    /// The outcome by this rule, beside that of the rule that was asked for.
    fn beside(&self, asked: &Outcome) -> String {
        let same = self.winner() == asked.winner() && self.verdicts == asked.verdicts;
        match same {
            true => format!(" The {} rule reads the same.", self.rule),
            false => format!(" By the {} rule: {}", self.rule, self.sentence()),
        }
    }

    fn to_json(&self) -> Value {
        let scores = |scores: Option<(f64, f64)>| scores.map(|(a, b)| json!({ "a": a, "b": b }));
        json!({
            "match": self.rule,
            "winner": self.winner(),
            "scores": scores(self.winner().map(|_| self.sums)),
            "means": scores(self.means()),
            "verdicts": self.verdicts,
            "agree": self.agree,
        })
    }
}

/// A score with at most two decimals.
fn shown(score: f64) -> String {
    format!("{}", (100.0 * score).round() / 100.0)
}

/// One line of `--json`; cli/README.md describes it. A field that changes its meaning changes [`SCHEMA`].
fn to_json(pair: &Pair, records: &[Record], outcome: &Outcome, other: &Outcome) -> Value {
    let verdict = |record: &Record, rule: MatchRule| {
        let unparsed = record.verdict(rule).unparsed().map(UnparsedReason::name);
        let scores = record.scores_by_label(rule).map(|(a, b)| json!({ "a": a, "b": b }));
        (scores, unparsed)
    };
    let judgement = |record: &Record| {
        let parts = parts(&record.text);
        let (scores, unparsed) = verdict(record, outcome.rule);
        let (other_scores, other_unparsed) = verdict(record, other.rule);
        json!({
            "order": match record.order {
                Order::ChosenFirst => "a-first",
                Order::RejectedFirst => "b-first",
            },
            "vote": record.vote,
            "scores": scores,
            "unparsed": unparsed,
            "other": { "match": other.rule, "scores": other_scores, "unparsed": other_unparsed },
            "criteria": parts.criteria,
            "analysis": parts.analysis,
            "text": record.text,
            "tokens": record.tokens,
            "prompt_tokens": record.prompt_tokens,
            "finish": record.finish,
        })
    };
    let mut line = outcome.to_json();
    line["schema"] = json!(SCHEMA);
    line["id"] = json!(pair.id);
    line["other"] = other.to_json();
    line["judgements"] = records.iter().map(judgement).collect();
    line
}
