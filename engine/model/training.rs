//! The forward pass of training: log-probabilities of completions, differentiable with respect to
//! the adapter.
//!
//! A batch holds groups: a prompt and the completions sampled from it, as rows `[prompt][completion
//! 1]..[completion G]`. Each completion attends to the prompt and itself, and its positions continue
//! the prompt's, so that the prompt is computed once per group. What a prompt begins with as the prompt before it does
//! (a template; the conversation, where the same replies come in both orders) is computed once as well: a batch is a tree of
//! prefixes. The results are those of separate sequences, with the same bits, and the bits that generation computed.
//!
//! Log-probabilities are wanted of completions' tokens alone. So in the last layer only the rows that predict them go
//! beyond keys and values.

pub use kernels::cpu::log_prob::RowError;
use kernels::cpu::{attention::PAGE, profile};

use super::{Layer, Model, lora, transposed};
use crate::{
    checkpoint::adapter::{Adapter, LoraFactors, Projection, peft_key},
    ops::{
        attention::{Layout, packed_attention},
        embedding::embedding,
        gather::gather,
        linear::{Dropout, Lora, Pass},
        log_prob::{Targets, log_prob},
    },
    optimizer::{self, AdamW, StepOutcome, TensorParameter},
    tensor::{
        Tensor,
        device::{DeviceError, Mirrored},
        tape::{Gradients, Tape},
    },
};

/// Groups of a prompt and its completions, packed.
#[derive(Clone, Debug, Default)]
pub struct PackedBatch {
    tokens: Mirrored<u32>,
    positions: Mirrored<u32>,
    layout: Layout,
    /// The rows that predict completions' tokens, in order, and their positions.
    wanted_rows: Mirrored<u32>,
    wanted_positions: Mirrored<u32>,
    /// Which of them predicts each completion token, in the order of groups, completions, tokens.
    target_rows: Mirrored<u32>,
    target_tokens: Mirrored<u32>,
    last_prompt: Vec<u32>,
}

/// How many tokens `prompt` shares with the prompt before it in a batch, and so has no rows for. At least a page of keys
/// is worth it; the last token always has a row.
pub fn shared_tokens(before: &[u32], prompt: &[u32]) -> usize {
    let same = before.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    let same = same.min(prompt.len().saturating_sub(1));
    if same < PAGE { 0 } else { same }
}

impl PackedBatch {
    /// Adds a prompt and its completions. A completion's last token is predicted but not fed, as in
    /// generation. Prompts that begin alike are best pushed one after the other.
    ///
    /// # Panics
    /// If the prompt is empty.
    pub fn push(&mut self, prompt: &[u32], completions: &[&[u32]]) {
        assert!(!prompt.is_empty(), "a prompt without tokens");
        let shared = shared_tokens(&self.last_prompt, prompt);
        let (tokens, positions) = (self.tokens.change(), self.positions.change());
        let (wanted_rows, wanted_positions) =
            (self.wanted_rows.change(), self.wanted_positions.change());
        let (target_rows, target_tokens) = (self.target_rows.change(), self.target_tokens.change());
        tokens.extend_from_slice(&prompt[shared..]);
        positions.extend(shared as u32..prompt.len() as u32);
        let last_of_prompt = wanted_rows.len() as u32;
        wanted_rows.push(tokens.len() as u32 - 1);
        wanted_positions.push(prompt.len() as u32 - 1);
        let mut lengths = Vec::with_capacity(completions.len());
        for completion in completions {
            let fed = completion.split_last().map_or(&[][..], |(_, fed)| fed);
            let rows = tokens.len() as u32..(tokens.len() + fed.len()) as u32;
            let at = prompt.len() as u32..(prompt.len() + fed.len()) as u32;
            let first_wanted = wanted_rows.len() as u32;
            wanted_rows.extend(rows);
            wanted_positions.extend(at.clone());
            if !completion.is_empty() {
                target_rows.push(last_of_prompt);
                target_rows.extend(first_wanted..wanted_rows.len() as u32);
            }
            target_tokens.extend_from_slice(completion);
            tokens.extend_from_slice(fed);
            positions.extend(at);
            lengths.push(fed.len());
        }
        self.layout.push(shared, prompt.len(), &lengths);
        self.last_prompt = prompt.to_vec();
    }

    /// Rows that run through the model.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Completion tokens, each of which gets a log-probability.
    pub fn targets(&self) -> usize {
        self.target_tokens.len()
    }
}

/// Options of a training pass.
#[derive(Clone, Copy, Debug)]
pub struct TrainingPass {
    /// The divisor of the logits.
    pub temperature: f32,
    /// Whether the adapter takes part; without it, the reference policy's log-probabilities.
    pub adapter: bool,
    /// Dropout on the adapter's inputs.
    pub dropout: Option<Dropout>,
    /// Gradient checkpointing: layers are computed again in the backward pass. About a third more work, and the memory of one
    /// layer instead of all.
    pub checkpoint: bool,
}

/// A factor of the adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterName {
    /// Layer.
    pub layer: usize,
    /// Which projection of the layer.
    pub projection: Projection,
    /// A, or B.
    pub is_a: bool,
}

impl ParameterName {
    /// Values of the factor in the order of PEFT's files, where B is `[n, r]`.
    pub fn in_peft_order(&self, factor: &Tensor) -> Result<Vec<f32>, DeviceError> {
        let ([rank, n], values) = (factor.shape(), factor.to_vec()?);
        Ok(if self.is_a { values } else { transposed(&values, rank, n) })
    }

    /// Values in the order of PEFT's files in that of a factor of this shape, `[rank, n]`.
    pub fn out_of_peft_order(&self, values: &[f32], [rank, n]: [usize; 2]) -> Vec<f32> {
        if self.is_a { values.to_vec() } else { transposed(values, n, rank) }
    }

    /// Its name in PEFT's files.
    pub fn peft_key(&self) -> String {
        let ParameterName { layer, projection, is_a } = *self;
        peft_key(layer, projection, is_a, "weight")
    }
}

impl Model {
    /// Log-probability and entropy of every completion token: `[targets, 2]`, in the batch's order.
    pub fn log_probs<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        batch: &'m PackedBatch,
        options: TrainingPass,
    ) -> Result<Tensor, RowError> {
        let _span = profile::phase("forward", [batch.rows()]);
        let pass =
            Pass { compute: self.compute(), adapter: options.adapter, dropout: options.dropout };
        let mut x = embedding(&self.device, &self.embedding, &batch.tokens);
        for (index, layer) in self.layers.iter().enumerate() {
            let last = index + 1 == self.layers.len();
            x = if options.checkpoint {
                tape.checkpoint(x, move |tape, x| {
                    self.packed_layer(tape, layer, x, batch, last, pass)
                })
            } else {
                self.packed_layer(tape, layer, x, batch, last, pass)
            };
        }
        let gathered = gather(tape, &x, &batch.target_rows);
        drop(x);
        let x = self.final_norm(tape, &gathered);
        drop(gathered);
        let targets = Targets { tokens: &batch.target_tokens, temperature: options.temperature };
        log_prob(tape, &x, &self.head.weight, targets, pass.compute)
    }

    fn packed_layer<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        layer: &'m Layer,
        x: Tensor,
        batch: &'m PackedBatch,
        last: bool,
        pass: Pass,
    ) -> Tensor {
        let (dtype, shape) = (self.cache_dtype(), self.attention_shape());
        let wanted = last.then_some([&batch.wanted_rows, &batch.wanted_positions]);
        self.layer(tape, layer, x, &batch.positions, wanted, pass, &mut |tape, qkv| {
            packed_attention(tape, qkv, &batch.layout, last, dtype, shape)
        })
    }

    /// Makes the adapter's factors leaves with gradients.
    pub fn train_adapter(&mut self) {
        for (_, factor) in self.parameters_mut() {
            factor.set_requires_grad(true);
        }
    }

    /// The adapter's factors, layer by layer, in the order of [`Projection::ALL`], A before B. B is
    /// transposed: `[r, n]`.
    pub fn parameters(&self) -> impl Iterator<Item = (ParameterName, &Tensor)> {
        self.loras().flat_map(|(layer, projection, lora)| {
            let name = move |is_a| ParameterName { layer, projection, is_a };
            [(name(true), &lora.a), (name(false), &lora.b_transposed)]
        })
    }

    /// The same, to be updated. Copies that a GPU made of them are dropped.
    pub fn parameters_mut(&mut self) -> Vec<(ParameterName, &mut Tensor)> {
        let mut all = Vec::new();
        for (layer, parts) in self.layers.iter_mut().enumerate() {
            parts.mlp.forget_factors();
            for (projection, linear) in parts.projections_mut() {
                if let Some(lora) = &mut linear.lora {
                    lora.forget_split();
                    let name = |is_a| ParameterName { layer, projection, is_a };
                    all.push((name(true), &mut lora.a));
                    all.push((name(false), &mut lora.b_transposed));
                }
            }
        }
        all
    }

    /// AdamW for the adapter's factors, with moments of zero.
    pub fn optimizer(&self, settings: optimizer::AdamWSettings) -> AdamW {
        let factors: Vec<(String, usize)> =
            self.parameters().map(|(name, factor)| (name.peft_key(), factor.len())).collect();
        AdamW::new(settings, factors.iter().map(|(name, len)| (name.as_str(), *len)))
    }

    /// Takes a step of `optimizer` from the adapter's factors against their gradients, at this rate. A gradient that is
    /// not finite changes nothing.
    ///
    /// # Errors
    /// A GPU has failed.
    ///
    /// # Panics
    /// If the optimizer was made for another model's factors.
    pub fn step(
        &mut self,
        optimizer: &mut AdamW,
        gradients: &Gradients,
        learning_rate: f64,
    ) -> Result<StepOutcome, DeviceError> {
        let mut all = self.parameters_mut();
        let names: Vec<String> = all.iter().map(|(name, _)| name.peft_key()).collect();
        let factors = all.iter_mut().zip(&names).map(|((_, values), name)| {
            let gradient = gradients.get(values);
            TensorParameter { name, values, gradient }
        });
        optimizer.step_tensors(learning_rate, &mut factors.collect::<Vec<_>>())
    }

    /// The factors of `adapter` as [`Model::parameters`] has its own, in the same order.
    ///
    /// # Panics
    /// If the adapter has other matrices or ranks than the model's.
    pub fn factors_of(&self, adapter: &Adapter) -> Vec<Tensor> {
        let factors = self.loras().flat_map(|(layer, projection, own)| {
            let factors = adapter.factors(layer, projection).expect("the model's matrices");
            let Lora { a, b_transposed, .. } = lora(&self.device, factors, layer, projection);
            assert_eq!(
                (a.shape(), b_transposed.shape()),
                (own.a.shape(), own.b_transposed.shape())
            );
            [a, b_transposed]
        });
        factors.collect()
    }

    /// Exchanges the model's factors with `factors`, which are in the order of [`Model::parameters`].
    ///
    /// # Panics
    /// If there are more or fewer.
    pub fn exchange_factors(&mut self, factors: &mut [Tensor]) {
        let own = self.parameters_mut();
        assert_eq!(own.len(), factors.len(), "factors of another adapter");
        for ((_, own), other) in own.into_iter().zip(factors) {
            std::mem::swap(own, other);
        }
    }

    /// Writes the factors as they are now to `adapter`, which has factors for the same projections.
    pub fn store_adapter(&self, adapter: &mut Adapter) -> Result<(), DeviceError> {
        for (layer, projection, lora) in self.loras() {
            let [rank, n] = lora.b_transposed.shape();
            let a = lora.a.to_vec()?;
            let b = transposed(&lora.b_transposed.to_vec()?, rank, n);
            adapter.set_factors(layer, projection, LoraFactors { a, b, rank, scale: lora.scale });
        }
        Ok(())
    }

    fn loras(&self) -> impl Iterator<Item = (usize, Projection, &Lora)> {
        self.layers.iter().enumerate().flat_map(|(layer, parts)| {
            Projection::ALL.into_iter().filter_map(move |projection| {
                Some((layer, projection, parts.projection(projection).lora.as_ref()?))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkpoint::{adapter::AdapterSettings, config::Config, weights::Checkpoint},
        golden::case,
        model::Precision,
        tensor::Device,
    };
    use kernels::cpu::Cpu;

    /// A layer saves tensors in bf16, rounded as the inputs of its matmuls are: by 2⁻⁹ of each value.
    #[test]
    fn gradients_of_what_is_kept_in_bf16_are_near_those_in_f32() {
        let directory = case("qwen3-tied-bf16").join("model");
        let checkpoint = Checkpoint::open(&directory).unwrap();
        let config = Config::load(&directory).unwrap();
        let settings = AdapterSettings {
            rank: 4,
            alpha: 8.0,
            rank_stabilized: false,
            dropout: 0.0,
            targets: Projection::ALL.to_vec(),
        };
        let mut batch = PackedBatch::default();
        let completion: Vec<u32> = (0..60).map(|token| (token * 37 + 11) % 300).collect();
        batch.push(&[5, 17, 200, 3], &[&completion]);
        let adapter = Adapter::initialize(&config, &settings, 0).unwrap();
        let gradients = |precision| {
            let device = Device::new(Cpu::new(2));
            let config = config.clone();
            let mut model =
                Model::new(&checkpoint, config, Some(&adapter), precision, device).unwrap();
            // A new adapter's B is zero, and with it A's gradient.
            for (index, (name, factor)) in model.parameters_mut().into_iter().enumerate() {
                let a = crate::tensor::check_gradient::values(index as u64, factor.shape());
                if !name.is_a {
                    factor.data_mut().iter_mut().zip(a.data()).for_each(|(b, x)| *b = x / 64.0);
                }
            }
            model.train_adapter();
            let options =
                TrainingPass { temperature: 1.0, adapter: true, dropout: None, checkpoint: false };
            let mut tape = Tape::new();
            let y = model.log_probs(&mut tape, &batch, options).unwrap();
            let dy: Vec<f32> =
                y.data().iter().enumerate().map(|(i, _)| f32::from(u8::from(i % 2 == 0))).collect();
            let dy = Tensor::from_slice(model.device(), y.shape()[0], 2, &dy);
            let mut gradients = Gradients::default();
            tape.backward(&y, dy, &mut gradients);
            let of = |(name, factor): (ParameterName, &Tensor)| {
                (name, gradients.get(factor).unwrap().data().to_vec())
            };
            model.parameters().map(of).collect::<Vec<_>>()
        };
        let norm = |x: &mut dyn Iterator<Item = f32>| {
            x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
        };
        let all = gradients(Precision::F32).into_iter().zip(gradients(Precision::Bf16));
        for ((name, want), (_, got)) in all {
            let error = norm(&mut got.iter().zip(&want).map(|(got, want)| got - want));
            let relative = error / norm(&mut want.iter().copied());
            assert!(relative < 0.02, "{}: {relative}", name.peft_key());
        }
    }
}
