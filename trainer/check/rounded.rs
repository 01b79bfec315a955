//! A GPU, whose products take inputs and weights rounded to bf16, against the dumps in f32.
//!
//! Bounds are not tuned. Our CPU with weights in bf16 rounds at the same places and sums in other orders, so
//! each may be as far from the dump as the other: an error may be twice the CPU's largest of the same quantity
//! and one rounding of the tensor's largest value, should the CPU's errors have cancelled. Gradients of losses with
//! clipping, which make jumps, are those of the slopes that the model has in f32. An entropy may be off by what such errors
//! of its logits can change. A greedy token's logit may be below the largest by two such errors: rounding may
//! change a token that leads by less. What a GPU computes in f32 has the CPU's bounds.

use engine::{
    checkpoint::config::Config,
    model::{Model, Precision, suitability},
    tensor::Device,
};

use super::{
    Bound, ByVariant, Case, CheckError, Errors, Finding, ROUNDING, VARIANTS, bfloat16, greedy,
    largest, largest_difference, passes, steps,
};

/// Name of the finding about greedy continuations.
const GREEDY: &str = "greedy tokens, logits below the largest";

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
            let host = Device::cpu_threads(device.host().threads());
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

/// Greedy continuations: each token's logit in f32 may be below the largest by the errors of two logits.
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
            for (ids, (tokens, _)) in case.inputs.iter().zip(&written) {
                shortfall(case, [&exact, &other], ids, tokens, &mut errors)?;
            }
            greedy::training(case, &model, adapter.is_some(), &written, &mut errors)?;
            all.push((variant, errors));
        }
    }
    Ok(all)
}

/// How far the logits of `tokens`, which continue `ids`, are below the largest.
fn shortfall(
    case: &Case,
    models: [&Model; 2],
    ids: &[u32],
    tokens: &[u32],
    errors: &mut Errors,
) -> Result<(), CheckError> {
    let sequence: Vec<u32> = ids.iter().chain(tokens).copied().collect();
    let vocab = models[0].config().vocab_size;
    let logits = models.map(|model| case.forward(model, &[&sequence], &mut |_, _| ()));
    let [exact, other] = logits;
    let (exact, other) = (exact?, other?);
    let bound = 2.0 * largest_difference(&other, &exact) + ROUNDING * largest(&exact);
    let rows = exact.chunks_exact(vocab).skip(ids.len() - 1).zip(tokens);
    let below = rows.map(|(row, token)| {
        let most = row.iter().fold(f32::NEG_INFINITY, |most, logit| most.max(*logit));
        f64::from(most) - row.get(*token as usize).map_or(f64::NEG_INFINITY, |own| (*own).into())
    });
    let worst = below.fold(0.0, f64::max);
    errors.add(GREEDY, tokens.len(), worst, Bound::Fixed(2.0 * bound));
    Ok(())
}
