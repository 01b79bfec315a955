//! Attention on a GPU: queries, keys and values go through the tensor cores in bf16, and the result is bf16,
//! as the output projection reads it; its f32 form is kept for the backward pass alone.

use std::sync::Arc;

use kernels::{
    cpu::attention::{PAGE, Shape},
    cuda::{AttentionSaved, Buffer},
};

use super::{Layout, Rows};
use crate::{
    model::kv_cache::KvCache,
    ops::gather,
    tensor::{
        Id, Tensor,
        device::{Device, DeviceError},
        tape::{Backward, Gradients, Saved, Tape},
    },
};

pub(super) fn append(
    cache: &mut KvCache,
    layer: usize,
    k: &Tensor,
    v: &Tensor,
    rows: &Rows,
    shape: Shape,
) {
    let Device::Cuda(cuda) = k.device() else { unreachable!("asked before") };
    let slots = cache.pages() * PAGE;
    assert!(rows.slots.iter().all(|&slot| (slot as usize) < slots), "a slot beyond {slots}");
    cuda.run(|gpu| {
        let [keys, values] = cache.on_cuda_mut(layer);
        gpu.attention_append([keys, values], [k.f32(), v.f32()], rows.slots.on(gpu)?, shape)
    });
}

pub(super) fn attention(
    q: &Tensor,
    cache: &KvCache,
    layer: usize,
    rows: &Rows,
    shape: Shape,
) -> Tensor {
    let Device::Cuda(cuda) = q.device() else { unreachable!("asked before") };
    let y = cuda.run(|gpu| {
        let plan = rows
            .plan
            .get_or_make(|| gpu.attention_plan(rows.spans, rows.tables, cache.pages(), shape, 0))?;
        let mut y = gpu.uninitialized(q.len())?;
        gpu.attention(&mut y, None, &*q.bf16()?, cache.on_cuda(layer), plan)?;
        Ok(y)
    });
    Tensor::cuda_bf16(cuda, q.shape(), y)
}

/// What the backward pass reads.
struct Kept {
    v: Arc<Buffer<u16>>,
    y: Buffer<f32>,
    log_sums: Buffer<f32>,
}

pub(super) fn packed_attention<'m>(
    tape: &mut Tape<'m>,
    [q, k, v]: [Tensor; 3],
    layout: &'m Layout,
    shape: Shape,
) -> Tensor {
    let device = q.device().clone();
    let Device::Cuda(cuda) = &device else { unreachable!("asked before") };
    let recording = tape.records(q.requires_grad() || k.requires_grad() || v.requires_grad());
    let copied = (!layout.copied_rows.is_empty())
        .then(|| [&k, &v].map(|x| gather::forward(x, &layout.copied_rows)));
    let outcome = cuda.run(|gpu| {
        let len = layout.pages() * shape.kv_heads * PAGE * shape.head_dim;
        let [mut keys, mut values] = [gpu.uninitialized(len)?, gpu.uninitialized(len)?];
        let mut append = |rows: [&Tensor; 2], slots| {
            gpu.attention_append([&mut keys, &mut values], rows.map(Tensor::f32), slots, shape)
        };
        append([&k, &v], layout.slots.on(gpu)?)?;
        if let Some([k, v]) = &copied {
            append([k, v], layout.copied_slots.on(gpu)?)?;
        }
        let plan = layout.plan.get_or_make(|| {
            gpu.attention_plan(&layout.spans, &layout.tables, layout.pages(), shape, 0)
        })?;
        let mut y = gpu.uninitialized(q.len())?;
        let mut kept = None;
        if recording {
            kept =
                Some([gpu.uninitialized(q.len())?, gpu.uninitialized(layout.rows * shape.heads)?]);
        }
        let exact = kept.as_mut().map(|[y, log_sums]| [y, log_sums]);
        gpu.attention(&mut y, exact, &*q.bf16()?, [&keys, &values], plan)?;
        let kept = match kept {
            Some([y, log_sums]) => Some(Kept { v: v.bf16()?, y, log_sums }),
            None => None,
        };
        Ok((y, kept))
    });
    let (y, kept) = outcome.unzip();
    let mut y = Tensor::cuda_bf16(cuda, q.shape(), y);
    if recording {
        let ids = [&q, &k, &v].map(|x| x.requires_grad().then_some(x.id()));
        let [q, k] = [&q, &k].map(|x| tape.save(x));
        let node = AttentionOnCuda { q, k, ids, kept: kept.flatten(), layout, shape };
        tape.push(&mut y, node);
    }
    y
}

struct AttentionOnCuda<'m> {
    q: Saved<'m>,
    k: Saved<'m>,
    /// Of those whose gradient is wanted.
    ids: [Option<Id>; 3],
    /// `None` where the device has failed.
    kept: Option<Kept>,
    layout: &'m Layout,
    shape: Shape,
}

impl Backward for AttentionOnCuda<'_> {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let AttentionOnCuda { q, k, ids, kept, layout, shape } = *self;
        let Device::Cuda(cuda) = dy.device() else { unreachable!("recorded on a GPU") };
        let [rows, columns] = dy.shape();
        let kv_columns = shape.kv_heads * shape.head_dim;
        let outcome = cuda.run(|gpu| -> Result<[Buffer<f32>; 3], DeviceError> {
            let Kept { v, y, log_sums } = kept.expect("the device works");
            let plan =
                layout.backward_plan.get_or_make(|| gpu.backward_plan(&layout.trees, shape))?;
            let [q, k] = [q.get().bf16()?, k.get().bf16()?];
            let [mut dq, mut dk, mut dv] = [
                gpu.uninitialized(rows * columns)?,
                gpu.uninitialized(rows * kv_columns)?,
                gpu.uninitialized(rows * kv_columns)?,
            ];
            let saved = AttentionSaved { q: &q, k: &k, v: &v, y: &y, log_sums: &log_sums };
            let all = [&mut dq, &mut dk, &mut dv];
            gpu.attention_backward(all, dy.f32(), saved, plan)?;
            Ok([dq, dk, dv])
        });
        let all = match outcome {
            Some(all) => all.map(Some),
            None => [None, None, None],
        };
        for ((id, dx), columns) in ids.into_iter().zip(all).zip([columns, kv_columns, kv_columns]) {
            if let Some(id) = id {
                gradients.add(id, Tensor::cuda(cuda, [rows, columns], dx));
            }
        }
    }
}
