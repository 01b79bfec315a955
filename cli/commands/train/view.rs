//! The output of `j1 train`: one line per step, and on a terminal a progress bar below it.

use std::{
    collections::VecDeque,
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use terminal_size::{Width, terminal_size_of};
use trainer::{
    eval::scores::Scores,
    train::{StepProgress, StepReport, run::RunEvent},
};

use crate::output::{bar_style, note};

/// Steps that the recent mean of the reward, and the time that is left, are taken over.
const RECENT: usize = 10;

/// Width of a terminal that does not tell its own.
const USUAL_WIDTH: usize = 80;

/// A column of the table: its title, its width with the space before it, and its turn to go where the terminal is
/// narrow; the first never goes.
struct Column {
    title: &'static str,
    width: usize,
    turn: usize,
}

const COLUMNS: [Column; 15] = [
    Column { title: "step", width: 6, turn: usize::MAX },
    Column { title: "of", width: 7, turn: 12 },
    Column { title: "reward", width: 9, turn: 13 },
    Column { title: "mean10", width: 9, turn: 3 },
    Column { title: "right", width: 8, turn: 11 },
    Column { title: "format", width: 8, turn: 4 },
    Column { title: "tied", width: 6, turn: 6 },
    Column { title: "length", width: 8, turn: 10 },
    Column { title: "trunc", width: 7, turn: 8 },
    Column { title: "kl", width: 8, turn: 7 },
    Column { title: "|g|", width: 7, turn: 9 },
    // The largest difference between the log-probabilities of training and of sampling.
    Column { title: "d log p", width: 9, turn: 5 },
    Column { title: "gen t/s", width: 9, turn: 2 },
    Column { title: "train t/s", width: 11, turn: 1 },
    Column { title: "left", width: 8, turn: 14 },
];

/// The columns that fit a line of `width` characters; all of them where the width is unknown, as in a file.
fn shown(width: Option<usize>) -> Vec<usize> {
    let mut columns: Vec<usize> = (0..COLUMNS.len()).collect();
    let Some(width) = width else { return columns };
    let taken = |columns: &[usize]| columns.iter().map(|&c| COLUMNS[c].width).sum::<usize>();
    while taken(&columns) > width && columns.len() > 1 {
        let first = columns.iter().copied().min_by_key(|&column| COLUMNS[column].turn);
        columns.retain(|&column| Some(column) != first);
    }
    columns
}

fn line(columns: &[usize], cell: impl Fn(usize) -> String) -> String {
    columns.iter().map(|&column| format!("{:>1$}", cell(column), COLUMNS[column].width)).collect()
}

/// How long, in few characters.
pub(super) fn duration(seconds: f64) -> String {
    let seconds = seconds.clamp(0.0, 1e15).round() as u64;
    match (seconds, seconds.div_ceil(60)) {
        (..100, _) => format!("{seconds}s"),
        (_, minutes @ ..100) => format!("{minutes}m"),
        (_, minutes @ ..2880) => format!("{}h{:02}m", minutes / 60, minutes % 60),
        (_, minutes) => format!("{}d{:02}h", minutes / 1440, minutes / 60 % 24),
    }
}

/// State of the terminal view.
pub(super) struct View {
    is_terminal: bool,
    bar: Option<ProgressBar>,
    steps: u64,
    done: u64,
    /// Rewards of the last steps.
    rewards: VecDeque<f64>,
    /// When the last steps ended, and before them when the first of these began.
    ends: VecDeque<Instant>,
    /// The columns of the last line.
    columns: Vec<usize>,
}

impl View {
    pub(super) fn new() -> View {
        View {
            is_terminal: std::io::stderr().is_terminal(),
            bar: None,
            steps: 0,
            done: 0,
            rewards: VecDeque::new(),
            ends: VecDeque::new(),
            columns: Vec::new(),
        }
    }

    pub(super) fn bar(&self, what: &'static str, len: usize) -> ProgressBar {
        let bar = match self.is_terminal {
            true => ProgressBar::new(len as u64),
            false => ProgressBar::hidden(),
        };
        bar.set_style(bar_style("{msg} [{bar:30}] {pos}/{len} {left}"));
        bar.set_message(what);
        bar
    }

    /// From here on there are steps, the first `done` of which were taken before.
    pub(super) fn start(mut self, done: u64, steps: u64) -> View {
        (self.done, self.steps) = (done, steps);
        self.ends.push_back(Instant::now());
        if self.is_terminal {
            let bar = ProgressBar::new(steps);
            let style = "[{bar:20}] {wide_msg}";
            bar.set_style(ProgressStyle::with_template(style).expect("a fixed template"));
            bar.set_position(done);
            bar.enable_steady_tick(Duration::from_millis(500));
            self.bar = Some(bar);
        }
        self
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(line)),
            None => note(line),
        }
    }

    /// Time for what is left, at the pace of the last steps; nothing before the first one.
    fn left(&self) -> Option<String> {
        let taken = self.ends.len().saturating_sub(1);
        let (first, last) = (self.ends.front()?, self.ends.back()?);
        let each = last.duration_since(*first).as_secs_f64() / taken as f64;
        (taken > 0).then(|| duration(each * (self.steps - self.done) as f64))
    }

    pub(super) fn show(&mut self, event: RunEvent) {
        match event {
            RunEvent::Progress(progress) => {
                let Some(bar) = &self.bar else { return };
                let left =
                    self.left().map_or("estimating".to_owned(), |left| format!("{left} left"));
                let step = format!("step {} of {}", self.done + 1, self.steps);
                bar.set_message(match progress {
                    StepProgress::Sampling(stats) => {
                        format!("{step}: sampling, {} tokens, {left}", stats.generated_tokens)
                    }
                    StepProgress::Updating(done, all) => {
                        format!("{step}: updating, batch {done} of {all}, {left}")
                    }
                });
            }
            RunEvent::Step(report) => self.step(report),
            RunEvent::Evaluating(done, all) => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("evaluating held-out pairs, {done} of {all}"));
                }
            }
            RunEvent::Evaluated { step, scores } => self.say(&evaluated(step, scores)),
            RunEvent::Saved(step) => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("checkpoint of step {step} saved"));
                }
            }
            RunEvent::Warning(message) => self.say(&format!("warning: {message}")),
            RunEvent::Delivered(delivered) => {
                delivered.sentences().iter().for_each(|sentence| self.say(sentence));
            }
        }
    }

    fn step(&mut self, report: &StepReport) {
        let metrics = &report.metrics;
        self.done = metrics.step;
        self.rewards.push_back(metrics.reward);
        self.ends.push_back(Instant::now());
        if self.rewards.len() > RECENT {
            self.rewards.pop_front();
            self.ends.pop_front();
        }
        let recent = self.rewards.iter().sum::<f64>() / self.rewards.len() as f64;
        let right = report.rollouts.iter().filter(|rollout| rollout.right).count() as f64
            / report.rollouts.len().max(1) as f64;
        let named = |name: &str| {
            metrics.rewards.iter().find(|reward| reward.name == name).map_or(0.0, |r| r.mean)
        };
        let timed = |name: &str| {
            metrics.timing.iter().find(|(known, _)| known == name).map_or(0.0, |(_, v)| *v)
        };
        let difference = metrics
            .more
            .iter()
            .find(|(name, _)| name == "sampling/sampling_logp_difference/max")
            .map_or("-".to_owned(), |(_, difference)| match difference {
                0.0 => "0".to_owned(),
                difference => format!("{difference:.1e}"),
            });
        let cells: [String; COLUMNS.len()] = [
            metrics.step.to_string(),
            self.steps.to_string(),
            format!("{:.3}", metrics.reward),
            format!("{recent:.3}"),
            format!("{:.1}%", 100.0 * right),
            format!("{:.3}", named("format")),
            format!("{:.0}%", 100.0 * metrics.frac_reward_zero_std),
            format!("{:.0}", metrics.completions.mean_length),
            format!("{:.0}%", 100.0 * metrics.completions.clipped_ratio),
            // Without a reference, or where no token was trained on, there is none.
            metrics.kl.map_or("-".to_owned(), |kl| format!("{kl:.4}")),
            format!("{:.3}", metrics.grad_norm),
            difference,
            format!("{:.0}", timed("generated_tokens_per_s")),
            format!("{:.0}", timed("trained_tokens_per_s")),
            self.left().unwrap_or_default(),
        ];
        // Asked at every step: windows change.
        let width = terminal_size_of(std::io::stderr()).map(|(Width(columns), _)| columns.into());
        let width = width.or(self.is_terminal.then_some(USUAL_WIDTH));
        let columns = shown(width);
        if columns != self.columns {
            self.say(&line(&columns, |column| COLUMNS[column].title.to_owned()));
        }
        self.say(&line(&columns, |column| cells[column].clone()));
        self.columns = columns;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        }
    }

    pub(super) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// A line about held-out pairs.
fn evaluated(step: u64, scores: &Scores) -> String {
    let percent =
        |share: Option<f64>| share.map_or("-".to_owned(), |s| format!("{:.1} %", 100.0 * s));
    let when = match step {
        0 => "before training".to_owned(),
        step => format!("after step {step}"),
    };
    format!(
        "{when}: held-out pairs {} right in both orders, {} of judgements right, {} unparsed",
        percent(scores.consistent.map(|share| share.share)),
        percent(scores.plain_accuracy),
        scores.unparsed_strict.total,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_the_terminal_and_says_which_step_of_how_many_and_what_is_left() {
        let titles = |width| line(&shown(width), |column| COLUMNS[column].title.to_owned());
        let all = titles(None);
        assert_eq!(all.split("  ").filter(|title| !title.is_empty()).count(), COLUMNS.len());
        for width in 1..200 {
            let line = titles(Some(width));
            assert!(line.len() <= width.max(6), "{width}: {line}");
            assert!(line.trim_start().starts_with("step"), "{width}: {line}");
        }
        assert_eq!(titles(Some(200)), all);
        let narrow = titles(Some(80));
        for title in ["step", "of", "reward", "right", "length", "trunc", "left"] {
            assert!(narrow.split_whitespace().any(|word| word == title), "{narrow}");
        }
        let mut turns: Vec<usize> = COLUMNS.iter().map(|column| column.turn).collect();
        turns.sort_unstable();
        turns.dedup();
        assert_eq!(turns.len(), COLUMNS.len(), "no two go together");
    }

    #[test]
    fn times_are_short() {
        for (seconds, text) in [
            (0.4, "0s"),
            (99.4, "99s"),
            (100.0, "2m"),
            (5940.0, "99m"),
            (5941.0, "1h40m"),
            (172_740.0, "47h59m"),
            (172_800.0, "2d00h"),
            (1e6, "11d13h"),
            (f64::INFINITY, "11574074074d01h"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }
}
