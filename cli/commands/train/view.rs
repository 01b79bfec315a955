//! The output of `j1 train`: the table, judgements now and then, and on a terminal a progress bar below it.

use std::{
    collections::VecDeque,
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use trainer::train::{StepProgress, StepReport, run::RunEvent, settings::Settings};

use super::{judgements, table::Table};
use crate::output::{bar_style, note, sentence, width};

/// Steps that the time that is left is taken over.
const RECENT: usize = 10;

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
    /// When the last steps ended, and before them when the first of these began.
    ends: VecDeque<Instant>,
    /// From the first step on.
    table: Option<Table>,
    /// Steps between two judgements that are shown.
    show_every: u64,
}

impl View {
    pub(super) fn new() -> View {
        View {
            is_terminal: std::io::stderr().is_terminal(),
            bar: None,
            steps: 0,
            done: 0,
            ends: VecDeque::new(),
            table: None,
            show_every: 0,
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
    pub(super) fn start(mut self, settings: &Settings, done: u64, steps: u64) -> View {
        (self.done, self.steps) = (done, steps);
        self.table = Some(Table::new(settings, steps));
        self.show_every = settings.train.show_every;
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

    /// Writes above the bar.
    fn above(&self, write: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn say(&self, lines: &[String]) {
        self.above(|| lines.iter().for_each(|line| note(line)));
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
            RunEvent::Evaluated { step, metrics } => {
                let width = width();
                let lines = self.table.as_mut().map(|table| table.held_out(width, step, metrics));
                self.say(&lines.unwrap_or_default());
            }
            RunEvent::Saved(step) => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("checkpoint of step {step} saved"));
                }
            }
            RunEvent::Warning(message) => {
                self.above(|| sentence(&format!("warning: {message}")));
            }
            RunEvent::Delivered(delivered) => {
                self.above(|| delivered.sentences().iter().for_each(|text| sentence(text)));
            }
        }
    }

    fn step(&mut self, report: &StepReport) {
        let step = report.metrics.step;
        self.done = step;
        self.ends.push_back(Instant::now());
        if self.ends.len() > RECENT + 1 {
            self.ends.pop_front();
        }
        let (width, left) = (width(), self.left());
        if let Some(table) = &mut self.table {
            let mut lines = table.step(width, step, &report.metrics.entries(), left);
            if self.show_every > 0 && step.is_multiple_of(self.show_every) {
                lines.extend(judgements::lines(&report.rollouts, width));
                table.interrupt();
            }
            self.say(&lines);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

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
