//! Gradients against PyTorch's: those of the loss −Σ_i a_i·Σ_t log p / tokens over completion
//! tokens, for every factor of the adapter.
//!
//! An error is relative to the tensor's largest gradient. All sequences run packed in one batch; the
//! same batch with its layers recomputed must give the same bits.

use engine::{
    model::{
        Model, Precision,
        training::{PackedBatch, TrainingPass},
    },
    tensor::{
        Device, Tensor,
        tape::{Gradients, Tape},
    },
};
use safetensors::SafeTensors;

use super::{Bound, Case, CheckError, Errors, ROUNDING, largest, largest_difference};

/// Largest difference allowed, relative to the tensor's largest gradient.
pub(super) const RELATIVE_BOUND: f64 = 1e-5;

/// A training pass as the dumps were made.
pub(super) const PLAIN: TrainingPass =
    TrainingPass { temperature: 1.0, adapter: true, dropout: None, checkpoint: false };

/// Compares the gradients in `grads.safetensors`, if the dump has any.
pub(super) fn compare(
    case: &Case,
    precision: Precision,
    device: &Device,
) -> Result<Errors, CheckError> {
    let mut errors = Errors::default();
    let reference = case.directory.join("grads.safetensors");
    if !reference.is_file() {
        return Ok(errors);
    }
    let model = case.trained_model(precision, device)?;
    let bytes = case.bytes(&reference)?;
    let dump = SafeTensors::deserialize(&bytes)
        .map_err(|e| case.error(format!("{}: {e}", reference.display())))?;
    let (prompts, advantages) = (case.numbers("prompt_lens")?, case.numbers("advantages")?);
    if prompts.len() != case.inputs.len() || advantages.len() != case.inputs.len() {
        return Err(case.json_error("prompt_lens and advantages have not one entry a sequence"));
    }

    let mut batch = PackedBatch::default();
    let mut weights = Vec::new();
    for ((ids, prompt), advantage) in case.inputs.iter().zip(prompts).zip(advantages) {
        let prompt = prompt as usize;
        if !(1..ids.len()).contains(&prompt) {
            return Err(case.json_error(format!("a prompt of {prompt} of {} tokens", ids.len())));
        }
        case.fits(&model, ids)?;
        let (prompt, completion) = ids.split_at(prompt);
        batch.push(prompt, &[completion]);
        weights.extend(completion.iter().map(|_| -advantage));
    }
    if weights.is_empty() {
        return Err(case.json_error("there are no input_ids, which grads.safetensors is of"));
    }
    let tokens = weights.len() as f64;
    weights.iter_mut().for_each(|weight| *weight /= tokens);
    let gradients = backward(case, &model, &batch, &weights, PLAIN)?;
    let recomputed = TrainingPass { checkpoint: true, ..PLAIN };
    let recomputed = backward(case, &model, &batch, &weights, recomputed)?;

    for (name, tensor) in model.parameters() {
        let of = |all: &Gradients| {
            let gradient = all.get(tensor).expect("every factor has a gradient");
            name.in_peft_order(gradient).map_err(|e| case.failed(e))
        };
        let (ours, again) = (of(&gradients)?, of(&recomputed)?);
        let theirs = case.tensor(&dump, &name.peft_key())?;
        relative(&mut errors, "gradients (relative)", &ours, &theirs);
        let differing = ours.iter().zip(&again).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        errors.count("gradient bits that differ, recomputed", ours.len(), differing);
    }
    Ok(errors)
}

/// Gradients of Σ weight·log p over the batch's completion tokens.
pub(super) fn backward(
    case: &Case,
    model: &Model,
    batch: &PackedBatch,
    weights: &[f64],
    pass: TrainingPass,
) -> Result<Gradients, CheckError> {
    let mut tape = Tape::new();
    let y = model.log_probs(&mut tape, batch, pass).map_err(|e| case.failed(e))?;
    let dy: Vec<f32> = weights.iter().flat_map(|weight| [*weight as f32, 0.0]).collect();
    let dy = Tensor::from_slice(model.device(), weights.len(), 2, &dy);
    let mut gradients = Gradients::default();
    tape.backward(&y, dy, &mut gradients);
    Ok(gradients)
}

/// Adds the largest difference of a tensor, relative to its largest value.
pub(super) fn relative(errors: &mut Errors, quantity: &str, ours: &[f32], theirs: &[f32]) {
    let error = largest_difference(ours, theirs);
    let error = if error == 0.0 { 0.0 } else { error / largest(theirs) };
    let bound = Bound::Rounded { f32: RELATIVE_BOUND, rounding: ROUNDING };
    errors.add(quantity, ours.len(), error, bound);
}
