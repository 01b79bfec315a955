//! Rewards of judgements: a list of named, weighted, pure functions.
//!
//! ```text
//! format           0 to 0.2: (1/8 for each of the six tags anywhere + 2/8 if the box parses) / 5, the
//!                  original's score (haizelabs/j1-micro, rewards.py)
//! verdict          1 if the chosen reply has the strictly higher score, else 0; or another number
//!                  for what is wrong, such as SPCT's -1 (arXiv 2504.02495)
//! consistency      if right, the share of the other order's judgements that are right, else 0
//!                  (J1, arXiv 2505.10320, in expectation: see below)
//! agreement        the share of the other order's judgements that prefer the same reply, whichever; a tie or no
//!                  verdict prefers none
//! summed           the share of the other order's judgements with which it is right: the chosen reply has more points
//!                  in both together (a tie of sums is half), as a judge that is asked in both orders decides
//! length           0 up to max - cache tokens, then down in a line to -1 at max
//!                  (DAPO's soft overlong punishment, arXiv 2503.14476, eq. 13)
//! ```
//!
//! A tie, or a judgement without a verdict, is not right: it has the reward of a wrong one.
//!
//! A pair's two orders are two prompts, so two groups of samples in the same step. J1 pairs sample i of one with sample i
//! of the other and asks that both are right. Samples are exchangeable, so that any pairing is chance: the mean over all
//! pairings, which is the other order's share, has the same expectation and less variance, and no right verdict
//! has reward 0 because of its partner. A judge that always favors one slot still has reward 0.
//!
//! What the rewards make of a preference for a slot: let a policy that cannot tell the replies apart say A with
//! probability p. `verdict` pays p in one order and 1 - p in the other, 1 together, whatever p is: nothing holds p, and the
//! noise of samples moves it until a group agrees and no gradient is left. `consistency` pays 2p(1 - p) and `agreement`
//! twice that, most at 1/2: they pull p back. `summed` pays one half whatever p is, but scores that lean towards the chosen
//! reply earn more even where the slot decides every verdict. Where advantages are divided by each group's own standard
//! deviation, the pull is lost: a group in which the slot is right by chance counts as much as one in which it is rarely
//! right. `reward.scale_rewards = "batch"` keeps it.

use serde::{Deserialize, Serialize};

use super::advantages::{Weighted, mean, std};
use crate::judge::{
    prompt::Order,
    verdict::{FORMAT_TAGS, Verdict, format_tags, published},
};

/// One judgement, as rewards see it.
#[derive(Clone, Copy, Debug)]
pub struct Rollout<'a> {
    /// The completion's text, thinking included.
    pub text: &'a str,
    /// The verdict of the judgement.
    pub verdict: Verdict,
    /// Which reply stood in slot A.
    pub order: Order,
    /// Generated tokens, the end token included.
    pub tokens: usize,
    /// The rollouts of the same pair in the other order: from which index in the step, up to which. Only
    /// `consistency` asks for them.
    pub other_order: Option<[usize; 2]>,
}

impl Rollout<'_> {
    /// By how many points the chosen reply leads; `None` without a verdict.
    pub fn lead(&self) -> Option<f64> {
        let (chosen, rejected) = self.order.by_label(self.verdict.scores()?);
        Some(chosen - rejected)
    }

    /// Whether the chosen reply has the strictly higher score.
    pub fn is_right(&self) -> bool {
        self.lead().is_some_and(|lead| lead > 0.0)
    }
}

/// A reward.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reward {
    /// How much of the form was kept.
    Format,
    /// 1 for a right verdict.
    Verdict {
        /// Reward of a wrong verdict, a tie or none: 0, or SPCT's -1.
        wrong: f64,
    },
    /// Right is the other order's share of right ones.
    Consistency,
    /// The share of the other order's that prefer the same reply.
    Agreement,
    /// The share of the other order's with which the chosen reply has more points.
    Summed,
    /// Punishes what nears the token limit.
    Length {
        /// Tokens a completion may have: -1 from there on.
        max_tokens: usize,
        /// Tokens before that over which the punishment grows; at most `max_tokens`.
        cache_tokens: usize,
    },
}

impl Reward {
    /// The name in `rewards/<name>/mean`, in rollout files and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Reward::Format => "format",
            Reward::Verdict { .. } => "verdict",
            Reward::Consistency => "consistency",
            Reward::Agreement => "agreement",
            Reward::Summed => "summed",
            Reward::Length { .. } => "length",
        }
    }

    /// The reward of every rollout of a step.
    ///
    /// # Panics
    /// `consistency`, `agreement` and `summed`, if a rollout's other order is missing, the same order, or has another other order.
    pub fn values(self, rollouts: &[Rollout<'_>]) -> Vec<f64> {
        let flag = |right: bool, wrong: f64| if right { 1.0 } else { wrong };
        let of = |(i, rollout): (usize, &Rollout)| match self {
            Reward::Format => format(rollout.text, rollout.verdict),
            Reward::Verdict { wrong } => flag(rollout.is_right(), wrong),
            Reward::Consistency if rollout.is_right() => {
                share(other_order(rollouts, i), |other| flag(other.is_right(), 0.0))
            }
            Reward::Consistency => 0.0,
            Reward::Agreement => match rollout.lead() {
                None => 0.0,
                Some(lead) => share(other_order(rollouts, i), |other| {
                    let same = other.lead().is_some_and(|other| lead * other > 0.0);
                    flag(same, 0.0)
                }),
            },
            Reward::Summed => match rollout.lead() {
                None => 0.0,
                Some(lead) => share(other_order(rollouts, i), |other| match other.lead() {
                    Some(other) if lead + other > 0.0 => 1.0,
                    Some(other) if lead + other == 0.0 => 0.5,
                    _ => 0.0,
                }),
            },
            Reward::Length { max_tokens, cache_tokens } => {
                length(rollout.tokens, max_tokens, cache_tokens)
            }
        };
        rollouts.iter().enumerate().map(of).collect()
    }
}

/// The original's score for form, in [0, 0.2]. A box parses by the published rule, whatever the scale and however
/// the judgement ended; where a template asks for another form, a verdict in that form takes the box's place.
pub fn format(text: &str, verdict: Verdict) -> f64 {
    let parts = FORMAT_TAGS.len() + 2;
    let box_parses = published(text).scores().or(verdict.scores()).is_some();
    let kept = format_tags(text) + if box_parses { 2 } else { 0 };
    kept as f64 / parts as f64 / 5.0
}

/// DAPO's soft overlong punishment of a completion of `tokens` tokens, in [-1, 0].
pub fn length(tokens: usize, max_tokens: usize, cache_tokens: usize) -> f64 {
    assert!(cache_tokens <= max_tokens, "cache {cache_tokens} of at most {max_tokens} tokens");
    let free = max_tokens - cache_tokens;
    if tokens <= free {
        0.0
    } else if tokens >= max_tokens {
        -1.0
    } else {
        -((tokens - free) as f64) / cache_tokens as f64
    }
}

/// The mean of what rollouts are worth.
fn share(rollouts: &[Rollout<'_>], worth: impl Fn(&Rollout<'_>) -> f64) -> f64 {
    rollouts.iter().map(worth).sum::<f64>() / rollouts.len().max(1) as f64
}

fn other_order<'a, 'b>(rollouts: &'a [Rollout<'b>], i: usize) -> &'a [Rollout<'b>] {
    let [from, to] =
        rollouts[i].other_order.unwrap_or_else(|| panic!("rollout {i} has no other order"));
    let others = &rollouts[from..to];
    for (index, other) in (from..).zip(others) {
        let back = other.other_order.is_some_and(|[from, to]| (from..to).contains(&i));
        assert!(back, "rollout {index} belongs to {i}, and not in turn");
        assert_ne!(other.order, rollouts[i].order, "rollouts {i} and {index} have one order");
    }
    others
}

/// A reward and how much it counts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Kind of the reward.
    pub reward: Reward,
    /// c_k of the weighted sum.
    pub weight: f64,
}

/// The rewards of a step: one column an entry of the list, in its order.
#[derive(Clone, Debug, PartialEq)]
pub struct RewardTable {
    /// The columns.
    pub columns: Vec<RewardColumn>,
}

/// One reward of every rollout.
#[derive(Clone, Debug, PartialEq)]
pub struct RewardColumn {
    /// The reward, and its weight.
    pub entry: Entry,
    /// A value a rollout.
    pub values: Vec<f64>,
}

impl RewardColumn {
    /// `rewards/<name>/mean`, over the step.
    pub fn mean(&self) -> f64 {
        mean(&self.values)
    }

    /// `rewards/<name>/std`, unbiased, over the step.
    pub fn std(&self) -> f64 {
        std(&self.values)
    }
}

impl RewardTable {
    /// Computes every reward of the list.
    pub fn new(entries: &[Entry], rollouts: &[Rollout<'_>]) -> RewardTable {
        let column = |&entry: &Entry| RewardColumn { entry, values: entry.reward.values(rollouts) };
        RewardTable { columns: entries.iter().map(column).collect() }
    }

    /// The columns in the form that [`super::advantages::advantages`] takes.
    pub fn weighted(&self) -> Vec<Weighted<'_>> {
        self.columns
            .iter()
            .map(|column| Weighted { weight: column.entry.weight, values: &column.values })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::verdict::UnparsedReason;

    const WHOLE: &str = "<think>t</think>\n<specific_criteria>c</specific_criteria>\n\
        <analysis>a</analysis>\n<scores>\n\\boxed{8, 6}\n</scores>";

    fn rollout(
        verdict: Verdict,
        order: Order,
        other_order: Option<[usize; 2]>,
    ) -> Rollout<'static> {
        Rollout { text: "", verdict, order, tokens: 1, other_order }
    }

    #[test]
    fn format_is_the_originals_score() {
        let near = |text: &str, want: f64| {
            let score = format(text, Verdict::Unparsed(UnparsedReason::NoBox));
            assert!((score - want).abs() < 1e-15, "{text:?}: {score}");
        };
        near(WHOLE, 0.2);
        near("", 0.0);
        near("no form at all \\boxed{8, 6}", 0.0);
        // A tag counts anywhere in the text, and in any order.
        near("</analysis> <specific_criteria>", 2.0 / 8.0 / 5.0);
        // Six tags and a box that does not parse; a missing tag and one that does.
        near(&WHOLE.replace("8, 6", "8 6"), 0.15);
        near(&WHOLE.replace("8, 6", "1.2.3, 6"), 0.15);
        near(&WHOLE.replace("<analysis>", ""), 0.175);
        // The box without its closing tag: 1 tag of 6, and no section to parse.
        near("<scores>\\boxed{8, 6}", 0.025);
        near("<scores>\\boxed{8, 6}</scores>", 0.1);
    }

    #[test]
    fn a_verdict_is_right_only_if_strictly_so() {
        let cases = [
            (Verdict::Scores(8.0, 6.0), Order::ChosenFirst, true),
            (Verdict::Scores(8.0, 6.0), Order::RejectedFirst, false),
            (Verdict::Scores(6.0, 8.0), Order::RejectedFirst, true),
            (Verdict::Scores(7.0, 7.0), Order::ChosenFirst, false),
            (Verdict::Scores(7.0, 7.0), Order::RejectedFirst, false),
            (Verdict::Unparsed(UnparsedReason::NoBox), Order::ChosenFirst, false),
        ];
        let rollouts = cases.map(|(verdict, order, _)| rollout(verdict, order, None));
        let right = cases.map(|(.., right)| if right { 1.0 } else { 0.0 });
        assert_eq!(Reward::Verdict { wrong: 0.0 }.values(&rollouts), right);
        assert_eq!(Reward::Verdict { wrong: -1.0 }.values(&rollouts), right.map(|r| 2.0 * r - 1.0));
    }

    #[test]
    fn consistency_of_a_right_verdict_is_the_other_orders_share() {
        let (a, b) = (Verdict::Scores(9.0, 1.0), Verdict::Scores(1.0, 9.0));
        let (tie, none) = (Verdict::Scores(5.0, 5.0), Verdict::Unparsed(UnparsedReason::Empty));
        let consistency = |first: &[Verdict], second: &[Verdict]| {
            let (n, all) = (first.len(), first.len() + second.len());
            let mut rollouts = Vec::new();
            for verdict in first {
                rollouts.push(rollout(*verdict, Order::ChosenFirst, Some([n, all])));
            }
            for verdict in second {
                rollouts.push(rollout(*verdict, Order::RejectedFirst, Some([0, n])));
            }
            Reward::Consistency.values(&rollouts)
        };
        // 2 of 4 are right with the chosen reply first, 3 of 4 with it second. Pairing by index, the second would earn
        // nothing for having met a tie.
        let want = [0.75, 0.75, 0.0, 0.0, 0.5, 0.0, 0.5, 0.5];
        assert_eq!(consistency(&[a, a, tie, b], &[b, tie, b, b]), want);
        // A judge that always says A is right in one order and earns nothing in either.
        assert_eq!(consistency(&[a; 4], &[a; 4]), [0.0; 8]);
        assert_eq!(consistency(&[a; 2], &[b; 2]), [1.0; 4]);
        // What wrote no verdict is not right, and counts.
        assert_eq!(consistency(&[a, none], &[b, none]), [0.5, 0.0, 0.5, 0.0]);
        assert_eq!(consistency(&[none; 2], &[b; 2]), [0.0; 4]);
        // Groups need not be equally large.
        assert_eq!(consistency(&[a], &[b, b, a]), [2.0 / 3.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn agreement_and_sums_by_hand() {
        let scores = |a: f64, b: f64| Verdict::Scores(a, b);
        let none = Verdict::Unparsed(UnparsedReason::Empty);
        // Slot A first; the chosen reply stands there in the first order, in slot B in the second.
        let of = |reward: Reward, first: [Verdict; 3], second: [Verdict; 2]| {
            let first = first.map(|verdict| rollout(verdict, Order::ChosenFirst, Some([3, 5])));
            let second = second.map(|verdict| rollout(verdict, Order::RejectedFirst, Some([0, 3])));
            reward.values(&[first.to_vec(), second.to_vec()].concat())
        };
        // Leads of 4, 0, -2 against 1, none.
        let (first, second) =
            ([scores(8.0, 4.0), scores(5.0, 5.0), scores(3.0, 5.0)], [scores(6.0, 7.0), none]);
        let third = 1.0 / 3.0;
        assert_eq!(of(Reward::Agreement, first, second), [0.5, 0.0, 0.0, third, 0.0]);
        assert_eq!(of(Reward::Summed, first, second), [0.5, 0.5, 0.0, 2.0 * third, 0.0]);
        // A constant verdict for slot A agrees with nothing, and its sums are ties.
        let constant = scores(9.0, 7.0);
        assert_eq!(of(Reward::Agreement, [constant; 3], [constant; 2]), [0.0; 5]);
        assert_eq!(of(Reward::Summed, [constant; 3], [constant; 2]), [0.5; 5]);
        // It leans by a point towards the chosen reply, though the slot decides both verdicts.
        let leaning = scores(9.0, 8.0);
        assert_eq!(of(Reward::Summed, [constant; 3], [leaning; 2]), [1.0; 5]);
        // Two wrong verdicts agree.
        let wrong = (scores(1.0, 9.0), scores(9.0, 1.0));
        assert_eq!(of(Reward::Agreement, [wrong.0; 3], [wrong.1; 2]), [1.0; 5]);
        assert_eq!(of(Reward::Summed, [wrong.0; 3], [wrong.1; 2]), [0.0; 5]);
    }

    #[test]
    fn other_orders_are_checked() {
        let right = Verdict::Scores(9.0, 1.0);
        let panics = |rollouts: &[Rollout]| {
            let rollouts = rollouts.to_vec();
            std::panic::catch_unwind(move || Reward::Consistency.values(&rollouts)).is_err()
        };
        let (chosen, rejected) = (Order::ChosenFirst, Order::RejectedFirst);
        let pair = |order, i, j| [rollout(right, chosen, i), rollout(right, order, j)];
        let (first, second) = (Some([0, 1]), Some([1, 2]));
        assert!(!panics(&pair(rejected, second, first)));
        assert!(panics(&pair(rejected, None, first)));
        assert!(panics(&pair(rejected, second, second)));
        assert!(panics(&pair(chosen, second, first)));
    }

    #[test]
    fn length_falls_in_a_line_over_the_cache() {
        let at = |tokens| length(tokens, 100, 20);
        assert_eq!([0, 80, 85, 90, 99].map(at), [0.0, 0.0, -0.25, -0.5, -0.95]);
        assert_eq!([100, 101, 5_000].map(at), [-1.0; 3]);
        // Without a cache it is a step at the limit, and a cache may be all there is.
        assert_eq!([99, 100].map(|tokens| length(tokens, 100, 0)), [0.0, 0.0]);
        assert_eq!(length(101, 100, 0), -1.0);
        assert_eq!([0, 25, 100].map(|tokens| length(tokens, 100, 100)), [0.0, -0.25, -1.0]);
    }

    #[test]
    fn a_table_has_a_column_an_entry() {
        let rollouts = [
            Rollout {
                text: WHOLE,
                tokens: 9,
                ..rollout(published(WHOLE), Order::ChosenFirst, None)
            },
            rollout(Verdict::Unparsed(UnparsedReason::Empty), Order::ChosenFirst, None),
        ];
        let length = Reward::Length { max_tokens: 10, cache_tokens: 4 };
        let entries = [(Reward::Format, 1.0), (Reward::Verdict { wrong: 0.0 }, 2.0), (length, 0.5)];
        let entries = entries.map(|(reward, weight)| Entry { reward, weight });
        let table = RewardTable::new(&entries, &rollouts);
        let names: Vec<_> = table.columns.iter().map(|c| c.entry.reward.name()).collect();
        assert_eq!(names, ["format", "verdict", "length"]);
        assert_eq!(table.columns[1].values, [1.0, 0.0]);
        assert_eq!((table.columns[1].mean(), table.columns[1].std()), (0.5, 0.5f64.sqrt()));
        let weighted = table.weighted();
        assert_eq!(weighted[2].weight, 0.5);
        assert_eq!(weighted[2].values, [-0.75, 0.0]);
    }
}
