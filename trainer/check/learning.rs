//! GRPO and AdamW against PyTorch's and TRL's dumps: `grpo.safetensors` and `adamw.safetensors` of a
//! model's dump, and `step.safetensors`, one step of TRL's GRPOTrainer.
//!
//! Losses are compared relative to 1, gradients relative to each tensor's largest. Parameters after a
//! step are made from the dump's own gradients: Adam's first steps turn the rounding of a gradient
//! near 0 into a whole learning rate.

use std::collections::BTreeMap;

use engine::{
    model::{
        Model,
        training::{PackedBatch, TrainingPass},
    },
    optimizer::{AdamW, Outcome, Parameter, Settings},
    tape::{Gradients, Tape},
    tensor::{Device, Tensor},
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{
    Case, CheckError, Errors, Finding,
    gradients::{PLAIN, relative, trained_model},
};
use crate::grpo::loss::{
    self, Completion, Counted, Kind, Participation, completion_loss, token_weights,
};

/// What the loss may differ by: f32 sums in another order.
const LOSS_BOUND: f64 = 2e-6;
/// What parameters may differ by after a step of 1e-3: a few units in the last place of values near 1.
const PARAMETER_BOUND: f64 = 5e-7;

/// Every tensor of a file as f32, whatever it was.
type Tensors = BTreeMap<String, Vec<f32>>;

/// Compares what the dump has.
pub(super) fn compare(case: &Case, device: &Device) -> Result<Vec<Finding>, CheckError> {
    let mut errors = Errors::default();
    if let Some(tensors) = case.tensors("grpo.safetensors")? {
        let model = trained_model(case.directory, device)?;
        grpo(case, &model, &tensors, &mut errors)?;
    }
    if let Some(tensors) = case.tensors("adamw.safetensors")? {
        let model = trained_model(case.directory, device)?;
        adamw(case, &model, &tensors, &mut errors)?;
    }
    if let Some(tensors) = case.tensors("step.safetensors")? {
        let model = trained_model(case.directory, device)?;
        trl_step(case, &model, &tensors, &mut errors)?;
    }
    Ok(errors.named(case, "lora"))
}

impl Case<'_> {
    /// The tensors of a file of the dump; `None` if it is not there.
    fn tensors(&self, name: &str) -> Result<Option<Tensors>, CheckError> {
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

    fn get<'t>(&self, tensors: &'t Tensors, name: &str) -> Result<&'t [f32], CheckError> {
        let found = tensors.get(name).map(Vec::as_slice);
        found.ok_or_else(|| self.error(format!("there is no tensor {name}")))
    }

    fn number(&self, path: &[&str]) -> Result<f64, CheckError> {
        let value = path.iter().fold(&self.json, |value, key| &value[key]);
        value.as_f64().ok_or_else(|| self.error(format!("{} is not a number", path.join("."))))
    }
}

/// One completion of a dump.
struct Item {
    prompt: Vec<u32>,
    completion: Vec<u32>,
    advantage: f32,
    old: Option<Vec<f32>>,
    reference: Option<Vec<f32>>,
}

/// Loss and gradients of a step whose micro-batches have these sizes.
fn loss_and_gradients(
    case: &Case,
    model: &Model,
    items: &[Item],
    (kind, max_tokens, parts): (Kind, usize, &[usize]),
    settings: &loss::Settings,
    temperature: f32,
) -> Result<(f64, Gradients), CheckError> {
    let counted: Vec<Counted> = items
        .iter()
        .map(|item| Counted { tokens: item.completion.len(), part: Participation::Full })
        .collect();
    let weights = token_weights(kind, max_tokens, parts, &counted);
    let mut batch = PackedBatch::default();
    items.iter().for_each(|item| batch.push(&item.prompt, &[&item.completion]));
    let mut tape = Tape::new();
    let pass = TrainingPass { temperature, ..PLAIN };
    let y = model.log_probs(&mut tape, &batch, pass).map_err(|e| case.error(e.to_string()))?;
    let mut log_probs = y.data().chunks_exact(2).map(|of_token| of_token[0]);
    let (mut dy, mut loss) = (Vec::new(), 0.0);
    for (item, weight) in items.iter().zip(weights) {
        let own: Vec<f32> = log_probs.by_ref().take(item.completion.len()).collect();
        let completion = Completion {
            log_probs: &own,
            old: item.old.as_deref(),
            reference: item.reference.as_deref(),
            advantage: item.advantage,
        };
        let mut derivative = vec![0.0; own.len()];
        loss += completion_loss(settings, &completion, weight, &mut derivative).loss;
        dy.extend(derivative.into_iter().flat_map(|d| [d, 0.0]));
    }
    let dy = Tensor::from_slice(model.device(), dy.len() / 2, 2, &dy);
    let mut gradients = Gradients::default();
    tape.backward(&y, dy, &mut gradients);
    Ok((loss, gradients))
}

fn kind_of(case: &Case, name: &str) -> Result<Kind, CheckError> {
    serde_json::from_value(Value::from(name))
        .map_err(|_| case.error(format!("{name} is no loss type")))
}

/// All cases of `grpo.safetensors`, named `<loss>.beta<beta>.<on|off>`.
fn grpo(
    case: &Case,
    model: &Model,
    tensors: &Tensors,
    errors: &mut Errors,
) -> Result<(), CheckError> {
    let prompts = case.numbers("prompt_lens")?;
    let max_tokens = case.number(&["grpo_params", "max_completion_length_for_dr_grpo"])? as usize;
    let epsilon = case.number(&["grpo_params", "epsilon"])?;
    let advantages = case.get(tensors, "advantages")?;
    let (old, reference) = (case.get(tensors, "old_logps")?, case.get(tensors, "ref_logps")?);
    let width = old.len() / case.inputs.len().max(1);
    let cases = case.json["grpo"].as_object();
    let cases = cases.ok_or_else(|| case.error("grpo is not an object of cases"))?;
    for (name, expected) in cases {
        let mut parts = name.rsplitn(2, '.');
        let (policy, rest) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let unknown = || case.error(format!("{name} is no case of the form loss.betaB.on"));
        let (kind, beta) = rest.split_once(".beta").ok_or_else(unknown)?;
        let beta: f64 = beta.parse().map_err(|_| unknown())?;
        let settings = loss::Settings {
            clip_low: epsilon,
            clip_high: epsilon,
            beta,
            bias_corrected_kl: false,
        };
        let mut items = Vec::new();
        for (index, ids) in case.inputs.iter().enumerate() {
            let prompt = *prompts.get(index).ok_or_else(|| case.error("prompt_lens is short"))?;
            let (prompt, completion) = ids.split_at((prompt as usize).min(ids.len()));
            let own = |of: &[f32]| of[index * width..][..completion.len().min(width)].to_vec();
            items.push(Item {
                prompt: prompt.to_vec(),
                completion: completion.to_vec(),
                advantage: advantages[index],
                old: (policy == "off").then(|| own(old)),
                reference: (beta != 0.0).then(|| own(reference)),
            });
        }
        let how = (kind_of(case, kind)?, max_tokens, &[items.len()][..]);
        let (loss, gradients) = loss_and_gradients(case, model, &items, how, &settings, 1.0)?;
        let expected = expected["loss"].as_f64().ok_or_else(unknown)?;
        errors.add("GRPO losses", 1, (loss - expected).abs(), LOSS_BOUND);
        for (parameter, tensor) in model.parameters() {
            // Some cases have their loss only.
            let key = format!("{name}.{}", parameter.peft_key());
            let Some(theirs) = tensors.get(&key) else { continue };
            let ours = gradients.get(tensor).expect("every factor has a gradient");
            let ours = parameter.in_peft_order(ours).expect("the CPU does not fail");
            relative(errors, "GRPO gradients (relative)", &ours, theirs);
        }
    }
    Ok(())
}

/// One and two steps, and one with a clipped gradient, on the dump's gradients.
fn adamw(
    case: &Case,
    model: &Model,
    tensors: &Tensors,
    errors: &mut Errors,
) -> Result<(), CheckError> {
    let Some(first) = case.tensors("grads.safetensors")? else {
        return Err(case.error("adamw.safetensors needs grads.safetensors beside it"));
    };
    let betas: Vec<f64> = case.json["adamw"]["betas"]
        .as_array()
        .map(|betas| betas.iter().filter_map(Value::as_f64).collect())
        .filter(|betas: &Vec<f64>| betas.len() == 2)
        .ok_or_else(|| case.error("adamw.betas are not two numbers"))?;
    let settings = Settings {
        beta1: betas[0],
        beta2: betas[1],
        epsilon: case.number(&["adamw", "eps"])?,
        weight_decay: case.number(&["adamw", "weight_decay"])?,
        max_norm: None,
    };
    let rate = case.number(&["adamw", "lr"])?;
    let second: Tensors = tensors
        .iter()
        .filter_map(|(name, values)| Some((name.strip_prefix("grad2.")?.into(), values.clone())))
        .collect();
    let mut two = Optimized::new(model, settings);
    for (gradients, after) in [(&first, "step1."), (&second, "step2.")] {
        two.step(case, model, rate, gradients)?;
        two.compare(case, tensors, after, errors)?;
    }
    let max_norm = Some(case.number(&["clip_max_norm"])?);
    let mut clipped = Optimized::new(model, Settings { max_norm, ..settings });
    clipped.step(case, model, rate, &first)?;
    clipped.compare(case, tensors, "clip1.", errors)
}

/// Parameters beside the model's, and their optimizer.
struct Optimized {
    optimizer: AdamW,
    names: Vec<String>,
    values: Vec<Vec<f32>>,
}

impl Optimized {
    fn new(model: &Model, settings: Settings) -> Optimized {
        let host = |(name, factor): (engine::model::training::ParameterName, &Tensor)| {
            let values = name.in_peft_order(factor).expect("the CPU does not fail");
            (name.peft_key(), values)
        };
        let (names, values): (Vec<String>, Vec<Vec<f32>>) = model.parameters().map(host).unzip();
        let sizes = names.iter().zip(&values).map(|(name, v)| (name.as_str(), v.len()));
        Optimized { optimizer: AdamW::new(settings, sizes), names, values }
    }

    fn step(
        &mut self,
        case: &Case,
        model: &Model,
        rate: f64,
        gradients: &Tensors,
    ) -> Result<f64, CheckError> {
        let mut parameters = Vec::new();
        for (name, values) in self.names.iter().zip(&mut self.values) {
            let gradient = case.get(gradients, name)?;
            if gradient.len() != values.len() {
                return Err(case.error(format!("the gradient of {name} has another shape")));
            }
            parameters.push(Parameter { name, values, gradient });
        }
        match self.optimizer.step(model.device().cpu(), rate, &mut parameters) {
            Outcome::Updated { norm, .. } => Ok(norm),
            Outcome::NotFinite { norm } => Err(case.error(format!("a gradient of norm {norm}"))),
        }
    }

    fn compare(
        &self,
        case: &Case,
        tensors: &Tensors,
        prefix: &str,
        errors: &mut Errors,
    ) -> Result<(), CheckError> {
        for (name, ours) in self.names.iter().zip(&self.values) {
            let theirs = case.get(tensors, &format!("{prefix}{name}"))?;
            let differences = ours.iter().zip(theirs).map(|(a, b)| f64::from((a - b).abs()));
            let worst = differences.fold(0.0, |w: f64, d| if d <= w { w } else { d });
            errors.add("parameters after AdamW", ours.len(), worst, PARAMETER_BOUND);
        }
        Ok(())
    }
}

/// One step of TRL's trainer: loss, gradients before clipping, their norm, parameters after.
fn trl_step(
    case: &Case,
    model: &Model,
    tensors: &Tensors,
    errors: &mut Errors,
) -> Result<(), CheckError> {
    let beta = case.number(&["args", "beta"])?;
    let temperature = case.number(&["args", "temperature"])? as f32;
    let max_tokens = case.number(&["max_completion_length"])? as usize;
    let max_norm = case.number(&["max_grad_norm"])?;
    let name = case.json["args"]["loss"].as_str().unwrap_or("");
    let epsilon = case.number(&["trl_defaults", "epsilon"])?;
    let settings = loss::Settings {
        clip_low: epsilon,
        clip_high: epsilon,
        beta,
        bias_corrected_kl: case.number(&["args", "kl_correction"])? != 0.0,
    };
    let (mut items, mut parts, mut expected) = (Vec::new(), Vec::new(), 0.0);
    while tensors.contains_key(&format!("micro{}.loss", parts.len())) {
        let micro = format!("micro{}", parts.len());
        let part = |part: &str| case.get(tensors, &format!("{micro}.{part}"));
        let optional = |name: &str| tensors.get(&format!("{micro}.{name}")).map(Vec::as_slice);
        let advantages = part("advantages")?;
        let rows = |ids: &[f32], mask: &[f32], row: usize| -> Vec<u32> {
            let width = ids.len() / advantages.len().max(1);
            let own = row * width..(row + 1) * width;
            let kept = ids[own.clone()].iter().zip(&mask[own]).filter(|(_, mask)| **mask != 0.0);
            kept.map(|(id, _)| *id as u32).collect()
        };
        for (row, &advantage) in advantages.iter().enumerate() {
            let prompt = rows(part("prompt_ids")?, part("prompt_mask")?, row);
            let completion = rows(part("completion_ids")?, part("completion_mask")?, row);
            let own =
                |of: &[f32]| of[row * (of.len() / advantages.len())..][..completion.len()].to_vec();
            let (old, reference) = (
                optional("old_per_token_logps").map(own),
                optional("ref_per_token_logps").map(own),
            );
            items.push(Item { prompt, completion, advantage, old, reference });
        }
        parts.push(advantages.len());
        expected += f64::from(part("loss")?[0]);
    }
    let how = (kind_of(case, name)?, max_tokens, parts.as_slice());
    let (loss, gradients) = loss_and_gradients(case, model, &items, how, &settings, temperature)?;
    errors.add("TRL's losses", parts.len(), (loss - expected).abs(), LOSS_BOUND);

    let all: Vec<(String, Vec<f32>)> = model
        .parameters()
        .map(|(name, tensor)| {
            let gradient = gradients.get(tensor).expect("every factor has a gradient");
            let values = name.in_peft_order(gradient).expect("the CPU does not fail");
            (name.peft_key(), values)
        })
        .collect();
    let norm = engine::optimizer::gradient_norm(
        model.device().cpu(),
        all.iter().map(|(_, gradient)| gradient.as_slice()),
    );
    let theirs = f64::from(case.get(tensors, "grad0._norm")?[0]);
    errors.add("TRL's gradient norm (relative)", 1, (norm / theirs - 1.0).abs(), LOSS_BOUND);
    let mut gradients = Tensors::new();
    for (name, ours) in &all {
        let theirs = case.get(tensors, &format!("grad0.{name}"))?;
        relative(errors, "TRL's gradients (relative)", ours, theirs);
        gradients.insert(name.clone(), theirs.to_vec());
    }

    let group = &case.json["param_groups"][0];
    let number = |key: &str| {
        let value = group[key].as_f64();
        value.ok_or_else(|| case.error(format!("param_groups[0].{key} is not a number")))
    };
    let beta = |index: usize| group["betas"][index].as_f64().unwrap_or(f64::NAN);
    let settings = Settings {
        beta1: beta(0),
        beta2: beta(1),
        epsilon: number("eps")?,
        weight_decay: number("weight_decay")?,
        max_norm: Some(max_norm),
    };
    let mut optimized = Optimized::new(model, settings);
    optimized.step(case, model, case.number(&["args", "lr"])?, &gradients)?;
    optimized.compare(case, tensors, "after.", errors)
}
