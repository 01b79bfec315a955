//! A pass over buffers that are counted instead of held.
//!
//! Every function here mirrors the op of its name, allocation by allocation: what it takes, what its node
//! keeps, when it lets go. `memory/tests.rs` holds the sum to the device's own count, to the byte.

mod buffers;
mod saved;
mod scratch;

use std::{cell::OnceCell, collections::HashMap, rc::Rc};

use kernels::cpu::{
    Rounding,
    attention::{Shape, backward_elements},
};

use super::{PassMemory, Scratch, TrainedModel, TrainedPass};
use crate::{
    adapter::Projection,
    kv_cache::{CacheDtype, PAGE},
    model::training::PackedBatch,
    ops::log_prob::{block_columns, block_rows},
    weights::Dtype,
};
use buffers::{Memory, Slot};
use saved::{Inputs, Recipe, Saved};
use scratch::grow;

type Id = usize;

/// A tensor.
#[derive(Clone)]
pub(super) struct Value {
    slot: Rc<Slot>,
    shape: [usize; 2],
    id: Id,
    requires_grad: bool,
}

enum Node {
    RmsNorm { id: Id, x: Saved },
    Linear { residual: Option<Id>, x: Option<Id>, shape: [usize; 2], update: Option<Update> },
    Rope { x: Id },
    Attention { qkv: [Saved; 3], ids: [Option<Id>; 3], y: Saved, _log_sums: Value },
    Swiglu { _kept: Rc<[Value; 2]>, shape: [usize; 2], ids: [Option<Id>; 2] },
    Checkpoint { x: Value },
    Gather { x: Id },
    LogProb { x: Id, slopes: Value },
}

/// What the low-rank update's backward pass reads.
struct Update {
    a: Id,
    b: Id,
    low: Value,
    x: Saved,
}

/// Recorded ops.
#[derive(Default)]
struct Recorded {
    nodes: Vec<(Id, Node)>,
    recipes: HashMap<Id, Rc<Recipe>>,
}

/// `None` records nothing.
type Tape = Option<Recorded>;

/// How a pass goes through the projections.
#[derive(Clone, Copy)]
struct Pass {
    adapter: bool,
    dropout: bool,
}

pub(super) struct DryRun<'a> {
    model: TrainedModel<'a>,
    memory: Memory,
    scratch: Scratch,
    next_id: Id,
    /// A and the transpose of B of every target, layer by layer.
    factors: Vec<Value>,
    gradients: HashMap<Id, Value>,
    layer: usize,
    tape: Tape,
}

impl<'a> DryRun<'a> {
    pub(super) fn new(model: TrainedModel<'a>) -> DryRun<'a> {
        let mut run = DryRun {
            model,
            memory: Memory::default(),
            scratch: Scratch::default(),
            next_id: 0,
            factors: Vec::new(),
            gradients: HashMap::new(),
            layer: 0,
            tape: None,
        };
        for _ in 0..model.config.num_hidden_layers {
            for projection in Projection::ALL.into_iter().filter(|p| model.targets.contains(p)) {
                let [n, k] = projection.shape(model.config);
                let [a, b] = [run.value(model.rank, k), run.value(model.rank, n)];
                run.factors.extend([a, b]);
            }
        }
        run
    }

    pub(super) fn memory(&self) -> PassMemory {
        let [allocated, buffers] = self.memory.values().map(|values| 4 * values as u64);
        PassMemory { allocated, buffers, logits: 0, scratch: self.scratch }
    }

    /// The forward pass of a training batch; its result, and a tape where it `records`.
    pub(super) fn log_probs(
        &mut self,
        batch: &PackedBatch,
        options: TrainedPass,
        records: bool,
    ) -> Value {
        let config = self.model.config;
        let pass = Pass { adapter: records, dropout: options.dropout && records };
        self.tape = records.then(Recorded::default);
        let mut x = self.value(batch.rows(), config.hidden_size);
        for layer in 0..config.num_hidden_layers {
            self.layer = layer;
            x = if options.checkpoint && records {
                let outer = self.tape.take();
                let mut y = self.packed_layer(x.clone(), batch, pass);
                self.tape = outer;
                self.push(&mut y, Node::Checkpoint { x });
                y
            } else {
                self.packed_layer(x, batch, pass)
            };
        }
        let mut gathered = self.value(batch.targets(), config.hidden_size);
        if self.records(x.requires_grad) {
            self.push(&mut gathered, Node::Gather { x: x.id });
        }
        drop(x);
        let x = self.rms_norm(&gathered);
        drop(gathered);
        self.log_prob(x)
    }

    /// The backward pass behind [`DryRun::log_probs`], whose shadow is `y`.
    pub(super) fn backward(&mut self, y: Value, batch: &PackedBatch, dropout: bool) {
        let dy = self.value(y.shape[0], y.shape[1]);
        let tape = self.tape.take().expect("it was recorded");
        let pass = Pass { adapter: true, dropout };
        self.layer = self.model.config.num_hidden_layers;
        self.backward_from(tape, y.id, dy, batch, pass);
    }

    /// A step of generation: all layers over `rows`, logits of `sequences` of them.
    pub(super) fn generate(&mut self, rows: usize, sequences: usize, length: usize) {
        let config = self.model.config;
        let pass = Pass { adapter: true, dropout: false };
        let mut x = self.value(rows, config.hidden_size);
        for layer in 0..config.num_hidden_layers {
            self.layer = layer;
            x = self.decoder_layer(x, pass, &mut |run, [q, _k, _v]| {
                run.scores(length);
                run.value(q.shape[0], q.shape[1])
            });
        }
        let gathered = self.value(sequences, config.hidden_size);
        let x = self.rms_norm(&gathered);
        let _logits = self.value(sequences, config.vocab_size);
        let (dtype, shape) = (self.model.weights, [sequences, config.vocab_size]);
        self.matmul(shape, x.shape[1], dtype, self.rounding());
    }

    fn value(&mut self, rows: usize, columns: usize) -> Value {
        self.next_id += 1;
        let slot = Rc::new(self.memory.take(rows * columns));
        Value { slot, shape: [rows, columns], id: self.next_id, requires_grad: false }
    }

    fn like(&mut self, x: &Value) -> Value {
        self.value(x.shape[0], x.shape[1])
    }

    /// Its values in bf16.
    fn narrow(&mut self, x: &Value) -> Value {
        let [rows, columns] = x.shape;
        self.value(1, (rows * columns).div_ceil(2))
    }

    fn owned(&mut self, mut x: Value) -> Value {
        if Rc::strong_count(&x.slot) > 1 {
            return self.like(&x);
        }
        self.next_id += 1;
        (x.id, x.requires_grad) = (self.next_id, false);
        x
    }

    fn records(&self, requires_grad: bool) -> bool {
        self.tape.is_some() && requires_grad
    }

    fn push(&mut self, y: &mut Value, node: Node) {
        y.requires_grad = true;
        self.tape.as_mut().expect("it records").nodes.push((y.id, node));
    }

    fn recomputes(&mut self, y: &Value, holds: Inputs) {
        let recipe = Recipe { shape: y.shape, holds, value: OnceCell::new() };
        self.tape.as_mut().expect("it records").recipes.insert(y.id, Rc::new(recipe));
    }

    fn recipe(&self, x: &Value) -> Option<Rc<Recipe>> {
        self.tape.as_ref()?.recipes.get(&x.id).cloned()
    }

    fn save(&self, x: &Value) -> Saved {
        self.recipe(x).map_or_else(|| Saved::Held(x.clone()), Saved::Recomputed)
    }

    fn get(&mut self, saved: &Saved) -> Value {
        match saved {
            Saved::Held(x) => x.clone(),
            Saved::Recomputed(recipe) => {
                if recipe.value.get().is_none()
                    && let Some(x) = recipe.holds.reads()
                {
                    self.get(x);
                }
                let [rows, columns] = recipe.shape;
                recipe.value.get_or_init(|| self.value(rows, columns)).clone()
            }
        }
    }

    /// `x`, in bf16 where products round to it.
    fn rounded(&mut self, x: &Value, rounding: Rounding) -> Saved {
        match rounding {
            Rounding::Bf16 => {
                let holds = Inputs::Narrow { _x: self.narrow(x) };
                let (shape, value) = (x.shape, OnceCell::new());
                Saved::Recomputed(Rc::new(Recipe { shape, holds, value }))
            }
            Rounding::F32 | Rounding::F64Sums => Saved::Held(x.clone()),
        }
    }

    fn add(&mut self, id: Id, dx: Value) {
        let sum = match self.gradients.remove(&id) {
            None => dx,
            Some(there) => self.owned(there),
        };
        self.gradients.insert(id, sum);
    }

    fn packed_layer(&mut self, x: Value, batch: &PackedBatch, pass: Pass) -> Value {
        self.decoder_layer(x, pass, &mut |run, qkv| run.packed_attention(qkv, batch))
    }

    fn decoder_layer(
        &mut self,
        x: Value,
        pass: Pass,
        attend: &mut dyn FnMut(&mut Self, [Value; 3]) -> Value,
    ) -> Value {
        let h = self.rms_norm(&x);
        let qkv = [Projection::Query, Projection::Key, Projection::Value];
        let [mut q, mut k, v] = self.linear_all(&h, qkv, pass);
        drop(h);
        if self.model.config.family.has_qk_norm() {
            q = self.normalized(&q, Rounding::F32);
            k = self.normalized(&k, Rounding::F32);
        }
        q = self.rope(q);
        k = self.rope(k);
        let y = attend(self, [q, k, v]);
        let x = self.linear_add(x, &y, Projection::Output, pass);
        drop(y);

        let h = self.rms_norm(&x);
        let [gate, up] = self.linear_all(&h, [Projection::Gate, Projection::Up], pass);
        drop(h);
        let mut gated = self.like(&gate);
        if self.records(gate.requires_grad || up.requires_grad) {
            let (shape, both) = (gate.shape, [&gate, &up]);
            let ids = both.map(|x| x.requires_grad.then_some(x.id));
            let kept = Rc::new(match self.rounding() {
                Rounding::Bf16 => both.map(|x| self.narrow(x)),
                Rounding::F32 | Rounding::F64Sums => both.map(Clone::clone),
            });
            self.push(&mut gated, Node::Swiglu { _kept: kept.clone(), shape, ids });
            self.recomputes(&gated, Inputs::Swiglu { _kept: kept });
        }
        drop((gate, up));
        self.linear_add(x, &gated, Projection::Down, pass)
    }

    fn rms_norm(&mut self, x: &Value) -> Value {
        self.normalized(x, self.rounding())
    }

    fn normalized(&mut self, x: &Value, rounding: Rounding) -> Value {
        let mut y = self.like(x);
        if self.records(x.requires_grad) {
            let (id, x) = (x.id, self.rounded(x, rounding));
            self.push(&mut y, Node::RmsNorm { id, x: x.clone() });
            self.recomputes(&y, Inputs::RmsNorm { x });
        }
        y
    }

    fn rope(&mut self, x: Value) -> Value {
        let (id, requires_grad, recipe) = (x.id, x.requires_grad, self.recipe(&x));
        let mut y = self.owned(x);
        if self.records(requires_grad) {
            self.push(&mut y, Node::Rope { x: id });
            if let Some(recipe) = recipe {
                self.recomputes(&y, Inputs::Rope { of: recipe });
            }
        }
        y
    }

    fn linear_all<const N: usize>(
        &mut self,
        x: &Value,
        projections: [Projection; N],
        pass: Pass,
    ) -> [Value; N] {
        let ys = projections.map(|projection| {
            let [n, _] = projection.shape(self.model.config);
            self.value(x.shape[0], n)
        });
        self.apply(ys, None, x, projections, pass)
    }

    fn linear_add(
        &mut self,
        residual: Value,
        x: &Value,
        projection: Projection,
        pass: Pass,
    ) -> Value {
        let source = residual.requires_grad.then_some(residual.id);
        let y = self.owned(residual);
        let [y] = self.apply([y], source, x, [projection], pass);
        y
    }

    /// A and B of a projection of the layer under way.
    fn factors(&self, projection: Projection) -> Option<[Id; 2]> {
        let targets = Projection::ALL.into_iter().filter(|p| self.model.targets.contains(p));
        let place = targets.clone().position(|target| target == projection)?;
        let first = 2 * (self.layer * targets.count() + place);
        Some([self.factors[first].id, self.factors[first + 1].id])
    }

    fn apply<const N: usize>(
        &mut self,
        ys: [Value; N],
        residual: Option<Id>,
        x: &Value,
        projections: [Projection; N],
        pass: Pass,
    ) -> [Value; N] {
        let rows = x.shape[0];
        let factors = projections.map(|p| self.factors(p).filter(|_| pass.adapter));
        let lows = factors.map(|factors| {
            let _ = factors?;
            let masked = pass.dropout.then(|| self.like(x));
            let low = self.value(rows, self.model.rank);
            self.matmul([rows, self.model.rank], x.shape[1], Dtype::F32, self.rounding());
            drop(masked);
            Some(low)
        });
        for (projection, factors) in projections.iter().zip(&factors) {
            let [n, k] = projection.shape(self.model.config);
            self.matmul([rows, n], k, self.model.weights, self.rounding());
            if factors.is_some() && self.rounding() == Rounding::F64Sums {
                grow(&mut self.scratch.transposed_f32, 4 * n * self.model.rank);
            }
        }
        let mut parts = projections.into_iter().zip(factors.into_iter().zip(lows));
        ys.map(|mut y| {
            let (projection, (factors, low)) = parts.next().expect("N of each");
            if self.records(residual.is_some() || x.requires_grad || factors.is_some()) {
                let shape = projection.shape(self.model.config);
                let update =
                    factors.zip(low).map(|([a, b], low)| Update { a, b, low, x: self.save(x) });
                let x = x.requires_grad.then_some(x.id);
                self.push(&mut y, Node::Linear { residual, x, shape, update });
            }
            y
        })
    }

    fn packed_attention(&mut self, [q, k, v]: [Value; 3], batch: &PackedBatch) -> Value {
        let recording = self.records(q.requires_grad || k.requires_grad || v.requires_grad);
        let shape = self.attention_shape();
        let mut y = self.like(&q);
        let log_sums = recording.then(|| self.value(q.shape[0], shape.heads));
        let layout = batch.layout();
        let elements = layout.pages() * PAGE * shape.kv_heads * shape.head_dim;
        let len = elements * self.cache_dtype().size_bytes() / size_of::<f32>();
        let pages = [self.value(1, len), self.value(1, len)];
        if layout.copied_rows() > 0 {
            let copied = [&k, &v].map(|x| self.value(layout.copied_rows(), x.shape[1]));
            drop(copied);
        }
        self.scores(layout.longest());
        if let Some(log_sums) = log_sums {
            let ids = [&q, &k, &v].map(|x| x.requires_grad.then_some(x.id));
            let qkv = [&q, &k, &v].map(|x| match self.save(x) {
                Saved::Held(x) => self.rounded(&x, self.rounding()),
                again => again,
            });
            let kept = self.rounded(&y, self.rounding());
            let node = Node::Attention { qkv, ids, y: kept.clone(), _log_sums: log_sums };
            self.push(&mut y, node);
            if let (Saved::Recomputed(recipe), Some(tape)) = (kept, &mut self.tape) {
                tape.recipes.insert(y.id, recipe);
            }
        }
        drop(pages);
        y
    }

    fn log_prob(&mut self, x: Value) -> Value {
        let [rows, k] = x.shape;
        let mut y = self.value(rows, 2);
        let slopes = self.records(x.requires_grad).then(|| self.like(&x));
        self.logits(rows, k, slopes.is_some());
        if let Some(slopes) = slopes {
            self.push(&mut y, Node::LogProb { x: x.id, slopes });
        }
        y
    }

    /// The blocks of logits of the head, each dropped before the next.
    fn logits(&mut self, rows: usize, k: usize, backward: bool) {
        let (vocab, dtype) = (self.model.config.vocab_size, self.model.weights);
        let largest = block_rows(rows);
        for count in [largest, rows % largest.max(1)].into_iter().filter(|count| *count > 0) {
            let width = block_columns(count).min(vocab);
            for columns in [width, vocab % width].into_iter().filter(|columns| *columns > 0) {
                drop(self.value(count, columns));
                self.matmul([count, columns], k, dtype, self.rounding());
                if backward {
                    self.matmul_backward([count, columns], k, dtype, self.rounding());
                }
            }
            if backward {
                drop(self.value(count, k));
            }
        }
    }

    fn backward_from(&mut self, tape: Recorded, y: Id, dy: Value, batch: &PackedBatch, pass: Pass) {
        self.add(y, dy);
        let Recorded { nodes, recipes } = tape;
        drop(recipes);
        for (id, node) in nodes.into_iter().rev() {
            let Some(dy) = self.gradients.remove(&id) else { continue };
            match node {
                Node::RmsNorm { id, x } => {
                    let like = self.get(&x);
                    let dx = self.like(&like);
                    self.add(id, dx);
                }
                Node::Linear { residual, x, shape, update } => {
                    self.linear_backward(dy, residual, x, shape, update, pass);
                }
                Node::Rope { x } => {
                    let dx = self.owned(dy);
                    self.add(x, dx);
                }
                Node::Attention { qkv, ids, y, _log_sums } => {
                    let values = qkv.each_ref().map(|x| self.get(x));
                    self.get(&y);
                    let gradients = values.each_ref().map(|x| self.like(x));
                    let (shape, threads) = (self.attention_shape(), self.model.threads);
                    let rounded = self.cache_dtype() == CacheDtype::Bf16;
                    let trees = batch.layout().trees();
                    let elements =
                        backward_elements(self.model.isa, shape, trees, rounded, threads);
                    grow(&mut self.scratch.rounded_f32, 4 * elements);
                    for (id, dx) in ids.into_iter().zip(gradients) {
                        if let Some(id) = id {
                            self.add(id, dx);
                        }
                    }
                }
                Node::Swiglu { _kept, shape: [rows, n], ids } => {
                    let gradients = [self.value(rows, n), self.value(rows, n)];
                    for (id, dx) in ids.into_iter().zip(gradients) {
                        if let Some(id) = id {
                            self.add(id, dx);
                        }
                    }
                }
                Node::Checkpoint { x } => {
                    self.layer -= 1;
                    self.tape = Some(Recorded::default());
                    let y = self.packed_layer(x, batch, pass).id;
                    let tape = self.tape.take().expect("set above");
                    self.backward_from(tape, y, dy, batch, pass);
                }
                Node::Gather { x } => {
                    let dx = self.value(batch.rows(), dy.shape[1]);
                    self.add(x, dx);
                }
                Node::LogProb { x, slopes } => {
                    let dx = self.owned(slopes);
                    self.add(x, dx);
                }
            }
        }
    }

    fn linear_backward(
        &mut self,
        dy: Value,
        residual: Option<Id>,
        x: Option<Id>,
        [n, k]: [usize; 2],
        update: Option<Update>,
        pass: Pass,
    ) {
        if let Some(residual) = residual {
            self.add(residual, dy.clone());
        }
        let (rows, rank) = (dy.shape[0], self.model.rank);
        let masks = update.is_some() && pass.dropout;
        let kept = update.map(|Update { a, b, low, x }| {
            let dlow = self.value(rows, rank);
            self.matmul([rows, rank], n, Dtype::F32, self.rounding());
            let db = self.value(rank, n);
            self.add(b, db);
            let x = (self.get(&x), x);
            let masked = pass.dropout.then(|| self.like(&x.0));
            let da = self.value(rank, k);
            self.add(a, da);
            drop((masked, low, x));
            dlow
        });
        let Some(x) = x else { return };
        let dx = self.value(rows, k);
        self.matmul_backward([rows, n], k, self.model.weights, self.rounding());
        if masks {
            let part = self.value(rows, k);
            let masked = self.like(&part);
            drop((part, masked));
        }
        drop(kept);
        self.add(x, dx);
    }

    fn attention_shape(&self) -> Shape {
        let config = self.model.config;
        Shape {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        }
    }

    fn rounding(&self) -> Rounding {
        self.model.precision.rounding()
    }

    fn cache_dtype(&self) -> CacheDtype {
        self.model.precision.cache_dtype()
    }
}
