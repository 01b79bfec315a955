//! Gradients of attention.

use super::attention::{MORE_SHAPES, SHAPES};
use super::{Comparisons, all, rounded, values, widened};
use crate::cpu::attention::{self, Cache, CacheMut, PAGE, Saved, Shape, Span, Tree};
use crate::cpu::{Cpu, Isa};
use crate::cuda::{AttentionSaved, Error};
use half::bf16;

/// Gradients in f64, of rounded inputs: dq, dk, dv.
fn exact_gradients(
    [q, k, v, dy]: [&[f32]; 4],
    trees: &[Tree],
    rows: usize,
    shape: Shape,
) -> [Vec<f64>; 3] {
    let Shape { heads, kv_heads, head_dim } = shape;
    let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|x| f64::from(*x)).collect() };
    let [q, k, v, dy] = [q, k, v, dy].map(wide);
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let [mut dq, mut dk, mut dv] =
        [heads, kv_heads, kv_heads].map(|heads| vec![0.0; rows * heads * head_dim]);
    for tree in trees {
        let mut segment = tree.first_row;
        let segments = std::iter::once(tree.prompt).chain(tree.branches.iter().copied());
        for (index, len) in segments.enumerate() {
            let prompt = if index == 0 { 0 } else { tree.prompt };
            for row in segment..segment + len {
                let keys: Vec<usize> =
                    (tree.first_row..tree.first_row + prompt).chain(segment..=row).collect();
                for head in 0..heads {
                    let at = (row * heads + head) * head_dim;
                    let (q, dy) = (&q[at..at + head_dim], &dy[at..at + head_dim]);
                    let place = |j: usize| (j * kv_heads + head / (heads / kv_heads)) * head_dim;
                    let scale = 1.0 / (head_dim as f64).sqrt();
                    let of = |x: &[f64], j: usize| x[place(j)..place(j) + head_dim].to_vec();
                    let scores: Vec<f64> =
                        keys.iter().map(|j| scale * dot(q, &of(&k, *j))).collect();
                    let total: f64 = scores.iter().map(|s| s.exp()).sum();
                    let p: Vec<f64> = scores.iter().map(|s| s.exp() / total).collect();
                    let dp: Vec<f64> = keys.iter().map(|j| dot(dy, &of(&v, *j))).collect();
                    let delta = dot(&p, &dp);
                    for (index, &j) in keys.iter().enumerate() {
                        let ds = p[index] * (dp[index] - delta) * scale;
                        for d in 0..head_dim {
                            dv[place(j) + d] += p[index] * dy[d];
                            dk[place(j) + d] += ds * q[d];
                            dq[at + d] += ds * k[place(j) + d];
                        }
                    }
                }
            }
            segment += len;
        }
    }
    [dq, dk, dv]
}

/// The naive bf16 reference is the CPU's kernel, on the set of instructions that rounds p and ds where this CPU has it;
/// else its f32 kernel's error is far smaller, and the floor is that of rounding p, ds and dy: 2⁻⁸ of the largest
/// gradient.
pub(crate) fn gradients_are_as_good_as_the_references(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    let cpu = Cpu::with_isa(1, Isa::detect());
    for shape in SHAPES.into_iter().chain(MORE_SHAPES) {
        let Shape { heads, kv_heads, head_dim } = shape;
        let trees = [
            Tree { first_row: 1, prompt: 37, branches: vec![5, 0, 70] },
            Tree { first_row: 113, prompt: 1, branches: vec![] },
            Tree { first_row: 114, prompt: 70, branches: vec![1, 33] },
        ];
        let rows = 114 + 104 + 2;
        let of = |seed: u64, heads: usize, scale: f32| -> Vec<f32> {
            values(seed, rows * heads * head_dim).iter().map(|x| x * scale).collect()
        };
        let (q, k) = (of(1, heads, 3.0), of(2, kv_heads, 1.0));
        let (v, dy) = (of(3, kv_heads, 1.0), of(4, heads, 1.0));

        // Forward on the CPU, for y and the log-sums that both backward passes start from.
        let (mut spans, mut tables, mut slots) = (vec![], vec![], vec![]);
        let mut pages = 0u32;
        let (mut more_rows, mut more_slots) = (vec![], vec![]);
        for tree in &trees {
            let mut segment = tree.first_row;
            let segments = std::iter::once(tree.prompt).chain(tree.branches.iter().copied());
            for (index, len) in segments.enumerate() {
                // Every segment has its own copy of the prompt's keys.
                let before = if index == 0 { 0 } else { tree.prompt };
                let table: Vec<u32> = (pages..).take((before + len).div_ceil(PAGE)).collect();
                pages += table.len() as u32;
                let slot = |p: usize| table[p / PAGE] * PAGE as u32 + (p % PAGE) as u32;
                more_rows.extend(tree.first_row..tree.first_row + before);
                more_slots.extend((0..before).map(slot));
                slots.extend((0..len).map(|i| (segment + i, slot(before + i))));
                let start = tables.len();
                tables.extend(&table);
                let table = start..tables.len();
                spans.push(Span { first_row: segment, rows: len, first_position: before, table });
                segment += len;
            }
        }
        slots.extend(more_rows.into_iter().zip(more_slots));
        let gather = |x: &[f32]| -> Vec<f32> {
            let width = kv_heads * head_dim;
            slots.iter().flat_map(|(row, _)| x[row * width..(row + 1) * width].to_vec()).collect()
        };
        let at: Vec<u32> = slots.iter().map(|(_, slot)| *slot).collect();
        let elements = pages as usize * PAGE * kv_heads * head_dim;
        let [mut keys, mut cached] = [(); 2].map(|()| vec![bf16::ZERO; elements]);
        let cache = CacheMut::Bf16 { keys: &mut keys, values: &mut cached };
        attention::append(&cpu, cache, &gather(&k), &gather(&v), &at, shape);
        let mut y = vec![0.0; q.len()];
        let mut log_sums = vec![0.0; rows * heads];
        let cache = Cache::Bf16 { keys: &keys, values: &cached };
        attention::forward(&cpu, &mut y, Some(&mut log_sums), &q, cache, &tables, &spans, shape);

        let mut naive = [&q, &k, &k].map(|x| vec![0.0; x.len()]);
        let [dq, dk, dv] = &mut naive;
        let saved = Saved { q: &q, k: &k, v: &v, y: &y, log_sums: &log_sums, rounded: true };
        attention::backward(&cpu, [dq, dk, dv], &dy, saved, &trees, shape);
        let [qr, kr, vr] = [&q, &k, &v].map(|x| rounded(x));
        let exact = exact_gradients(
            [&widened(&qr), &widened(&kr), &widened(&vr), &dy],
            &trees,
            rows,
            shape,
        );

        let [qr, kr, vr] = all([&qr, &kr, &vr].map(|x| gpu.upload(x)))?;
        let [y, log_sums, dy] = all([&y, &log_sums, &dy].map(|x| gpu.upload(x)))?;
        let mut first: Option<[Vec<f32>; 3]> = None;
        // All ds at a time, again, and a few tiles or blocks of keys at a time.
        for ds_bytes in [1 << 30, 1 << 30, (8 * kv_heads) << 12, 0] {
            let plan = gpu.backward_plan_within(&trees, shape, ds_bytes)?;
            let [mut dq, mut dk, mut dv] = all([&q, &k, &k].map(|x| gpu.zeros(x.len())))?;
            let saved = AttentionSaved { q: &qr, k: &kr, v: &vr, y: &y, log_sums: &log_sums };
            gpu.attention_backward([&mut dq, &mut dk, &mut dv], &dy, saved, &plan)?;
            let got = all([dq, dk, dv].map(|x| gpu.download(&x)))?;
            for ((got, naive), (exact, name)) in
                got.iter().zip(&naive).zip(exact.iter().zip(["dq", "dk", "dv"]))
            {
                let largest = exact.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
                on.close(got, naive, exact, 2f64.powi(-8) * largest, name);
            }
            match &first {
                Some(bits) => {
                    for (got, bits) in got.iter().zip(bits) {
                        on.same_bits(got, bits, "the same bits every time");
                    }
                }
                None => first = Some(got),
            }
        }
    }
    Ok(())
}
