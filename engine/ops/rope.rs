//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in the rotate-half form that Llama
//! and Qwen checkpoints use. For a head `x` of length `d` at position `p`, with `i < d/2`:
//!
//! ```text
//! y[i]       = x[i]·cos(p·f[i]) − x[i + d/2]·sin(p·f[i])
//! y[i + d/2] = x[i + d/2]·cos(p·f[i]) + x[i]·sin(p·f[i])        f[i] = theta^(−2i/d)
//! dx         = dy turned back by the same angle
//! ```
//!
//! Models that were trained further on longer texts scale `f`, each pair by its wavelength `2π/f`, and YaRN cosines
//! and sines as well (see [`frequencies`]).

use kernels::{
    cpu::{
        ComputeDtype,
        rope::{self, RopeTable},
    },
    cuda,
};

use super::rms_norm;
use crate::{
    checkpoint::config::RopeScaling,
    tensor::{
        Id, Tensor,
        device::{Device, DeviceCell, DeviceError, Mirrored},
        tape::{Backward, Gradients, Tape},
    },
};

/// The pairs' frequencies, and what multiplies their cosines and sines.
#[derive(Clone, Debug, PartialEq)]
pub struct Frequencies {
    /// `f`, of head_dim / 2 pairs.
    pub of_pairs: Vec<f32>,
    /// YaRN's attention factor, or 1.
    pub scale: f32,
}

/// Cosines and sines by position.
pub struct Rotations {
    table: RopeTable,
    frequencies: Frequencies,
    positions: usize,
    on_device: DeviceCell<cuda::RopeBuffer>,
}

impl Rotations {
    /// Those of `frequencies` at positions below `positions`.
    pub fn new(frequencies: Frequencies, positions: usize) -> Rotations {
        let table = RopeTable::new(&frequencies.of_pairs, frequencies.scale, positions);
        Rotations { table, frequencies, positions, on_device: DeviceCell::default() }
    }

    fn on(&self, gpu: &cuda::Gpu) -> Result<&cuda::RopeBuffer, DeviceError> {
        let Frequencies { of_pairs, scale } = &self.frequencies;
        self.on_device.get_or_make(|| gpu.rope_table(of_pairs, *scale, self.positions))
    }
}

/// Qwen3's norm of each head before it is turned.
#[derive(Clone, Copy)]
pub struct HeadNorm<'m> {
    /// `[head_dim]`, for all heads.
    pub w: &'m Mirrored<f32>,
    /// As in [`rms_norm::rms_norm`].
    pub eps: f32,
}

/// Rotates every head of `x` (`[rows, heads·head_dim]`), normalized if there is a norm, in place if
/// nothing else shares it; row `r` stands at `positions[r]`.
pub fn rope<'m>(
    tape: &mut Tape<'m>,
    x: Tensor,
    norm: Option<HeadNorm<'m>>,
    rotations: &'m Rotations,
    positions: &'m Mirrored<u32>,
) -> Tensor {
    let [rows, columns] = x.shape();
    assert_eq!(positions.len(), rows, "rope: x is {:?}", x.shape());
    let head_dim = rotations.table.head_dim();
    assert_eq!(columns % head_dim, 0, "rope: x is {:?}", x.shape());
    let heads = columns / head_dim;
    // On a CPU the norm is an op of its own. On a GPU norm and rotation are one pass over x, which is held for the
    // backward pass.
    let (x, norm) = match (x.device(), norm) {
        // Saved in f32: attention's backward pass takes e^(s - log_sum) with s from it, and with the forward
        // pass's sums.
        (Device::Cpu(_), Some(HeadNorm { w, eps })) => {
            (rms_norm::normalized(tape, &x, w, eps, ComputeDtype::F32), None)
        }
        (_, norm) => (x, norm),
    };
    let held = x.device().is_cuda().then(|| x.clone());
    let (id, requires_grad) = (x.id(), x.requires_grad());
    let recipe = tape.recompute(&x);
    let turned = move |x: Tensor| match x.device().clone() {
        Device::Cpu(device) => {
            let mut y = x.into_owned();
            rope::forward(device.cpu(), y.data_mut(), positions, &rotations.table, heads);
            y
        }
        Device::Cuda(cuda) => {
            let mut y = Tensor::uninitialized(x.device(), rows, columns);
            cuda.queue(|gpu| {
                let (to, at, table) = (y.f32_mut(), positions.on(gpu)?, rotations.on(gpu)?);
                match norm {
                    Some(HeadNorm { w, eps }) => {
                        gpu.rope_norm(to, x.f32(), w.on(gpu)?, eps, at, table)
                    }
                    None => {
                        gpu.copy(to, 0, x.f32(), 0, x.len())?;
                        gpu.rope(to, at, table, false)
                    }
                }
            });
            y
        }
    };
    let mut y = turned(x);
    if tape.records(requires_grad) {
        let node = Rope { x: id, held: held.clone(), norm, rotations, positions, heads };
        tape.push(&mut y, node);
        // Where x can be had again, y can. Else, on a CPU, y has taken its place.
        match (held, recipe) {
            (Some(x), _) => tape.recomputes(&y, move || turned(x.clone())),
            (None, Some(recipe)) => tape.recomputes(&y, move || turned(recipe.again())),
            (None, None) => {}
        }
    }
    y
}

struct Rope<'m> {
    x: Id,
    /// x, on a GPU.
    held: Option<Tensor>,
    /// On a GPU: the norm that is part of the same pass over x.
    norm: Option<HeadNorm<'m>>,
    rotations: &'m Rotations,
    positions: &'m Mirrored<u32>,
    heads: usize,
}

impl Backward for Rope<'_> {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let Rope { x: id, held, norm, rotations, positions, heads } = *self;
        let mut dx = dy.into_owned();
        match dx.device().clone() {
            Device::Cpu(device) => {
                let table = &rotations.table;
                rope::backward(device.cpu(), dx.data_mut(), positions, table, heads);
            }
            Device::Cuda(cuda) => cuda
                .queue(|gpu| gpu.rope(dx.f32_mut(), positions.on(gpu)?, rotations.on(gpu)?, true)),
        }
        if let (Some(HeadNorm { w, eps }), Some(x)) = (norm, &held) {
            dx = rms_norm::backward(&dx, x, w, eps);
        }
        gradients.add(id, dx);
    }
}

/// The frequencies of heads of length `head_dim`, in the precision and order in which transformers computes them
/// (modeling_rope_utils.py). With `f = theta^(−2i/d)`, `s` the factor, `P` the original positions and `r = P·f/2π` the
/// turns of a pair over them:
///
/// ```text
/// linear   f / s
/// llama3   f                                 where 2π/f < P/high
///          f / s                             where 2π/f > P/low
///          (1 − m)·f/s + m·f                 between, m = (r − low) / (high − low)
/// yarn     m·f/s + (1 − m)·f                 m = (i − i(fast)) / (i(slow) − i(fast)), within 0 and 1,
///                                            i(n) the pair that turns n times: d·ln(P/2πn) / 2·ln(theta)
/// ```
pub fn frequencies(theta: f64, head_dim: usize, scaling: RopeScaling) -> Frequencies {
    use std::f64::consts::TAU;
    let exponent = |i: usize| (2 * i) as f32 / head_dim as f32;
    let wide = |i: usize| theta.powf(f64::from(exponent(i))) as f32;
    let mut scale = 1.0;
    let of_pair: Box<dyn Fn(usize) -> f32> = match scaling {
        RopeScaling::None => Box::new(|i| 1.0 / wide(i)),
        RopeScaling::Linear { factor } => Box::new(move |i| 1.0 / wide(i) / factor as f32),
        RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original } => {
            let (factor, positions) = (factor as f32, original as f64);
            Box::new(move |i| {
                let f = 1.0 / wide(i);
                let wavelength = TAU as f32 / f;
                if wavelength < (positions / high) as f32 {
                    f
                } else if wavelength > (positions / low) as f32 {
                    f / factor
                } else {
                    let turns = positions as f32 / wavelength;
                    let m = (turns - low as f32) / (high - low) as f32;
                    (1.0 - m) * f / factor + m * f
                }
            })
        }
        RopeScaling::Yarn {
            factor,
            original,
            beta_fast,
            beta_slow,
            truncate,
            attention_factor,
        } => {
            scale = attention_factor as f32;
            let pair_that_turns = |times: f64| {
                let width = head_dim as f64;
                width * (original as f64 / (times * TAU)).ln() / (2.0 * theta.ln())
            };
            let (mut first, mut last) = (pair_that_turns(beta_fast), pair_that_turns(beta_slow));
            if truncate {
                (first, last) = (first.floor(), last.ceil());
            }
            (first, last) = (first.max(0.0), last.min(head_dim as f64 - 1.0));
            if first == last {
                last += 0.001;
            }
            Box::new(move |i| {
                let m = (i as f32 - first as f32) / (last - first) as f32;
                let kept = 1.0 - m.clamp(0.0, 1.0);
                1.0 / (factor as f32 * wide(i)) * (1.0 - kept) + 1.0 / wide(i) * kept
            })
        }
    };
    Frequencies { of_pairs: (0..head_dim / 2).map(of_pair).collect(), scale }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        checkpoint::config::Config, golden::tests, tensor::check_gradient::check_gradient,
    };

    #[test]
    fn gradient() {
        let plain = frequencies(1e4, 6, RopeScaling::None);
        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            original: 32,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: 1.138_629_4,
        };
        let positions = Mirrored::from(vec![0, 99, 7]);
        let w = Mirrored::from(vec![1.0, -0.5, 0.3, 2.0, 0.7, 1.1]);
        for frequencies in [plain, frequencies(1e4, 6, yarn)] {
            let rotations = Rotations::new(frequencies, 100);
            for norm in [None, Some(HeadNorm { w: &w, eps: 1e-6 })] {
                check_gradient([3, 12], |tape, x| {
                    rope(tape, x.clone(), norm, &rotations, &positions)
                });
            }
        }
    }

    /// tests/golden/rope.json: what transformers makes of a config.json, by rope.py there.
    #[test]
    fn frequencies_are_those_of_transformers() {
        let text = std::fs::read_to_string(tests("golden/rope.json")).unwrap();
        let cases: serde_json::Value = serde_json::from_str(&text).unwrap();
        let cases = cases.as_array().unwrap();
        assert!(cases.len() >= 20, "{} cases", cases.len());
        for case in cases {
            let name = case["name"].as_str().unwrap();
            let config =
                Config::parse(&case["config"].to_string(), Path::new("config.json")).expect(name);
            let ours = frequencies(config.rope_theta, config.head_dim, config.rope_scaling);
            let number = |value: &serde_json::Value| value.as_f64().unwrap();
            let theirs: Vec<f64> =
                case["inv_freq"].as_array().unwrap().iter().map(number).collect();
            assert_eq!(ours.of_pairs.len(), theirs.len(), "{name}");
            for (i, (ours, theirs)) in ours.of_pairs.iter().zip(&theirs).enumerate() {
                // f32's power, and each step after it, rounds once.
                let error = (f64::from(*ours) - theirs).abs() / theirs;
                assert!(error < 1e-6, "{name}, pair {i}: {ours} for {theirs}");
            }
            let scale = number(&case["attention_factor"]);
            assert!((f64::from(ours.scale) - scale).abs() < 1e-6 * scale, "{name}: {}", ours.scale);
            assert_eq!(
                config.max_position_embeddings as u64,
                case["positions"].as_u64().unwrap(),
                "{name}"
            );
        }
    }
}
