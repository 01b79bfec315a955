//! A GPU, whose products take inputs and weights rounded to bf16, against the dumps in f32.
//!
//! Bounds are not tuned. Our CPU with weights in bf16 rounds at the same places and sums in other orders, so each may be as
//! far from the dump as the other: a tensor's error may be twice the CPU's of the same tensor, and one
//! rounding of its largest value, should the CPU's errors have cancelled. What a GPU computes in f32 has the
//! CPU's bounds. Greedy tokens are compared up to the first that such an error could change.

use engine::{
    config::Config,
    model::{Model, Precision, suitability},
    tensor::Device,
};
use kernels::cpu::Cpu;

use super::{
    Bound, ByVariant, Case, CheckError, Errors, Finding, ROUNDING, VARIANTS, bfloat16, greedy,
    largest, largest_difference, passes, steps,
};

/// All findings of a dump on a GPU.
pub(super) fn check(case: &Case, device: &Device) -> Result<Vec<Finding>, CheckError> {
    let mut findings = Vec::new();
    let config = Config::load(&case.directory.join("model")).map_err(|e| case.failed(e))?;
    match suitability::check(&config, Precision::Bf16) {
        // Said by a line of its own. The optimizer asks for no model.
        Err(unsuited) => {
            let mut errors = Errors::default();
            let quantity = format!("not on a GPU: {}", unsuited.what);
            errors.add(&quantity, 0, 0.0, Bound::Fixed(0.0));
            findings.extend(errors.findings(&case.name, "base"));
        }
        Ok(()) => {
            let host = Device::new(Cpu::new(device.cpu().threads()));
            let others = passes(case, Precision::Bf16, &host)?;
            let ours = passes(case, Precision::Bf16, device)?;
            let both = ours.into_iter().zip(others);
            let bounded =
                both.map(|((variant, ours), (_, other))| (variant, ours.bounded_by(&other)));
            findings.extend(case.findings(bounded.collect()));
            findings.extend(case.findings(greedy_tokens(case, device, &host)?));
            findings.extend(case.findings(bfloat16::compare(case, device)?));
        }
    }
    findings.extend(case.findings(steps::compare(case, device)?));
    Ok(findings)
}

/// Continuations as far as rounding cannot change them.
fn greedy_tokens(case: &Case, device: &Device, host: &Device) -> Result<ByVariant, CheckError> {
    let mut all = Vec::new();
    for (variant, adapter) in VARIANTS {
        if let Some(expected) = greedy::expected(case, variant)? {
            let [exact, other] = [Precision::F32, Precision::Bf16]
                .map(|precision| case.model(adapter, precision, host));
            let (exact, other) = (exact?, other?);
            let model = case.model(adapter, Precision::Bf16, device)?;
            let written = greedy::continuations(case, &model, &expected)?;
            let mut errors = Errors::default();
            for ((ids, written), expected) in case.inputs.iter().zip(&written).zip(&expected) {
                let decided = decided(case, [&exact, &other], ids, expected)?;
                let quantity = "greedy tokens that differ, of those decided";
                greedy::add(&mut errors, quantity, written, &expected[..decided]);
            }
            greedy::training(case, &model, adapter.is_some(), &written, &mut errors)?;
            all.push((variant, errors));
        }
    }
    Ok(all)
}

/// How many tokens of a continuation, from the first on, lead by more than two logits can be off by.
fn decided(
    case: &Case,
    models: [&Model; 2],
    ids: &[u32],
    expected: &[u32],
) -> Result<usize, CheckError> {
    let all: Vec<u32> = ids.iter().chain(expected).copied().collect();
    let vocab = models[0].config().vocab_size;
    let logits = models.map(|model| case.forward(model, &[&all], &mut |_, _| ()));
    let [exact, other] = logits;
    let (exact, other) = (exact?, other?);
    let bound = 2.0 * largest_difference(&other, &exact) + ROUNDING * largest(&exact);
    let rows = exact.chunks_exact(vocab).skip(ids.len() - 1).zip(expected);
    let leads = |(row, token): &(&[f32], &u32)| {
        let token = **token as usize;
        let others = row.iter().enumerate().filter(|(id, _)| *id != token);
        let second = others.fold(f32::NEG_INFINITY, |most, (_, logit)| most.max(*logit));
        row.get(token).is_some_and(|first| f64::from(*first) - f64::from(second) > 2.0 * bound)
    };
    Ok(rows.take_while(leads).count())
}
