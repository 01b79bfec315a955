//! `metrics.jsonl`: one line per step, under the names that TRL uses.
//!
//! A line is one flat JSON object; that of step 0, if there is one, has the evaluation before training alone. First stands what the run computed, which is the same bits in every run with
//! the same settings; last stands what the machine and the day add: `step_time` and everything under `time/`
//! (seconds, tokens a second, memory). [`without_timing`] cuts the second part off, so that two files can be
//! compared. Not a number and the infinities, which JSON does not have, are `null`.
//!
//! After a kill the file may hold steps that were computed after the last checkpoint, and a torn last line.
//! [`MetricsFile::resume`] cuts both off: the file ends as that of an uninterrupted run does.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::data::lines::{LineError, Lines};
use crate::eval::results::ResultsError;
use crate::eval::results::files::Journal;

/// The first name of the part that depends on the machine: seconds of the whole step.
pub const STEP_TIME: &str = "step_time";
/// What the other names of that part begin with.
pub const TIMING: &str = "time/";

/// One reward function over the completions of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct RewardMetrics {
    /// The function's name.
    pub name: String,
    /// Its mean, before weights and normalization.
    pub mean: f64,
    /// Its standard deviation.
    pub std: f64,
}

/// Completion lengths of a step, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CompletionMetrics {
    /// Mean of their lengths, in tokens.
    pub mean_length: f64,
    /// Length of the shortest, in tokens.
    pub min_length: f64,
    /// Length of the longest, in tokens.
    pub max_length: f64,
    /// Share that the length limit ended.
    pub clipped_ratio: f64,
}

/// How often the importance ratio was clipped, as shares of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ClipMetrics {
    /// Clipped from below, mean over the micro-batches.
    pub low_mean: f64,
    /// The least of these.
    pub low_min: f64,
    /// Clipped from above, mean over the micro-batches.
    pub high_mean: f64,
    /// The most of these.
    pub high_max: f64,
    /// Clipped at either side.
    pub region_mean: f64,
}

/// The metrics of one step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepMetrics {
    /// The optimizer step, from 1.
    pub step: u64,
    /// How often the data were seen, so far.
    pub epoch: f64,
    /// The loss.
    pub loss: f64,
    /// Mean of the weighted rewards.
    pub reward: f64,
    /// Mean of their standard deviations within a group.
    pub reward_std: f64,
    /// Each reward function.
    pub rewards: Vec<RewardMetrics>,
    /// Share of the groups whose completions all earned the same.
    pub frac_reward_zero_std: f64,
    /// Completion lengths.
    pub completions: CompletionMetrics,
    /// Mean k3 divergence from the reference, if there is one.
    pub kl: Option<f64>,
    /// Mean entropy in nats, over all tokens that were sampled, of what each was drawn from.
    pub entropy: f64,
    /// Mean entropy of the policy in nats, over the tokens that were trained on, if there are any.
    pub entropy_trained: Option<f64>,
    /// Clipping of them.
    pub clip_ratio: Option<ClipMetrics>,
    /// Norm of the gradient before it was clipped.
    pub grad_norm: f64,
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// Tokens of prompts and completions, since the start of the run.
    pub num_tokens: u64,
    /// Further numbers that do not depend on the machine, under their whole names (`eval/accuracy`).
    pub more: Vec<(String, f64)>,
    /// Seconds of the whole step.
    pub step_time: f64,
    /// Further numbers that depend on the machine; [`TIMING`] is put before their names.
    pub timing: Vec<(String, f64)>,
}

impl StepMetrics {
    /// Name and value of everything but the step, in the order of the line.
    pub fn entries(&self) -> Vec<(String, f64)> {
        let mut entries: Vec<(String, f64)> = Vec::new();
        let mut add = |name: &str, value: f64| entries.push((name.to_owned(), value));
        add("epoch", self.epoch);
        add("loss", self.loss);
        add("reward", self.reward);
        add("reward_std", self.reward_std);
        for reward in &self.rewards {
            add(&format!("rewards/{}/mean", reward.name), reward.mean);
            add(&format!("rewards/{}/std", reward.name), reward.std);
        }
        add("frac_reward_zero_std", self.frac_reward_zero_std);
        add("completions/mean_length", self.completions.mean_length);
        add("completions/min_length", self.completions.min_length);
        add("completions/max_length", self.completions.max_length);
        add("completions/clipped_ratio", self.completions.clipped_ratio);
        if let Some(kl) = self.kl {
            add("kl", kl);
        }
        add("entropy", self.entropy);
        // A mean of nothing is no 0: it would look like a collapse.
        if let Some(entropy) = self.entropy_trained {
            add("entropy_trained", entropy);
        }
        if let Some(clip_ratio) = &self.clip_ratio {
            add("clip_ratio/low_mean", clip_ratio.low_mean);
            add("clip_ratio/low_min", clip_ratio.low_min);
            add("clip_ratio/high_mean", clip_ratio.high_mean);
            add("clip_ratio/high_max", clip_ratio.high_max);
            add("clip_ratio/region_mean", clip_ratio.region_mean);
        }
        add("grad_norm", self.grad_norm);
        add("learning_rate", self.learning_rate);
        add("num_tokens", self.num_tokens as f64);
        for (name, value) in &self.more {
            assert!(!is_timing(name), "{name} is the name of a time");
            add(name, *value);
        }
        add(STEP_TIME, self.step_time);
        for (name, value) in &self.timing {
            add(&format!("{TIMING}{name}"), *value);
        }
        entries
    }

    /// The line, with its line feed.
    pub fn line(&self) -> String {
        line(self.step, &self.entries())
    }
}

fn line(step: u64, entries: &[(String, f64)]) -> String {
    let mut line = format!("{{\"step\":{step}");
    for (name, value) in entries {
        line += &format!(",{}:{}", Value::from(name.as_str()), number(*value));
    }
    line + "}\n"
}

/// How many different pairs of scores there are among verdicts.
pub(super) fn distinct_scores(verdicts: impl Iterator<Item = (f64, f64)>) -> usize {
    verdicts.map(|(a, b)| (a.to_bits(), b.to_bits())).collect::<BTreeSet<_>>().len()
}

/// Whether a name belongs to the part of a line that depends on the machine.
pub fn is_timing(name: &str) -> bool {
    name == STEP_TIME || name.starts_with(TIMING)
}

/// A line of `metrics.jsonl` without what depends on the machine: equal for equal runs.
pub fn without_timing(line: &str) -> Result<Map<String, Value>, serde_json::Error> {
    let mut values: Map<String, Value> = serde_json::from_str(line)?;
    values.retain(|name, _| !is_timing(name));
    Ok(values)
}

/// The shortest text that reads back as the same bits; counts without a fraction.
fn number(value: f64) -> Value {
    // Whole numbers up to 2^53 are exact both ways; the negative zero is none of them.
    if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 && value.to_bits() != 1 << 63
    {
        return Value::from(value as i64);
    }
    Value::from(value) // null if it is not finite
}

/// `metrics.jsonl`, open for appending.
#[derive(Debug)]
pub struct MetricsFile {
    journal: Journal,
    last_step: Option<u64>,
}

impl MetricsFile {
    /// Opens or creates the file for a run that continues after `step` (0: from the start), without the
    /// lines of later steps; `observe` is shown those that stay. Errors: the system's, or a line before that which is none
    /// of ours.
    pub fn resume(
        path: &Path,
        step: u64,
        observe: &mut dyn FnMut(u64, &Map<String, Value>),
    ) -> Result<MetricsFile, ResultsError> {
        let (length, last_step) = whole_lines(path, step, observe)?;
        Ok(MetricsFile { journal: Journal::open(path, length)?, last_step })
    }

    /// The last step in the file.
    pub fn last_step(&self) -> Option<u64> {
        self.last_step
    }

    /// Appends a step; it is on the disk when this returns.
    pub fn append(&mut self, metrics: &StepMetrics) -> Result<(), ResultsError> {
        self.append_line(metrics.step, &metrics.line())
    }

    /// Appends what was evaluated before the first step.
    pub fn append_start(&mut self, entries: &[(String, f64)]) -> Result<(), ResultsError> {
        self.append_line(0, &line(0, entries))
    }

    fn append_line(&mut self, step: u64, line: &str) -> Result<(), ResultsError> {
        let last = self.last_step;
        assert!(last.is_none_or(|last| step > last), "step {step} is logged after {last:?}");
        self.journal.append(line.as_bytes())?;
        self.last_step = Some(step);
        Ok(())
    }
}

/// The last step up to `step` in the file; 0 if there is none, or no file.
pub fn last_step(path: &Path, step: u64) -> Result<u64, ResultsError> {
    Ok(whole_lines(path, step, &mut |_, _| ())?.1.unwrap_or(0))
}

/// The first steps, up to `step`, whose lines were taken out of a file that has later ones.
pub fn gap(path: &Path, step: u64) -> Result<Option<RangeInclusive<u64>>, ResultsError> {
    let (mut next, mut gap) = (1, None);
    whole_lines(path, step, &mut |found, _| {
        if found > next && gap.is_none() {
            gap = Some(next..=found - 1);
        }
        next = found + 1;
    })?;
    Ok(gap)
}

/// Bytes of the lines of steps up to `step`, and the last of these.
fn whole_lines(
    path: &Path,
    step: u64,
    observe: &mut dyn FnMut(u64, &Map<String, Value>),
) -> Result<(u64, Option<u64>), ResultsError> {
    let io = |source| ResultsError::io("read", path, source);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, None)),
        Err(error) => return Err(io(error)),
    };
    let mut lines = Lines::new(BufReader::new(file));
    let (mut length, mut last) = (0, None);
    loop {
        let line = match lines.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(LineError::Io(source)) => return Err(io(source)),
            Err(LineError::TooLong(line)) => {
                return Err(ResultsError::TooLong { path: PathBuf::from(path), line });
            }
        };
        if !line.terminated {
            break;
        }
        let corrupt = |message: String| ResultsError::NotJson {
            path: PathBuf::from(path),
            message: format!("line {}: {message}", line.number),
        };
        let values: Map<String, Value> =
            serde_json::from_slice(line.bytes).map_err(|error| corrupt(error.to_string()))?;
        match values.get("step").and_then(Value::as_u64) {
            Some(found) if found > step => break,
            Some(found) if last.is_none_or(|last| found > last) => {
                observe(found, &values);
                last = Some(found);
            }
            _ => {
                let above = last.map_or(String::new(), |last| format!(" above {last}"));
                return Err(corrupt(format!("it has no step{above}")));
            }
        }
        length = line.offset + line.bytes.len() as u64 + 1;
    }
    Ok((length, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, seconds: f64) -> StepMetrics {
        StepMetrics {
            step,
            epoch: 0.25,
            loss: 0.1 + 0.2,
            rewards: vec![RewardMetrics { name: "verdict".into(), mean: 0.5, std: 1.0 / 3.0 }],
            kl: Some(0.0),
            entropy_trained: Some(0.0),
            clip_ratio: Some(ClipMetrics::default()),
            grad_norm: f64::NAN,
            learning_rate: 1e-5,
            num_tokens: 1 << 40,
            more: vec![("eval/accuracy".into(), 0.75)],
            step_time: seconds,
            timing: vec![("rollout_tokens_per_second".into(), 100.0 / seconds)],
            ..StepMetrics::default()
        }
    }

    #[test]
    fn a_line_has_the_names_of_trl_and_the_times_last() {
        assert_eq!(
            step(7, 2.0).line(),
            "{\"step\":7,\"epoch\":0.25,\"loss\":0.30000000000000004,\"reward\":0,\"reward_std\":0,\
             \"rewards/verdict/mean\":0.5,\"rewards/verdict/std\":0.3333333333333333,\
             \"frac_reward_zero_std\":0,\"completions/mean_length\":0,\"completions/min_length\":0,\
             \"completions/max_length\":0,\"completions/clipped_ratio\":0,\"kl\":0,\"entropy\":0,\
             \"entropy_trained\":0,\"clip_ratio/low_mean\":0,\"clip_ratio/low_min\":0,\"clip_ratio/high_mean\":0,\
             \"clip_ratio/high_max\":0,\"clip_ratio/region_mean\":0,\"grad_norm\":null,\
             \"learning_rate\":0.00001,\"num_tokens\":1099511627776,\"eval/accuracy\":0.75,\
             \"step_time\":2,\"time/rollout_tokens_per_second\":50}\n"
        );
        assert!(!step(7, 2.0).line().contains("-0"));
        assert_eq!(number(-0.0).to_string(), "-0.0");
        assert_eq!(number(1e300).to_string(), "1e+300");
        let no_reference = StepMetrics { kl: None, ..step(7, 2.0) };
        assert!(!no_reference.line().contains("\"kl\""));
        let no_tokens = StepMetrics { entropy_trained: None, clip_ratio: None, ..step(7, 2.0) };
        let line = no_tokens.line();
        assert!(!line.contains("entropy_trained") && !line.contains("clip_ratio"), "{line}");
    }

    #[test]
    fn without_times_equal_runs_have_equal_lines() {
        let (a, b) = (step(1, 2.0).line(), step(1, 3.0).line());
        assert_ne!(a, b);
        assert_eq!(without_timing(&a).unwrap(), without_timing(&b).unwrap());
        assert!(without_timing(&a).unwrap().contains_key("eval/accuracy"));
        assert!(without_timing("[]").is_err());
    }

    #[test]
    fn a_resumed_file_ends_as_that_of_an_uninterrupted_run() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        let write = |resumed: u64, last: u64| {
            let mut file = MetricsFile::resume(&path, resumed, &mut |_, _| ()).unwrap();
            if file.last_step().is_none() {
                file.append_start(&[("eval/accuracy".to_owned(), 0.25)]).unwrap();
            }
            (resumed + 1..=last).for_each(|n| file.append(&step(n, 1.0)).unwrap());
            file.last_step().unwrap()
        };
        assert_eq!(write(0, 10), 10);
        let whole = std::fs::read(&path).unwrap();
        // Steps past the checkpoint, and a torn line after them.
        for cut in [whole.len(), whole.len() - 1, whole.len() - 30] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(write(4, 10), 10);
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
        // A checkpoint without its lines: they are gone, which last_step tells. All that stays is shown.
        let mut shown = Vec::new();
        let mut show = |step, values: &Map<String, Value>| {
            shown.push((step, values["eval/accuracy"].as_f64()))
        };
        assert_eq!(MetricsFile::resume(&path, 20, &mut show).unwrap().last_step(), Some(10));
        let expected: Vec<_> =
            (0..=10).map(|step| (step, Some(if step == 0 { 0.25 } else { 0.75 }))).collect();
        assert_eq!(shown, expected);
        // From the start again, what was evaluated there stays.
        let start = MetricsFile::resume(&path, 0, &mut |_, _| ()).unwrap();
        assert_eq!(start.last_step(), Some(0));
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"step\":0,\"eval/accuracy\":0.25}\n");
        for (steps, expected) in [
            (vec![], None),
            (vec![0, 1, 2, 3], None),
            (vec![1, 2, 3], None),
            (vec![0, 2, 3], Some(1..=1)),
            (vec![4, 5], Some(1..=3)),
            (vec![1, 5, 6, 9], Some(2..=4)),
            (vec![1, 2, 3, 4, 5, 6, 7, 90], None),
        ] {
            let lines: String = steps.iter().map(|step| format!("{{\"step\":{step}}}\n")).collect();
            std::fs::write(&path, lines).unwrap();
            assert_eq!(gap(&path, 7).unwrap(), expected, "{steps:?}");
        }
        for (damage, says) in [
            ("{}\n", "no step"),
            ("x\n", "line 1"),
            ("{\"step\":1}\n{\"step\":1}\n", "line 2: it has no step above 1"),
        ] {
            std::fs::write(&path, damage).unwrap();
            let error = MetricsFile::resume(&path, 5, &mut |_, _| ()).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("metrics.jsonl"), "{error}");
            assert_eq!(
                std::fs::read_to_string(&path).unwrap(),
                damage,
                "nothing is cut on an error"
            );
        }
    }
}
