//! Greedy continuations against PyTorch's, and their log-probabilities against those of training.

use engine::{
    generate::{Generator, GeneratorOptions, Request, SamplingParams, TokenEvent},
    model::{Model, Precision, training::TrainingPass},
    tensor::Device,
};

use super::{ByVariant, Case, CheckError, Errors, VARIANTS, gradients::PLAIN, token_lists};

/// Compares every continuation of the dump, in f32.
pub(super) fn compare(case: &Case, device: &Device) -> Result<ByVariant, CheckError> {
    let mut all = Vec::new();
    for (variant, adapter) in VARIANTS {
        if let Some(expected) = expected(case, variant)? {
            let model = case.model(adapter, Precision::F32, device)?;
            let written = continuations(case, &model, &expected)?;
            let mut errors = Errors::default();
            for (written, expected) in written.iter().zip(&expected) {
                add(&mut errors, written, expected);
            }
            training(case, &model, adapter.is_some(), &written, &mut errors)?;
            all.push((variant, errors));
        }
    }
    Ok(all)
}

/// The continuation of a sequence, and each token's log-probability.
pub(super) type Written = (Vec<u32>, Vec<f32>);

/// The dump's continuations of every sequence, if it has them.
pub(super) fn expected(case: &Case, variant: &str) -> Result<Option<Vec<Vec<u32>>>, CheckError> {
    let key = format!("greedy_{variant}");
    let Some(expected) = token_lists(&case.json[&key]) else { return Ok(None) };
    if expected.len() != case.inputs.len() || expected.iter().any(Vec::is_empty) {
        return Err(case.json_error(format!("{key} has not one continuation a sequence")));
    }
    Ok(Some(expected))
}

/// Counts the tokens of `expected` that were not written.
fn add(errors: &mut Errors, written: &Written, expected: &[u32]) {
    let differing = written.0.iter().zip(expected).filter(|(a, b)| a != b).count();
    errors.count("greedy tokens that differ", expected.len(), differing);
}

/// Continuations of every sequence, as long as the expected ones, all in one batch.
pub(super) fn continuations(
    case: &Case,
    model: &Model,
    expected: &[Vec<u32>],
) -> Result<Vec<Written>, CheckError> {
    let options = GeneratorOptions { max_batch: 64, prefill_rows: 16, cache_bytes: 64 << 20 };
    let mut generator = Generator::new(model, &[], options).map_err(|error| case.failed(error))?;
    let mut written = vec![Written::default(); expected.len()];
    for (ids, expected) in case.inputs.iter().zip(expected) {
        let request = Request {
            prompt: ids.clone(),
            samples: vec![0],
            seed: 0,
            max_new_tokens: expected.len(),
            sampling: SamplingParams::GREEDY,
            repetition_penalty: 1.0,
            top_log_probs: 0,
        };
        generator.submit(request).map_err(|e| case.failed(e))?;
    }
    let mut on = |event: TokenEvent| {
        let (tokens, log_probs) = &mut written[event.request.0 as usize];
        tokens.push(event.token);
        log_probs.push(event.log_prob);
    };
    while !generator.is_idle() {
        generator.step(&mut on).map_err(|e| case.failed(e))?;
    }
    Ok(written)
}

/// The policy that is trained is the policy that wrote.
pub(super) fn training(
    case: &Case,
    model: &Model,
    adapter: bool,
    written: &[Written],
    errors: &mut Errors,
) -> Result<(), CheckError> {
    let sequences: Vec<(&[u32], &[u32])> = case
        .inputs
        .iter()
        .zip(written)
        .map(|(ids, (tokens, _))| (ids.as_slice(), tokens.as_slice()))
        .collect();
    let y = case.log_probs(model, &sequences, TrainingPass { adapter, ..PLAIN })?;
    let sampled = written.iter().flat_map(|(_, log_probs)| log_probs);
    let trained = y.chunks_exact(2).map(|of_token| of_token[0]);
    let differing = sampled.zip(trained).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    errors.count("log-prob bits that differ in training", y.len() / 2, differing);
    Ok(())
}
