//! The forward pass of training: log-probabilities of completions, differentiable with respect to
//! the adapter.
//!
//! A batch holds groups: a prompt and the completions sampled from it, as rows `[prompt][completion
//! 1]..[completion G]`. Each completion attends to the prompt and itself, and its positions continue
//! the prompt's, so that the prompt is computed once a group. The results are those of G separate
//! sequences, with the same bits, and the bits that generation computed.

use kernels::cpu::{log_prob::RowError, profile};

use super::{Layer, Model, transposed};
use crate::{
    adapter::{Adapter, LoraFactors, Projection, peft_key},
    ops::{
        attention::{Layout, packed_attention},
        embedding::embedding,
        linear::{Dropout, Lora, Pass},
        log_prob::{Targets, log_prob},
    },
    tape::{Backward, Gradients, Tape},
    tensor::{Id, Tensor},
};

/// Groups of a prompt and its completions, packed.
#[derive(Clone, Debug, Default)]
pub struct PackedBatch {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    layout: Layout,
    /// The row that predicts each completion token, in the order of groups, completions, tokens.
    target_rows: Vec<usize>,
    target_tokens: Vec<u32>,
}

impl PackedBatch {
    /// Adds a prompt and its completions. A completion's last token is predicted but not fed, as in
    /// generation.
    ///
    /// # Panics
    /// If the prompt is empty.
    pub fn push(&mut self, prompt: &[u32], completions: &[&[u32]]) {
        assert!(!prompt.is_empty(), "a prompt without tokens");
        self.tokens.extend_from_slice(prompt);
        self.positions.extend(0..prompt.len() as u32);
        let last_of_prompt = self.tokens.len() - 1;
        let mut lengths = Vec::with_capacity(completions.len());
        for completion in completions {
            let fed = completion.split_last().map_or(&[][..], |(_, fed)| fed);
            let first = self.tokens.len();
            if !completion.is_empty() {
                self.target_rows.push(last_of_prompt);
                self.target_rows.extend(first..first + fed.len());
            }
            self.target_tokens.extend_from_slice(completion);
            self.tokens.extend_from_slice(fed);
            let start = prompt.len() as u32;
            self.positions.extend(start..start + fed.len() as u32);
            lengths.push(fed.len());
        }
        self.layout.push(prompt.len(), &lengths);
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

/// How a training pass runs.
#[derive(Clone, Copy, Debug)]
pub struct TrainingPass {
    /// The logits are divided by it.
    pub temperature: f32,
    /// Whether the adapter takes part; without it, the reference policy's log-probabilities.
    pub adapter: bool,
    /// Dropout on the adapter's inputs.
    pub dropout: Option<Dropout>,
    /// Whether layers are computed again in the backward pass instead of kept: about a third more
    /// work, and one layer's memory instead of all layers'.
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
    pub fn in_peft_order(&self, factor: &Tensor) -> Vec<f32> {
        let [rank, n] = factor.shape();
        if self.is_a { factor.data().to_vec() } else { transposed(factor.data(), rank, n) }
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
            Pass { rounding: self.rounding(), adapter: options.adapter, dropout: options.dropout };
        let mut x = embedding(&self.device, &self.embedding, &batch.tokens);
        for layer in &self.layers {
            x = if options.checkpoint {
                tape.checkpoint(x, move |tape, x| self.packed_layer(tape, layer, x, batch, pass))
            } else {
                self.packed_layer(tape, layer, x, batch, pass)
            };
        }
        let gathered = gather_rows(tape, &x, &batch.target_rows);
        drop(x);
        let x = self.final_norm(tape, &gathered);
        drop(gathered);
        let targets = Targets { tokens: &batch.target_tokens, temperature: options.temperature };
        log_prob(tape, &x, &self.head.weight, targets, pass.rounding)
    }

    fn packed_layer<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        layer: &'m Layer,
        x: Tensor,
        batch: &'m PackedBatch,
        pass: Pass,
    ) -> Tensor {
        let (dtype, shape) = (self.cache_dtype(), self.attention_shape());
        self.layer(tape, layer, x, &batch.positions, pass, &mut |tape, qkv| {
            packed_attention(tape, qkv, &batch.layout, dtype, shape)
        })
    }

    /// Makes the adapter's factors leaves of the tape, whose gradients are computed.
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

    /// The same, to be updated.
    pub fn parameters_mut(&mut self) -> Vec<(ParameterName, &mut Tensor)> {
        let mut all = Vec::new();
        for (layer, parts) in self.layers.iter_mut().enumerate() {
            for (projection, linear) in parts.projections_mut() {
                if let Some(lora) = &mut linear.lora {
                    let name = |is_a| ParameterName { layer, projection, is_a };
                    all.push((name(true), &mut lora.a));
                    all.push((name(false), &mut lora.b_transposed));
                }
            }
        }
        all
    }

    /// Writes the factors as they are now to `adapter`, which has factors for the same projections.
    pub fn store_adapter(&self, adapter: &mut Adapter) {
        for (layer, projection, lora) in self.loras() {
            let [rank, n] = lora.b_transposed.shape();
            let a = lora.a.data().to_vec();
            let b = transposed(lora.b_transposed.data(), rank, n);
            adapter.set_factors(layer, projection, LoraFactors { a, b, rank, scale: lora.scale });
        }
    }

    fn loras(&self) -> impl Iterator<Item = (usize, Projection, &Lora)> {
        self.layers.iter().enumerate().flat_map(|(layer, parts)| {
            Projection::ALL.into_iter().filter_map(move |projection| {
                Some((layer, projection, parts.projection(projection).lora.as_ref()?))
            })
        })
    }
}

/// Rows of x, some of them several times; their gradients are added where they came from.
fn gather_rows<'m>(tape: &mut Tape<'m>, x: &Tensor, rows: &'m [usize]) -> Tensor {
    let mut y = x.gather_rows(rows);
    if tape.records(x.requires_grad()) {
        tape.push(&mut y, GatherRows { x: x.id(), from: x.shape()[0], rows });
    }
    y
}

struct GatherRows<'m> {
    x: Id,
    /// Rows that x has.
    from: usize,
    rows: &'m [usize],
}

impl Backward for GatherRows<'_> {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let [_, columns] = dy.shape();
        let mut dx = Tensor::zeros(dy.device(), self.from, columns);
        for (dy, &row) in dy.data().chunks_exact(columns).zip(self.rows) {
            let dx = &mut dx.data_mut()[row * columns..(row + 1) * columns];
            dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += dy);
        }
        gradients.add(self.x, dx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check_gradient::check_gradient;

    #[test]
    fn gradient_of_gathered_rows() {
        check_gradient([4, 5], |tape, x| gather_rows(tape, x, &[2, 0, 2, 3, 2]));
    }
}
