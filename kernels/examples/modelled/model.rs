//! Qwen3's passes as lists of kernels, and a training step of them.

use kernels::cuda::Error;

use super::attention::{self, HEADS, KV_HEADS};
use super::counts::{Figure, Lab};
use super::products::{self, RANK};
use super::rows;

/// Sizes of a model (config.json).
#[derive(Clone, Copy)]
pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) hidden: usize,
    pub(crate) ffn: usize,
    /// Elements of LoRA's factors, rank 16, on all seven projections.
    pub(crate) adapter: usize,
}

pub(crate) const MODELS: [Model; 2] = [
    Model { name: "qwen3-0.6b", hidden: 1024, ffn: 3072, adapter: 10_092_544 },
    Model { name: "qwen3-1.7b", hidden: 2048, ffn: 6144, adapter: 17_432_576 },
];
pub(crate) const LAYERS: usize = 28;
pub(crate) const VOCAB: usize = 151_936;
/// Rows of a training pass in the tables.
pub(crate) const TOKENS: usize = 4096;
const QUERIES: usize = HEADS * 128;
const KEYS: usize = KV_HEADS * 128;

/// A kernel of a pass: which, and how often.
pub(crate) struct Part {
    pub(crate) figure: Figure,
    pub(crate) times: usize,
}

pub(crate) fn seconds(parts: &[Part]) -> f64 {
    parts.iter().map(|part| part.figure.seconds() * part.times as f64).sum()
}

#[derive(Default)]
pub(crate) struct Parts(pub(crate) Vec<Part>);

impl Parts {
    pub(crate) fn add(&mut self, times: usize, figures: impl IntoIterator<Item = Figure>) {
        self.0.extend(figures.into_iter().map(|figure| Part { figure, times }));
    }
}

/// Inputs and outputs of the seven projections: q, k, v, o, gate, up, down.
fn projections(model: &Model) -> [[usize; 2]; 7] {
    let Model { hidden, ffn, .. } = *model;
    let [q, k, o] = [[hidden, QUERIES], [hidden, KEYS], [QUERIES, hidden]];
    [q, k, k, o, [hidden, ffn], [hidden, ffn], [ffn, hidden]]
}

/// Products of a layer's forward pass over m rows, with the adapter or without.
pub(crate) fn forward_products(
    lab: &Lab,
    model: &Model,
    m: usize,
    adapter: bool,
) -> Result<Parts, Error> {
    let Model { hidden, ffn, .. } = *model;
    let lora = usize::from(adapter);
    let mut parts = Parts::default();
    parts.add(1, [products::nt(lab, [m, QUERIES, hidden], lora, false)?]);
    parts.add(2, [products::nt(lab, [m, KEYS, hidden], lora, false)?]);
    parts.add(1, [products::nt(lab, [m, hidden, QUERIES], lora, true)?]);
    // Without an adapter the two small products are absent: 3 of 35 or of 67 steps, left in.
    parts.add(1, [products::nt_swiglu(lab, [m, ffn, hidden])?]);
    parts.add(1, [products::nt(lab, [m, hidden, ffn], lora, true)?]);
    Ok(parts)
}

/// LoRA's x Aᵀ of a layer.
pub(crate) fn low_rank(lab: &Lab, model: &Model, m: usize) -> Result<Parts, Error> {
    let Model { hidden, ffn, .. } = *model;
    let mut parts = Parts::default();
    parts.add(5, products::low_rank(lab, m, hidden)?);
    parts.add(1, products::low_rank(lab, m, QUERIES)?);
    parts.add(1, products::low_rank(lab, m, ffn)?);
    Ok(parts)
}

/// Gradients of inputs: a layer's dx.
pub(crate) fn backward_products(lab: &Lab, model: &Model, m: usize) -> Result<Parts, Error> {
    let Model { hidden, ffn, .. } = *model;
    let mut parts = Parts::default();
    parts.add(1, [products::nn(lab, [m, hidden, QUERIES], 1, false)?]);
    parts.add(2, [products::nn(lab, [m, hidden, KEYS], 1, true)?]);
    parts.add(1, [products::nn(lab, [m, QUERIES, hidden], 1, false)?]);
    parts.add(1, [products::nn(lab, [m, hidden, ffn], 1, false)?]);
    parts.add(1, [products::nn(lab, [m, hidden, ffn], 1, true)?]);
    parts.add(1, [products::nn_swiglu_backward(lab, [m, ffn, hidden])?]);
    Ok(parts)
}

/// Gradients of a layer's fourteen factors: dl = s dy B, then dB and dA. Equal shapes together.
pub(crate) fn gradients(lab: &Lab, model: &Model, m: usize) -> Result<[Parts; 2], Error> {
    let (mut lora, mut factors) = (Parts::default(), Parts::default());
    let mut of_outputs: Vec<usize> = projections(model).map(|[_, out]| out).to_vec();
    let mut widths: Vec<usize> = projections(model).into_iter().flatten().collect();
    for list in [&mut of_outputs, &mut widths] {
        list.sort_unstable();
    }
    for equal in of_outputs.chunk_by(|a, b| a == b) {
        lora.add(equal.len(), products::low_rank(lab, m, equal[0])?);
    }
    for equal in widths.chunk_by(|a, b| a == b) {
        factors.add(equal.len(), products::gradient(lab, m, equal[0])?);
    }
    Ok([lora, factors])
}

/// What a layer's forward pass has beside products and attention.
pub(crate) fn forward_rows(lab: &Lab, model: &Model, m: usize) -> Result<Parts, Error> {
    let mut parts = Parts::default();
    parts.add(2, [rows::rms_norm(lab, m, model.hidden)?]);
    parts.add(1, [rows::rope_norm(lab, m, false)?, rows::rope_norm(lab, m, true)?]);
    parts.add(1, [rows::append(lab, m)?]);
    Ok(parts)
}

/// The same backward; norms' outputs are computed again.
pub(crate) fn backward_rows(lab: &Lab, model: &Model, m: usize) -> Result<Parts, Error> {
    let mut parts = Parts::default();
    parts.add(2, [rows::rms_norm(lab, m, model.hidden)?]);
    parts.add(2, [rows::rms_norm_backward(lab, m, model.hidden)?]);
    for heads in [HEADS, KV_HEADS] {
        parts.add(1, [rows::rope_backward(lab, m, heads)?]);
        parts.add(1, [rows::qk_norm_backward(lab, m * heads)?]);
    }
    // Gradients of the layer's output, of its middle, and of q, k, v, on their way into products.
    parts.add(2, [rows::round(lab, m * model.hidden)?]);
    parts.add(1, [rows::round(lab, m * QUERIES)?]);
    parts.add(2, [rows::round(lab, m * KEYS)?]);
    Ok(parts)
}

/// The head for m rows, a part of the vocabulary at a time: forward, and backward, which computes logits again.
pub(crate) fn head(lab: &Lab, model: &Model, m: usize) -> Result<[Parts; 2], Error> {
    let count = VOCAB.div_ceil(rows::PART);
    let logits = products::nt(lab, [m, rows::PART, model.hidden], 0, false)?;
    let [join, finish, dlogits] = rows::log_prob(lab, m)?;
    let (mut forward, mut backward) = (Parts::default(), Parts::default());
    forward.add(count, [logits.clone(), join]);
    forward.add(1, [finish]);
    let dx = products::nn(lab, [m, model.hidden, rows::PART], 0, true)?;
    backward.add(count, [logits, dlogits, dx]);
    Ok([forward, backward])
}

/// A decoding step of `batch` sequences of `context` tokens, by purpose: a title, and the kernels.
pub(crate) fn decode(
    lab: &Lab,
    model: &Model,
    batch: usize,
    context: usize,
) -> Result<[(&'static str, Parts); 4], Error> {
    let Model { hidden, ffn, .. } = *model;
    let mut weights = Parts::default();
    weights.add(LAYERS, [products::few(lab, [batch, QUERIES, hidden], 1, false)?]);
    weights.add(2 * LAYERS, [products::few(lab, [batch, KEYS, hidden], 1, false)?]);
    weights.add(LAYERS, [products::few(lab, [batch, hidden, QUERIES], 1, true)?]);
    weights.add(LAYERS, [products::few_swiglu(lab, [batch, ffn, hidden])?]);
    weights.add(LAYERS, [products::few(lab, [batch, hidden, ffn], 1, true)?]);
    weights.add(1, [products::few(lab, [batch, VOCAB, hidden], 0, false)?]);
    let mut adapter = Parts::default();
    adapter.add(5 * LAYERS, products::low_rank(lab, batch, hidden)?);
    adapter.add(LAYERS, products::low_rank(lab, batch, QUERIES)?);
    adapter.add(LAYERS, products::low_rank(lab, batch, ffn)?);
    let mut kept = Parts::default();
    kept.add(LAYERS, attention::decode(lab, batch, context)?);
    let mut rest = Parts::default();
    rest.add(1, [rows::embedding(lab, batch, hidden)?]);
    rest.add(2 * LAYERS + 1, [rows::rms_norm(lab, batch, hidden)?]);
    rest.add(LAYERS, [rows::rope_norm(lab, batch, false)?, rows::rope_norm(lab, batch, true)?]);
    rest.add(LAYERS, [rows::append(lab, batch)?]);
    rest.add(1, [rows::sample(lab, batch, VOCAB)?]);
    Ok([("weights", weights), ("adapter", adapter), ("attention", kept), ("rest", rest)])
}

/// A training step of the recipe, in seconds, by what it is spent on.
pub(crate) const PROMPTS: usize = 16;
pub(crate) const GROUP: usize = 2;
pub(crate) const PROMPT: usize = 1200;
pub(crate) const COMPLETION: usize = 650;
/// Keys that a decoding step sees on average (1,525), up to whole partitions.
pub(crate) const CONTEXT: usize = 1536;

pub(crate) fn training_step(lab: &Lab, model: &Model) -> Result<Vec<(&'static str, f64)>, Error> {
    let m = TOKENS;
    let completions = PROMPTS * GROUP;
    // Passes over rows are those over 4,096 of them, in proportion.
    let passes = |rows: usize| rows as f64 / m as f64;
    let prompts = passes(PROMPTS * PROMPT);
    let all = passes(PROMPTS * PROMPT + completions * COMPLETION);
    let completed = passes(completions * COMPLETION);
    let layers = LAYERS as f64;
    // Attention is that of a sequence of 2,048, in proportion to the scores in the lower triangle.
    let of_prompt = PROMPT * PROMPT / 2;
    let of_completion = COMPLETION * PROMPT + COMPLETION * COMPLETION / 2;
    let scores = |trees: usize| trees as f64 / (2048.0 * 2048.0 / 2.0);
    let prompt_scores = scores(PROMPTS * of_prompt);
    let all_scores = scores(PROMPTS * of_prompt + completions * of_completion);

    let rows_seconds = seconds(&forward_rows(lab, model, m)?.0);
    let bare = layers * (seconds(&forward_products(lab, model, m, false)?.0) + rows_seconds);
    let lora = seconds(&low_rank(lab, model, m)?.0);
    let adapted =
        layers * (seconds(&forward_products(lab, model, m, true)?.0) + rows_seconds + lora);
    let attention_seconds = layers * attention::forward(lab, 2048, 128)?.seconds();
    let attention_back: f64 =
        attention::backward(lab, 2048, 128)?.iter().map(Figure::seconds).sum();
    let [dl, factors] = gradients(lab, model, m)?;
    let backward = layers
        * (seconds(&backward_products(lab, model, m)?.0)
            + seconds(&backward_rows(lab, model, m)?.0)
            + seconds(&dl.0)
            + seconds(&factors.0));
    let [head, head_back] = head(lab, model, m)?.map(|parts| seconds(&parts.0));
    let step = decode(lab, model, completions, CONTEXT)?;
    let step: f64 = step.iter().map(|(_, parts)| seconds(&parts.0)).sum();
    let optimizer =
        rows::adamw(lab, model.adapter)?.seconds() + rows::norm(lab, model.adapter)?.seconds();
    Ok(vec![
        ("rollout: prompts", prompts * adapted + prompt_scores * attention_seconds),
        ("rollout: 650 decoding steps of 32", COMPLETION as f64 * step),
        ("reference: forward", all * bare + all_scores * attention_seconds + completed * head),
        ("policy: forward", all * adapted + all_scores * attention_seconds + completed * head),
        (
            "policy: backward",
            all * backward + all_scores * layers * attention_back + completed * head_back,
        ),
        ("AdamW and gradient norm", optimizer),
    ])
}

/// Rank of the adapter, for titles.
pub(crate) const ADAPTER_RANK: usize = RANK;
