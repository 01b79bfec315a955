//! The table of `j1 train`: a line for each step and each evaluation of held-out pairs. Its numbers are those of
//! `metrics.jsonl`; the legend says under which names they stand there.

use trainer::train::{
    held_out::BEST_STEP,
    settings::{Orders, Settings},
};

use crate::output::wrapped;

/// Lines between two headings, so that one is in sight.
const LINES: usize = 20;

/// How a number is written.
#[derive(Clone, Copy)]
enum Form {
    /// A share as percent, with so many decimals.
    Percent(usize),
    /// With so many decimals.
    Fixed(usize),
    /// A small number, as 1.5e-8.
    Power,
}

/// A column of numbers: its title, the metrics of a step and of an evaluation, its width with the space before it, and
/// its turn to go where the terminal is narrow: the highest goes first.
struct Column {
    title: &'static str,
    metric: &'static str,
    held_out: Option<&'static str>,
    form: Form,
    width: usize,
    turn: usize,
}

const fn column(
    title: &'static str,
    metric: &'static str,
    held_out: Option<&'static str>,
    form: Form,
    width: usize,
    turn: usize,
) -> Column {
    Column { title, metric, held_out, form, width, turn }
}

/// Between the step, which never goes, and the time that is left, which goes last.
#[rustfmt::skip]
const COLUMNS: [Column; 19] = [
    column("reward", "reward", Some("eval/reward"), Form::Fixed(3), 7, 1),
    column("right", "completions/right_ratio", Some("eval/accuracy"), Form::Percent(1), 7, 2),
    column("both", "rewards/consistency/mean", Some("eval/right_in_both_orders"), Form::Percent(1), 7, 3),
    column("share_a", "verdicts/share_of_a", Some("eval/share_of_a"), Form::Percent(0), 8, 4),
    column("agree", "rewards/agreement/mean", Some("eval/rewards/agreement/mean"), Form::Percent(0), 6, 10),
    column("distinct", "verdicts/distinct_scores", Some("eval/distinct_scores"), Form::Fixed(0), 9, 6),
    column("tied", "verdicts/tied_ratio", Some("eval/ties"), Form::Percent(0), 5, 9),
    column("unparsed", "completions/unparsed_ratio", Some("eval/unparsed"), Form::Percent(0), 9, 12),
    column("length", "completions/mean_length", Some("eval/mean_length"), Form::Fixed(0), 7, 5),
    column("clip", "completions/clipped_ratio", Some("eval/truncated"), Form::Percent(0), 5, 8),
    column("entropy", "entropy", None, Form::Fixed(3), 8, 7),
    column("zero_std", "frac_reward_zero_std", None, Form::Percent(0), 9, 11),
    column("kl", "kl", None, Form::Fixed(4), 8, 13),
    column("grad_norm", "grad_norm", None, Form::Fixed(3), 10, 14),
    column("format", "rewards/format/mean", Some("eval/rewards/format/mean"), Form::Fixed(3), 7, 15),
    column("logp_diff", "sampling/sampling_logp_difference/max", None, Form::Power, 10, 16),
    column("gen_tok/s", "time/generated_tokens_per_s", None, Form::Fixed(0), 10, 17),
    column("train_tok/s", "time/trained_tokens_per_s", None, Form::Fixed(0), 12, 18),
    column("step_time", "step_time", None, Form::Fixed(1), 10, 19),
];

/// Width of the time that is left.
const LEFT: usize = 7;

/// The table of a run.
pub(super) struct Table {
    steps: u64,
    evaluates: bool,
    /// The columns of which this run has the numbers.
    columns: Vec<&'static Column>,
    /// How many of them the last line had, and lines since the heading.
    shown: Option<usize>,
    lines: usize,
    has_legend: bool,
}

impl Table {
    /// Of a run with these settings and steps.
    pub(super) fn new(settings: &Settings, steps: u64) -> Table {
        let evaluates = settings.train.eval_every > 0 && !settings.data.held_out.is_empty();
        let is_paired = settings.data.orders == Orders::Both || evaluates;
        let has = |column: &&Column| match column.title {
            "both" | "agree" => is_paired,
            "kl" => settings.loss.beta > 0.0,
            "logp_diff" => settings.lora.dropout == 0.0,
            _ => true,
        };
        let columns = COLUMNS.iter().filter(has).collect();
        Table { steps, evaluates, columns, shown: None, lines: 0, has_legend: false }
    }

    /// Lets the next line have a heading above it: something else was printed.
    pub(super) fn interrupt(&mut self) {
        self.lines = LINES;
    }

    /// The lines of a step, or what is printed above them; `left` is the time for those to come.
    pub(super) fn step(
        &mut self,
        width: usize,
        step: u64,
        metrics: &[(String, f64)],
        left: Option<String>,
    ) -> Vec<String> {
        let first = format!("{step}/{}", self.steps);
        self.lines(width, &first, |column| value(metrics, column.metric), left.as_deref())
    }

    /// The lines of an evaluation after a step, 0 before training.
    pub(super) fn held_out(
        &mut self,
        width: usize,
        step: u64,
        metrics: &[(String, f64)],
    ) -> Vec<String> {
        let is_best = step > 0 && value(metrics, BEST_STEP) == Some(step as f64);
        let best = is_best.then_some("best");
        let of = |column: &Column| value(metrics, column.held_out?);
        self.lines(width, &format!("eval {step}"), of, best)
    }

    fn lines(
        &mut self,
        width: usize,
        first: &str,
        of: impl Fn(&Column) -> Option<f64>,
        last: Option<&str>,
    ) -> Vec<String> {
        let shown = self.fitting(width);
        let mut lines = Vec::new();
        if self.shown != Some(shown.len()) || self.lines >= LINES {
            if !self.has_legend {
                lines.extend(self.legend(width));
                self.has_legend = true;
            }
            lines.push(self.line(width, &shown, "step", |column| column.title.into(), "left"));
            self.lines = 0;
        }
        self.shown = Some(shown.len());
        self.lines += 1;
        let cell = |column: &Column| match of(column) {
            Some(value) => column.form.written(value, column.width - 1),
            None => "-".to_owned(),
        };
        lines.push(self.line(width, &shown, first, cell, last.unwrap_or_default()));
        lines
    }

    /// Width of the first column: "1000/1000" or "eval 1000", and the space before it.
    fn first(&self) -> usize {
        let digits = self.steps.to_string().len();
        1 + (2 * digits + 1).max("eval ".len() + digits)
    }

    /// The columns that fit a line of `width` characters, in their order.
    fn fitting(&self, width: usize) -> Vec<&'static Column> {
        let mut columns = self.columns.clone();
        let taken = |columns: &[&Column]| {
            self.first() + LEFT + columns.iter().map(|column| column.width).sum::<usize>()
        };
        while taken(&columns) > width
            && let Some(last) = columns.iter().map(|column| column.turn).max()
        {
            columns.retain(|column| column.turn != last);
        }
        columns
    }

    fn line(
        &self,
        width: usize,
        columns: &[&Column],
        first: &str,
        cell: impl Fn(&Column) -> String,
        last: &str,
    ) -> String {
        let mut line = format!("{first:>0$}", self.first());
        for column in columns {
            line += &format!("{:>1$}", cell(column), column.width);
        }
        if self.first() + LEFT <= width {
            line += &format!("{last:>LEFT$}");
        }
        line.trim_end().to_owned()
    }

    /// What the titles stand for in metrics.jsonl, where they are not the names themselves.
    fn legend(&self, width: usize) -> Vec<String> {
        let columns = self.fitting(width);
        let others = columns.iter().filter(|column| column.title != column.metric);
        let names: Vec<String> =
            others.map(|column| format!("{} = {}", column.title, column.metric)).collect();
        let held_out = match self.evaluates {
            true => "Lines \"eval N\" are of held-out pairs. ",
            false => "",
        };
        let text = format!(
            "columns, by their names in metrics.jsonl: {}. {held_out}`j1 train --help` has all",
            names.join(", ")
        );
        wrapped(&text, width, "")
    }
}

fn value(metrics: &[(String, f64)], name: &str) -> Option<f64> {
    metrics.iter().find(|(other, _)| other == name).map(|(_, value)| *value)
}

impl Form {
    /// The number in at most `width` characters where that is possible: decimals go first.
    fn written(self, value: f64, width: usize) -> String {
        let with = |decimals: usize| match self {
            Form::Percent(_) => format!("{:.decimals$}%", 100.0 * value),
            Form::Fixed(_) => format!("{value:.decimals$}"),
            Form::Power => format!("{value:.decimals$e}"),
        };
        let decimals = match self {
            Form::Power if value == 0.0 => return "0".to_owned(),
            Form::Power => 1,
            Form::Percent(decimals) | Form::Fixed(decimals) => decimals,
        };
        let fits = |text: &String| text.len() <= width;
        let shorter = (0..=decimals).rev().map(with).find(fits);
        shorter.or_else(|| Some(format!("{value:.0e}")).filter(fits)).unwrap_or_else(|| "#".into())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use trainer::train::settings::Preset;

    use super::*;

    fn settings(held_out: &str) -> Settings {
        let mut settings = Settings::preset(Preset::J1Nano);
        settings.data.held_out = held_out.to_owned();
        settings
    }

    /// A step of all columns, with awkward numbers.
    fn metrics() -> Vec<(String, f64)> {
        let of = |(index, column): (usize, &Column)| {
            let value = [0.0, 1.0, 0.59051, -0.12345, 123_456.789, f64::NAN][index % 6];
            (column.metric.to_owned(), value)
        };
        COLUMNS.iter().enumerate().map(of).collect()
    }

    fn evaluation() -> Vec<(String, f64)> {
        let named = COLUMNS.iter().filter_map(|column| column.held_out);
        named.map(|name| (name.to_owned(), 0.4098)).chain([(BEST_STEP.to_owned(), 8.0)]).collect()
    }

    #[test]
    fn every_line_fits_the_terminal_and_a_wider_one_has_more() {
        for steps in [4, 60, 1000, 1_000_000_000] {
            let mut before = 0;
            for width in 1..220 {
                let mut table = Table::new(&settings("pairs.jsonl"), steps);
                let mut lines = table.step(width, steps, &metrics(), Some("47h59m".to_owned()));
                lines.extend(table.held_out(width, steps, &evaluation()));
                let first = table.first();
                for line in &lines {
                    assert!(line.chars().count() <= width.max(first), "{width}: {line}");
                }
                let columns = table.fitting(width).len();
                assert!(columns >= before, "{width}");
                before = columns;
            }
            assert_eq!(before, COLUMNS.len());
        }
    }

    #[test]
    fn eighty_columns_have_what_a_judge_is_watched_by() {
        let mut table = Table::new(&settings("pairs.jsonl"), 1000);
        let step = [
            ("reward", 0.51234),
            ("completions/right_ratio", 0.590_625),
            ("rewards/consistency/mean", 0.28),
            ("verdicts/share_of_a", 0.364),
            ("verdicts/distinct_scores", 52.0),
            ("verdicts/tied_ratio", 0.0909),
            ("completions/mean_length", 140.6),
            ("completions/clipped_ratio", 1.0),
            ("entropy", 1.19),
        ];
        let step = step.map(|(name, value)| (name.to_owned(), value));
        let lines = table.step(80, 12, &step, Some("2h05m".to_owned()));
        let heading =
            "      step reward  right   both share_a distinct tied length clip entropy   left";
        assert_eq!(lines[lines.len() - 2], heading);
        assert_eq!(
            lines[lines.len() - 1],
            "   12/1000  0.512  59.1%  28.0%     36%       52   9%    141 100%   1.190  2h05m"
        );
        assert_eq!(heading.len(), 80);
        assert!(lines[0].starts_with("columns, by their names in metrics.jsonl: right = "));
        let legend = lines[..lines.len() - 2].join(" ");
        assert!(legend.contains("share_a = verdicts/share_of_a"), "{legend}");
        assert!(legend.contains("held-out pairs") && legend.ends_with("`j1 train --help` has all"));
        assert!(!legend.contains("reward = reward") && !legend.contains("kl ="), "{legend}");

        // An evaluation stands below, its numbers under the same titles, and says whether it is the best so far.
        let evaluated = [
            ("eval/reward", 0.4),
            ("eval/accuracy", 0.612),
            ("eval/right_in_both_orders", 0.41),
            ("eval/share_of_a", 0.5),
            ("eval/distinct_scores", 31.0),
            ("eval/ties", 0.02),
            ("eval/mean_length", 120.0),
            ("eval/truncated", 0.0),
            ("eval/best_step", 12.0),
        ];
        let evaluated = evaluated.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(
            table.held_out(80, 12, &evaluated),
            ["   eval 12  0.400  61.2%  41.0%     50%       31   2%    120   0%       -   best"]
        );
        assert_eq!(
            table.held_out(80, 16, &evaluated),
            ["   eval 16  0.400  61.2%  41.0%     50%       31   2%    120   0%       -"]
        );
    }

    #[test]
    fn headings_come_again_after_some_lines_and_after_another_width() {
        let mut table = Table::new(&settings(""), 100);
        let mut headings = |width: usize| {
            let lines = table.step(width, 1, &metrics(), None);
            lines.iter().filter(|line| line.trim_start().starts_with("step ")).count()
        };
        let counts: Vec<usize> = (0..2 * LINES + 1).map(|_| headings(80)).collect();
        let at: Vec<usize> = (0..counts.len()).filter(|&line| counts[line] == 1).collect();
        assert_eq!(at, [0, LINES, 2 * LINES]);
        // Followed from the next line on; another width with the same columns is no reason.
        assert_eq!([headings(120), headings(120), headings(80), headings(81)], [1, 0, 1, 0]);
        table.interrupt();
        assert_eq!(table.step(81, 1, &metrics(), None).len(), 2, "no second legend");
    }

    #[test]
    fn columns_without_numbers_are_left_out() {
        let titles = |settings: &Settings| -> Vec<&str> {
            Table::new(settings, 9).columns.iter().map(|column| column.title).collect()
        };
        let mut random = settings("");
        random.data.orders = Orders::Random;
        random.loss.beta = 0.0;
        random.lora.dropout = 0.1;
        let without = titles(&random);
        for title in ["both", "agree", "kl", "logp_diff"] {
            assert!(!without.contains(&title) && titles(&settings("")).contains(&title), "{title}");
        }
        // Held-out pairs are judged in both orders.
        random.data.held_out = "pairs.jsonl".to_owned();
        assert!(titles(&random).contains(&"both"));
    }

    #[test]
    fn numbers_keep_their_column() {
        for (form, value, text) in [
            (Form::Fixed(3), 0.5126, "0.513"),
            (Form::Fixed(3), -12.3456, "-12.35"),
            (Form::Fixed(3), 123_456.7, "123457"),
            (Form::Fixed(3), 1e12, "1e12"),
            (Form::Percent(1), 1.0, "100.0%"),
            (Form::Fixed(3), f64::NAN, "NaN"),
            (Form::Power, 0.0, "0"),
            (Form::Power, 1.25e-8, "1.2e-8"),
        ] {
            assert_eq!(form.written(value, 6), text);
        }
        assert_eq!(Form::Fixed(0).written(-1e100, 4), "#");
    }

    #[test]
    fn help_has_the_name_of_every_column() {
        let mut command = crate::args::Cli::command();
        let train = command.find_subcommand_mut("train").unwrap();
        let help = train.render_long_help().to_string();
        let words: Vec<&str> = help.split_whitespace().collect();
        for column in &COLUMNS {
            let names = [column.title, column.metric].into_iter().chain(column.held_out);
            for name in names {
                assert!(words.iter().any(|word| word.trim_end_matches(',') == name), "{name}");
            }
        }
        let mut turns: Vec<usize> = COLUMNS.iter().map(|column| column.turn).collect();
        turns.sort_unstable();
        turns.dedup();
        assert_eq!(turns.len(), COLUMNS.len(), "no two go together");
    }
}
