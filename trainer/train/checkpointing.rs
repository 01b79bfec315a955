//! What `train.gradient_checkpointing = "auto"` means on this machine: whether activations are kept for the backward pass, or
//! computed again. No bit of a run depends on it.

use engine::{
    memory::room,
    model::{Model, memory::Uncountable},
    tensor::device::{Device, DeviceError},
};

use super::memory::{CudaMemory, PredictError, RunMemory, RunShape, usable, weights_bytes};
use crate::train::settings::{GradientCheckpointing, Settings};

/// Whether activations are kept, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The choice: on or off.
    pub choice: GradientCheckpointing,
    /// The peak of memory with it, in bytes, where it can be predicted.
    pub peak: Option<u64>,
    /// The reason for the choice.
    pub reason: DecisionReason,
}

/// The reason why activations are kept or recomputed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecisionReason {
    /// The settings say on or off.
    Settings,
    /// Memory, which cannot be predicted here.
    Unknown(Uncountable),
    /// The peaks, in bytes, beside what is free of the machine's memory, where that is known.
    Memory {
        /// With activations kept.
        kept: u64,
        /// With activations computed again.
        recomputed: u64,
        /// Free memory in bytes.
        free: Option<u64>,
    },
    /// The same on a GPU.
    Gpu {
        /// With activations kept.
        kept: u64,
        /// With activations computed again.
        recomputed: u64,
        /// Bytes that the run may take.
        usable: u64,
    },
}

/// Why there is no decision.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // one variant a cause
pub enum DecideError {
    #[error("{0}")]
    Predict(#[from] PredictError),
    #[error("{0}")]
    Device(#[from] DeviceError),
}

/// Decides for a run of `model`, whose tokenizer's file has so many bytes, with prompts of so many tokens at most and so many
/// bytes for keys and values.
pub fn decide(
    settings: &Settings,
    model: &Model,
    tokenizer: u64,
    prompt: usize,
    cache: u64,
) -> Result<Decision, DecideError> {
    let mut settings = settings.clone();
    // An adapter that is trained further may have larger ranks than `lora.r`, by its patterns.
    let largest_rank = model.parameters().map(|(_, factor)| factor.shape()[0]).max();
    settings.lora.r = largest_rank.unwrap_or(settings.lora.r);
    let asked = settings.train.gradient_checkpointing;
    let auto = asked == GradientCheckpointing::Auto;
    let by_settings = |peak| Decision { choice: asked, peak, reason: DecisionReason::Settings };
    let (on, off) = (GradientCheckpointing::On, GradientCheckpointing::Off);
    let config = model.config();
    if let Device::Cuda(device) = model.device() {
        let run = CudaMemory::of(&settings, config, prompt, cache).map_err(PredictError::from)?;
        if !auto {
            return Ok(by_settings(Some(run.total(asked == on))));
        }
        let gpu = device.gpu();
        // Weights and adapter are there.
        let usable = usable((gpu.memory()?.0 + gpu.memory_in_use().0) as u64);
        let [kept, recomputed] = [false, true].map(|recompute| run.training(recompute));
        let choice = if kept <= usable { off } else { on };
        let reason = DecisionReason::Gpu { kept, recomputed, usable };
        return Ok(Decision { choice, peak: Some(run.total(choice == on)), reason });
    }
    let cpu = model.device().host();
    let weights = weights_bytes(config, model.weights_dtype());
    let shape = RunShape { weights, tokenizer, prompt, cache };
    let stored = (model.weights_dtype(), model.precision());
    let run = match RunMemory::of(&settings, config, stored, (cpu.threads(), cpu.isa()), shape) {
        Err(PredictError::Uncountable(reason @ Uncountable::BoundedAddresses)) => {
            let choice = if auto { on } else { asked };
            return Ok(Decision { choice, peak: None, reason: DecisionReason::Unknown(reason) });
        }
        run => run?,
    };
    if !auto {
        return Ok(by_settings(Some(run.total(asked == on))));
    }
    let [kept, recomputed] = [false, true].map(|recompute| run.total(recompute));
    let free = room().map(|room| room.bytes);
    // Half, as other programs want some of it and files are cached in it.
    let choice = if free.is_some_and(|free| kept <= free / 2) { off } else { on };
    let peak = Some(if choice == on { recomputed } else { kept });
    Ok(Decision { choice, peak, reason: DecisionReason::Memory { kept, recomputed, free } })
}
