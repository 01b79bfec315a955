//! GRPO against PyTorch's and TRL's dumps: `grpo.safetensors` of a model's dump, and `step.safetensors`, the
//! updates of one step of TRL's GRPOTrainer. What the optimizer makes of the gradients is compared in [`super::steps`].
//!
//! Losses are compared relative to 1, gradients relative to each tensor's largest.

use std::collections::BTreeMap;

use engine::{
    error::excerpt,
    model::{
        Model, Precision,
        training::{PackedBatch, TrainingPass},
    },
    optimizer::{self, AdamW, TensorParameter},
    tensor::{
        Device, Tensor,
        tape::{Gradients, Tape},
    },
};
use kernels::cpu::log_prob::TEMPERATURES;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{
    Bound, Case, CheckError, Errors, ROUNDING,
    gradients::{PLAIN, relative},
    largest, steps,
};
use crate::train::grpo::loss::{
    self, LossInputs, LossMask, LossType, MaskedCompletion, completion_loss, token_weights,
};

/// Tolerance of the loss: f32 sums in another order.
const LOSS_BOUND: f64 = 2e-6;

/// Every tensor of a file as f32, whatever it was.
pub(super) type Tensors = BTreeMap<String, Vec<f32>>;

/// Compares what the dump has.
pub(super) fn compare(
    case: &Case,
    precision: Precision,
    device: &Device,
) -> Result<Errors, CheckError> {
    let mut errors = Errors::default();
    let tensors = [case.tensors("grpo.safetensors")?, case.tensors("step.safetensors")?];
    if tensors.iter().all(Option::is_none) {
        return Ok(errors);
    }
    let mut models = Models {
        own: case.trained_model(precision, device)?,
        exact: match precision {
            Precision::F32 => None,
            Precision::Bf16 => {
                let host = Device::cpu_threads(device.host().threads());
                Some(case.trained_model(Precision::F32, &host)?)
            }
        },
    };
    let [of_grpo, of_step] = tensors;
    if let Some(tensors) = of_grpo {
        grpo(case, &models, &tensors, &mut errors)?;
    }
    if let Some(tensors) = of_step {
        trl_step(case, &mut models, &tensors, &mut errors)?;
    }
    Ok(errors)
}

impl Case<'_> {
    /// The tensors of a file of the dump; `None` if it is not there.
    pub(super) fn tensors(&self, name: &str) -> Result<Option<Tensors>, CheckError> {
        let path = self.directory.join(name);
        if !path.is_file() {
            return Ok(None);
        }
        let bytes = self.bytes(&path)?;
        let wrong = |what: String| self.error(format!("{}: {what}", path.display()));
        let file = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
        let mut all = Tensors::new();
        for (name, view) in file.iter() {
            let data = view.data();
            let values: Vec<f32> = match view.dtype() {
                Dtype::F32 => {
                    data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
                }
                Dtype::I64 => {
                    data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f32).collect()
                }
                other => return Err(wrong(format!("{name} is {other:?}"))),
            };
            all.insert(name.to_owned(), values);
        }
        Ok(Some(all))
    }

    pub(super) fn get<'t>(
        &self,
        tensors: &'t Tensors,
        name: &str,
    ) -> Result<&'t [f32], CheckError> {
        let found = tensors.get(name).map(Vec::as_slice);
        found.ok_or_else(|| self.error(format!("there is no tensor {name}")))
    }

    pub(super) fn number(&self, path: &[&str]) -> Result<f64, CheckError> {
        let value = path.iter().fold(&self.json, |value, key| &value[key]);
        value.as_f64().ok_or_else(|| self.json_error(format!("{} is not a number", path.join("."))))
    }

    /// The first `len` values of row `row` of a tensor of `rows` rows.
    fn row(
        &self,
        values: &[f32],
        [row, rows, len]: [usize; 3],
        name: &str,
    ) -> Result<Vec<f32>, CheckError> {
        let width = values.len() / rows.max(1);
        let own = values.get(row * width..).and_then(|rest| rest.get(..width)?.get(..len));
        let short =
            || format!("{name} has {} values for {rows} rows of {len} and more", values.len());
        Ok(own.ok_or_else(|| self.error(short()))?.to_vec())
    }

    /// The first value of a tensor.
    fn first(&self, values: &[f32], name: &str) -> Result<f64, CheckError> {
        let first = values.first().ok_or_else(|| self.error(format!("{name} is empty")))?;
        Ok(f64::from(*first))
    }
}

/// The model that is compared.
struct Models {
    own: Model,
    /// The same in f32, whose log-probabilities say how the loss changes with each. Clipping makes that jump, so a
    /// model that rounds to bf16 may stand on the other side of a jump, however small its errors are.
    exact: Option<Model>,
}

/// One completion of a dump.
struct Item {
    prompt: Vec<u32>,
    completion: Vec<u32>,
    advantage: f32,
    old: Option<Vec<f32>>,
    reference: Option<Vec<f32>>,
}

/// Loss and gradients of a step whose micro-batches have these sizes, and what the loss moves by at most if
/// every log-probability is rounded once to bf16.
fn loss_and_gradients(
    case: &Case,
    models: &Models,
    items: &[&Item],
    (kind, max_tokens, parts): (LossType, usize, &[usize]),
    settings: &loss::LossTerms,
    temperature: f32,
) -> Result<(f64, f64, Gradients), CheckError> {
    let counted: Vec<MaskedCompletion> = items
        .iter()
        .map(|item| MaskedCompletion { tokens: item.completion.len(), part: LossMask::Full })
        .collect();
    let weights = token_weights(kind, max_tokens, parts, &counted);
    let mut batch = PackedBatch::default();
    for Item { prompt, completion, .. } in items {
        case.fits(&models.own, &[&prompt[..], completion].concat())?;
        if prompt.is_empty() {
            return Err(case.error("a prompt without tokens"));
        }
        batch.push(prompt, &[completion]);
    }
    if batch.targets() == 0 {
        return Err(case.error("no completion has a token"));
    }
    let (lowest, highest) = TEMPERATURES;
    if !(lowest..=highest).contains(&temperature) {
        return Err(case.json_error(format!("a temperature of {temperature}")));
    }
    let pass = TrainingPass { temperature, ..PLAIN };
    let log_probs = |y: &Tensor| -> Result<Vec<f32>, CheckError> {
        let values = y.to_vec().map_err(|e| case.failed(e))?;
        Ok(values.chunks_exact(2).map(|of_token| of_token[0]).collect())
    };
    let mut tape = Tape::new();
    let y = models.own.log_probs(&mut tape, &batch, pass).map_err(|e| case.failed(e))?;
    let own = log_probs(&y)?;
    let (loss, mut derivative) = loss_of(items, &weights, settings, &own);
    let off = ROUNDING * largest(&own);
    let rounding = derivative.iter().map(|d| off * f64::from(d.abs())).sum();
    if let Some(exact) = &models.exact {
        let y = exact.log_probs(&mut Tape::off(), &batch, pass).map_err(|e| case.failed(e))?;
        (_, derivative) = loss_of(items, &weights, settings, &log_probs(&y)?);
    }
    let dy: Vec<f32> = derivative.into_iter().flat_map(|d| [d, 0.0]).collect();
    let dy = Tensor::from_slice(models.own.device(), dy.len() / 2, 2, &dy);
    let mut gradients = Gradients::default();
    tape.backward(&y, dy, &mut gradients);
    Ok((loss, rounding, gradients))
}

/// The loss at these log-probabilities, and its derivative with respect to each.
fn loss_of(
    items: &[&Item],
    weights: &[f64],
    settings: &loss::LossTerms,
    log_probs: &[f32],
) -> (f64, Vec<f32>) {
    let (mut loss, mut derivative) = (0.0, vec![0.0; log_probs.len()]);
    let mut first = 0;
    for (item, weight) in items.iter().zip(weights) {
        let own = first..first + item.completion.len();
        first = own.end;
        let completion = LossInputs {
            log_probs: &log_probs[own.clone()],
            old: item.old.as_deref(),
            reference: item.reference.as_deref(),
            advantage: item.advantage,
            scores: [0; 2],
        };
        loss += completion_loss(settings, &completion, *weight, &mut derivative[own]).loss;
    }
    (loss, derivative)
}

fn kind_of(case: &Case, name: &str) -> Result<LossType, CheckError> {
    serde_json::from_value(Value::from(name))
        .map_err(|_| case.json_error(format!("{} is no loss type", excerpt(name))))
}

/// All cases of `grpo.safetensors`, named `<loss>.beta<beta>.<on|off>`.
fn grpo(
    case: &Case,
    models: &Models,
    tensors: &Tensors,
    errors: &mut Errors,
) -> Result<(), CheckError> {
    let prompts = case.numbers("prompt_lens")?;
    let max_tokens = case.number(&["grpo_params", "max_completion_length_for_dr_grpo"])? as usize;
    let epsilon = case.number(&["grpo_params", "epsilon"])?;
    let advantages = case.get(tensors, "advantages")?;
    let (old, reference) = (case.get(tensors, "old_logps")?, case.get(tensors, "ref_logps")?);
    let cases = case.json["grpo"].as_object();
    let cases = cases.ok_or_else(|| case.json_error("grpo is not an object of cases"))?;
    for (name, expected) in cases {
        let mut parts = name.rsplitn(2, '.');
        let (policy, rest) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let unknown = || {
            let what = "no case of the form loss.betaB.on with a number as its loss";
            case.json_error(format!("{} is {what}", excerpt(name)))
        };
        let (kind, beta) = rest.split_once(".beta").ok_or_else(unknown)?;
        let beta: f64 = beta.parse().map_err(|_| unknown())?;
        let settings = loss::LossTerms {
            clip_low: epsilon,
            clip_high: epsilon,
            beta,
            ..loss::LossTerms::default()
        };
        let mut items = Vec::new();
        for (index, ids) in case.inputs.iter().enumerate() {
            let prompt =
                *prompts.get(index).ok_or_else(|| case.json_error("prompt_lens is short"))?;
            let (prompt, completion) = ids.split_at((prompt as usize).min(ids.len()));
            let place = [index, case.inputs.len(), completion.len()];
            items.push(Item {
                prompt: prompt.to_vec(),
                completion: completion.to_vec(),
                advantage: case.row(advantages, [index, case.inputs.len(), 1], "advantages")?[0],
                old: match policy {
                    "off" => Some(case.row(old, place, "old_logps")?),
                    _ => None,
                },
                reference: match beta {
                    0.0 => None,
                    _ => Some(case.row(reference, place, "ref_logps")?),
                },
            });
        }
        let how = (kind_of(case, kind)?, max_tokens, &[items.len()][..]);
        let items: Vec<&Item> = items.iter().collect();
        let (loss, rounding, gradients) =
            loss_and_gradients(case, models, &items, how, &settings, 1.0)?;
        let expected = expected["loss"].as_f64().ok_or_else(unknown)?;
        let bound = Bound::Rounded { f32: LOSS_BOUND, rounding };
        errors.add("GRPO losses", 1, (loss - expected).abs(), bound);
        for (parameter, tensor) in models.own.parameters() {
            // Some cases have their loss only.
            let key = format!("{name}.{}", parameter.peft_key());
            let Some(theirs) = tensors.get(&key) else { continue };
            let ours = gradients.get(tensor).expect("every factor has a gradient");
            let ours = parameter.in_peft_order(ours).map_err(|e| case.failed(e))?;
            relative(errors, "GRPO gradients (relative)", &ours, theirs);
        }
    }
    Ok(())
}

/// A micro-batch of a dump of TRL's.
struct Micro {
    items: Vec<Item>,
    loss: f64,
}

/// The updates of TRL's trainer, each at the parameters that the dump's gradients before it lead to: loss, gradients before
/// clipping, their norm. There are several where completions are used again (`args.iters`).
fn trl_step(
    case: &Case,
    models: &mut Models,
    tensors: &Tensors,
    errors: &mut Errors,
) -> Result<(), CheckError> {
    let beta = case.number(&["args", "beta"])?;
    let temperature = case.number(&["args", "temperature"])? as f32;
    let max_tokens = case.number(&["max_completion_length"])? as usize;
    let name = case.json["args"]["loss"].as_str();
    let name = name.ok_or_else(|| case.json_error("args.loss is not a text"))?;
    let epsilon = case.number(&["trl_defaults", "epsilon"])?;
    let settings = loss::LossTerms {
        clip_low: epsilon,
        clip_high: epsilon,
        beta,
        bias_corrected_kl: case.number(&["args", "kl_correction"])? != 0.0,
        ..loss::LossTerms::default()
    };
    let mut micros = Vec::new();
    while tensors.contains_key(&format!("micro{}.loss", micros.len())) {
        micros.push(micro(case, tensors, micros.len())?);
    }
    let TrlUpdates { count, micros_each } = TrlUpdates::of(case, tensors)?;
    let mut items = micros.iter().flat_map(|micro| &micro.items);
    if beta != 0.0 && items.any(|item| item.reference.is_none()) {
        return Err(case.error(format!("args.beta is {beta} without ref_per_token_logps")));
    }
    for (update, micros) in micros.chunks(micros_each).enumerate() {
        if update > 0 {
            models.set(&steps::trl_parameters(case, tensors, update)?);
        }
        let parts: Vec<usize> = micros.iter().map(|micro| micro.items.len()).collect();
        let expected: f64 = micros.iter().map(|micro| micro.loss).sum();
        let items: Vec<&Item> = micros.iter().flat_map(|micro| &micro.items).collect();
        let how = (kind_of(case, name)?, max_tokens, parts.as_slice());
        let (loss, rounding, gradients) =
            loss_and_gradients(case, models, &items, how, &settings, temperature)?;
        let bound = Bound::Rounded { f32: LOSS_BOUND, rounding };
        errors.add("TRL's losses", parts.len(), (loss - expected).abs(), bound);
        if update + 1 == count && !tensors.contains_key(&format!("grad{update}._norm")) {
            continue; // the trainer was stopped before its step
        }
        let name = format!("grad{update}._norm");
        let theirs = case.first(case.get(tensors, &name)?, &name)?;
        let error = (norm(case, &models.own, &gradients)? / theirs - 1.0).abs();
        let bound = Bound::Rounded { f32: LOSS_BOUND, rounding: ROUNDING };
        errors.add("TRL's gradient norm (relative)", 1, error, bound);
        for (name, tensor) in models.own.parameters() {
            let gradient = gradients.get(tensor).expect("every factor has a gradient");
            let ours = name.in_peft_order(gradient).map_err(|e| case.failed(e))?;
            let theirs = case.get(tensors, &format!("grad{update}.{}", name.peft_key()))?;
            relative(errors, "TRL's gradients (relative)", &ours, theirs);
        }
    }
    Ok(())
}

fn micro(case: &Case, tensors: &Tensors, index: usize) -> Result<Micro, CheckError> {
    let part = |part: &str| case.get(tensors, &format!("micro{index}.{part}"));
    let optional = |name: &str| tensors.get(&format!("micro{index}.{name}")).map(Vec::as_slice);
    let advantages = part("advantages")?;
    let all = advantages.len();
    let rows = |name: &str, row: usize| -> Result<Vec<u32>, CheckError> {
        let (ids, mask) = (part(&format!("{name}_ids"))?, part(&format!("{name}_mask"))?);
        let width = ids.len() / all;
        let own = |of: &[f32]| case.row(of, [row, all, width], name);
        let kept = own(ids)?.into_iter().zip(own(mask)?).filter(|(_, mask)| *mask != 0.0);
        Ok(kept.map(|(id, _)| id as u32).collect())
    };
    let mut items = Vec::new();
    for (row, &advantage) in advantages.iter().enumerate() {
        let (prompt, completion) = (rows("prompt", row)?, rows("completion", row)?);
        let own = |name: &str| {
            let place = [row, all, completion.len()];
            optional(name).map(|of| case.row(of, place, name)).transpose()
        };
        let (old, reference) = (own("old_per_token_logps")?, own("ref_per_token_logps")?);
        items.push(Item { prompt, completion, advantage, old, reference });
    }
    Ok(Micro { items, loss: case.first(part("loss")?, "loss")? })
}

/// How a dump's micro-batches make updates.
pub(super) struct TrlUpdates {
    pub(super) count: usize,
    micros_each: usize,
}

impl TrlUpdates {
    /// Micro-batches are `micro0` and so on; `args.accum` of them are an update, or all. The gradients of every update but the
    /// last must be there: the next one's parameters follow from them.
    pub(super) fn of(case: &Case, tensors: &Tensors) -> Result<TrlUpdates, CheckError> {
        let micros = (0..).take_while(|n| tensors.contains_key(&format!("micro{n}.loss"))).count();
        if micros == 0 {
            return Err(case.error("step.safetensors has no micro0.loss"));
        }
        let micros_each = match &case.json["args"]["accum"] {
            Value::Null => micros,
            accum => accum.as_u64().filter(|n| *n > 0).map_or(0, |n| n as usize),
        };
        if micros_each == 0 || !micros.is_multiple_of(micros_each) {
            return Err(case.error(format!(
                "step.safetensors has {micros} micro-batches, and args.accum = {} make an update: these are no whole updates",
                case.json["args"]["accum"]
            )));
        }
        let count = micros / micros_each;
        if let Some(missing) =
            (0..count - 1).find(|n| !tensors.contains_key(&format!("grad{n}._norm")))
        {
            return Err(case.error(format!(
                "step.safetensors has the micro-batches of {count} updates (args.iters = {}) and no grad{missing}.*: without it \
                 the parameters of the next update, at which its loss was taken, are not known",
                case.json["args"]["iters"]
            )));
        }
        Ok(TrlUpdates { count, micros_each })
    }
}

impl Models {
    /// Puts parameters, in the order and the form of PEFT's files, in the place of all models'.
    fn set(&mut self, values: &BTreeMap<String, Vec<f32>>) {
        for model in [Some(&mut self.own), self.exact.as_mut()].into_iter().flatten() {
            let device = model.device().clone();
            for (name, factor) in model.parameters_mut() {
                let [rank, n] = factor.shape();
                let own = name.out_of_peft_order(&values[&name.peft_key()], [rank, n]);
                *factor = Tensor::from_slice(&device, rank, n, &own);
                factor.set_requires_grad(true);
            }
        }
    }
}

/// The norm of all gradients, as a step of the optimizer finds it on their device.
fn norm(case: &Case, model: &Model, gradients: &Gradients) -> Result<f64, CheckError> {
    let names: Vec<String> = model.parameters().map(|(name, _)| name.peft_key()).collect();
    let mut values: Vec<Tensor> = model
        .parameters()
        .map(|(_, factor)| Tensor::zeros(model.device(), factor.shape()[0], factor.shape()[1]))
        .collect();
    let lengths = names.iter().zip(&values).map(|(name, values)| (name.as_str(), values.len()));
    let mut adamw = AdamW::new(optimizer::AdamWSettings::default(), lengths);
    let mut factors: Vec<TensorParameter> = values
        .iter_mut()
        .zip(&names)
        .zip(model.parameters())
        .map(|((values, name), (_, factor))| TensorParameter {
            name,
            values,
            gradient: gradients.get(factor),
        })
        .collect();
    Ok(adamw.step_tensors(0.0, &mut factors).map_err(|e| case.failed(e))?.norm())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use safetensors::tensor::TensorView;

    use super::*;
    use crate::check::{Finding, check};

    /// A dump of two updates on the same completions, with the tensors that `keep` leaves.
    fn checked(
        keep: impl Fn(&str) -> bool,
        change: impl Fn(&mut Value),
    ) -> Result<Vec<Finding>, CheckError> {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
        let dump = tempfile::tempdir().unwrap();
        for part in ["model", "adapter"] {
            fs::create_dir(dump.path().join(part)).unwrap();
            for entry in fs::read_dir(golden.join("qwen3-tied").join(part)).unwrap() {
                let path = entry.unwrap().path();
                fs::copy(&path, dump.path().join(part).join(path.file_name().unwrap())).unwrap();
            }
        }
        let text = fs::read_to_string(golden.join("iterations.json")).unwrap();
        let mut json: Value = serde_json::from_str(&text).unwrap();
        change(&mut json);
        fs::write(dump.path().join("case.json"), json.to_string()).unwrap();
        let bytes = fs::read(golden.join("iterations.safetensors")).unwrap();
        let all = SafeTensors::deserialize(&bytes).unwrap();
        let kept: Vec<(String, TensorView)> =
            all.tensors().into_iter().filter(|(name, _)| keep(name)).collect();
        let bytes = safetensors::serialize(kept, None).unwrap();
        fs::write(dump.path().join("step.safetensors"), bytes).unwrap();
        check(dump.path(), &Device::cpu_threads(1))
    }

    fn finding<'f>(findings: &'f [Finding], quantity: &str) -> &'f Finding {
        findings.iter().find(|finding| finding.quantity == quantity).unwrap()
    }

    #[test]
    fn the_second_update_is_compared_at_the_parameters_after_the_first() {
        let findings = checked(|_| true, |_| ()).unwrap();
        for finding in &findings {
            assert!(finding.passes(), "{finding:?}");
        }
        assert_eq!(finding(&findings, "TRL's losses").count, 4, "two micro-batches of each update");
        assert_eq!(finding(&findings, "TRL's gradient norm (relative)").count, 2);
        assert!(finding(&findings, "TRL's gradients (relative)").count > 0);
        assert!(finding(&findings, "parameters after AdamW").count > 0);
        // At another rate of the first update the second's parameters are others.
        let wrong =
            checked(|_| true, |json| json["log"][0]["learning_rate"] = 0.029.into()).unwrap();
        assert!(!finding(&wrong, "TRL's losses").passes(), "{wrong:?}");
    }

    #[test]
    fn an_update_whose_gradients_are_missing_is_the_last_or_refused_by_name() {
        // Stopped before its second step: the second loss is compared all the same, and `after.` would be the first's.
        let stopped = |name: &str| !name.starts_with("grad1.");
        let findings = checked(stopped, |_| ()).unwrap();
        assert!(finding(&findings, "TRL's losses").passes());
        assert_eq!(finding(&findings, "TRL's gradient norm (relative)").count, 1);
        for (keep, accum, parts) in [
            ("grad0.", 2, ["args.iters = 2", "no grad0.*"]),
            ("", 3, ["4 micro-batches", "args.accum = 3"]),
            ("", 0, ["args.accum = 0", "no whole updates"]),
            ("micro0.loss", 2, ["step.safetensors", "no micro0.loss"]),
        ] {
            let keep = |name: &str| keep.is_empty() || !name.starts_with(keep);
            let error = checked(keep, |json| json["args"]["accum"] = accum.into()).unwrap_err();
            let error = error.to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
