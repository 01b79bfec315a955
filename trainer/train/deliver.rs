//! Which step's adapter a run ends with, and what there is to say about it.

use std::{collections::BTreeMap, fs, path::Path};

use engine::checkpoint::adapter::Adapter;

use super::{
    Trainer,
    checkpoint::{self, Best},
    run::RunError,
};
use crate::{eval::results::ResultsError, train::settings::Deliver};

/// The adapter that was written at the end.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivered {
    /// The step it is of.
    pub step: u64,
    /// Steps of the run.
    pub last: u64,
    /// The reason for the choice of the step.
    pub why: Why,
    /// Share of held-out pairs right in both orders, by step; step 0 is before training.
    pub held_out: BTreeMap<u64, f64>,
}

/// Why a step was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The step with the best result on held-out pairs.
    Best,
    /// Nothing was evaluated.
    Unevaluated,
    /// No evaluation found a pair that was right in both orders.
    NoneRight,
    /// train.deliver = "last".
    Asked,
    /// The best step's checkpoint is gone.
    Gone(u64),
}

/// Writes the adapter that the settings ask for to `target`. `adapter` is the form in which the last one is written.
pub(super) fn deliver(
    trainer: &Trainer,
    adapter: &mut Adapter,
    checkpoints: &Path,
    target: &Path,
    best: Option<Best>,
    held_out: BTreeMap<u64, f64>,
) -> Result<Delivered, RunError> {
    let last = trainer.step_count();
    let (mut step, mut why) = match (trainer.settings().train.deliver, best) {
        (Deliver::Last, _) => (last, Why::Asked),
        (Deliver::Best, None) => (last, Why::Unevaluated),
        (Deliver::Best, Some(best)) if best.right_in_both == 0.0 => (last, Why::NoneRight),
        (Deliver::Best, Some(best)) => (best.step, Why::Best),
    };
    let of_best = checkpoint::directory(checkpoints, step);
    if step != last && !of_best.is_dir() {
        (step, why) = (last, Why::Gone(step));
    }
    fs::create_dir_all(target).map_err(|e| ResultsError::io("create", target, e))?;
    let model = &trainer.language_model().model;
    match step == last {
        true => {
            model.store_adapter(adapter)?;
            adapter.save(target)?;
        }
        false => Adapter::load(&of_best, model.config())?.save(target)?,
    }
    Ok(Delivered { step, last, why, held_out })
}

impl Delivered {
    /// A message for the user: the step that is delivered, and its result on held-out pairs.
    pub fn sentences(&self) -> Vec<String> {
        let Delivered { step, last, .. } = *self;
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let of = |step: u64| self.held_out.get(&step).copied();
        let chosen = match self.why {
            Why::Best if step == last => {
                format!("step {step}, the last, which is the best on held-out pairs")
            }
            Why::Best => format!("step {step} of {last}, the best on held-out pairs"),
            Why::Unevaluated => format!("step {step}, the last: no held-out pairs were judged"),
            Why::NoneRight => {
                format!("step {step}, the last: at none was a held-out pair right in both orders")
            }
            Why::Asked => format!("step {step}, the last, as train.deliver says"),
            Why::Gone(best) => {
                format!(
                    "step {step}, the last: the checkpoint of step {best}, which was the best, is gone"
                )
            }
        };
        let share = of(step).filter(|_| self.why != Why::NoneRight);
        // Of those that training made, the first of the best.
        let best = self.held_out.iter().filter(|(step, _)| **step > 0);
        let best = best.fold(None, |best, (&step, &share)| match best {
            Some((_, most)) if share <= most => best,
            _ => Some((step, share)),
        });
        let delivered = match share {
            None => format!("adapter/ is {chosen}"),
            Some(share) => {
                let mut beside = Vec::new();
                beside.extend(of(0).map(|start| format!("before training {}", percent(start))));
                if step != last {
                    let end = of(last);
                    beside.extend(end.map(|end| format!("after the last step {}", percent(end))));
                }
                beside.extend(
                    best.filter(|(_, most)| *most > share).map(|(best, most)| {
                        format!("after step {best}, the best, {}", percent(most))
                    }),
                );
                let beside = match beside.is_empty() {
                    true => String::new(),
                    false => format!(" ({})", beside.join(", ")),
                };
                let share = percent(share);
                format!("adapter/ is {chosen}: {share} of them right in both orders{beside}")
            }
        };
        let mut sentences = vec![delivered];
        if let (Some(start), Some(share)) = (of(0), of(step))
            && start >= share
        {
            sentences.push(format!(
                "warning: it judges held-out pairs no better than what training began with: {} right in both orders before \
                 training, {} after. Look at eval/ in metrics.jsonl before you use it",
                percent(start),
                percent(share)
            ));
        }
        sentences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(step: u64, why: Why, held_out: &[(u64, f64)]) -> Vec<String> {
        let held_out = held_out.iter().copied().collect();
        Delivered { step, last: 60, why, held_out }.sentences()
    }

    #[test]
    fn the_end_says_which_step_and_against_what() {
        assert_eq!(
            said(40, Why::Best, &[(0, 0.4), (40, 0.615), (60, 0.58)]),
            [
                "adapter/ is step 40 of 60, the best on held-out pairs: 61.5 % of them right in both orders (before training \
                 40.0 %, after the last step 58.0 %)"
            ]
        );
        assert_eq!(
            said(60, Why::Best, &[(0, 0.4), (60, 0.5)]),
            [
                "adapter/ is step 60, the last, which is the best on held-out pairs: 50.0 % of them right in both orders \
                 (before training 40.0 %)"
            ]
        );
        assert_eq!(
            said(60, Why::Unevaluated, &[]),
            ["adapter/ is step 60, the last: no held-out pairs were judged"]
        );
        // The best is named where it is not what is delivered; step 0 is no step of training.
        assert_eq!(
            said(60, Why::Asked, &[(0, 0.7), (20, 0.55), (40, 0.615), (50, 0.615), (60, 0.6)])[0],
            "adapter/ is step 60, the last, as train.deliver says: 60.0 % of them right in both orders (before training \
             70.0 %, after step 40, the best, 61.5 %)"
        );
        assert_eq!(
            said(60, Why::Asked, &[(60, 0.5)]),
            [
                "adapter/ is step 60, the last, as train.deliver says: 50.0 % of them right in both orders"
            ]
        );
        assert!(
            said(60, Why::Gone(40), &[])[0]
                .contains("the checkpoint of step 40, which was the best, is gone")
        );
    }

    #[test]
    fn a_start_that_was_better_is_said() {
        let worse = said(40, Why::Best, &[(0, 0.62), (40, 0.6), (60, 0.1)]);
        assert_eq!(worse.len(), 2);
        assert!(
            worse[1].contains("62.0 % right in both orders before training, 60.0 % after"),
            "{worse:?}"
        );
        assert_eq!(said(40, Why::Best, &[(0, 0.6), (40, 0.6)]).len(), 2, "no better either");
        assert_eq!(said(40, Why::Best, &[(0, 0.59), (40, 0.6)]).len(), 1);
    }
}
