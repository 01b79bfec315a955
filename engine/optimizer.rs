//! AdamW over named slices (Loshchilov and Hutter 2019), with the norm of the whole gradient clipped.
//!
//! Parameters, gradients and moments are plain f32 slices, in an order that is fixed when the
//! optimizer is made. Two things differ from PyTorch: the norm is summed in f64, in an order that no number
//! of threads changes; and a gradient that is not finite changes nothing and is reported, where
//! PyTorch would write NaN into every parameter.
//!
//! ```
//! use engine::optimizer::{AdamW, AdamWSettings, Parameter, StepOutcome};
//! use engine::tensor::device::Cpu;
//!
//! // (w − 3)² has its minimum at 3, and the gradient 2·(w − 3).
//! let (cpu, mut w) = (Cpu::new(1), [0.0]);
//! let settings = AdamWSettings { max_norm: Some(1.0), ..AdamWSettings::default() };
//! let mut adamw = AdamW::new(settings, [("w", 1)]);
//! for _ in 0..300 {
//!     let gradient = [2.0 * (w[0] - 3.0)];
//!     let mut parameters = [Parameter { name: "w", values: &mut w, gradient: &gradient }];
//!     let outcome = adamw.step(&cpu, 0.05, &mut parameters);
//!     assert!(matches!(outcome, StepOutcome::Updated { .. }), "a gradient that is not finite");
//! }
//! assert!((w[0] - 3.0).abs() < 0.01, "{w:?}");
//! ```
//!
//! For a model's adapter there are [`Model::optimizer`](crate::model::Model::optimizer) and
//! [`Model::step`](crate::model::Model::step).

mod cuda;
pub mod schedule;

use std::borrow::Cow;

use kernels::cpu::{Cpu, adamw, norm, profile};
use serde::{Deserialize, Serialize};

use crate::tensor::{
    Tensor,
    device::{Device, DeviceError},
};
use cuda::Moment;

/// Settings that stay the same over a run. The learning rate is given to each step, by its schedule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWSettings {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// λ: a step takes lr·λ of each parameter away, apart from the gradient ("decoupled").
    pub weight_decay: f64,
    /// The norm of the whole gradient is scaled down to this; `None` clips nothing.
    pub max_norm: Option<f64>,
}

impl Default for AdamWSettings {
    /// PyTorch's betas and ε, no decay, no clipping.
    fn default() -> AdamWSettings {
        AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, max_norm: None }
    }
}

/// One parameter and its gradient, of the same length.
#[derive(Debug)]
pub struct Parameter<'a> {
    /// The name the optimizer was made with.
    pub name: &'a str,
    /// The f32 master, updated in place.
    pub values: &'a mut [f32],
    /// The gradient, summed over the step; it is read, and clipped on the way.
    pub gradient: &'a [f32],
}

/// A parameter of a model and its gradient, on their device. One that no gradient reached has one of zeros, as
/// in TRL: its momentum and its decay go on.
#[derive(Debug)]
pub struct TensorParameter<'a> {
    /// The name the optimizer was made with.
    pub name: &'a str,
    /// The f32 master, updated in place.
    pub values: &'a mut Tensor,
    /// Summed over the step.
    pub gradient: Option<&'a Tensor>,
}

/// A moment of the state and its name.
pub type NamedSlice<'a> = (String, Cow<'a, [f32]>);

/// The result of a step. `norm` is the norm of the whole gradient before clipping.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use = "a step whose gradient is not finite changes nothing: report it"]
pub enum StepOutcome {
    /// Parameters and moments were updated.
    Updated {
        /// √Σ g².
        norm: f64,
        /// The factor that the gradient was multiplied with: 1 if it was not clipped.
        scale: f32,
    },
    /// The norm is infinite or NaN: parameters, moments and the count of steps are as before.
    NotFinite {
        /// The norm as it was computed.
        norm: f64,
    },
}

impl StepOutcome {
    /// The norm of the gradient before clipping, whatever it is.
    pub fn norm(self) -> f64 {
        match self {
            StepOutcome::Updated { norm, .. } | StepOutcome::NotFinite { norm } => norm,
        }
    }
}

/// The optimizer and its state.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    steps: u64,
    moments: Vec<Moments>,
}

/// The running means of one parameter.
#[derive(Debug)]
struct Moments {
    name: String,
    first: Moment,
    second: Moment,
}

impl AdamW {
    /// An optimizer for parameters of these names and lengths, in this order, with moments of zero.
    pub fn new<'a>(
        settings: AdamWSettings,
        parameters: impl IntoIterator<Item = (&'a str, usize)>,
    ) -> AdamW {
        let moments = parameters.into_iter().map(|(name, len)| Moments {
            name: name.to_string(),
            first: Moment::Host(vec![0.0; len]),
            second: Moment::Host(vec![0.0; len]),
        });
        AdamW { settings, steps: 0, moments: moments.collect() }
    }

    /// The settings that it was made with.
    pub fn settings(&self) -> &AdamWSettings {
        &self.settings
    }

    /// Steps taken so far; bias correction depends on them.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Takes a step at rate `learning_rate`, unless the gradient is not finite.
    ///
    /// # Panics
    /// If names, order or lengths are not those the optimizer was made with.
    pub fn step(
        &mut self,
        cpu: &Cpu,
        learning_rate: f64,
        parameters: &mut [Parameter<'_>],
    ) -> StepOutcome {
        let _span = profile::phase("optimizer step", [parameters.len()]);
        assert_eq!(parameters.len(), self.moments.len(), "number of parameters");
        for (parameter, moments) in parameters.iter().zip(&self.moments) {
            let (name, len) = (parameter.name, moments.first.len());
            assert_eq!(name, moments.name, "parameters are in another order");
            assert_eq!(parameter.values.len(), len, "length of {name}");
            assert_eq!(parameter.gradient.len(), len, "length of the gradient of {name}");
        }
        let norm = gradient_norm(cpu, parameters.iter().map(|parameter| parameter.gradient));
        if !norm.is_finite() {
            return StepOutcome::NotFinite { norm };
        }
        let scale = clip_scale(norm, self.settings.max_norm);
        self.steps += 1;
        let step = self.numbers(learning_rate, scale);
        for (parameter, moments) in parameters.iter_mut().zip(&mut self.moments) {
            let (m, v) = (moments.first.host_mut(), moments.second.host_mut());
            adamw::step(cpu, parameter.values, m, v, parameter.gradient, &step);
        }
        StepOutcome::Updated { norm, scale }
    }

    /// As [`AdamW::step`], on the device of the parameters.
    ///
    /// # Panics
    /// If names, order or lengths are not those the optimizer was made with.
    pub fn step_tensors(
        &mut self,
        learning_rate: f64,
        factors: &mut [TensorParameter<'_>],
    ) -> Result<StepOutcome, DeviceError> {
        let Some(first) = factors.first() else {
            return Ok(StepOutcome::Updated { norm: 0.0, scale: 1.0 });
        };
        match first.values.device().clone() {
            Device::Cpu(device) => {
                let longest = factors.iter().map(|factor| factor.values.len()).max().unwrap_or(0);
                let missing = factors.iter().any(|factor| factor.gradient.is_none());
                let zeros = vec![0.0; if missing { longest } else { 0 }];
                let parameters =
                    factors.iter_mut().map(|TensorParameter { name, values, gradient }| {
                        let zeros = &zeros[..if gradient.is_none() { values.len() } else { 0 }];
                        let gradient = gradient.map_or(zeros, Tensor::data);
                        Parameter { name, gradient, values: values.data_mut() }
                    });
                let mut parameters: Vec<Parameter> = parameters.collect();
                Ok(self.step(device.cpu(), learning_rate, &mut parameters))
            }
            Device::Cuda(cuda) => {
                let _span = profile::phase("optimizer step", [factors.len()]);
                assert_eq!(factors.len(), self.moments.len(), "number of parameters");
                for (TensorParameter { name, values, .. }, moments) in
                    factors.iter().zip(&self.moments)
                {
                    assert_eq!(*name, moments.name, "parameters are in another order");
                    assert_eq!(values.len(), moments.first.len(), "length of {name}");
                }
                cuda::step(self, &cuda, learning_rate, factors)
            }
        }
    }

    /// The kernel's numbers for step `self.steps` (1 is the first), computed in f64 as PyTorch does
    /// and rounded once.
    fn numbers(&self, learning_rate: f64, scale: f32) -> adamw::Step {
        let AdamWSettings { beta1, beta2, epsilon, weight_decay, .. } = self.settings;
        let t = self.steps as f64;
        adamw::Step {
            scale,
            decay: (1.0 - learning_rate * weight_decay) as f32,
            first_weight: (1.0 - beta1) as f32,
            second_decay: beta2 as f32,
            second_weight: (1.0 - beta2) as f32,
            correction: (1.0 - beta2.powf(t)).sqrt() as f32,
            epsilon: epsilon as f32,
            step_size: (learning_rate / (1.0 - beta1.powf(t))) as f32,
        }
    }

    /// The state for a checkpoint: beside [`AdamW::steps`], two slices per parameter, named
    /// `first.NAME` and `second.NAME`; from a GPU a copy.
    pub fn state(&self) -> Result<Vec<NamedSlice<'_>>, DeviceError> {
        let mut all = Vec::with_capacity(2 * self.moments.len());
        for Moments { name, first, second } in &self.moments {
            all.push((format!("first.{name}"), first.values()?));
            all.push((format!("second.{name}"), second.values()?));
        }
        Ok(all)
    }

    /// Takes up a state as [`AdamW::state`] gave it, bit for bit, or is left as it was. `count` is
    /// the number of slices in the checkpoint, and `slice` gives one by its name.
    pub fn restore<'a>(
        &mut self,
        steps: u64,
        count: usize,
        slice: impl Fn(&str) -> Option<&'a [f32]>,
    ) -> Result<(), StateError> {
        let expected = 2 * self.moments.len();
        if count != expected {
            return Err(StateError::Count { expected, found: count });
        }
        let find = |prefix: &str, moments: &Moments| {
            let name = format!("{prefix}.{}", moments.name);
            match slice(&name) {
                None => Err(StateError::Missing { name }),
                Some(found) if found.len() != moments.first.len() => {
                    let (expected, found) = (moments.first.len(), found.len());
                    Err(StateError::Length { name, expected, found })
                }
                Some(found) => Ok(found),
            }
        };
        let mut found = Vec::with_capacity(self.moments.len());
        for moments in &self.moments {
            found.push((find("first", moments)?, find("second", moments)?));
        }
        for (moments, (first, second)) in self.moments.iter_mut().zip(found) {
            moments.first = Moment::Host(first.to_vec());
            moments.second = Moment::Host(second.to_vec());
        }
        self.steps = steps;
        Ok(())
    }
}

/// Why a saved state does not fit the parameters of this run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A moment is not in the checkpoint.
    #[error("the optimizer state has no '{name}': it belongs to another adapter")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A moment has another length.
    #[error("'{name}' of the optimizer state has {found} values, the adapter has {expected}")]
    Length {
        /// Its name.
        name: String,
        /// The parameter's length.
        expected: usize,
        /// The saved length.
        found: usize,
    },
    /// More or fewer moments than this adapter has.
    #[error("the optimizer state has {found} tensors, this adapter needs {expected}")]
    Count {
        /// Two per parameter.
        expected: usize,
        /// Tensors in the checkpoint.
        found: usize,
    },
}

/// The norm of all gradients as one vector, √Σ g², in f64. The sum has the order of the
/// slices. Infinite or NaN if and only if an element is.
pub fn gradient_norm<'a>(cpu: &Cpu, gradients: impl IntoIterator<Item = &'a [f32]>) -> f64 {
    gradients.into_iter().map(|g| norm::sum_of_squares(cpu, g)).sum::<f64>().sqrt()
}

/// The first of these parameters, all of one device, that holds NaN or an infinity. A gradient may be finite and what a
/// step makes of it not: where moments were damaged, or the parameters have grown beyond f32.
pub fn first_not_finite<'a>(
    parameters: impl IntoIterator<Item = &'a Tensor>,
) -> Result<Option<usize>, DeviceError> {
    let parameters: Vec<&Tensor> = parameters.into_iter().collect();
    let squares = match parameters.first().map(|values| values.device().clone()) {
        None => return Ok(None),
        Some(Device::Cuda(cuda)) => cuda::sums_of_squares(&cuda, &parameters)?,
        Some(device) => {
            let sum = |values: &&Tensor| norm::sum_of_squares(device.host(), values.data());
            parameters.iter().map(sum).collect()
        }
    };
    Ok(squares.iter().position(|sum| !sum.is_finite()))
}

/// The factor that clips a gradient of this norm: min(1, max_norm / (norm + 1e-6)), as
/// `torch.nn.utils.clip_grad_norm_` has it.
fn clip_scale(norm: f64, max_norm: Option<f64>) -> f32 {
    max_norm.map_or(1.0, |max_norm| (max_norm / (norm + 1e-6)).min(1.0) as f32)
}

#[cfg(test)]
mod tests;
