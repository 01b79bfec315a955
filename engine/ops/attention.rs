//! Causal grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245) over paged keys and
//! values. For the query of head `h` at position `p`, with the keys and values of kv head `g(h)`:
//!
//! ```text
//! y  = Σ_j p_j·v_j              p = softmax_j(q·k_j / sqrt(head_dim)),  j = 0..=p
//! ds = p·(dy·v − dy·y) / sqrt(head_dim)
//! dq = Σ_j ds·k    dk = Σ ds·q    dv = Σ p·dy        (sums over the queries that see j)
//! ```
//!
//! The order of every sum depends on `p` alone, so a row has the same bits in a prefill, in a
//! chunk of one, in decoding, and in training, where keys and values lie in pages as well while a
//! layer is computed.

use half::bf16;
use kernels::{
    cpu::{
        ComputeDtype, Cpu,
        attention::{self, Cache, CacheMut, PAGE, Shape, Span},
    },
    cuda::{AttentionPlan, AttentionSaved},
};

mod layout;

use crate::{
    model::kv_cache::{CacheDtype, KvCache},
    tensor::{
        Id, Tensor,
        device::{CudaDevice, Device, DeviceCell, Mirrored},
        tape::{Backward, Gradients, Saved, Tape},
    },
};
pub(crate) use layout::{Layout, Queries};

/// The sequences and positions of the rows of a step.
pub(crate) struct Rows<'a> {
    /// Runs of consecutive positions of one sequence.
    pub(crate) spans: &'a [Span],
    /// Page tables of all spans, one after the other.
    pub(crate) tables: &'a [u32],
    /// Where each row's keys and values go: page·PAGE + place in the page.
    pub(crate) slots: &'a Mirrored<u32>,
    /// The same in the form that a GPU's kernels take.
    pub(crate) plan: &'a DeviceCell<AttentionPlan>,
}

/// Writes the rows' keys and values (`[rows, kv_heads·head_dim]`) into the cache.
pub(crate) fn append(
    cache: &mut KvCache,
    layer: usize,
    k: &Tensor,
    v: &Tensor,
    rows: &Rows,
    shape: Shape,
) {
    let slots = rows.slots;
    match k.device() {
        Device::Cpu(device) => {
            let kv = cache.layer_mut(layer);
            attention::append(device.cpu(), kv, k.data(), v.data(), slots, shape);
        }
        Device::Cuda(cuda) => {
            let room = cache.pages() * PAGE;
            assert!(slots.iter().all(|&slot| (slot as usize) < room), "a slot beyond {room}");
            cuda.queue(|gpu| {
                let kv = cache.on_cuda_mut(layer);
                gpu.attention_append(kv, [k.f32(), v.f32()], slots.on(gpu)?, shape)
            });
        }
    }
}

/// Attends from each row of `q` (`[rows, heads·head_dim]`) to its sequence up to its own position.
pub(crate) fn attention(
    q: &Tensor,
    cache: &KvCache,
    layer: usize,
    rows: &Rows,
    shape: Shape,
) -> Tensor {
    let ([n, columns], Rows { spans, tables, plan, .. }) = (q.shape(), rows);
    let mut y = Tensor::uninitialized_for_matmul(q.device(), n, columns);
    match q.device() {
        Device::Cpu(device) => {
            let (cpu, kv) = (device.cpu(), cache.layer(layer));
            attention::forward(cpu, y.data_mut(), None, q.data(), kv, tables, spans, shape);
        }
        Device::Cuda(cuda) => {
            let q = q.for_matmul();
            cuda.queue(|gpu| {
                let make = || gpu.attention_plan(spans, tables, cache.pages(), shape, 0);
                let plan = plan.get_or_make(make)?;
                gpu.attention(y.bf16_mut(), None, q.bf16(), cache.on_cuda(layer), plan)
            });
        }
    }
    y
}

/// Attention of a training batch: `q [rows, heads·head_dim]`, `k` and `v [rows, kv_heads·head_dim]`,
/// keys and values rounded to `dtype` as the cache would (on a GPU to bf16). q has all rows or, if so `wanted`, those
/// whose results are.
pub(crate) fn packed_attention<'m>(
    tape: &mut Tape<'m>,
    [q, k, v]: [Tensor; 3],
    layout: &'m Layout,
    wanted: bool,
    dtype: CacheDtype,
    shape: Shape,
) -> Tensor {
    let [n, columns] = q.shape();
    let queries = layout.queries(wanted);
    assert_eq!(n, queries.rows(), "attention: q is {:?}", q.shape());
    assert_eq!(k.shape()[0], layout.rows(), "attention: k is {:?}", k.shape());
    let recorded = tape.records(q.requires_grad() || k.requires_grad() || v.requires_grad());
    let device = q.device().clone();
    let mut y = Tensor::uninitialized_for_matmul(&device, n, columns);
    let mut log_sums = recorded.then(|| Tensor::uninitialized(&device, n, shape.heads));
    // q, k, v and y, saved for the backward pass.
    let mut saved = None;
    match &device {
        Device::Cpu(device) => {
            let log_sums = log_sums.as_mut().map(Tensor::data_mut);
            let kv = (layout, dtype);
            on_cpu(device.cpu(), y.data_mut(), log_sums, [&q, &k, &v], queries, kv, shape);
            if recorded {
                // They are read rounded, as the forward pass did.
                let compute =
                    if dtype == CacheDtype::Bf16 { ComputeDtype::Bf16 } else { ComputeDtype::F32 };
                let qkv = [&q, &k, &v].map(|x| match tape.save(x) {
                    Saved::Held(x) => Saved::rounded(&x, compute),
                    again => again,
                });
                // As the matmul that reads y rounds it; LoRA's backward pass reads the same.
                let y = Saved::rounded(&y, compute);
                saved = Some((qkv, y));
            }
        }
        Device::Cuda(cuda) => {
            let mut exact = recorded.then(|| Tensor::uninitialized(q.device(), n, columns));
            on_cuda(
                cuda,
                &mut y,
                exact.as_mut().zip(log_sums.as_mut()),
                [&q, &k, &v],
                (layout, queries),
                shape,
            );
            if let Some(y) = exact {
                let v = Saved::Held(v.for_matmul());
                saved = Some(([tape.save(&q), tape.save(&k), v], Saved::Held(y)));
            }
        }
    }
    if let Some(((qkv, kept), log_sums)) = saved.zip(log_sums) {
        // The node's own handle on y is taken before y becomes a value of the tape.
        let ids = [&q, &k, &v].map(|x| x.requires_grad().then_some(x.id()));
        let node = Attention { qkv, ids, y: kept.clone(), log_sums, queries, dtype, shape };
        tape.push(&mut y, node);
        tape.shares(&y, &kept);
    }
    y
}

/// The CPU's pass: keys and values lie in pages while it runs.
fn on_cpu(
    cpu: &Cpu,
    y: &mut [f32],
    log_sums: Option<&mut [f32]>,
    [q, k, v]: [&Tensor; 3],
    queries: &Queries,
    (layout, dtype): (&Layout, CacheDtype),
    shape: Shape,
) {
    let elements = layout.pages() * PAGE * shape.kv_heads * shape.head_dim;
    let len = elements * dtype.size_bytes() / size_of::<f32>();
    let [mut keys, mut values] = [(); 2].map(|()| Tensor::uninitialized(q.device(), 1, len));
    let mut write = |k: &Tensor, v: &Tensor, slots: &[u32]| {
        let cache = match dtype {
            CacheDtype::Bf16 => CacheMut::Bf16 {
                keys: bytemuck::cast_slice_mut::<f32, bf16>(keys.data_mut()),
                values: bytemuck::cast_slice_mut::<f32, bf16>(values.data_mut()),
            },
            CacheDtype::F32 => CacheMut::F32 { keys: keys.data_mut(), values: values.data_mut() },
        };
        attention::append(cpu, cache, k.data(), v.data(), slots, shape);
    };
    write(k, v, layout.slots());
    if let Some(([k, v], slots)) = layout.copied([k, v]) {
        write(&k, &v, slots);
    }
    let cache = match dtype {
        CacheDtype::Bf16 => Cache::Bf16 {
            keys: bytemuck::cast_slice(keys.data()),
            values: bytemuck::cast_slice(values.data()),
        },
        CacheDtype::F32 => Cache::F32 { keys: keys.data(), values: values.data() },
    };
    let (tables, spans) = (layout.tables(), queries.spans());
    attention::forward(cpu, y, log_sums, q.data(), cache, tables, spans, shape);
}

/// The GPU's pass: queries, keys and values go through the tensor cores in bf16, and y is bf16, as the output projection
/// reads it. `exact` takes y in f32 and the logarithms of softmax's sums.
fn on_cuda(
    cuda: &CudaDevice,
    y: &mut Tensor,
    exact: Option<(&mut Tensor, &mut Tensor)>,
    [q, k, v]: [&Tensor; 3],
    (layout, queries): (&Layout, &Queries),
    shape: Shape,
) {
    let (copied, q) = (layout.copied([k, v]), q.for_matmul());
    cuda.queue(|gpu| {
        let len = layout.pages() * PAGE * shape.kv_heads * shape.head_dim;
        let [mut keys, mut values] = [gpu.uninitialized(len)?, gpu.uninitialized(len)?];
        let mut append = |rows: [&Tensor; 2], slots| {
            gpu.attention_append([&mut keys, &mut values], rows.map(Tensor::f32), slots, shape)
        };
        append([k, v], layout.slots().on(gpu)?)?;
        if let Some(([k, v], slots)) = &copied {
            append([k, v], slots.on(gpu)?)?;
        }
        let (spans, tables) = (queries.spans(), layout.tables());
        let make = || gpu.attention_plan(spans, tables, layout.pages(), shape, 0);
        let plan = queries.plan().get_or_make(make)?;
        let exact = exact.map(|(y, log_sums)| [y.f32_mut(), log_sums.f32_mut()]);
        gpu.attention(y.bf16_mut(), exact, q.bf16(), [&keys, &values], plan)
    });
}

struct Attention<'m> {
    qkv: [Saved<'m>; 3],
    /// The inputs whose gradient is wanted.
    ids: [Option<Id>; 3],
    y: Saved<'m>,
    /// `[queries, heads]`.
    log_sums: Tensor,
    queries: &'m Queries,
    dtype: CacheDtype,
    shape: Shape,
}

impl Backward for Attention<'_> {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let Attention { qkv, ids, y, log_sums, queries, dtype, shape } = *self;
        let [q, k, v] = qkv.each_ref().map(Saved::get);
        let y = y.get();
        let like = |x: &Tensor| Tensor::uninitialized(x.device(), x.shape()[0], x.shape()[1]);
        let [mut dq, mut dk, mut dv] = [q, k, v].map(like);
        match dy.device() {
            Device::Cpu(device) => {
                let saved = attention::Saved {
                    q: q.data(),
                    k: k.data(),
                    v: v.data(),
                    y: y.data(),
                    log_sums: log_sums.data(),
                    rounded: dtype == CacheDtype::Bf16,
                };
                let all = [dq.data_mut(), dk.data_mut(), dv.data_mut()];
                attention::backward(device.cpu(), all, dy.data(), saved, queries.trees(), shape);
            }
            Device::Cuda(cuda) => {
                let [q, k] = [q, k].map(Tensor::for_matmul);
                cuda.queue(|gpu| {
                    let make = || gpu.backward_plan(queries.trees(), shape);
                    let plan = queries.backward_plan().get_or_make(make)?;
                    let saved = AttentionSaved {
                        q: q.bf16(),
                        k: k.bf16(),
                        v: v.bf16(),
                        y: y.f32(),
                        log_sums: log_sums.f32(),
                    };
                    let all = [dq.f32_mut(), dk.f32_mut(), dv.f32_mut()];
                    gpu.attention_backward(all, dy.f32(), saved, plan)
                });
            }
        }
        for (id, dx) in ids.into_iter().zip([dq, dk, dv]) {
            if let Some(id) = id {
                gradients.add(id, dx);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ops::gather,
        tensor::{
            Bf16Tensor,
            check_gradient::{check_gradient, values},
        },
    };

    /// Of prompts: how much of the one before they share, their length, and those of their completions.
    fn layout(sequences: &[(usize, usize, &[usize])]) -> Layout {
        let mut layout = Layout::default();
        for (shared, prompt, completions) in sequences {
            layout.push(*shared, *prompt, completions);
        }
        layout
    }

    fn batches() -> [Layout; 2] {
        [
            layout(&[(0, 3, &[2, 0, 4]), (0, 5, &[]), (0, PAGE + 1, &[1, 2])]),
            layout(&[(0, PAGE + 3, &[2, 1]), (PAGE + 1, PAGE + 2, &[3]), (4, 9, &[1])]),
        ]
    }

    #[test]
    fn gradient() {
        let shape = Shape { heads: 4, kv_heads: 2, head_dim: 5 };
        let f32 = CacheDtype::F32;
        for (layout, wanted) in batches().iter().flat_map(|of| [(of, false), (of, true)]) {
            let (rows, queries) = (layout.rows(), layout.queries(wanted).rows());
            let q = values(1, [queries, 20]);
            let [k, v] = [2, 3].map(|seed| values(seed, [rows, 10]));
            check_gradient([queries, 20], |tape, q| {
                let qkv = [q.clone(), k.clone(), v.clone()];
                packed_attention(tape, qkv, layout, wanted, f32, shape)
            });
            check_gradient([rows, 10], |tape, k| {
                let qkv = [q.clone(), k.clone(), v.clone()];
                packed_attention(tape, qkv, layout, wanted, f32, shape)
            });
            check_gradient([rows, 10], |tape, v| {
                let qkv = [q.clone(), k.clone(), v.clone()];
                packed_attention(tape, qkv, layout, wanted, f32, shape)
            });
        }
    }

    /// ComputeDtype y moves each of its values by at most 2⁻⁹, and D = dy·y by as much of |dy|·|y|.
    #[test]
    fn what_is_kept_in_bf16_gives_gradients_near_those_in_f32() {
        let shape = Shape { heads: 4, kv_heads: 2, head_dim: 16 };
        let layout = layout(&[(0, 3, &[2, 0, 4]), (0, PAGE + 1, &[1, 2])]);
        let rows = layout.rows();
        let run = |dtype| {
            let qkv = [(1, 64), (2, 32), (3, 32)].map(|(seed, n)| {
                let mut x = Bf16Tensor::of(&values(seed, [rows, n])).widened();
                x.set_requires_grad(true);
                x
            });
            let mut tape = Tape::new();
            let y = packed_attention(&mut tape, qkv.clone(), &layout, false, dtype, shape);
            let kept = tape.save(&y);
            let mut gradients = Gradients::default();
            tape.backward(&y, values(4, [rows, 64]), &mut gradients);
            let all = qkv.each_ref().map(|x| gradients.get(x).unwrap().data().to_vec());
            (y.data().to_vec(), kept.get().data().to_vec(), all)
        };
        let (y, kept, got) = run(CacheDtype::Bf16);
        let rounded: Vec<f32> = y.iter().map(|y| bf16::from_f32(*y).to_f32()).collect();
        assert_eq!(kept, rounded);
        assert_ne!(kept, y);
        let (y, kept, want) = run(CacheDtype::F32);
        assert_eq!(kept, y);
        for (got, want) in got.iter().zip(&want) {
            let largest = want.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() <= largest / 128.0, "{got} {want} of {largest}");
            }
        }
    }

    #[test]
    fn a_completion_sees_its_prompt_and_itself_with_the_same_bits_as_alone() {
        let shape = Shape { heads: 2, kv_heads: 1, head_dim: 8 };
        let run = |qkv, layout: &Layout, wanted, dtype| {
            packed_attention(&mut Tape::off(), qkv, layout, wanted, dtype, shape)
        };
        let rows_of = |rows: &mut dyn Iterator<Item = usize>| {
            Mirrored::from(rows.map(|row| row as u32).collect::<Vec<_>>())
        };
        for prompt in [2, PAGE - 1, PAGE, PAGE + 7] {
            // A completion of the first prompt, and one of the second, which shares all but a token with the first.
            let packed = layout(&[(0, prompt, &[5, 0, PAGE + 3, 1]), (prompt - 1, prompt, &[6])]);
            let first = prompt + PAGE + 9;
            let paths = [
                ((0..prompt).chain(prompt + 5..prompt + PAGE + 8), PAGE + 3),
                ((0..prompt - 1).chain(first..first + 7), 6),
            ];
            for dtype in [CacheDtype::F32, CacheDtype::Bf16] {
                let rows = packed.rows();
                let [q, k, v] = [(4, 16), (5, 8), (6, 8)].map(|(s, n)| values(s, [rows, n]));
                let y = run([q.clone(), k.clone(), v.clone()], &packed, false, dtype);
                for (mut path, completion) in paths.clone() {
                    let path = rows_of(&mut path);
                    let alone = layout(&[(0, prompt + completion, &[])]);
                    let own = [&q, &k, &v].map(|x| gather::forward(x, &path));
                    let want = run(own, &alone, false, dtype);
                    assert_eq!(
                        gather::forward(&y, &path).data(),
                        want.data(),
                        "{prompt} {dtype:?}"
                    );
                }
                // What is wanted is the same where only that is computed.
                let completions = (prompt - 1..first).chain(first..rows);
                let wanted = rows_of(&mut completions.into_iter());
                assert_eq!(wanted.len(), packed.queries(true).rows());
                let some = run([gather::forward(&q, &wanted), k, v], &packed, true, dtype);
                assert_eq!(some.data(), gather::forward(&y, &wanted).data(), "{prompt} {dtype:?}");
            }
        }
    }
}
