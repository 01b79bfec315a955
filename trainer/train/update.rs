//! The second half of a step: from rewarded completions to new parameters.
//!
//! Completions are packed into micro-batches by a token budget, group by group: a prompt runs once for
//! the completions of its group, and what it begins with as the prompt before it does runs once for both
//! ([`engine::model::training`]). The loss of the step is a sum over completions whose weights are
//! known beforehand (see [`crate::train::grpo::loss`]), so how they are packed is arithmetic's order only.

use engine::{
    model::{
        Model,
        training::{PackedBatch, RowError, TrainingPass, shared_tokens},
    },
    ops::linear::Dropout,
    optimizer::{AdamW, StepOutcome, first_not_finite},
    tensor::{
        Tensor,
        device::DeviceError,
        tape::{Gradients, Tape},
    },
};
use kernels::cpu::profile;

use crate::train::grpo::loss::{self, Sums, completion_loss};

/// A completion as the update sees it.
#[derive(Clone, Copy, Debug)]
pub struct TrainedCompletion<'a> {
    /// Token ids, the stop token included.
    pub tokens: &'a [u32],
    /// Log-probabilities that the policy had when it sampled, at the update's temperature; `None`
    /// where they were taken at another.
    pub sampled: Option<&'a [f32]>,
    /// The advantage A.
    pub advantage: f32,
    /// Weight of each of its tokens in the step's loss; at 0 the completion is left out.
    pub weight: f64,
    /// Its tokens that say the scores; the advantage of the others counts as `loss.reasoning_weight` says.
    pub scores: [usize; 2],
}

/// A prompt and its completions.
#[derive(Clone, Debug)]
pub struct PromptGroup<'a> {
    /// Token ids of the prompt.
    pub prompt: &'a [u32],
    /// Completions sampled from the prompt.
    pub items: Vec<TrainedCompletion<'a>>,
}

/// How a step's update is computed.
#[derive(Clone, Debug)]
pub struct UpdateSettings {
    /// The terms of the loss.
    pub loss: loss::LossTerms,
    /// Updates on the same completions, at least 1.
    pub iterations: usize,
    /// The logits are divided by it.
    pub temperature: f32,
    /// Dropout on the adapter's inputs.
    pub dropout: f32,
    /// Seed of the run.
    pub seed: u64,
    /// Rows of a packed batch at most; a prompt with one completion may be longer.
    pub micro_batch_tokens: usize,
    /// Whether layers are computed again in the backward pass.
    pub checkpoint: bool,
}

/// Metrics of an update.
#[derive(Clone, Debug, Default)]
pub struct UpdateReport {
    /// Loss, KL and clipping over all iterations.
    pub sums: Sums,
    /// Σ entropy over tokens, in nats, and the tokens, of the first iteration.
    pub entropy: (f64, usize),
    /// Largest |log-probability of training − of sampling| of the first iteration; `None` where they
    /// cannot be compared.
    pub log_prob_difference: Option<f64>,
    /// Norm of the last iteration's gradient before it was clipped.
    pub gradient_norm: f64,
    /// Learning rate of the last iteration.
    pub learning_rate: f64,
    /// Rows that ran through the model forward and backward.
    pub trained_rows: usize,
}

/// Why a step could not be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields say what they hold
pub enum UpdateError {
    /// The model's logits are not finite.
    #[error("the policy's {0}")]
    LogProb(#[from] RowError),
    /// The device failed.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// The gradient is not finite.
    #[error("the gradient's norm is {norm}, so the adapter was left as it was")]
    Gradient { norm: f64 },
    /// A reward is not finite.
    #[error(
        "the advantage of a completion is {advantage}, so the adapter was left as it was; look at reward.weights and \
         reward.wrong_verdict"
    )]
    Advantage { advantage: f32 },
    /// The update made a parameter that is not finite.
    #[error("after the update {name} holds a number that is not finite")]
    Parameter { name: String },
}

/// A part of a group that runs in one batch.
struct Part {
    group: usize,
    items: Vec<usize>,
}

/// Cuts the groups into micro-batches of at most `budget` rows.
fn pack(groups: &[PromptGroup], budget: usize) -> Vec<Vec<Part>> {
    let mut batches: Vec<Vec<Part>> = Vec::new();
    // What is left of the last batch, and the prompt that it ends with.
    let (mut room, mut before): (usize, &[u32]) = (0, &[]);
    for (index, group) in groups.iter().enumerate() {
        let mut part = Part { group: index, items: Vec::new() };
        let mut rows = group.prompt.len();
        let mut place = |part: Part, rows: usize| {
            let own = rows - shared_tokens(before, group.prompt);
            if batches.is_empty() || own > room {
                batches.push(Vec::new());
                room = budget.saturating_sub(rows);
            } else {
                room -= own;
            }
            before = group.prompt;
            batches.last_mut().expect("pushed above").push(part);
        };
        for (item, completion) in group.items.iter().enumerate() {
            if completion.weight == 0.0 {
                continue;
            }
            // The last token is predicted, not fed.
            let fed = completion.tokens.len().saturating_sub(1);
            if rows + fed > budget && !part.items.is_empty() {
                place(std::mem::replace(&mut part, Part { group: index, items: Vec::new() }), rows);
                rows = group.prompt.len();
            }
            part.items.push(item);
            rows += fed;
        }
        if !part.items.is_empty() {
            place(part, rows);
        }
    }
    batches
}

/// A micro-batch that no machine holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a micro-batch of more than {MOST_ROWS} rows is beyond any machine; lower data.max_prompt_tokens, \
     rollout.max_completion_tokens, rollout.group_size or train.micro_batch_tokens"
)]
pub struct TooLarge;

/// A row's activations are megabytes.
const MOST_ROWS: usize = 1 << 22;

/// The largest micro-batch of a step whose prompts and completions are at most so long, and share nothing. Groups that do not
/// fit one batch fill it, for their lengths vary.
pub fn largest_batch(
    [prompt, completion]: [usize; 2],
    group_size: usize,
    groups: usize,
    budget: usize,
) -> Result<PackedBatch, TooLarge> {
    let prompt = prompt.max(1);
    // The last token is predicted, not fed.
    let fed = completion.saturating_sub(1);
    let fitting = match budget.checked_sub(prompt) {
        Some(room) => room.checked_div(fed).unwrap_or(group_size),
        None => 1,
    };
    let items = fitting.max(1).min(group_size);
    let rows = items.checked_mul(fed).and_then(|rows| rows.checked_add(prompt)).ok_or(TooLarge)?;
    let parts = match items == group_size {
        true => (budget / rows).max(1).min(groups),
        false => 1.min(groups),
    };
    let mut packed = PackedBatch::default();
    if items == 0 || parts == 0 {
        return Ok(packed);
    }
    let targets = items.checked_mul(completion).ok_or(TooLarge)?;
    if rows.max(targets).max(items).saturating_mul(parts) > MOST_ROWS {
        return Err(TooLarge);
    }
    // Neighbours differ in every token.
    let tokens = vec![0; completion];
    let mut push = |index: usize, prompt: usize, completions: &[&[u32]]| {
        packed.push(&vec![index as u32 % 2; prompt], completions);
    };
    (0..parts).for_each(|index| push(index, prompt, &vec![&tokens[..]; items]));
    let left = budget.saturating_sub(parts * rows);
    if left > 0 && (parts < groups || items < group_size) {
        // A shorter group, or shorter completions of it.
        let of_completions = (left - 1).min(items * fed);
        let whole = of_completions.checked_div(fed).unwrap_or(items);
        let rest = of_completions - whole * fed;
        let mut completions = vec![&tokens[..]; whole];
        completions.extend((rest > 0).then(|| &tokens[..rest + 1]));
        push(parts, prompt.min(left - of_completions), &completions);
    }
    Ok(packed)
}

/// Updates the model's adapter on the groups of a step. `first_update` counts the updates before it;
/// `rate` gives each its learning rate. The KL term compares with the model under the factors in `reference`, or without an
/// adapter. `progress` is told after every micro-batch how many of how many
/// are done.
#[allow(clippy::too_many_arguments)] // the state of a run, and a step's input
pub fn update(
    model: &mut Model,
    optimizer: &mut AdamW,
    reference: Option<&mut [Tensor]>,
    groups: &[PromptGroup],
    settings: &UpdateSettings,
    first_update: u64,
    rate: &dyn Fn(u64) -> f64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<UpdateReport, UpdateError> {
    let batches = pack(groups, settings.micro_batch_tokens);
    let _span = profile::phase("update", [groups.len(), settings.iterations]);
    let mut advantages = groups.iter().flat_map(|group| &group.items).map(|item| item.advantage);
    if let Some(advantage) = advantages.find(|advantage| !advantage.is_finite()) {
        return Err(UpdateError::Advantage { advantage });
    }
    let total = batches.len() * settings.iterations;
    let mut report = UpdateReport::default();
    let mut fixed = references(model, reference, groups, &batches, settings)?;
    let mut last_rows = None;
    for iteration in 0..settings.iterations {
        let update = first_update + iteration as u64;
        let mut gradients = Gradients::default();
        for (index, parts) in batches.iter().enumerate() {
            let batch = Batch::new(groups, parts);
            let _span =
                profile::phase("micro-batch", [batch.packed.rows(), batch.packed.targets()]);
            trim_for(model, &batch, &mut last_rows);
            if iteration == 0 {
                batch.fix(model, settings, &mut fixed[index])?;
            }
            let number = (update as u32).wrapping_mul(1 << 10).wrapping_add(index as u32);
            let first = iteration == 0;
            batch.run(
                model,
                settings,
                &fixed[index],
                first,
                number,
                &mut gradients,
                &mut report,
            )?;
            progress(iteration * batches.len() + index + 1, total);
        }
        report.learning_rate = rate(update);
        report.gradient_norm = apply(model, optimizer, &gradients, report.learning_rate)?;
    }
    if let Some(bad) = first_not_finite(model.parameters().map(|(_, values)| values))? {
        let name = model.parameters().nth(bad).expect("it was counted").0.peft_key();
        return Err(UpdateError::Parameter { name });
    }
    report.sums.loss /= settings.iterations as f64;
    Ok(report)
}

/// Few buffers fit a batch of another size: both batches' would be held.
fn trim_for(model: &Model, batch: &Batch, last_rows: &mut Option<usize>) {
    let rows = batch.packed.rows();
    if last_rows.replace(rows).is_some_and(|last| last != rows) {
        model.device().trim();
    }
}

/// A micro-batch, packed.
struct Batch<'a> {
    packed: PackedBatch,
    items: Vec<TrainedCompletion<'a>>,
}

/// Values of each token of a batch that stay the same over the iterations.
#[derive(Default)]
struct Fixed {
    /// Log-probabilities of the policy that sampled, where iterations need them.
    old: Option<Vec<f32>>,
    /// Log-probabilities of the reference policy, where the loss has a KL term.
    reference: Option<Vec<f32>>,
}

/// Values of each batch that are computed before its first pass: with a reference that has factors, its log-probabilities. All batches'
/// are taken at once, so that the model changes its factors twice a step.
fn references(
    model: &mut Model,
    reference: Option<&mut [Tensor]>,
    groups: &[PromptGroup],
    batches: &[Vec<Part>],
    settings: &UpdateSettings,
) -> Result<Vec<Fixed>, UpdateError> {
    let mut fixed = Vec::new();
    fixed.resize_with(batches.len(), Fixed::default);
    let Some(factors) = reference.filter(|_| settings.loss.beta != 0.0) else { return Ok(fixed) };
    model.exchange_factors(factors);
    let mut last_rows = None;
    let of_batch = |parts: &Vec<Part>| {
        let batch = Batch::new(groups, parts);
        trim_for(model, &batch, &mut last_rows);
        batch.log_probs(model, settings, true)
    };
    let found: Result<Vec<_>, UpdateError> = batches.iter().map(of_batch).collect();
    // On an error too: what is trained goes back to its place.
    model.exchange_factors(factors);
    for (fixed, reference) in fixed.iter_mut().zip(found?) {
        fixed.reference = Some(reference);
    }
    Ok(fixed)
}

impl<'a> Batch<'a> {
    fn new(groups: &[PromptGroup<'a>], parts: &[Part]) -> Batch<'a> {
        let mut packed = PackedBatch::default();
        let mut all = Vec::new();
        for part in parts {
            let group = &groups[part.group];
            let items: Vec<TrainedCompletion<'a>> =
                part.items.iter().map(|&item| group.items[item]).collect();
            let tokens: Vec<&[u32]> = items.iter().map(|item| item.tokens).collect();
            packed.push(group.prompt, &tokens);
            all.extend(items);
        }
        Batch { packed, items: all }
    }

    /// Log-probabilities that no gradient is taken of.
    fn log_probs(
        &self,
        model: &Model,
        settings: &UpdateSettings,
        adapter: bool,
    ) -> Result<Vec<f32>, UpdateError> {
        let temperature = settings.temperature;
        let pass = TrainingPass { temperature, adapter, dropout: None, checkpoint: false };
        let y = model.log_probs(&mut Tape::off(), &self.packed, pass)?;
        let values = y.to_vec().map_err(UpdateError::Device)?;
        Ok(values.chunks_exact(2).map(|of_token| of_token[0]).collect())
    }

    /// Completes what does not change over the iterations, before the first of them.
    fn fix(
        &self,
        model: &Model,
        settings: &UpdateSettings,
        fixed: &mut Fixed,
    ) -> Result<(), UpdateError> {
        if settings.loss.beta != 0.0 && fixed.reference.is_none() {
            fixed.reference = Some(self.log_probs(model, settings, false)?);
        }
        if settings.iterations > 1 {
            let sampled: Option<Vec<&[f32]>> = self.items.iter().map(|item| item.sampled).collect();
            fixed.old = Some(match sampled {
                Some(sampled) => sampled.concat(),
                None => self.log_probs(model, settings, true)?,
            });
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // one call site
    fn run(
        &self,
        model: &Model,
        settings: &UpdateSettings,
        fixed: &Fixed,
        first: bool,
        number: u32,
        gradients: &mut Gradients,
        report: &mut UpdateReport,
    ) -> Result<(), UpdateError> {
        let dropout = (settings.dropout > 0.0).then_some(Dropout {
            probability: settings.dropout,
            seed: settings.seed,
            pass: number,
        });
        let pass = TrainingPass {
            temperature: settings.temperature,
            adapter: true,
            dropout,
            checkpoint: settings.checkpoint,
        };
        let mut tape = Tape::new();
        let y = model.log_probs(&mut tape, &self.packed, pass)?;
        let values = y.to_vec()?;
        let log_probs: Vec<f32> = values.chunks_exact(2).map(|of_token| of_token[0]).collect();
        if first {
            let entropies = values.chunks_exact(2).map(|of_token| f64::from(of_token[1]));
            report.entropy.0 += entropies.sum::<f64>();
            report.entropy.1 += log_probs.len();
            if dropout.is_none() {
                self.compare(&log_probs, report);
            }
        }

        let mut dy = vec![0.0; values.len()];
        let mut start = 0;
        for item in &self.items {
            let tokens = start..start + item.tokens.len();
            start = tokens.end;
            let of = |values: &'_ Option<Vec<f32>>| {
                values.as_ref().map(|all| all[tokens.clone()].to_vec())
            };
            let (old, reference) = (of(&fixed.old), of(&fixed.reference));
            let mut derivative = vec![0.0; tokens.len()];
            let completion = loss::LossInputs {
                log_probs: &log_probs[tokens.clone()],
                old: old.as_deref(),
                reference: reference.as_deref(),
                advantage: item.advantage,
                scores: item.scores,
            };
            let sums = completion_loss(&settings.loss, &completion, item.weight, &mut derivative);
            report.sums.add(&sums);
            for (token, derivative) in tokens.zip(derivative) {
                dy[2 * token] = derivative;
            }
        }
        report.trained_rows += self.packed.rows();
        let dy = Tensor::from_slice(model.device(), log_probs.len(), 2, &dy);
        tape.backward(&y, dy, gradients);
        Ok(model.device().status()?)
    }

    /// Keeps the largest difference from what sampling computed.
    fn compare(&self, log_probs: &[f32], report: &mut UpdateReport) {
        let mut rest = log_probs;
        for item in &self.items {
            let (own, others) = rest.split_at(item.tokens.len());
            rest = others;
            let Some(sampled) = item.sampled else { return };
            let differences = own.iter().zip(sampled).map(|(a, b)| f64::from((a - b).abs()));
            let largest = report.log_prob_difference.get_or_insert(0.0);
            *largest = differences.fold(*largest, |worst, d| if d <= worst { worst } else { d });
        }
    }
}

/// One step of the optimizer; the gradient's norm.
fn apply(
    model: &mut Model,
    optimizer: &mut AdamW,
    gradients: &Gradients,
    rate: f64,
) -> Result<f64, UpdateError> {
    match model.step(optimizer, gradients, rate)? {
        StepOutcome::Updated { norm, .. } => Ok(norm),
        StepOutcome::NotFinite { norm } => Err(UpdateError::Gradient { norm }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(tokens: &[u32], weight: f64) -> TrainedCompletion<'_> {
        TrainedCompletion { tokens, sampled: None, advantage: 1.0, weight, scores: [0; 2] }
    }

    #[test]
    fn no_batch_is_larger_than_the_largest() {
        let check = |[prompt, completion]: [usize; 2], group_size, groups, budget| {
            let found = largest_batch([prompt, completion], group_size, groups, budget).unwrap();
            let case = (prompt, completion, group_size, groups, budget);
            let fed = completion.saturating_sub(1);
            let all = match group_size {
                0 => 0,
                _ => groups * (prompt.max(1) + group_size * fed),
            };
            let least = if all == 0 { 0 } else { prompt.max(1) + fed };
            assert_eq!(found.rows(), all.min(budget.max(least)), "{case:?}");
            // All of that length, or shorter ones.
            for shorter in 0..3 {
                let tokens = vec![0; completion.saturating_sub(shorter)];
                let prompts: Vec<Vec<u32>> = (0..groups as u32)
                    .map(|index| vec![index % 2; prompt.max(1) - shorter.min(prompt.max(1) - 1)])
                    .collect();
                let group =
                    |prompt| PromptGroup { prompt, items: vec![item(&tokens, 1.0); group_size] };
                let groups: Vec<PromptGroup> = prompts.iter().map(|prompt| group(prompt)).collect();
                for parts in pack(&groups, budget) {
                    let rows = Batch::new(&groups, &parts).packed.rows();
                    assert!(rows <= found.rows(), "{case:?}: {rows}");
                }
            }
        };
        for prompt in [0, 1, 5, 9] {
            for completion in [0, 1, 2, 4, 7] {
                for group_size in [0, 1, 2, 3, 8] {
                    for groups in [0, 1, 2, 5] {
                        for budget in [0, 1, 8, 13, 24, 40, 1000, usize::MAX] {
                            check([prompt, completion], group_size, groups, budget);
                        }
                    }
                }
            }
        }
    }

    /// Before anything is allocated, and without a sum that wraps.
    #[test]
    fn a_batch_beyond_reason_is_refused() {
        const MOST: usize = usize::MAX;
        for (lengths, group_size, groups, budget) in [
            ([MOST, 1], 8, 2, 4096),
            ([1, MOST], 8, 2, 4096),
            ([MOST, MOST], MOST, MOST, MOST),
            ([1 << 30, 1 << 30], 8, 2, 4096),
            ([100, 1], MOST, 1, MOST),
            ([100, 100], 8, MOST, MOST),
        ] {
            let error = largest_batch(lengths, group_size, groups, budget).unwrap_err();
            assert!(error.to_string().contains("rollout.max_completion_tokens"));
        }
        // Steps of any number of prompts are cut into batches.
        let rows = largest_batch([100, 101], 8, MOST, 4096).unwrap().rows();
        assert_eq!(rows, 4096);
    }

    /// A batch has the rows that its budget was counted in.
    #[test]
    fn what_prompts_share_is_counted_once() {
        let template = [1; 40];
        let prompts = [[&template[..], &[2; 10]].concat(), [&template[..], &[3; 12]].concat()];
        let completion = [4; 6];
        let groups = prompts.each_ref().map(|prompt| PromptGroup {
            prompt,
            items: vec![item(&completion, 1.0), item(&completion, 1.0)],
        });
        // 60 rows, then 12 + 10.
        for (budget, rows) in [(82, vec![82]), (81, vec![60, 62])] {
            let batches = pack(&groups, budget).into_iter();
            let packed = batches.map(|parts| Batch::new(&groups, &parts).packed.rows());
            assert_eq!(packed.collect::<Vec<_>>(), rows, "{budget}");
        }
    }

    #[test]
    fn groups_are_packed_in_order_and_split_only_where_they_must() {
        let prompt = [7; 10];
        let long = [1; 6];
        let group = |weights: &[f64]| PromptGroup {
            prompt: &prompt,
            items: weights.iter().map(|&weight| item(&long, weight)).collect(),
        };
        let shape = |groups: &[PromptGroup], budget| -> Vec<Vec<(usize, Vec<usize>)>> {
            let batches = pack(groups, budget);
            let parts = |batch: Vec<Part>| batch.into_iter().map(|p| (p.group, p.items)).collect();
            batches.into_iter().map(parts).collect()
        };
        // Each group is 10 + 2·5 rows.
        let two = [group(&[1.0, 1.0]), group(&[1.0, 1.0])];
        assert_eq!(shape(&two, 40), [[(0, vec![0, 1]), (1, vec![0, 1])]]);
        assert_eq!(shape(&two, 39), [[(0, vec![0, 1])], [(1, vec![0, 1])]]);
        // A group beyond the budget repeats its prompt.
        assert_eq!(shape(&two[..1], 15), [[(0, vec![0])], [(0, vec![1])]]);
        assert_eq!(shape(&two[..1], 1), [[(0, vec![0])], [(0, vec![1])]]);
        // What carries no loss does not run.
        let silent = [group(&[0.0, 0.0]), group(&[0.0, 1.0])];
        assert_eq!(shape(&silent, 100), [[(1, vec![1])]]);
        assert!(shape(&silent[..1], 100).is_empty());
    }
}
