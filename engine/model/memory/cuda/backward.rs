//! The pass backward over the same buffers.

use kernels::cuda_memory::{attention_backward_bytes, gradient_sums};

use super::{
    BF16, F32,
    forward::{CudaRun, Id, Node, Pass, Recorded, Saved, Slot, Update, Value},
};
use crate::{adapter::Projection, model::training::PackedBatch};

impl CudaRun<'_> {
    pub(super) fn backward(&mut self, y: &Value, batch: &PackedBatch, dropout: bool) {
        let dy = self.f32(y.shape[0], y.shape[1]);
        let tape = self.tape.take().expect("it was recorded");
        let pass = Pass { adapter: true, dropout };
        self.backward_from(tape, y.id, dy, batch, pass);
    }

    fn backward_from(&mut self, tape: Recorded, y: Id, dy: Value, batch: &PackedBatch, pass: Pass) {
        self.add(y, dy);
        let Recorded { nodes, recipes } = tape;
        drop(recipes);
        for (id, node) in nodes.into_iter().rev() {
            let Some(dy) = self.gradients.remove(&id) else { continue };
            self.node_backward(node, dy, batch, pass);
        }
    }

    fn node_backward(&mut self, node: Node, dy: Value, batch: &PackedBatch, pass: Pass) {
        match node {
            Node::RmsNorm { x } => {
                let dx = self.f32(x.shape[0], x.shape[1]);
                self.add(x.id, dx);
            }
            Node::Linear { residual, x, shape: [n, k], update } => {
                self.add_residual(residual, &dy);
                let rows = dy.shape[0];
                let _rounded = self.take(rows * n, BF16);
                let adapted = update.is_some();
                let _kept = update.map(|Update { layer, projection, _low, x }| {
                    self.layer = layer;
                    let dlow = self.low_rank_backward(projection, rows, pass, &mut |run| {
                        run.get(&x);
                        None
                    });
                    (dlow, _low, x)
                });
                if let Some(id) = x {
                    let dx = self.f32(rows, k);
                    self.masked(rows, k, adapted && pass.dropout);
                    self.add(id, dx);
                }
            }
            Node::Rope { x } => {
                let turned = self.owned(dy);
                let dx = match self.model.config.family.has_qk_norm() {
                    true => self.f32(x.shape[0], x.shape[1]),
                    false => turned,
                };
                self.add(x.id, dx);
            }
            Node::Attention { qk, ids, _kept } => self.attention_backward(&qk, ids, &dy, batch),
            Node::Mlp { layer, ids, h, lows, gate_up } => {
                self.layer = layer;
                self.mlp_backward(ids, &h, lows, gate_up, dy, pass);
            }
            Node::Checkpoint { layer, x } => {
                self.layer = layer;
                self.tape = Some(Recorded::default());
                let y = self.packed_layer(x, batch, pass).id;
                let tape = self.tape.take().expect("set above");
                self.backward_from(tape, y, dy, batch, pass);
            }
            Node::Gather { x } => {
                let dx = self.f32(batch.rows(), dy.shape[1]);
                self.add(x, dx);
            }
            Node::LogProb { x, saved, _distributions } => {
                let rows = dy.shape[0];
                let dx = self.f32(rows, self.model.config.hidden_size);
                let _x = self.get(&saved);
                let before = self.pool.live.get();
                let columns = self.logits_columns(rows);
                let parts = [self.take(rows * columns, F32), self.take(rows * columns, BF16)];
                self.log_probs = self.log_probs.max(self.pool.live.get() - before);
                drop(parts);
                self.add(x, dx);
            }
        }
    }

    fn add_residual(&mut self, residual: Option<Id>, dy: &Value) {
        if let Some(residual) = residual {
            self.add(residual, dy.clone());
        }
    }

    /// The part of the low-rank path under dropout in a gradient of f32, before and after its mask.
    fn masked(&self, rows: usize, columns: usize, dropout: bool) {
        if dropout {
            drop([self.take(rows * columns, F32), self.take(rows * columns, F32)]);
        }
    }

    /// dl; adds the gradients of B and of A, for which `x` makes what the update multiplied.
    fn low_rank_backward(
        &mut self,
        projection: Projection,
        rows: usize,
        pass: Pass,
        x: &mut dyn FnMut(&mut Self) -> Option<Slot>,
    ) -> Slot {
        let [n, k] = projection.shape(self.model.config);
        let dlow = self.low(rows, n, false);
        self.learn(projection, false, rows, n);
        let _x = x(self);
        let _masked = pass.dropout.then(|| self.take(rows * k, BF16));
        self.learn(projection, true, rows, k);
        dlow
    }

    /// A factor's gradient, added to what is there.
    fn learn(&mut self, projection: Projection, is_a: bool, rows: usize, n: usize) {
        let rank = self.rank();
        let all = self.take(rank * n, F32);
        drop(self.take(gradient_sums(rows, rank, n), F32));
        let own = match rank == self.model.rank {
            true => all,
            false => self.take(self.model.rank * n, F32),
        };
        self.learned.entry((self.layer, projection, is_a)).or_insert(own);
    }

    fn attention_backward(
        &mut self,
        qk: &[Saved; 2],
        ids: [Option<Id>; 3],
        dy: &Value,
        batch: &PackedBatch,
    ) {
        let ([rows, columns], shape) = (dy.shape, self.shape());
        let kv_columns = shape.kv_heads * shape.head_dim;
        let rounded = [(0, columns), (1, kv_columns)].map(|(index, columns)| {
            self.get(&qk[index]);
            self.take(rows * columns, BF16)
        });
        let all = [columns, kv_columns, kv_columns].map(|columns| self.f32(rows, columns));
        let before = self.pool.live.get();
        let ds = attention_backward_bytes(batch.layout().trees(), shape);
        let scratch = [
            self.take(rows * shape.heads * 2, F32),
            self.take(rows * columns, BF16),
            self.take(ds, 1),
        ];
        self.attention = self.attention.max(self.pool.live.get() - before);
        drop((scratch, rounded));
        for (id, dx) in ids.into_iter().zip(all) {
            if let Some(id) = id {
                self.add(id, dx);
            }
        }
    }

    fn mlp_backward(
        &mut self,
        [residual, to_h]: [Option<Id>; 2],
        h: &Saved,
        lows: [Option<Slot>; 3],
        gate_up: [Slot; 2],
        dy: Value,
        pass: Pass,
    ) {
        self.add_residual(residual, &dy);
        let ([rows, k], n) = (dy.shape, self.model.config.intermediate_size);
        let rounded = self.take(rows * k, BF16);
        let adapted = lows.each_ref().map(Option::is_some);
        let dlow = adapted[2].then(|| {
            self.low_rank_backward(Projection::Down, rows, pass, &mut |run| {
                Some(run.take(rows * n, BF16))
            })
        });
        let both = [self.take(rows * n, BF16), self.take(rows * n, BF16)];
        if pass.dropout {
            let _dgated = self.take(rows * n, F32);
            self.masked(rows, n, adapted[2]);
        }
        drop((gate_up, dlow));
        let dlows = [(0, Projection::Gate), (1, Projection::Up)].map(|(index, projection)| {
            adapted[index].then(|| {
                self.low_rank_backward(projection, rows, pass, &mut |run| {
                    run.get(h);
                    None
                })
            })
        });
        let dh = to_h.map(|id| {
            let dh = self.f32(rows, k);
            self.masked(rows, k, pass.dropout && (adapted[0] || adapted[1]));
            (id, dh)
        });
        drop((dlows, both, rounded, lows, dy));
        if let Some((id, dh)) = dh {
            self.add(id, dh);
        }
    }
}
