//! A step on a GPU: moments live there from the first step on, and the gradient's norm alone comes to the
//! host, where clipping and rates are computed.

use std::borrow::Cow;

use kernels::cuda::{Buffer, Gpu};

use super::{AdamW, StepOutcome, TensorParameter, clip_scale};
use crate::tensor::{
    Tensor,
    device::{CudaDevice, DeviceError},
};

/// The running mean of one parameter, on the device of the last step.
#[derive(Debug)]
pub(super) enum Moment {
    Host(Vec<f32>),
    Cuda(Buffer<f32>),
}

impl Moment {
    pub(super) fn len(&self) -> usize {
        match self {
            Moment::Host(values) => values.len(),
            Moment::Cuda(values) => values.len(),
        }
    }

    pub(super) fn host_mut(&mut self) -> &mut [f32] {
        match self {
            Moment::Host(values) => values,
            Moment::Cuda(_) => panic!("an optimizer of a GPU's parameters"),
        }
    }

    pub(super) fn values(&self) -> Result<Cow<'_, [f32]>, DeviceError> {
        match self {
            Moment::Host(values) => Ok(Cow::Borrowed(values)),
            Moment::Cuda(values) => values.gpu().download(values).map(Cow::Owned),
        }
    }

    fn on(&mut self, gpu: &Gpu) -> Result<&mut Buffer<f32>, DeviceError> {
        match self {
            Moment::Cuda(values) => Ok(values),
            Moment::Host(values) => {
                *self = Moment::Cuda(gpu.upload(values)?);
                self.on(gpu)
            }
        }
    }
}

/// Σ x² of each.
pub(super) fn sums_of_squares(
    cuda: &CudaDevice,
    tensors: &[&Tensor],
) -> Result<Vec<f64>, DeviceError> {
    cuda.finish(|gpu| {
        let mut squares = gpu.zeros::<f64>(tensors.len().max(1))?;
        for (slot, tensor) in tensors.iter().enumerate() {
            gpu.sum_of_squares(&mut squares, slot, tensor.f32())?;
        }
        gpu.download(&squares)
    })
}

/// [`AdamW::step_tensors`] on a GPU.
pub(super) fn step(
    adamw: &mut AdamW,
    cuda: &CudaDevice,
    learning_rate: f64,
    factors: &mut [TensorParameter<'_>],
) -> Result<StepOutcome, DeviceError> {
    let gradients: Vec<&Tensor> = factors.iter().filter_map(|factor| factor.gradient).collect();
    let norm = sums_of_squares(cuda, &gradients)?.iter().sum::<f64>().sqrt();
    if !norm.is_finite() {
        return Ok(StepOutcome::NotFinite { norm });
    }
    let scale = clip_scale(norm, adamw.settings.max_norm);
    adamw.steps += 1;
    let numbers = adamw.numbers(learning_rate, scale);
    cuda.finish(|gpu| {
        for (TensorParameter { values, gradient, .. }, moments) in
            factors.iter_mut().zip(&mut adamw.moments)
        {
            let zeros;
            let gradient = match gradient.map(Tensor::f32) {
                Some(gradient) => gradient,
                None => {
                    zeros = gpu.zeros(values.len())?;
                    &zeros
                }
            };
            let (m, v) = (moments.first.on(gpu)?, moments.second.on(gpu)?);
            gpu.adamw(values.f32_mut(), m, v, gradient, &numbers)?;
        }
        gpu.synchronize()
    })?;
    Ok(StepOutcome::Updated { norm, scale })
}
