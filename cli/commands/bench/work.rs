//! The least that work needs: multiply-adds (two flops each) and bytes from memory, by the model's shape.
//!
//! ```text
//! P      values of the seven projections of all layers        A  values of the adapter's factors
//! V H    the LM head                                          E  query width = heads · head_dim
//! pairs  (query, key) pairs that attention visits: a row at position p sees p + 1 keys
//!
//! forward    2 rows (P + A) + 2 targets V H + 4 layers E pairs      (scores, and their weighted sum of values)
//! backward   2 rows (P + 2 A) + 2 targets V H + 8 layers E pairs    (dx alone: W is frozen; A and B get both)
//! ```
//!
//! What is computed twice (layers or logits or scores in the backward pass) is no work here: it is the
//! implementation's choice. Bytes are every weight once a pass, and the keys and values that decoding
//! reads once a step. Norms, rotations and activations are left out, far below one percent.

use engine::checkpoint::{adapter::Projection, config::Config};

/// Flops and bytes of a piece of work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Work {
    pub(super) flops: f64,
    pub(super) bytes: f64,
}

/// The least time for it, and what sets it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Floor {
    pub(super) seconds: f64,
    pub(super) bound: Bound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    Flops,
    Bytes,
}

impl Bound {
    pub(super) fn name(self) -> &'static str {
        match self {
            Bound::Flops => "flops",
            Bound::Bytes => "bytes",
        }
    }
}

impl Work {
    /// Seconds on a machine with these flops and bytes per second.
    pub(super) fn floor(&self, flops: f64, bytes: f64) -> Floor {
        let (by_flops, by_bytes) = (self.flops / flops, self.bytes / bytes);
        match by_flops >= by_bytes {
            true => Floor { seconds: by_flops, bound: Bound::Flops },
            false => Floor { seconds: by_bytes, bound: Bound::Bytes },
        }
    }
}

/// A model, as far as work depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes<'a> {
    pub(super) config: &'a Config,
    /// Bytes of a stored weight.
    pub(super) weight_bytes: u64,
    /// Bytes of a cached key or value.
    pub(super) cache_bytes: u64,
    /// Values of the adapter's factors, which are f32.
    pub(super) adapter: u64,
}

impl Sizes<'_> {
    /// A prompt, until the logits of its last token are there.
    pub(super) fn prefill(&self, prompt: u64) -> Work {
        Work {
            flops: self.forward(prompt, 1, triangle(0, prompt), self.adapter),
            bytes: self.weights() + 4.0 * self.adapter as f64,
        }
    }

    /// `tokens` steps of `batch` sequences that start with `depth` tokens each.
    pub(super) fn decode(&self, batch: u64, depth: u64, tokens: u64) -> Work {
        let rows = batch * tokens;
        let pairs = batch * triangle(depth, tokens);
        let pair = 2 * self.layers() * self.config.key_value_width() as u64 * self.cache_bytes;
        Work {
            flops: self.forward(rows, rows, pairs, self.adapter),
            bytes: tokens as f64 * (self.weights() + 4.0 * self.adapter as f64)
                + pairs as f64 * pair as f64,
        }
    }

    /// Forward and backward of a prompt and a group of completions that share it, with the reference's
    /// forward pass or without, and AdamW.
    pub(super) fn update(&self, prompt: u64, group: u64, completion: u64, reference: bool) -> Work {
        // The last token of a completion is predicted, not fed.
        let fed = completion.saturating_sub(1);
        let (rows, targets) = (prompt + group * fed, group * completion);
        let pairs = triangle(0, prompt) + group * triangle(prompt, fed);
        let mut flops = self.forward(rows, targets, pairs, self.adapter)
            + self.forward(rows, targets, 2 * pairs, 2 * self.adapter);
        let mut passes = 2.0;
        if reference {
            flops += self.forward(rows, targets, pairs, 0);
            passes += 1.0;
        }
        // AdamW reads and writes the factors and two moments, and reads their gradients.
        let factors = 4.0 * self.adapter as f64 * (2.0 + 7.0);
        Work { flops, bytes: passes * self.weights() + factors }
    }

    /// Flops of a forward pass; with twice the pairs and twice the adapter, of a backward pass.
    fn forward(&self, rows: u64, targets: u64, pairs: u64, adapter: u64) -> f64 {
        let query_width = self.config.query_width() as f64;
        2.0 * rows as f64 * (self.projections() + adapter as f64)
            + 2.0 * targets as f64 * self.head()
            + 4.0 * self.layers() as f64 * query_width * pairs as f64
    }

    /// Bytes of all weights that a forward pass multiplies with.
    fn weights(&self) -> f64 {
        (self.projections() + self.head()) * self.weight_bytes as f64
    }

    fn projections(&self) -> f64 {
        let layer: usize = Projection::ALL
            .into_iter()
            .map(|projection| projection.shape(self.config).into_iter().product::<usize>())
            .sum();
        self.layers() as f64 * layer as f64
    }

    fn head(&self) -> f64 {
        self.config.vocab_size as f64 * self.config.hidden_size as f64
    }

    fn layers(&self) -> u64 {
        self.config.num_hidden_layers as u64
    }
}

/// Pairs of `rows` rows that follow `before` others.
fn triangle(before: u64, rows: u64) -> u64 {
    rows * before + rows * (rows + 1) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ShapeArg;

    fn sizes(config: &Config, adapter: u64) -> Sizes<'_> {
        Sizes { config, weight_bytes: 2, cache_bytes: 2, adapter }
    }

    /// By hand from the published shape: 28 layers, 1024 wide, q and o 2048, k and v 1024, SwiGLU 3072,
    /// 151,936 tokens.
    #[test]
    fn the_work_of_qwen3() {
        let config = ShapeArg::Qwen3_0_6b.config();
        let sizes = sizes(&config, 0);
        let projections = 28 * (2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072);
        let head = 1024 * 151_936;
        assert_eq!(projections, 440_401_920);
        // All parameters but the norms: two of 1024 and two of 128 a layer, and the last.
        let norms = 28 * (2 * 1024 + 2 * 128) + 1024;
        assert_eq!(projections + head + norms, config.parameter_count());
        let prefill = sizes.prefill(3);
        // Rows see 1, 2 and 3 keys.
        let attention = 28 * 4 * 2048 * (1 + 2 + 3);
        assert_eq!(prefill.flops, (2 * 3 * projections + 2 * head + attention) as f64);
        assert_eq!(prefill.bytes, (2 * (projections + head)) as f64);
        // Two sequences after 10 tokens: their first rows see 11 keys, their second ones 12. A key and a
        // value of a layer have 2 x 8 x 128 numbers of two bytes.
        let decode = sizes.decode(2, 10, 2);
        let pairs = 2 * (11 + 12);
        let attention = 28 * 4 * 2048 * pairs;
        assert_eq!(decode.flops, (2 * 4 * (projections + head) + attention) as f64);
        let cache = 28 * 2 * 8 * 128 * 2 * pairs;
        assert_eq!(decode.bytes, (2 * 2 * (projections + head) + cache) as f64);
    }

    #[test]
    fn the_work_of_an_update() {
        let (config, adapter) = (ShapeArg::Qwen3_0_6b.config(), 1000);
        let sizes = sizes(&config, adapter);
        let (projections, head) = (440_401_920, 1024 * 151_936);
        // A prompt of 2 and two completions of 3, of which 2 are fed: rows see 1 and 2, then 3 and 4 twice.
        let (rows, targets, pairs) = (2 + 2 * 2, 2 * 3, 1 + 2 + 2 * (3 + 4));
        let attention = 28 * 4 * 2048 * pairs;
        let forward = 2 * rows * (projections + adapter) + 2 * targets * head + attention;
        let backward = 2 * rows * (projections + 2 * adapter) + 2 * targets * head + 2 * attention;
        let alone = sizes.update(2, 2, 3, false);
        assert_eq!(alone.flops, (forward + backward) as f64);
        assert_eq!(alone.bytes, (2 * 2 * (projections + head) + 9 * 4 * adapter) as f64);
        let with_reference = sizes.update(2, 2, 3, true);
        let reference = forward - 2 * rows * adapter;
        assert_eq!(with_reference.flops, alone.flops + reference as f64);
        assert_eq!(with_reference.bytes, alone.bytes + (2 * (projections + head)) as f64);
    }

    #[test]
    fn the_slower_resource_sets_the_floor() {
        let work = Work { flops: 100.0, bytes: 10.0 };
        assert_eq!(work.floor(50.0, 10.0), Floor { seconds: 2.0, bound: Bound::Flops });
        assert_eq!(work.floor(50.0, 2.0), Floor { seconds: 5.0, bound: Bound::Bytes });
    }
}
