//! bf16 against bf16: our error against the f32 reference may be twice PyTorch's own.
//!
//! `bfloat16.safetensors` holds what PyTorch computes in bf16, `float32.safetensors` (or
//! `base.safetensors`) the same in f32. Compared are `logits_seqI`, or for large vocabularies
//! `logits_at` (the rows that case.json's `positions` names) and `logp`, of the first sequence.

use engine::model::{Model, Precision};
use safetensors::SafeTensors;

use super::{Bound, ByVariant, Case, CheckError, Errors, largest_difference};
use engine::tensor::Device;

/// The errors, none if the dump has no bf16 reference.
pub(super) fn compare(case: &Case, device: &Device) -> Result<ByVariant, CheckError> {
    let theirs = case.directory.join("bfloat16.safetensors");
    if !theirs.is_file() {
        return Ok(Vec::new());
    }
    let exact = ["float32.safetensors", "base.safetensors"].map(|name| case.directory.join(name));
    let exact = exact
        .iter()
        .find(|path| path.is_file())
        .ok_or_else(|| case.error("bfloat16.safetensors has no float32.safetensors beside it"))?;
    let (theirs, exact) = (case.bytes(&theirs)?, case.bytes(exact)?);
    let theirs = SafeTensors::deserialize(&theirs).map_err(|e| case.error(e.to_string()))?;
    let exact = SafeTensors::deserialize(&exact).map_err(|e| case.error(e.to_string()))?;

    let model = case.model(None, Precision::Bf16, device)?;
    let mut errors = Errors::default();
    for (index, ids) in case.inputs.iter().enumerate() {
        let logits = case.forward(&model, &[ids], &mut |_, _| ())?;
        let key = format!("logits_seq{index}");
        if theirs.tensor(&key).is_ok() {
            add(case, &mut errors, "bf16 logits", &key, &logits, &theirs, &exact)?;
        }
        if index == 0 && theirs.tensor("logits_at").is_ok() {
            let rows = rows_at(case, &model, &logits)?;
            add(case, &mut errors, "bf16 logits", "logits_at", &rows, &theirs, &exact)?;
        }
        if index == 0 && theirs.tensor("logp").is_ok() {
            let (log_probs, _) = case.score(&logits, ids, 1.0)?;
            add(case, &mut errors, "bf16 log-probs", "logp", &log_probs, &theirs, &exact)?;
        }
    }
    Ok(vec![("base", errors)])
}

/// The rows of `logits` that case.json's `positions` names.
fn rows_at(case: &Case, model: &Model, logits: &[f32]) -> Result<Vec<f32>, CheckError> {
    let vocab = model.config().vocab_size;
    let positions = case.json["positions"].as_array().into_iter().flatten();
    let mut rows = Vec::new();
    for position in positions {
        let row = position.as_u64().and_then(|p| logits.chunks_exact(vocab).nth(p as usize));
        rows.extend_from_slice(
            row.ok_or_else(|| case.json_error("positions is not a list of rows"))?,
        );
    }
    Ok(rows)
}

fn add(
    case: &Case,
    errors: &mut Errors,
    quantity: &str,
    key: &str,
    ours: &[f32],
    theirs: &SafeTensors,
    exact: &SafeTensors,
) -> Result<(), CheckError> {
    let (theirs, exact) = (case.tensor(theirs, key)?, case.tensor(exact, key)?);
    if theirs.len() != ours.len() || exact.len() != ours.len() {
        return Err(
            case.error(format!("{key} has another length than the {} computed", ours.len()))
        );
    }
    let bound = Bound::Fixed(2.0 * largest_difference(&theirs, &exact));
    errors.add(quantity, ours.len(), largest_difference(ours, &exact), bound);
    Ok(())
}
