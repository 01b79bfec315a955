//! The decoder: Qwen3, and its close kin Qwen2 and Llama.
//!
//! ```text
//! x  = embedding(tokens)
//! for each layer:
//!     h = rms_norm(x);  q, k, v = h·Wq, h·Wk, h·Wv           (Qwen2 adds biases)
//!     q, k = rope(rms_norm_heads(q)), rope(rms_norm_heads(k)) (the norms in Qwen3 only)
//!     x = x + attention(q, k, v)·Wo
//!     h = rms_norm(x);  x = x + swiglu(h·Wgate, h·Wup)·Wdown
//! logits = rms_norm(x)·Wheadᵀ
//! ```
//!
//! Weights are used where the checkpoint's files are mapped. The residual stream `x` is f32. One
//! path serves prefill, decoding, scoring and training, and a row's results have the same bits in
//! each. Training differentiates with respect to the adapter alone (see [`training`]).

pub mod kv_cache;
pub mod memory;
pub mod suitability;
pub mod training;

use kernels::{
    cpu::{
        ComputeDtype,
        attention::{PAGE, Shape, Span},
        matmul::Panels,
        profile,
    },
    cuda::{AttentionPlan, Gpu},
};

use crate::{
    checkpoint::{
        adapter::{Adapter, LoraFactors, Projection},
        config::{Config, EMBEDDING, HEAD},
        weights::{Checkpoint, Dtype, Packing, Weight, WeightsError},
    },
    model::kv_cache::{CacheDtype, KvCache},
    ops::{
        attention::{self, Rows},
        embedding::embedding,
        gather,
        linear::{Linear, Lora, Pass, linear, linear_add, linear_all},
        mlp::{Mlp, mlp},
        rms_norm::rms_norm,
        rope::{HeadNorm, Rotations, frequencies, rope},
    },
    tensor::{
        Device, Tensor,
        device::{DeviceCell, DeviceError, Mirrored},
        tape::Tape,
    },
};

/// The precision of matmul inputs and of cached keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Inputs that meet bf16 weights are rounded to bf16, and so are cached keys and values. Sums are f32.
    Bf16,
    /// The reference: everything in f32 whatever the weights' type, sums in f64. Slow. Comparisons with PyTorch's f32 use it.
    F32,
}

impl Precision {
    /// The precision for weights of this dtype: on a GPU always bf16.
    pub fn for_weights(stored: Dtype, device_is_cuda: bool) -> Precision {
        match stored {
            Dtype::F32 if !device_is_cuda => Precision::F32,
            _ => Precision::Bf16,
        }
    }

    /// Its name: `bf16` or `f32`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Bf16 => "bf16",
            Precision::F32 => "f32",
        }
    }

    /// The element type of cached keys and values.
    pub fn cache_dtype(self) -> CacheDtype {
        match self {
            Precision::Bf16 => CacheDtype::Bf16,
            Precision::F32 => CacheDtype::F32,
        }
    }

    pub(crate) fn compute(self) -> ComputeDtype {
        match self {
            Precision::Bf16 => ComputeDtype::Bf16,
            Precision::F32 => ComputeDtype::F64,
        }
    }
}

/// A checkpoint, ready to run on one device.
pub struct Model {
    config: Config,
    precision: Precision,
    device: Device,
    embedding: Weight,
    layers: Vec<Layer>,
    norm: Mirrored<f32>,
    head: Linear,
    rotations: Rotations,
}

struct Layer {
    attention_norm: Mirrored<f32>,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// Qwen3's norms of queries and keys.
    qk_norm: Option<[Mirrored<f32>; 2]>,
    mlp_norm: Mirrored<f32>,
    mlp: Mlp,
}

impl Layer {
    fn projection(&self, which: Projection) -> &Linear {
        match which {
            Projection::Query => &self.q,
            Projection::Key => &self.k,
            Projection::Value => &self.v,
            Projection::Output => &self.o,
            Projection::Gate => &self.mlp.gate,
            Projection::Up => &self.mlp.up,
            Projection::Down => &self.mlp.down,
        }
    }

    fn projections_mut(&mut self) -> [(Projection, &mut Linear); 7] {
        let Layer { q, k, v, o, mlp: Mlp { gate, up, down, .. }, .. } = self;
        let all = [q, k, v, o, gate, up, down].into_iter();
        let mut named = Projection::ALL.into_iter().zip(all);
        std::array::from_fn(|_| named.next().expect("seven of both"))
    }
}

/// The rows of one forward pass: runs of consecutive tokens of some sequences.
#[derive(Default)]
pub struct Batch {
    tokens: Mirrored<u32>,
    positions: Mirrored<u32>,
    spans: Vec<Span>,
    tables: Vec<u32>,
    slots: Mirrored<u32>,
    logits_rows: Mirrored<u32>,
    plan: DeviceCell<AttentionPlan>,
}

impl Batch {
    /// Adds `tokens` of one sequence, the first at `position`. Its page table must cover them.
    /// A sequence may come in several runs, in order.
    pub fn push(&mut self, tokens: &[u32], position: usize, pages: &[u32]) {
        self.plan.clear();
        let first_page = self.tables.len();
        self.tables.extend_from_slice(pages);
        self.spans.push(Span {
            first_row: self.tokens.len(),
            rows: tokens.len(),
            first_position: position,
            table: first_page..self.tables.len(),
        });
        self.tokens.change().extend_from_slice(tokens);
        let positions = position..position + tokens.len();
        self.positions.change().extend(positions.clone().map(|p| p as u32));
        let slot = |p: usize| pages[p / PAGE] * PAGE as u32 + (p % PAGE) as u32;
        self.slots.change().extend(positions.map(slot));
    }

    /// Asks for the logits of the row pushed last.
    pub fn want_logits(&mut self) {
        let last = self.tokens.len() - 1;
        self.logits_rows.change().push(last as u32);
    }

    /// Asks for the logits of every row pushed so far.
    pub fn want_all_logits(&mut self) {
        *self.logits_rows.change() = (0..self.tokens.len() as u32).collect();
    }

    /// On a GPU, replaces the contents by those of `from` in place. Both have the same number of rows, one per sequence, with
    /// logits, and page tables of the same length.
    pub(crate) fn rewrite(&mut self, gpu: &Gpu, from: &Batch) -> Result<(), DeviceError> {
        self.tokens.rewrite(gpu, &from.tokens)?;
        self.positions.rewrite(gpu, &from.positions)?;
        self.slots.rewrite(gpu, &from.slots)?;
        self.spans.clone_from(&from.spans);
        self.tables.clone_from(&from.tables);
        let plan = self.plan.get_mut().expect("a batch that lies on a GPU");
        gpu.rewrite_plan(plan, &self.spans, &self.tables)
    }

    /// Whether every row's logits are asked for, in order.
    fn wants_all_logits(&self) -> bool {
        self.logits_rows.iter().copied().eq(0..self.rows() as u32)
    }

    /// Rows in it.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        let Batch { tokens, positions, spans, tables, slots, logits_rows, plan } = self;
        [tokens, positions, slots, logits_rows].into_iter().for_each(|all| all.change().clear());
        spans.clear();
        tables.clear();
        plan.clear();
    }
}

impl Model {
    /// Builds the model over a checkpoint whose tensors were checked against `config`, with the
    /// adapter's factors beside the projections they update.
    pub fn new(
        checkpoint: &Checkpoint,
        config: Config,
        adapter: Option<&Adapter>,
        precision: Precision,
        device: Device,
    ) -> Result<Model, WeightsError> {
        let lora = |layer, projection| {
            let factors = adapter?.factors(layer, projection)?;
            Some(lora(&device, factors, layer, projection))
        };
        Model::of(&|name| checkpoint.weight(name), &lora, config, precision, device.clone())
    }

    /// The same of weights by their names, and of factors by layer and projection.
    fn of(
        weight: &dyn Fn(&str) -> Result<Weight, WeightsError>,
        lora: &dyn Fn(usize, Projection) -> Option<Lora>,
        config: Config,
        precision: Precision,
        device: Device,
    ) -> Result<Model, WeightsError> {
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for index in 0..config.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{index}.{part}");
            let vector = |part: &str| weight(&name(part)).map(|w| Mirrored::from(w.to_f32()));
            let projection = |which: Projection| {
                let part = which.module();
                let bias = config.family.has_qkv_bias()
                    && matches!(which, Projection::Query | Projection::Key | Projection::Value);
                Ok::<Linear, WeightsError>(Linear {
                    weight: weight(&name(&format!("{part}.weight")))?,
                    bias: if bias { Some(vector(&format!("{part}.bias"))?) } else { None },
                    lora: lora(index, which),
                })
            };
            layers.push(Layer {
                attention_norm: vector("input_layernorm.weight")?,
                q: projection(Projection::Query)?,
                k: projection(Projection::Key)?,
                v: projection(Projection::Value)?,
                o: projection(Projection::Output)?,
                qk_norm: if config.family.has_qk_norm() {
                    Some([vector("self_attn.q_norm.weight")?, vector("self_attn.k_norm.weight")?])
                } else {
                    None
                },
                mlp_norm: vector("post_attention_layernorm.weight")?,
                mlp: Mlp::new(
                    projection(Projection::Gate)?,
                    projection(Projection::Up)?,
                    projection(Projection::Down)?,
                ),
            });
        }
        let embedding = weight(EMBEDDING)?;
        // A clone shares what a GPU holds of it.
        let head = match config.tie_word_embeddings {
            true => embedding.clone(),
            false => weight(HEAD)?,
        };
        Ok(Model {
            embedding,
            layers,
            norm: weight("model.norm.weight")?.to_f32().into(),
            head: Linear { weight: head, bias: None, lora: None },
            rotations: Rotations::new(
                frequencies(config.rope_theta, config.head_dim, config.rope_scaling),
                config.max_position_embeddings,
            ),
            config,
            precision,
            device,
        })
    }

    /// Takes the weights to the device, if it is a GPU, instead of with the first pass.
    pub fn upload(&self) -> Result<(), DeviceError> {
        let Device::Cuda(cuda) = &self.device else { return Ok(()) };
        cuda.finish(|gpu| {
            for layer in &self.layers {
                for projection in
                    [Projection::Query, Projection::Key, Projection::Value, Projection::Output]
                {
                    layer.projection(projection).weight.on(gpu)?;
                }
                layer.mlp.upload(gpu)?;
            }
            self.embedding.on(gpu)?;
            self.head.weight.on(gpu)?;
            gpu.synchronize()
        })
    }

    /// Chooses whether matmuls read weights in place (the default) or a packed copy. No result
    /// depends on it.
    pub fn set_packing(&mut self, packing: Packing) {
        for layer in &mut self.layers {
            for (_, linear) in layer.projections_mut() {
                linear.weight.set_packing(packing);
            }
        }
        self.head.weight.set_packing(packing);
    }

    /// Replaces the embedding and the weights of matmuls by copies in bf16, as a GPU has them.
    /// On a CPU, inputs are rounded for such weights only (see [`Precision::Bf16`]).
    pub fn round_weights(&mut self) {
        for layer in &mut self.layers {
            for (_, linear) in layer.projections_mut() {
                linear.weight = linear.weight.rounded();
            }
        }
        self.embedding = self.embedding.rounded();
        self.head.weight = match self.config.tie_word_embeddings {
            true => self.embedding.clone(),
            false => self.head.weight.rounded(),
        };
    }

    /// Whether packed weights would be used: bf16 weights that meet rounded inputs on a CPU that
    /// multiplies pairs of bf16.
    pub fn can_pack(&self) -> bool {
        self.precision == Precision::Bf16
            && self.weights_dtype() == Dtype::BF16
            && !self.device.is_cuda()
            && Panels::suit(self.device.host())
    }

    /// Bytes of the weights that matmuls read.
    pub fn weights_bytes(&self) -> u64 {
        let layers = self.layers.iter().flat_map(|layer| {
            Projection::ALL.into_iter().map(|projection| layer.projection(projection))
        });
        layers.chain([&self.head]).map(|linear| linear.weight.len_bytes() as u64).sum()
    }

    /// The checkpoint's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// In which precision it runs.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// How the checkpoint stores its weights.
    pub fn weights_dtype(&self) -> Dtype {
        self.embedding.dtype()
    }

    /// The element type of a cache for this model.
    pub fn cache_dtype(&self) -> CacheDtype {
        self.precision.cache_dtype()
    }

    /// Runs the batch, writing its keys and values to `cache`, and returns the logits
    /// (`[rows asked for, vocab_size]`) of the rows that [`Batch`] asked for, in order.
    pub fn forward(&self, batch: &Batch, cache: &mut KvCache) -> Tensor {
        let _span = profile::phase("forward", [batch.rows()]);
        let mut x = self.decoder(batch, cache, &mut |_, _| ());
        if !batch.wants_all_logits() {
            x = gather::forward(&x, &batch.logits_rows);
        }
        self.logits(&self.final_norm(&mut Tape::off(), &x))
    }

    /// Copies the batch's numbers to the device, where the batch can then be [rewritten](Batch::rewrite) for sequences of up to
    /// `longest` tokens. The pass asks for all logits.
    pub(crate) fn upload_batch(
        &self,
        gpu: &Gpu,
        batch: &Batch,
        cache: &KvCache,
        longest: usize,
    ) -> Result<(), DeviceError> {
        let Batch { tokens, positions, spans, tables, slots, plan, .. } = batch;
        for numbers in [tokens, positions, slots] {
            numbers.on(gpu)?;
        }
        let shape = self.attention_shape();
        plan.get_or_make(|| gpu.attention_plan(spans, tables, cache.pages(), shape, longest))?;
        Ok(())
    }

    /// As [`Model::forward`] for all rows, but returns `[rows, vocab_size]` logits and shows
    /// `observe` the hidden states (`[rows, hidden_size]`) as transformers numbers them: 0 the
    /// embeddings, `l` after layer `l`, but the last one after the final norm.
    pub fn forward_observed(
        &self,
        batch: &Batch,
        cache: &mut KvCache,
        observe: &mut dyn FnMut(usize, &Tensor),
    ) -> Tensor {
        let layers = self.layers.len();
        let x = self.decoder(batch, cache, &mut |index, x| {
            if index < layers {
                observe(index, x);
            }
        });
        let x = self.final_norm(&mut Tape::off(), &x);
        observe(layers, &x);
        self.logits(&x)
    }

    /// The residual stream after the last layer, `[rows, hidden_size]`.
    fn decoder(
        &self,
        batch: &Batch,
        cache: &mut KvCache,
        observe: &mut dyn FnMut(usize, &Tensor),
    ) -> Tensor {
        let pass = Pass { compute: self.compute(), adapter: true, dropout: None };
        let shape = self.attention_shape();
        let Batch { spans, tables, slots, plan, .. } = batch;
        let rows = Rows { spans, tables, slots, plan };
        let mut x = embedding(&self.device, &self.embedding, &batch.tokens);
        observe(0, &x);
        for (index, layer) in self.layers.iter().enumerate() {
            let tape = &mut Tape::off();
            x = self.layer(tape, layer, x, &batch.positions, None, pass, &mut |_, [q, k, v]| {
                attention::append(cache, index, &k, &v, &rows, shape);
                attention::attention(&q, cache, index, &rows, shape)
            });
            observe(index + 1, &x);
        }
        x
    }

    /// One layer: `x [rows, hidden_size]`, whose rows stand at `positions`, to the same shape. If `wanted`, to those rows alone
    /// whose numbers and positions these are; the others only serve as keys and values.
    /// `attend` computes attention from queries, keys and values.
    #[allow(clippy::too_many_arguments)] // what a layer is, and what it works on
    fn layer<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        layer: &'m Layer,
        x: Tensor,
        positions: &'m Mirrored<u32>,
        wanted: Option<[&'m Mirrored<u32>; 2]>,
        pass: Pass,
        attend: &mut dyn FnMut(&mut Tape<'m>, [Tensor; 3]) -> Tensor,
    ) -> Tensor {
        let eps = self.config.rms_norm_eps as f32;
        let h = rms_norm(tape, &x, &layer.attention_norm, eps, pass.compute);
        let (x, [mut q, mut k, v], query_positions) = match wanted {
            None => (x, linear_all(tape, &h, [&layer.q, &layer.k, &layer.v], pass), positions),
            Some([rows, positions]) => {
                let [k, v] = linear_all(tape, &h, [&layer.k, &layer.v], pass);
                let x = gather::gather(tape, &x, rows);
                let h = rms_norm(tape, &x, &layer.attention_norm, eps, pass.compute);
                (x, [linear(tape, &h, &layer.q, pass), k, v], positions)
            }
        };
        drop(h);
        let [q_norm, k_norm] = match &layer.qk_norm {
            Some(both) => both.each_ref().map(|w| Some(HeadNorm { w, eps })),
            None => [None; 2],
        };
        q = rope(tape, q, q_norm, &self.rotations, query_positions);
        k = rope(tape, k, k_norm, &self.rotations, positions);
        let y = attend(tape, [q, k, v]);
        let x = linear_add(tape, x, &y, &layer.o, pass);
        drop(y);

        let h = rms_norm(tape, &x, &layer.mlp_norm, eps, pass.compute);
        mlp(tape, x, h, &layer.mlp, pass)
    }

    fn final_norm<'m>(&'m self, tape: &mut Tape<'m>, x: &Tensor) -> Tensor {
        rms_norm(tape, x, &self.norm, self.config.rms_norm_eps as f32, self.compute())
    }

    fn logits(&self, x: &Tensor) -> Tensor {
        let pass = Pass { compute: self.compute(), adapter: false, dropout: None };
        linear(&mut Tape::off(), x, &self.head, pass)
    }

    fn attention_shape(&self) -> Shape {
        Shape {
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
        }
    }

    fn compute(&self) -> ComputeDtype {
        self.precision.compute()
    }
}

/// The factors of one projection as tensors.
fn lora(device: &Device, factors: &LoraFactors, layer: usize, which: Projection) -> Lora {
    let LoraFactors { a, b, rank, scale } = factors;
    let (rank, n) = (*rank, b.len() / rank);
    let stream = (layer * Projection::ALL.len() + which as usize) as u32;
    let a = Tensor::from_slice(device, rank, a.len() / rank, a);
    let b_transposed = Tensor::from_slice(device, rank, n, &transposed(b, n, rank));
    Lora::new(a, b_transposed, *scale, stream)
}

/// The transpose of a matrix `[rows, columns]`.
fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|j| (0..rows).map(move |i| x[i * columns + j])).collect()
}
