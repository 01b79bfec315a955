//! Steps of AdamW against PyTorch's and TRL's: `adamw.safetensors`, and `after.` of `step.safetensors`.
//!
//! They start from the dump's own gradients: Adam's first steps turn the rounding of a gradient near 0 into a
//! whole learning rate. The optimizer computes in f32 on every device, and a GPU has the CPU's bits.

use std::collections::BTreeMap;

use engine::{
    model::{Model, Precision},
    optimizer::{AdamW, AdamWSettings, StepOutcome, TensorParameter},
    tensor::{Device, Tensor},
};

use super::{
    Bound, ByVariant, Case, CheckError, Errors, largest_difference,
    learning::{Tensors, TrlUpdates},
};

/// Tolerance of parameters after a step of 1e-3: a few units in the last place of values near 1.
const PARAMETER_BOUND: f64 = 5e-7;

/// Compares what the dump has.
pub(super) fn compare(case: &Case, device: &Device) -> Result<ByVariant, CheckError> {
    let mut errors = Errors::default();
    let host = Device::cpu_threads(device.host().threads());
    // Of the model, its factors alone are of interest.
    let model = || case.model(Some("adapter"), Precision::F32, &host);
    if let Some(tensors) = case.tensors("adamw.safetensors")? {
        adamw(case, device, &model()?, &tensors, &mut errors)?;
    }
    if let Some(tensors) = case.tensors("step.safetensors")? {
        trl_step(case, device, &model()?, &tensors, &mut errors)?;
    }
    Ok(vec![("lora", errors)])
}

/// One and two steps, and one with a clipped gradient, on the dump's gradients.
fn adamw(
    case: &Case,
    device: &Device,
    model: &Model,
    tensors: &Tensors,
    errors: &mut Errors,
) -> Result<(), CheckError> {
    let Some(first) = case.tensors("grads.safetensors")? else {
        return Err(case.error("adamw.safetensors needs grads.safetensors beside it"));
    };
    let betas: Vec<f64> = case.json["adamw"]["betas"]
        .as_array()
        .map(|betas| betas.iter().filter_map(serde_json::Value::as_f64).collect())
        .filter(|betas: &Vec<f64>| betas.len() == 2)
        .ok_or_else(|| case.json_error("adamw.betas are not two numbers"))?;
    let settings = AdamWSettings {
        beta1: betas[0],
        beta2: betas[1],
        epsilon: case.number(&["adamw", "eps"])?,
        weight_decay: case.number(&["adamw", "weight_decay"])?,
        max_norm: None,
    };
    let rate = case.number(&["adamw", "lr"])?;
    let second = under(tensors, "grad2.");
    let mut two = Optimized::new(case, device, model, settings)?;
    for (gradients, after) in [(&first, "step1."), (&second, "step2.")] {
        two.step(case, rate, gradients)?;
        two.compare(case, tensors, after, errors)?;
    }
    let max_norm = Some(case.number(&["clip_max_norm"])?);
    let mut clipped = Optimized::new(case, device, model, AdamWSettings { max_norm, ..settings })?;
    clipped.step(case, rate, &first)?;
    clipped.compare(case, tensors, "clip1.", errors)
}

/// The parameters after all updates of a step of TRL's trainer.
fn trl_step(
    case: &Case,
    device: &Device,
    model: &Model,
    tensors: &Tensors,
    errors: &mut Errors,
) -> Result<(), CheckError> {
    let TrlUpdates { count, .. } = TrlUpdates::of(case, tensors)?;
    let made = (0..count).take_while(|n| tensors.contains_key(&format!("grad{n}._norm"))).count();
    let mut optimized = Optimized::new(case, device, model, trl_settings(case)?)?;
    for update in 0..made {
        optimized.step(case, rate(case, update)?, &under(tensors, &format!("grad{update}.")))?;
    }
    optimized.compare(case, tensors, "after.", errors)
}

/// The parameters before update number `update` of such a step, from the gradients of those before it.
pub(super) fn trl_parameters(
    case: &Case,
    tensors: &Tensors,
    update: usize,
) -> Result<BTreeMap<String, Vec<f32>>, CheckError> {
    let host = Device::cpu_threads(1);
    let model = case.model(Some("adapter"), Precision::F32, &host)?;
    let mut optimized = Optimized::new(case, &host, &model, trl_settings(case)?)?;
    for before in 0..update {
        optimized.step(case, rate(case, before)?, &under(tensors, &format!("grad{before}.")))?;
    }
    let values = optimized.sides[0].values.iter().map(|values| values.to_vec());
    let values: Result<Vec<Vec<f32>>, _> = values.collect();
    Ok(optimized.names.into_iter().zip(values.map_err(|e| case.failed(e))?).collect())
}

/// The learning rate of an update: as the trainer logged it, or `args.lr`.
fn rate(case: &Case, update: usize) -> Result<f64, CheckError> {
    match case.json["log"][update]["learning_rate"].as_f64() {
        Some(rate) => Ok(rate),
        None => case.number(&["args", "lr"]),
    }
}

fn trl_settings(case: &Case) -> Result<AdamWSettings, CheckError> {
    let group = &case.json["param_groups"][0];
    let number = |key: &str| {
        let value = group[key].as_f64();
        value.ok_or_else(|| case.json_error(format!("param_groups[0].{key} is not a number")))
    };
    let beta = |index: usize| {
        let value = group["betas"][index].as_f64();
        value.ok_or_else(|| case.json_error("param_groups[0].betas are not two numbers"))
    };
    Ok(AdamWSettings {
        beta1: beta(0)?,
        beta2: beta(1)?,
        epsilon: number("eps")?,
        weight_decay: number("weight_decay")?,
        max_norm: Some(case.number(&["max_grad_norm"])?),
    })
}

/// The tensors under `prefix`, without it.
fn under(tensors: &Tensors, prefix: &str) -> Tensors {
    let of = |(name, values): (&String, &Vec<f32>)| {
        Some((name.strip_prefix(prefix)?.to_owned(), values.clone()))
    };
    tensors.iter().filter_map(of).collect()
}

/// A model's factors with an optimizer, on a device; and for a GPU the same on the CPU.
struct Optimized {
    names: Vec<String>,
    sides: Vec<Side>,
}

struct Side {
    device: Device,
    optimizer: AdamW,
    values: Vec<Tensor>,
}

impl Optimized {
    fn new(
        case: &Case,
        device: &Device,
        model: &Model,
        settings: AdamWSettings,
    ) -> Result<Optimized, CheckError> {
        let (mut names, mut all) = (Vec::new(), Vec::new());
        for (name, factor) in model.parameters() {
            names.push(name.peft_key());
            all.push(name.in_peft_order(factor).map_err(|e| case.failed(e))?);
        }
        let side = |device: &Device| {
            let sizes = names.iter().zip(&all).map(|(name, values)| (name.as_str(), values.len()));
            let on_device = |values: &Vec<f32>| Tensor::from_slice(device, 1, values.len(), values);
            Side {
                device: device.clone(),
                optimizer: AdamW::new(settings, sizes),
                values: all.iter().map(on_device).collect(),
            }
        };
        let mut sides = vec![side(device)];
        if device.is_cuda() {
            sides.push(side(model.device()));
        }
        Ok(Optimized { names, sides })
    }

    fn step(&mut self, case: &Case, rate: f64, gradients: &Tensors) -> Result<(), CheckError> {
        for Side { device, optimizer, values } in &mut self.sides {
            let mut all = Vec::new();
            for (name, values) in self.names.iter().zip(&*values) {
                let gradient = case.get(gradients, name)?;
                if gradient.len() != values.len() {
                    return Err(case.error(format!("the gradient of {name} has another shape")));
                }
                all.push(Tensor::from_slice(device, 1, gradient.len(), gradient));
            }
            let named = self.names.iter().zip(values).zip(&all);
            let mut factors: Vec<TensorParameter> = named
                .map(|((name, values), gradient)| TensorParameter {
                    name,
                    values,
                    gradient: Some(gradient),
                })
                .collect();
            match optimizer.step_tensors(rate, &mut factors).map_err(|e| case.failed(e))? {
                StepOutcome::Updated { .. } => {}
                StepOutcome::NotFinite { norm } => {
                    return Err(case.error(format!("a gradient of norm {norm}")));
                }
            }
        }
        Ok(())
    }

    fn compare(
        &self,
        case: &Case,
        tensors: &Tensors,
        prefix: &str,
        errors: &mut Errors,
    ) -> Result<(), CheckError> {
        for (index, name) in self.names.iter().enumerate() {
            let theirs = case.get(tensors, &format!("{prefix}{name}"))?;
            let values = |side: &Side| side.values[index].to_vec().map_err(|e| case.failed(e));
            let ours = values(&self.sides[0])?;
            let error = largest_difference(&ours, theirs);
            let bound = Bound::Fixed(PARAMETER_BOUND);
            errors.add("parameters after AdamW", ours.len(), error, bound);
            if let Some(cpu) = self.sides.get(1) {
                let cpu = values(cpu)?;
                let differing = ours.iter().zip(&cpu).filter(|(a, b)| a.to_bits() != b.to_bits());
                errors.count(
                    "parameter bits that differ from the CPU's",
                    ours.len(),
                    differing.count(),
                );
            }
        }
        Ok(())
    }
}
