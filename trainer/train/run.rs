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
    deliver::{Delivered, deliver},
    directory::{ADAPTER, CHECKPOINTS, METRICS, ROLLOUTS, RunDirectory},
    held_out::{self, BEST_STEP, RIGHT_IN_BOTH},
};
use crate::{
    data::Pair,
    eval::results::{ResultsError, files::write_whole},
    judge::{JudgeError, RunStatus},
    train::{metrics::MetricsFile, settings::Orders, tensorboard::EventFile},
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
        /// Metrics of the evaluation, under their names in `metrics.jsonl`.
        metrics: &'e [(String, f64)],
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
        let Some(entries) = held_out_metrics(trainer, held_out, stop, on)? else {
            return Ok(RunStatus::Interrupted);
        };
        on(RunEvent::Evaluated { step: 0, metrics: &entries });
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
            let entries = held_out_metrics(trainer, held_out, &never, on)?;
            let mut entries = entries.expect("nobody raises the flag");
            let share = history.evaluated(step, &entries).unwrap_or(0.0);
            if best.is_none_or(|best| share > best.right_in_both) {
                best = Some(Best { step, right_in_both: share });
                improved = true;
            }
            let best = best.filter(|best| best.right_in_both > 0.0);
            entries.extend(best.map(|best| (BEST_STEP.to_owned(), best.step as f64)));
            report.metrics.more.extend(entries.iter().cloned());
            evaluation = Some(entries);
        }
        let alarms = history.alarms.after(step, &report.metrics.entries());
        let begins = alarms.iter().map(|alarm| (format!("alarm/{}", alarm.kind.name()), 1.0));
        report.metrics.more.extend(begins);
        metrics.append(&report.metrics)?;
        events
            .write(now(), step, &report.metrics.entries())
            .map_err(|source| ResultsError::io("write", events.path(), source))?;
        on(RunEvent::Step(&report));
        if let Some(metrics) = &evaluation {
            on(RunEvent::Evaluated { step, metrics });
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

    /// Takes up an evaluation: the share of pairs that were right in both orders.
    fn evaluated(&mut self, step: u64, entries: &[(String, f64)]) -> Option<f64> {
        let share = entries.iter().find(|(name, _)| name == RIGHT_IN_BOTH).map(|(_, share)| *share);
        self.held_out.extend(share.map(|share| (step, share)));
        share
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

/// Judges the held-out pairs with the policy as it is: the metrics; `None` if `stop` was raised.
fn held_out_metrics(
    trainer: &Trainer,
    held_out: &[Pair],
    stop: &AtomicBool,
    on: &mut dyn FnMut(RunEvent),
) -> Result<Option<Vec<(String, f64)>>, RunError> {
    let sampler = trainer.sampler();
    let mut done = |done, all| on(RunEvent::Evaluating(done, all));
    let evaluated = held_out::evaluate(sampler.judge(), held_out, stop, &mut done);
    let evaluated = evaluated.map_err(|error| RunError::Evaluation(Box::new(error)))?;
    let rewards = sampler.rewards_of(Orders::Both);
    Ok(evaluated.map(|(records, scores)| held_out::metrics(&records, &scores, &rewards)))
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
