//! `j1 judge --reply ..`: several replies to one prompt, every two compared, ranked.

use std::process::ExitCode;

use indicatif::ProgressBar;
use serde_json::{Value, json};
use trainer::{
    data::Message,
    eval::results::Record,
    judge::{
        CallbackError, JudgeEvent, RunStatus, Task,
        prompt::OrderPlan,
        ranking::{self, Comparisons, Standing},
        tasks_of,
        verdict::{MatchRule, UnparsedReason, Verdict, parts},
    },
};

use super::{SCHEMA, shown};
use crate::{
    Failure,
    args::{Judge, JudgeOrder},
    interrupt,
    output::{bar_style, note, print, table},
    session::Session,
};

/// Judges replies to a prompt. In both orders unless one is asked for: a ranking by one order would be one of slots.
pub(super) fn run(args: &Judge, prompt: &str, replies: &[String]) -> Result<ExitCode, Failure> {
    let model = args.model.as_deref().expect("clap requires it without --print-template");
    let session = Session::open(model, &args.runtime, &args.generation)?;
    let judge = session.judge(None)?;
    let pairs = ranking::pairs("replies", &[Message::new("user", prompt)], replies);
    let order = match args.order {
        None | Some(JudgeOrder::Both) => OrderPlan::Both,
        Some(JudgeOrder::Given) => OrderPlan::ChosenFirst,
    };
    let of_pair = |pair: usize| tasks_of(pair, pair as u64, order, args.votes, judge.seed);
    let tasks: Vec<Task> = (0..pairs.len()).flat_map(of_pair).collect();
    let bar = ProgressBar::new(tasks.len() as u64);
    bar.set_style(bar_style("[{bar:30}] {pos}/{len} judgements  {elapsed_precise}, {left}"));
    bar.tick();
    let mut records: Vec<Record> = Vec::new();
    let end = judge.run(&pairs, &tasks, interrupt::flag(), &mut |event| {
        if let JudgeEvent::Done(_, record) = event {
            records.push(record);
            bar.inc(1);
        }
        Ok::<(), CallbackError>(())
    })?;
    bar.finish_and_clear();
    if end == RunStatus::Interrupted {
        note("stopped before all replies were compared: there is no ranking");
        return Ok(interrupt::status());
    }
    let rule = MatchRule::from(args.match_rule);
    let compared = Comparisons::new(replies.len(), records, rule);
    match args.json {
        true => print(&format!("{}\n", to_json(&compared, rule)))?,
        false => print(&text(&compared, rule))?,
    }
    let without = compared.standings().iter().filter(|one| one.mean.is_none()).count();
    if args.fail_unparsed && without > 0 {
        note(&format!("--fail-unparsed: {without} of {} replies have no verdict", replies.len()));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Replies are numbered from 1 for people, as they were given.
fn name(reply: usize) -> String {
    format!("reply {}", reply + 1)
}

fn text(compared: &Comparisons, rule: MatchRule) -> String {
    let mut text = String::new();
    for record in compared.records() {
        let [a, b] = compared.slots(record).map(name);
        let vote =
            if record.vote > 0 { format!(" · vote {}", record.vote + 1) } else { String::new() };
        let verdict = match record.verdict(rule) {
            Verdict::Scores(of_a, of_b) => format!("{a} {of_a}, {b} {of_b}"),
            Verdict::Unparsed(reason) => format!("no verdict: {}", reason.sentence()),
        };
        text += &format!(
            "── {a} and {b}{vote} ──\n{}\n[{verdict}; {} tokens]\n\n",
            record.text.trim(),
            record.tokens
        );
    }
    let head =
        ["rank", "reply", "mean", "points", "verdicts", "better than"].map(str::to_owned).to_vec();
    let line = |(place, one): (usize, &Standing)| {
        let mean = one.mean.map_or("-".to_owned(), shown);
        let (points, verdicts) = (shown(one.points), one.verdicts.to_string());
        vec![
            (place + 1).to_string(),
            (one.reply + 1).to_string(),
            mean,
            points,
            verdicts,
            one.wins.to_string(),
        ]
    };
    let ranking = compared.ranking();
    let lines = std::iter::once(head).chain(ranking.iter().enumerate().map(line));
    text += &table(&lines.collect::<Vec<_>>());
    let sentence = match compared.winner() {
        Some(best) => format!("Reply {} is the best.", best + 1),
        None if compared.verdicts() == 0 => {
            format!("No verdict could be read in {} judgements.", compared.records().len())
        }
        None => "No reply is better than all others.".to_owned(),
    };
    let orders = match compared.agreement() {
        Some(true) => " Both orders agree on every two.",
        Some(false) => " The orders disagree on some.",
        None => "",
    };
    text + &format!("{sentence}{orders}\n")
}

/// The object of `--json`; cli/README.md describes it. Replies are indices, from 0.
fn to_json(compared: &Comparisons, rule: MatchRule) -> Value {
    let standing = |one: &Standing| json!({"reply": one.reply, "mean": one.mean, "points": one.points, "verdicts": one.verdicts, "wins": one.wins});
    let pair = |(pair, &(first, second)): (usize, &(usize, usize))| {
        let (winner, agree) = (compared.winner_of(pair), compared.agreement_of(pair));
        json!({"replies": [first, second], "winner": winner, "agree": agree})
    };
    let judgement = |record: &Record| {
        let parts = parts(&record.text);
        let verdict = record.verdict(rule);
        json!({
            "replies": compared.slots(record),
            "vote": record.vote,
            "scores": verdict.scores().map(|(a, b)| [a, b]),
            "unparsed": verdict.unparsed().map(UnparsedReason::name),
            "criteria": parts.criteria,
            "analysis": parts.analysis,
            "text": record.text,
            "tokens": record.tokens,
            "prompt_tokens": record.prompt_tokens,
            "finish": record.finish,
        })
    };
    json!({
        "schema": SCHEMA,
        "match": rule,
        "winner": compared.winner(),
        "agree": compared.agreement(),
        "ranking": compared.ranking().iter().map(standing).collect::<Vec<_>>(),
        "pairs": compared.places().iter().enumerate().map(pair).collect::<Vec<_>>(),
        "judgements": compared.records().iter().map(judgement).collect::<Vec<_>>(),
    })
}
