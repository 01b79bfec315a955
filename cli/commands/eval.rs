//! `j1 eval`: a judge on preference pairs, to a RewardBench table.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};
use trainer::train::settings::Choice;

use engine::generate::Stats;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use trainer::{
    data::{self, Pair, Wanted},
    eval::{
        rescore::{asked_for, rescore},
        results::{Record, Results},
        rubrics,
        scores::{Protocol, Sample, Scores, Timing},
    },
    judge::{
        CallbackError, JudgeEvent, RunStatus, Task,
        prompt::{OrderPlan, Template},
        tasks_of,
        verdict::MatchRule,
    },
};

use crate::{
    Failure,
    args::Eval,
    interrupt, machine,
    output::{bar_style, note, print, time_left},
    session::{Session, data_source},
};

pub(crate) fn run(args: &Eval) -> Result<ExitCode, Failure> {
    match &args.rescore {
        Some(path) => rescored(args, path),
        None => judged(args),
    }
}

/// `--rescore`: judgements that are already written.
fn rescored(args: &Eval, path: &Path) -> Result<ExitCode, Failure> {
    let template = args.generation.template.as_deref().map(Template::open).transpose()?;
    let records = rescore(path, template.map(|template| template.verdict_form()))?;
    let asked = asked_for(path, &records).unwrap_or(0);
    if asked > records.len() as u64 {
        note(&format!(
            "warning: {} holds {} of the {asked} judgements that its run was to make; these scores are of those alone \
             (the command that made them, run again, makes the rest)",
            path.display(),
            records.len()
        ));
    }
    let protocol = Protocol::of(&records, args.match_rule.into(), args.generation.seed);
    // They are what they are: flags that say otherwise would be ignored.
    let (order, votes) = (args.order.map(OrderPlan::from), args.votes);
    if order.is_some_and(|order| order != protocol.order)
        || votes.is_some_and(|v| v != protocol.votes)
    {
        return Err(format!(
            "{}: these judgements were made with --order {} --votes {}; leave both flags out",
            path.display(),
            protocol.order,
            protocol.votes
        )
        .into());
    }
    let scores = Scores::compute(&records, protocol);
    report(args, &scores, &path.display().to_string(), None)?;
    Ok(ExitCode::SUCCESS)
}

fn judged(args: &Eval) -> Result<ExitCode, Failure> {
    let required = "clap requires it without --rescore";
    let model = args.model.as_deref().expect(required);
    let out: &PathBuf = args.out.as_ref().expect(required);
    let spec = args.data.as_deref().expect(required);

    let columns = args.columns.clone().unwrap_or_default();
    let wanted = Wanted { columns, several: true, ..Wanted::default() };
    let mut pairs = data::read_with(&data_source(spec)?, None, &wanted)?;
    let (data_fingerprint, rows) = (data::fingerprint(&pairs), data::row_count(&pairs));
    note_empty_replies(&pairs);
    if let Some(limit) = args.limit {
        pairs = data::sample(pairs, limit as usize, args.generation.seed);
    }
    let sample = Sample { rows: data::row_count(&pairs) as u64, of: rows as u64 };
    let session = Session::open(model, &args.runtime, &args.generation)?;
    let judge = session.judge(args.max_prompt_tokens)?;
    let protocol = Protocol {
        rule: args.match_rule.into(),
        order: args.order.map_or(OrderPlan::Both, OrderPlan::from),
        votes: args.votes.unwrap_or(1),
        seed: args.generation.seed,
        sample: (sample.rows < sample.of).then_some(sample),
    };
    let mut settings = session.settings(&judge)?;
    // Of the whole file: with the seed and the limit it decides the sample.
    settings["data"] = json!(data_fingerprint);
    settings["rows"] = json!(rows);
    if let Some(limit) = args.limit {
        settings["limit"] = json!(limit);
    }
    settings["order"] = json!(protocol.order.name());
    settings["votes"] = json!(protocol.votes);
    settings["about"] = json!(machine::about(&[
        ("model", Some(model)),
        ("adapter", args.runtime.adapter.as_deref()),
        ("data", Some(spec)),
        ("template", args.generation.template.as_deref()),
    ]));
    let mut results = Results::open(out, &settings)?;

    let all = tasks(&pairs, &protocol);
    let key = |task: &Task| (pairs[task.pair].row, task.order, task.vote);
    results.only(&all.iter().map(key).collect())?;
    let done = results.done();
    let left: Vec<Task> = all.iter().filter(|task| !done.contains(&key(task))).copied().collect();
    if left.len() < all.len() {
        note(&format!("{}: {} of {} judgements are done", out.display(), done.len(), all.len()));
    }

    let mut timing = None;
    if !left.is_empty() {
        let mut progress = Progress::start(all.len(), all.len() - left.len(), protocol.rule);
        let end = judge.run(&pairs, &left, interrupt::flag(), &mut |event| {
            match event {
                JudgeEvent::Text { .. } => {}
                JudgeEvent::Step(stats) => progress.step(stats),
                JudgeEvent::Done(_, record) => {
                    progress.done(&record);
                    results.append(record).map_err(CallbackError::from)?;
                }
            }
            Ok(())
        });
        timing = Some(progress.finish());
        if end? == RunStatus::Interrupted {
            note(&format!(
                "stopped with {} of {} judgements in {}; run the same command again to go on",
                results.done().len(),
                all.len(),
                out.display()
            ));
            return Ok(interrupt::status());
        }
    }

    let scores = Scores::compute(results.records(), protocol);
    let measured = rubrics::of_records(&pairs, results.records(), judge.template);
    let scores = scores.with_rubrics(rubrics::Means::new(pairs.len(), &measured, protocol.seed));
    let timing_json = timing.as_ref().map(|timing| to_json(timing, &session));
    let name = args.runtime.adapter.as_deref().unwrap_or(model);
    let scores_json = scores.to_json(name, "tokenizer");
    results.finish(&pairs, protocol.rule, &measured, &scores_json, timing_json.as_ref())?;
    // Before the table, which may fail to print where the files did not fail to be written.
    note(&format!(
        "wrote outputs.jsonl, results.csv, rubrics.jsonl and scores.json to {}",
        out.display()
    ));
    report(args, &scores, name, timing.as_ref())?;
    Ok(ExitCode::SUCCESS)
}

/// An empty cell is an empty text; pandas writes one where a value is missing.
fn note_empty_replies(pairs: &[Pair]) {
    let is_empty =
        |pair: &&Pair| [&pair.chosen, &pair.rejected].iter().any(|text| text.trim().is_empty());
    let empty = pairs.iter().filter(is_empty).count();
    if empty > 0 {
        note(&format!(
            "{empty} of {} pairs have an empty reply, which is judged as it is (j1 data inspect shows which)",
            pairs.len()
        ));
    }
}

/// All judgements of a run, those of one pair and order side by side.
fn tasks(pairs: &[Pair], protocol: &Protocol) -> Vec<Task> {
    let Protocol { order, votes, seed, .. } = *protocol;
    let of_pair = |(index, pair): (usize, &Pair)| tasks_of(index, pair.row, order, votes, seed);
    pairs.iter().enumerate().flat_map(of_pair).collect()
}

fn report(
    args: &Eval,
    scores: &Scores,
    name: &str,
    timing: Option<&Timing>,
) -> Result<(), Failure> {
    match args.json {
        true => print(&format!("{:#}\n", scores.to_json(name, "tokenizer")))?,
        false => print(&scores.render(name, timing))?,
    }
    if !args.json && scores.protocol.order == OrderPlan::ChosenFirst {
        note("help: --order both judges every pair in both orders");
    }
    Ok(())
}

fn to_json(timing: &Timing, session: &Session) -> Value {
    let cpu = session.language_model.model.device().host();
    json!({
        "seconds": timing.seconds,
        "prompt_tokens": timing.prompt_tokens,
        "tokens": timing.tokens,
        "tokens_per_second": timing.tokens_per_second(),
        "threads": cpu.threads(),
        "instructions": cpu.isa().name(),
        "weights": session.weights.name(),
    })
}

/// A bar on a terminal, else a line now and then.
struct Progress {
    bar: ProgressBar,
    lines: bool,
    started: Instant,
    last_line: Instant,
    stats: Stats,
    rule: MatchRule,
    unparsed: u64,
}

impl Progress {
    fn start(total: usize, done: usize, rule: MatchRule) -> Progress {
        let bar = ProgressBar::new(total as u64).with_position(done as u64);
        let style = "[{bar:30}] {pos}/{len} judgements  {elapsed_precise}, {left}  {msg}";
        bar.set_style(bar_style(style));
        bar.reset_eta();
        let now = Instant::now();
        Progress {
            bar,
            lines: !std::io::stderr().is_terminal(),
            started: now,
            last_line: now,
            stats: Stats::default(),
            rule,
            unparsed: 0,
        }
    }

    fn step(&mut self, stats: Stats) {
        self.stats = stats;
        let message = || {
            let seconds = self.started.elapsed().as_secs_f64();
            let rate = stats.generated_tokens as f64 / seconds;
            format!("{rate:.0} tokens/s, {} unparsed", self.unparsed)
        };
        if self.lines {
            if self.last_line.elapsed() > Duration::from_secs(30) {
                let (done, all) = (self.bar.position(), self.bar.length().unwrap_or(0));
                let left = time_left(self.bar.per_sec(), self.bar.eta());
                note(&format!("{done}/{all} judgements, {left}, {}", message()));
                self.last_line = Instant::now();
            }
        } else {
            self.bar.set_message(message());
        }
    }

    fn done(&mut self, record: &Record) {
        self.unparsed += u64::from(record.verdict(self.rule).scores().is_none());
        self.bar.inc(1);
    }

    fn finish(self) -> Timing {
        self.bar.finish_and_clear();
        Timing {
            seconds: self.started.elapsed().as_secs_f64(),
            prompt_tokens: self.stats.prompt_tokens,
            tokens: self.stats.generated_tokens,
        }
    }
}
