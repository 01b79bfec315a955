//! What a step's judgements read like: the best and the worst of one group, wrapped for a terminal.

use engine::error::excerpt_of;
use trainer::{
    judge::{prompt::Order, verdict::Verdict},
    train::rollout::RolloutRecord,
};

use crate::output::wrapped;

/// Lines of the prompt and of each reply that are shown.
const LINES: usize = 3;

/// The group whose rewards lie farthest apart, the first of several.
fn widest(rollouts: &[RolloutRecord]) -> Option<&[RolloutRecord]> {
    let spread = |group: &[RolloutRecord]| {
        let (best, worst) = best_and_worst(group);
        best.reward - worst.reward
    };
    let groups = rollouts.chunk_by(|a, b| a.group == b.group);
    groups.reduce(|widest, group| if spread(group) > spread(widest) { group } else { widest })
}

/// The first of those with the largest reward, and of those with the least.
fn best_and_worst(group: &[RolloutRecord]) -> (&RolloutRecord, &RolloutRecord) {
    let (mut best, mut worst) = (&group[0], &group[0]);
    for record in group {
        if record.reward > best.reward {
            best = record;
        }
        if record.reward < worst.reward {
            worst = record;
        }
    }
    (best, worst)
}

/// The best and the worst judgement of the group whose rewards differ most, with its prompt; lines of at most `width`
/// characters.
pub(super) fn lines(rollouts: &[RolloutRecord], width: usize) -> Vec<String> {
    let Some(group) = widest(rollouts) else { return Vec::new() };
    let (best, worst) = best_and_worst(group);
    let mut lines = Vec::new();
    let mut add = |text: &str, indent: &str| lines.extend(wrapped(text, width, indent));
    let (a, b) = match best.order {
        Order::ChosenFirst => (&best.chosen, &best.rejected),
        Order::RejectedFirst => (&best.rejected, &best.chosen),
    };
    let better = if best.order == Order::ChosenFirst { "A" } else { "B" };
    add(
        &format!(
            "── step {}, prompt {} of the step: {}; reply {better} is the chosen one ──",
            best.step,
            best.group,
            excerpt_of(&best.id, 60)
        ),
        "",
    );
    let question = best.prompt.last().map_or("", |turn| turn.content.as_str());
    for (name, text) in [("prompt: ", question), ("reply A: ", a), ("reply B: ", b)] {
        let room = (LINES * width).saturating_sub(name.len() + 4 * LINES);
        add(&format!("{name}{}", excerpt_of(text.trim(), room)), "    ");
    }
    let judgements = match best.reward == worst.reward {
        true => vec![("one of several that earned the same", best)],
        false => vec![("best", best), ("worst", worst)],
    };
    for (name, record) in judgements {
        add(&format!("── {name}: {} ──", earned(record)), "");
        add(record.text.trim(), "");
    }
    add("──", "");
    lines
}

/// What a judgement said and earned.
fn earned(record: &RolloutRecord) -> String {
    let verdict = match record.verdict {
        Verdict::Scores(a, b) => {
            format!("A {a}, B {b}, {}", if record.right { "right" } else { "not right" })
        }
        Verdict::Unparsed(reason) => format!("no verdict: {}", reason.sentence()),
    };
    let parts: Vec<String> =
        record.rewards.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
    format!(
        "reward {:.3}, advantage {:.3} ({} before weights); {verdict}; {} tokens",
        record.reward,
        record.advantage,
        parts.join(", "),
        record.tokens
    )
}

#[cfg(test)]
mod tests {
    use trainer::{data::Message, eval::results::Finish};

    use super::*;

    fn record(group: usize, sample: usize, reward: f64, text: &str) -> RolloutRecord {
        RolloutRecord {
            step: 20,
            group,
            sample,
            id: "hh-7".to_owned(),
            row: 7,
            order: Order::RejectedFirst,
            other_order: None,
            prompt_tokens: 9,
            tokens: 40,
            finish: Finish::Stop,
            verdict: Verdict::Scores(3.0, 8.5),
            right: true,
            rewards: [("format".to_owned(), 0.2), ("verdict".to_owned(), 1.0)].into(),
            reward,
            advantage: 0.75,
            log_prob: -3.0,
            prompt: vec![
                Message::new("user", "An earlier turn"),
                Message::new("user", "Which planet\nis red?"),
            ],
            chosen: "Mars".to_owned(),
            rejected: "\u{1b}]0;owned\u{7}Venus".to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn the_group_that_differs_most_shows_its_best_and_worst() {
        let rollouts = [
            record(0, 0, 0.5, "same"),
            record(0, 1, 0.5, "same"),
            record(1, 0, 0.2, "a middling one"),
            record(1, 1, -0.5, "a poor\n\none"),
            record(1, 2, 1.7, "a good one \u{9b}31m"),
            record(2, 0, 1.0, "another"),
            record(2, 1, 1.5, "another"),
        ];
        let earned = "reward {}, advantage 0.750 (format 0.200, verdict 1.000 before weights); A 3, B 8.5, right; 40 tokens";
        let expected = [
            "── step 20, prompt 1 of the step: hh-7; reply B is the chosen one ──".to_owned(),
            "prompt: Which planet\\nis red?".to_owned(),
            "reply A: \\u{1b}]0;owned\\u{7}Venus".to_owned(),
            "reply B: Mars".to_owned(),
            format!("── best: {} ──", earned.replace("{}", "1.700")),
            "a good one \\u{9b}31m".to_owned(),
            format!("── worst: {} ──", earned.replace("{}", "-0.500")),
            "a poor".to_owned(),
            String::new(),
            "one".to_owned(),
            "──".to_owned(),
        ];
        assert_eq!(lines(&rollouts, 200), expected);
        let same = lines(&rollouts[..2], 200);
        assert!(same[4].starts_with("── one of several that earned the same: reward 0.500"));
        assert_eq!(same.len(), 7, "it is shown once: {same:?}");
        assert!(lines(&[], 80).is_empty());
    }

    #[test]
    fn long_texts_are_wrapped_and_the_prompt_is_cut() {
        let mut long = record(0, 0, 1.0, &"word ".repeat(400));
        long.prompt = vec![Message::new("user", &"really ".repeat(1000))];
        long.chosen = "漢字".repeat(1000);
        long.text += &"x".repeat(500);
        for width in [20, 40, 80, 133] {
            let lines = lines(&[long.clone(), record(0, 1, 0.0, "short")], width);
            for line in &lines {
                assert!(textwrap::core::display_width(line) <= width, "{width}: {line}");
            }
            let words = lines.iter().flat_map(|line| line.split_whitespace());
            assert_eq!(words.filter(|word| *word == "word").count(), 400, "all of the judgement");
            let of_prompt = lines.iter().filter(|line| line.contains("really")).count();
            assert!((2..=LINES + 1).contains(&of_prompt), "{width}: {of_prompt}");
        }
    }
}
