//! A pass forward over a GPU's buffers, which are counted instead of held.

use std::{
    cell::{Cell, OnceCell},
    collections::HashMap,
    rc::Rc,
};

use kernels::{
    cpu::attention::Shape,
    cuda_memory::{buffer_bytes, logits_columns, low_rank_slices},
};

use super::{BF16, F32, F64, MULTIPROCESSORS, PADDED};
use crate::{
    adapter::Projection,
    kv_cache::PAGE,
    model::{
        memory::{TrainedModel, TrainedPass},
        training::PackedBatch,
    },
};

/// Counts the bytes of buffers that live.
#[derive(Default)]
pub(super) struct Pool {
    pub(super) live: Cell<usize>,
    pub(super) most: Cell<usize>,
}

pub(super) struct Slot {
    pool: Rc<Pool>,
    size: usize,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.live.set(self.pool.live.get() - self.size);
    }
}

pub(super) type Id = usize;

#[derive(Clone)]
pub(super) struct Value {
    slot: Rc<Slot>,
    pub(super) shape: [usize; 2],
    pub(super) id: Id,
    requires_grad: bool,
}

pub(super) enum Saved {
    Held(Value),
    Recomputed(Rc<Recipe>),
}

/// How a value is computed again: from what it holds, with scratch for a moment.
pub(super) struct Recipe {
    shape: [usize; 2],
    element: usize,
    scratch: usize,
    _from: Value,
    value: OnceCell<Value>,
}

pub(super) enum Node {
    RmsNorm {
        x: Value,
    },
    Linear {
        residual: Option<Id>,
        x: Option<Id>,
        shape: [usize; 2],
        update: Option<Update>,
    },
    Rope {
        x: Value,
    },
    Attention {
        qk: [Saved; 2],
        ids: [Option<Id>; 3],
        _kept: [Slot; 3],
    },
    Mlp {
        layer: usize,
        ids: [Option<Id>; 2],
        h: Saved,
        lows: [Option<Slot>; 3],
        gate_up: [Slot; 2],
    },
    Checkpoint {
        layer: usize,
        x: Value,
    },
    Gather {
        x: Id,
    },
    LogProb {
        x: Id,
        saved: Saved,
        _distributions: [Slot; 2],
    },
}

pub(super) struct Update {
    pub(super) layer: usize,
    pub(super) projection: Projection,
    pub(super) _low: Slot,
    pub(super) x: Saved,
}

#[derive(Default)]
pub(super) struct Recorded {
    pub(super) nodes: Vec<(Id, Node)>,
    pub(super) recipes: HashMap<Id, Rc<Recipe>>,
}

/// How a pass goes through the projections.
#[derive(Clone, Copy)]
pub(super) struct Pass {
    pub(super) adapter: bool,
    pub(super) dropout: bool,
}

/// A leaf: layer, projection, and whether it is A.
type Factor = (usize, Projection, bool);

pub(super) struct CudaRun<'a> {
    pub(super) model: TrainedModel<'a>,
    pub(super) pool: Rc<Pool>,
    pub(super) next_id: Id,
    pub(super) gradients: HashMap<Id, Value>,
    /// Gradients of the factors, which stay.
    pub(super) learned: HashMap<Factor, Slot>,
    pub(super) layer: usize,
    pub(super) tape: Option<Recorded>,
    pub(super) log_probs: usize,
    pub(super) attention: usize,
}

impl<'a> CudaRun<'a> {
    pub(super) fn new(model: TrainedModel<'a>) -> CudaRun<'a> {
        CudaRun {
            model,
            pool: Rc::default(),
            next_id: 0,
            gradients: HashMap::new(),
            learned: HashMap::new(),
            layer: 0,
            tape: None,
            log_probs: 0,
            attention: 0,
        }
    }

    pub(super) fn take(&self, elements: usize, element: usize) -> Slot {
        let size = buffer_bytes(elements * element);
        let live = self.pool.live.get() + size;
        self.pool.live.set(live);
        self.pool.most.set(live.max(self.pool.most.get()));
        Slot { pool: self.pool.clone(), size }
    }

    fn of(&mut self, [rows, columns]: [usize; 2], element: usize) -> Value {
        self.next_id += 1;
        let slot = Rc::new(self.take(rows * columns, element));
        Value { slot, shape: [rows, columns], id: self.next_id, requires_grad: false }
    }

    pub(super) fn f32(&mut self, rows: usize, columns: usize) -> Value {
        self.of([rows, columns], F32)
    }

    /// As [`crate::tensor::Tensor::into_owned`].
    pub(super) fn owned(&mut self, mut x: Value) -> Value {
        if Rc::strong_count(&x.slot) > 1 {
            return self.f32(x.shape[0], x.shape[1]);
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

    fn recomputes(&mut self, y: &Value, element: usize, scratch: usize, from: Value) {
        let recipe =
            Recipe { shape: y.shape, element, scratch, _from: from, value: OnceCell::new() };
        self.tape.as_mut().expect("it records").recipes.insert(y.id, Rc::new(recipe));
    }

    fn save(&self, x: &Value) -> Saved {
        let recipe = self.tape.as_ref().and_then(|tape| tape.recipes.get(&x.id));
        recipe.map_or_else(|| Saved::Held(x.clone()), |recipe| Saved::Recomputed(recipe.clone()))
    }

    pub(super) fn get(&mut self, saved: &Saved) -> Value {
        let recipe = match saved {
            Saved::Held(x) => return x.clone(),
            Saved::Recomputed(recipe) => recipe.clone(),
        };
        if let Some(value) = recipe.value.get() {
            return value.clone();
        }
        let value = self.of(recipe.shape, recipe.element);
        if recipe.scratch > 0 {
            drop(self.take(recipe.scratch, F32));
        }
        recipe.value.get_or_init(|| value).clone()
    }

    pub(super) fn add(&mut self, id: Id, dx: Value) {
        let sum = match self.gradients.remove(&id) {
            None => dx,
            Some(there) => self.owned(there),
        };
        self.gradients.insert(id, sum);
    }

    pub(super) fn log_probs(
        &mut self,
        batch: &PackedBatch,
        options: TrainedPass,
        records: bool,
    ) -> Value {
        let config = self.model.config;
        let pass = Pass { adapter: records, dropout: options.dropout && records };
        self.tape = records.then(Recorded::default);
        let mut x = self.f32(batch.rows(), config.hidden_size);
        for layer in 0..config.num_hidden_layers {
            self.layer = layer;
            x = if options.checkpoint && records {
                let outer = self.tape.take();
                let mut y = self.packed_layer(x.clone(), batch, pass);
                self.tape = outer;
                self.push(&mut y, Node::Checkpoint { layer, x });
                y
            } else {
                self.packed_layer(x, batch, pass)
            };
        }
        let mut gathered = self.f32(batch.targets(), config.hidden_size);
        if self.records(x.requires_grad) {
            self.push(&mut gathered, Node::Gather { x: x.id });
        }
        drop(x);
        let x = self.rms_norm(&gathered);
        drop(gathered);
        self.log_prob(&x)
    }

    pub(super) fn generate(&mut self, rows: usize, sequences: usize, length: usize) {
        /// Keys of a partition and query vectors of a warp, as in attention.cu.
        const PARTITION: usize = 512;
        const WARP_VECTORS: usize = 16;
        let (config, shape) = (self.model.config, self.shape());
        let pass = Pass { adapter: true, dropout: false };
        let mut x = self.f32(rows, config.hidden_size);
        for layer in 0..config.num_hidden_layers {
            self.layer = layer;
            x = self.decoder_layer(x, pass, &mut |run, [q, _k, _v]| {
                let y = run.of(q.shape, BF16);
                let len = q.shape[0] * q.shape[1];
                let _rounded = run.take(len, BF16);
                let _waiting = run.take(len, F32);
                let parts = sequences * length.div_ceil(PARTITION) * shape.kv_heads * WARP_VECTORS;
                let _sums = [run.take(parts * shape.head_dim, F32), run.take(parts * 2, F32)];
                y
            });
        }
        let gathered = self.f32(sequences, config.hidden_size);
        drop(x);
        let x = self.rms_norm(&gathered);
        let columns = config.vocab_size.next_multiple_of(PADDED);
        let _logits = self.f32(sequences, columns);
        drop((x, gathered));
        // Gathered where samples of a prompt draw from one row; ids, keys and weights to draw by.
        let _draws = [(); 4].map(|()| self.take(sequences * columns, F32));
    }

    pub(super) fn packed_layer(&mut self, x: Value, batch: &PackedBatch, pass: Pass) -> Value {
        self.decoder_layer(x, pass, &mut |run, qkv| run.packed_attention(qkv, batch))
    }

    fn decoder_layer(
        &mut self,
        x: Value,
        pass: Pass,
        attend: &mut dyn FnMut(&mut Self, [Value; 3]) -> Value,
    ) -> Value {
        let h = self.rms_norm(&x);
        let projections = [Projection::Query, Projection::Key, Projection::Value];
        let ys = projections
            .map(|projection| self.f32(h.shape[0], projection.shape(self.model.config)[0]));
        let [q, k, v] = self.apply(ys, None, &h, projections, pass);
        drop(h);
        let q = self.rope(q);
        let k = self.rope(k);
        let y = attend(self, [q, k, v]);
        let source = x.requires_grad.then_some(x.id);
        let residual = self.owned(x);
        let [x] = self.apply([residual], source, &y, [Projection::Output], pass);
        drop(y);
        let h = self.rms_norm(&x);
        self.mlp(x, h, pass)
    }

    fn rms_norm(&mut self, x: &Value) -> Value {
        let mut y = self.of(x.shape, BF16);
        if self.records(x.requires_grad) {
            self.push(&mut y, Node::RmsNorm { x: x.clone() });
            self.recomputes(&y, BF16, 0, x.clone());
        }
        y
    }

    /// Values that a norm of heads before the rotation takes for a moment, where it is a pass of its own.
    fn normed(&self, x: &Value) -> usize {
        let config = self.model.config;
        match config.head_dim {
            64 | 128 => 0,
            _ if config.family.has_qk_norm() => x.shape[0] * x.shape[1],
            _ => 0,
        }
    }

    fn rope(&mut self, x: Value) -> Value {
        let mut y = self.f32(x.shape[0], x.shape[1]);
        let normed = self.normed(&x);
        if normed > 0 {
            drop(self.take(normed, F32));
        }
        if self.records(x.requires_grad) {
            self.push(&mut y, Node::Rope { x: x.clone() });
            self.recomputes(&y, F32, normed, x);
        }
        y
    }

    fn has(&self, projection: Projection, pass: Pass) -> bool {
        pass.adapter && self.model.targets.contains(&projection)
    }

    pub(super) fn rank(&self) -> usize {
        self.model.rank.next_multiple_of(PADDED)
    }

    /// l, or dl, of `x [rows, n]`; what of x it is taken of exists for a moment where there is dropout.
    pub(super) fn low(&self, rows: usize, n: usize, dropout: bool) -> Slot {
        let rank = self.rank();
        let _masked = dropout.then(|| self.take(rows * n, BF16));
        let slices = low_rank_slices([rows, rank, n], MULTIPROCESSORS);
        let _sums = self.take(slices * rows * 2 * rank, F32);
        self.take(rows * 3 * rank, BF16)
    }

    fn apply<const N: usize>(
        &mut self,
        ys: [Value; N],
        residual: Option<Id>,
        x: &Value,
        projections: [Projection; N],
        pass: Pass,
    ) -> [Value; N] {
        let [rows, k] = x.shape;
        let mut projections = projections.into_iter();
        ys.map(|mut y| {
            let projection = projections.next().expect("N of each");
            let adapted = self.has(projection, pass);
            let low = adapted.then(|| self.low(rows, k, pass.dropout));
            if self.records(residual.is_some() || x.requires_grad || adapted) {
                let shape = projection.shape(self.model.config);
                let layer = self.layer;
                let update = low.map(|_low| Update { layer, projection, _low, x: self.save(x) });
                let x = x.requires_grad.then_some(x.id);
                self.push(&mut y, Node::Linear { residual, x, shape, update });
            }
            y
        })
    }

    fn packed_attention(&mut self, [q, k, v]: [Value; 3], batch: &PackedBatch) -> Value {
        let recording = self.records(q.requires_grad || k.requires_grad || v.requires_grad);
        let (shape, layout) = (self.shape(), batch.layout());
        let (rows, len) = (q.shape[0], q.shape[0] * q.shape[1]);
        let copied = (layout.copied_rows() > 0)
            .then(|| [&k, &v].map(|x| self.take(layout.copied_rows() * x.shape[1], F32)));
        let elements = layout.pages() * PAGE * shape.kv_heads * shape.head_dim;
        let pages = [self.take(elements, BF16), self.take(elements, BF16)];
        let mut y = self.of(q.shape, BF16);
        let exact = recording.then(|| [self.take(len, F32), self.take(rows * shape.heads, F32)]);
        let rounded = self.take(len, BF16);
        if !recording {
            drop(self.take(len, F32));
        }
        drop(rounded);
        let kept = exact.map(|[y, log_sums]| {
            let v = self.take(v.shape[0] * v.shape[1], BF16);
            [v, y, log_sums]
        });
        drop((pages, copied));
        if let Some(_kept) = kept {
            let ids = [&q, &k, &v].map(|x| x.requires_grad.then_some(x.id));
            let qk = [&q, &k].map(|x| self.save(x));
            self.push(&mut y, Node::Attention { qk, ids, _kept });
        }
        y
    }

    fn mlp(&mut self, residual: Value, h: Value, pass: Pass) -> Value {
        let ([rows, k], n) = (h.shape, self.model.config.intermediate_size);
        let (id, grows) = (residual.id, residual.requires_grad);
        let mut y = self.owned(residual);
        let adapted = [Projection::Gate, Projection::Up, Projection::Down]
            .map(|projection| self.has(projection, pass));
        let recorded = self.records(grows || h.requires_grad || adapted.contains(&true));
        let [gate, up] =
            [0, 1].map(|index| adapted[index].then(|| self.low(rows, k, pass.dropout)));
        let gated = self.take(rows * n, BF16);
        let gate_up = recorded.then(|| [self.take(rows * n, F32), self.take(rows * n, F32)]);
        let down = adapted[2].then(|| self.low(rows, n, pass.dropout));
        drop(gated);
        if let Some(gate_up) = gate_up {
            let ids = [grows.then_some(id), h.requires_grad.then_some(h.id)];
            let h = self.save(&h);
            let (layer, lows) = (self.layer, [gate, up, down]);
            self.push(&mut y, Node::Mlp { layer, ids, h, lows, gate_up });
        }
        y
    }

    fn log_prob(&mut self, x: &Value) -> Value {
        let rows = x.shape[0];
        let mut y = self.f32(rows, 2);
        let before = self.pool.live.get();
        let sums = [self.take(rows * 3, F64), self.take(rows, F32)];
        let logits = self.take(rows * self.logits_columns(rows), F32);
        self.log_probs = self.log_probs.max(self.pool.live.get() - before);
        drop(logits);
        let distributions = [self.take(rows * 4, F64), self.take(rows, F32)];
        drop(sums);
        if self.records(x.requires_grad) {
            let saved = self.save(x);
            let node = Node::LogProb { x: x.id, saved, _distributions: distributions };
            self.push(&mut y, node);
        }
        y
    }

    pub(super) fn logits_columns(&self, rows: usize) -> usize {
        logits_columns(rows).min(self.model.config.vocab_size).next_multiple_of(PADDED)
    }

    pub(super) fn shape(&self) -> Shape {
        let config = self.model.config;
        Shape {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        }
    }
}
