//! The loop of a training run, and its directory.
//!
//! | file | what it is |
//! |---|---|
//! | `config.toml` | every setting, as resolved |
//! | `run.json` | what the run is, by which one that goes on is compared: see [`super::directory`] |
//! | `metrics.jsonl` | one line per step |
//! | `events.out.tfevents.*` | the same for TensorBoard |
//! | `rollouts/step-N.jsonl` | every rollout of a step, with what it earned |
//! | `checkpoints/step-N/` | see [`super::checkpoint`] |
//! | `start/` | the adapter that training began with, where the KL term compares with it |
//! | `adapter/` | the trained adapter, at the end: of the best step on held-out pairs, or the last |
//! | `.j1.lock` | an empty file; locked while a run is at work |

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use engine::{
    checkpoint::adapter::{Adapter, AdapterError},
    tensor::device::DeviceError,
};
use kernels::cpu::profile;
use serde_json::{Map, Value};

use super::{
    StepError, StepProgress, StepReport, Trainer,
    alarms::Alarms,
    checkpoint::{self, Best, CheckpointError},
    deliver::{Delivered, RIGHT_IN_BOTH, deliver},
    directory::{ADAPTER, CHECKPOINTS, METRICS, ROLLOUTS, RunDirectory},
};
use crate::{
    data::Pair,
    eval::{
        results::{Record, ResultsError, files::write_whole},
        scores::{Protocol, Scores},
    },
    judge::{
        self, Judge, JudgeError, RunStatus, Task,
        prompt::{Order, OrderPlan},
        verdict::MatchRule,
    },
    train::{metrics::MetricsFile, tensorboard::EventFile},
};

/// Warn after this many steps without any gradient.
const NO_GRADIENT_STEPS: u64 = 5;

/// An event of a run.
pub enum RunEvent<'e> {
    /// Progress within a step.
    Progress(StepProgress),
    /// A step is done and logged.
    Step(&'e StepReport),
    /// Held-out pairs are being judged: done, of all.
    Evaluating(usize, usize),
    /// Held-out pairs were evaluated after this step.
    Evaluated {
        /// Steps taken.
        step: u64,
        /// Metrics of the evaluation.
        scores: &'e Scores,
    },
    /// A checkpoint was written.
    Saved(u64),
    /// Something that the user should know.
    Warning(String),
    /// The adapter was written.
    Delivered(Delivered),
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // one variant a part
pub enum RunError {
    #[error("{0}")]
    Files(#[from] ResultsError),
    #[error("{0}")]
    Checkpoint(#[from] CheckpointError),
    #[error("{0}")]
    Adapter(#[from] AdapterError),
    #[error("{0}")]
    Step(#[from] StepError),
    #[error("{0}")]
    Device(#[from] DeviceError),
    #[error("held-out evaluation: {0}")]
    Evaluation(#[source] Box<JudgeError>),
}

/// Runs all steps that are left. `adapter` is the form in which the trained one is written; `from` the
/// checkpoint whose adapter the trainer's model was opened with. `held_out` are judged in both orders.
pub fn run(
    trainer: &mut Trainer,
    adapter: &mut Adapter,
    directory: &RunDirectory,
    from: Option<&Path>,
    held_out: &[Pair],
    stop: &AtomicBool,
    on: &mut dyn FnMut(RunEvent),
) -> Result<RunStatus, RunError> {
    let path = &directory.path;
    let checkpoints = path.join(CHECKPOINTS);
    let mut best = match from {
        Some(from) => checkpoint::restore(trainer, from)?.best,
        None => None,
    };
    let mut history = History::new(trainer);
    let mut metrics = MetricsFile::resume(&path.join(METRICS), trainer.step, &mut |step, line| {
        history.remember(step, line);
    })?;
    let resumed = (trainer.step > 0 || metrics.last_step().is_some()).then_some(trainer.step);
    let events = EventFile::create(path, now(), resumed);
    let mut events = events.map_err(|source| ResultsError::io("create", path, source))?;
    let rollouts = path.join(ROLLOUTS);
    fs::create_dir_all(&rollouts).map_err(|e| ResultsError::io("create", &rollouts, e))?;

    let train = trainer.settings.train.clone();
    let never = AtomicBool::new(false);
    let evaluates = train.eval_every > 0 && !held_out.is_empty();
    if evaluates && trainer.step == 0 && metrics.last_step().is_none() {
        // Nothing is lost yet by stopping in its midst.
        let Some(scores) = held_out_scores(trainer, held_out, stop, on)? else {
            return Ok(RunStatus::Interrupted);
        };
        on(RunEvent::Evaluated { step: 0, scores: &scores });
        let entries = eval_metrics(&scores);
        metrics.append_start(&entries)?;
        events
            .write(now(), 0, &entries)
            .map_err(|source| ResultsError::io("write", events.path(), source))?;
        history.evaluated(0, &entries);
        if stop.load(Ordering::Relaxed) {
            return Ok(RunStatus::Interrupted);
        }
    }
    let mut no_gradient = NoGradientSteps::default();
    while trainer.step < trainer.steps {
        let sampled = trainer.sample(&never, &mut |progress| on(RunEvent::Progress(progress)))?;
        let sampled = sampled.expect("nobody raises the flag");
        let mut report =
            trainer.train_on(&sampled, &mut |progress| on(RunEvent::Progress(progress)))?;
        let step = trainer.step;
        let last = step == trainer.steps;

        let mut text = Vec::new();
        for record in &report.rollouts {
            serde_json::to_writer(&mut text, record).expect("a record is JSON");
            text.push(b'\n');
        }
        write_whole(&rollouts.join(format!("step-{step}.jsonl")), &text)?;

        let due = |every: u64| every > 0 && (step.is_multiple_of(every) || last);
        let (mut improved, mut evaluation) = (false, None);
        if evaluates && due(train.eval_every) {
            let scores = held_out_scores(trainer, held_out, &never, on)?;
            let scores = scores.expect("nobody raises the flag");
            let entries = eval_metrics(&scores);
            history.evaluated(step, &entries);
            report.metrics.more.extend(entries);
            let share = scores.consistent.map_or(0.0, |share| share.share);
            if best.is_none_or(|best| share > best.right_in_both) {
                best = Some(Best { step, right_in_both: share });
                improved = true;
            }
            evaluation = Some(scores);
        }
        let alarms = history.alarms.after(step, &report.metrics.entries());
        let begins = alarms.iter().map(|alarm| (format!("alarm/{}", alarm.kind.name()), 1.0));
        report.metrics.more.extend(begins);
        metrics.append(&report.metrics)?;
        events
            .write(now(), step, &report.metrics.entries())
            .map_err(|source| ResultsError::io("write", events.path(), source))?;
        on(RunEvent::Step(&report));
        if let Some(scores) = &evaluation {
            on(RunEvent::Evaluated { step, scores });
        }

        for alarm in alarms {
            on(RunEvent::Warning(alarm.message));
        }
        if let Some(message) =
            no_gradient.after(&report, trainer.settings.rollout.max_completion_tokens)
        {
            on(RunEvent::Warning(message));
        }
        if trainer.step == 2 * NO_GRADIENT_STEPS && is_unchanged(trainer)? {
            on(RunEvent::Warning(format!(
                "B of the adapter is still zero after {} steps: the policy is still the base model",
                2 * NO_GRADIENT_STEPS
            )));
        }
        let stopping = stop.load(Ordering::Relaxed) && !last;
        if due(train.save_every) || improved || last || stopping {
            let _span = profile::phase("save checkpoint", []);
            checkpoint::save(trainer, adapter, &checkpoints, best)?;
            checkpoint::prune(&checkpoints, train.keep_last, best, step)?;
            on(RunEvent::Saved(step));
        }
        if stopping {
            return Ok(RunStatus::Interrupted);
        }
    }
    let target = path.join(ADAPTER);
    let held_out = history.held_out;
    on(RunEvent::Delivered(deliver(trainer, adapter, &checkpoints, &target, best, held_out)?));
    Ok(RunStatus::Complete)
}

/// Metrics of earlier steps that later ones need. A resumed run reads them from its file.
struct History {
    alarms: Alarms,
    /// Right in both orders, by step.
    held_out: BTreeMap<u64, f64>,
}

impl History {
    fn new(trainer: &Trainer) -> History {
        let rollout = &trainer.settings.rollout;
        let alarms = Alarms::new(rollout.prompts_per_step * rollout.group_size);
        History { alarms, held_out: BTreeMap::new() }
    }

    /// Takes up a line of `metrics.jsonl`.
    fn remember(&mut self, step: u64, line: &Map<String, Value>) {
        let entries: Vec<(String, f64)> =
            line.iter().filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect();
        self.evaluated(step, &entries);
        if step > 0 {
            self.alarms.after(step, &entries);
        }
    }

    fn evaluated(&mut self, step: u64, entries: &[(String, f64)]) {
        let share = entries.iter().find(|(name, _)| name == RIGHT_IN_BOTH);
        self.held_out.extend(share.map(|(_, share)| (step, *share)));
    }
}

/// Counts consecutive steps without a gradient.
#[derive(Default)]
struct NoGradientSteps {
    steps: u64,
    /// Completions of these steps, and those that were left out because they were cut off.
    completions: usize,
    masked: usize,
}

impl NoGradientSteps {
    /// The warning after a step, once there were enough such steps.
    fn after(&mut self, report: &StepReport, limit: usize) -> Option<String> {
        if report.moved {
            *self = NoGradientSteps::default();
            return None;
        }
        self.steps += 1;
        self.completions += report.rollouts.len();
        self.masked += report.masked;
        (self.steps == NO_GRADIENT_STEPS).then(|| {
            let why = match self.masked {
                0 => "every group earned the same throughout, so there is nothing to learn from. Raise \
                    rollout.group_size or rollout.temperature, or give a reward that the judge reaches sometimes \
                    (reward.weights.format)"
                    .to_owned(),
                all if all == self.completions => format!(
                    "every completion was cut off at rollout.max_completion_tokens = {limit}, and loss.mask_truncated leaves \
                     those out. Raise rollout.max_completion_tokens, or set loss.mask_truncated=false"
                ),
                some => format!(
                    "of {} completions {some} were cut off at rollout.max_completion_tokens = {limit} and left out \
                     (loss.mask_truncated), and all others were in groups that earned the same. Raise \
                     rollout.max_completion_tokens, rollout.group_size or rollout.temperature",
                    self.completions
                ),
            };
            format!("the adapter did not move in the last {NO_GRADIENT_STEPS} steps: {why}")
        })
    }
}

/// Judges the held-out pairs with the policy as it is; `None` if `stop` was raised.
fn held_out_scores(
    trainer: &Trainer,
    held_out: &[Pair],
    stop: &AtomicBool,
    on: &mut dyn FnMut(RunEvent),
) -> Result<Option<Scores>, RunError> {
    let judge = trainer.sampler().judge();
    let mut done = |done, all| on(RunEvent::Evaluating(done, all));
    let evaluated = evaluate(judge, held_out, stop, &mut done);
    let evaluated = evaluated.map_err(|error| RunError::Evaluation(Box::new(error)))?;
    Ok(evaluated.map(|(_, scores)| scores))
}

/// Judges pairs greedily in both orders: the records by row, and their scores by the published rule; `None` if `stop` was
/// raised. `done` is told how many judgements of how many are made.
pub fn evaluate(
    mut judge: Judge,
    pairs: &[Pair],
    stop: &AtomicBool,
    done: &mut dyn FnMut(usize, usize),
) -> Result<Option<(Vec<Record>, Scores)>, JudgeError> {
    judge.sampling.temperature = 0.0;
    let _span = profile::phase("evaluate", [pairs.len()]);
    let orders = [Order::ChosenFirst, Order::RejectedFirst];
    let tasks: Vec<Task> = (0..pairs.len())
        .flat_map(|pair| orders.map(|order| Task { pair, order, vote: 0 }))
        .collect();
    let mut records: Vec<Record> = Vec::with_capacity(tasks.len());
    let end = judge.run(pairs, &tasks, stop, &mut |event| {
        if let judge::JudgeEvent::Done(_, record) = event {
            records.push(record);
            done(records.len(), tasks.len());
        }
        Ok(())
    });
    if end? == RunStatus::Interrupted {
        return Ok(None);
    }
    records.sort_by_key(Record::key);
    let (rule, order, seed) = (MatchRule::Strict, OrderPlan::Both, judge.seed);
    let protocol = Protocol { rule, order, votes: 1, seed, sample: None };
    let scores = Scores::compute(&records, protocol);
    Ok(Some((records, scores)))
}

/// The metrics of an evaluation, logged with the step. One rule counts everywhere: right is 1, a tie or no verdict 0, so
/// that the two orders average to the whole.
fn eval_metrics(scores: &Scores) -> Vec<(String, f64)> {
    let named = |name: &str, value: Option<f64>| Some((format!("eval/{name}"), value?));
    let all = scores.judgements;
    let share = |count: u64| (all > 0).then(|| count as f64 / all as f64);
    [
        named("accuracy", scores.plain_accuracy),
        named("accuracy_chosen_first", scores.chosen_first.map(|share| share.share)),
        named("accuracy_rejected_first", scores.rejected_first.map(|share| share.share)),
        named("right_in_both_orders", scores.consistent.map(|share| share.share)),
        named("right_by_sum", scores.summed.map(|summed| summed.accuracy())),
        named("share_of_a", scores.share_of_a.map(|share| share.share)),
        named("unparsed", share(scores.unparsed().total)),
        named("ties", share(scores.verdicts.ties)),
        named("truncated", share(scores.truncated)),
        named("mean_length", scores.mean_tokens),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Whether every B is zero.
fn is_unchanged(trainer: &Trainer) -> Result<bool, DeviceError> {
    for (name, factor) in trainer.language_model.model.parameters() {
        if !name.is_a && factor.to_vec()?.iter().any(|value| *value != 0.0) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::results::Finish;

    type Judged = (Order, Option<(u32, u32)>);

    /// Records of one judgement per row and order: the scores of slots A and B, or none.
    fn metrics(judged: &[Judged]) -> std::collections::BTreeMap<String, f64> {
        let record = |(index, (order, scores)): (usize, &Judged)| {
            let text = scores.map_or("no verdict".to_owned(), |(a, b)| {
                format!("<scores>\\boxed{{{a}, {b}}}</scores>")
            });
            let finish = if scores.is_some() { Finish::Stop } else { Finish::Length };
            let tokens = 10 * (index as u32 + 1);
            Record { tokens, ..Record::saying(index as u64 / 2, *order, finish, text) }
        };
        let records: Vec<Record> = judged.iter().enumerate().map(record).collect();
        let (rule, order) = (MatchRule::Strict, OrderPlan::Both);
        let protocol = Protocol { rule, order, votes: 1, seed: 0, sample: None };
        eval_metrics(&Scores::compute(&records, protocol)).into_iter().collect()
    }

    #[test]
    fn the_orders_of_an_evaluation_average_to_the_whole() {
        let (a, b) = (Order::ChosenFirst, Order::RejectedFirst);
        // No verdict at all: nothing is right in either order.
        let nothing = metrics(&[(a, None), (b, None), (a, None), (b, None)]);
        for name in ["accuracy", "accuracy_chosen_first", "accuracy_rejected_first"] {
            assert_eq!(nothing[&format!("eval/{name}")], 0.0, "{name}");
        }
        assert_eq!((nothing["eval/unparsed"], nothing["eval/truncated"]), (1.0, 1.0));
        assert!(!nothing.contains_key("eval/share_of_a"), "nothing prefers a slot");
        // Right and wrong; a tie and no verdict; wrong and right; right twice. By order 2 and 2 of 4.
        let mixed = metrics(&[
            (a, Some((9, 1))),
            (b, Some((9, 1))),
            (a, Some((4, 4))),
            (b, None),
            (a, Some((1, 9))),
            (b, Some((1, 9))),
            (a, Some((9, 1))),
            (b, Some((2, 8))),
        ]);
        let by_order = (mixed["eval/accuracy_chosen_first"], mixed["eval/accuracy_rejected_first"]);
        assert_eq!(by_order, (0.5, 0.5));
        assert_eq!(mixed["eval/accuracy"], 0.5);
        assert_eq!(mixed["eval/right_in_both_orders"], 0.25);
        // Sums of rows: a tie; no verdict in one order; a tie; 17 to 3.
        assert_eq!(mixed["eval/right_by_sum"], 0.25);
        assert_eq!((mixed["eval/unparsed"], mixed["eval/ties"]), (0.125, 0.125));
        // Slot A: rows 0, 0 and 3. Slot B: rows 2, 2 and 3.
        assert_eq!(mixed["eval/share_of_a"], 0.5);
        assert_eq!(mixed["eval/mean_length"], 45.0);
    }
}
