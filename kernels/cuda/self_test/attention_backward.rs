//! Gradients of attention.

use super::attention::{MORE_SHAPES, SHAPES};
use super::{Comparisons, all, rounded, values, widened};
use crate::cpu::attention::{
    self, Cache, CacheMut, PAGE, Place, Saved, Segment, Shape, Span, Tree,
};
use crate::cpu::{Cpu, Isa};
use crate::cuda::{AttentionSaved, Error};
use half::bf16;

/// Rows of the keys that a segment sees beside its own.
fn path(tree: &Tree, segment: usize) -> Vec<usize> {
    let places = tree.places();
    let rows = tree.ancestors(segment).into_iter().flat_map(|of| places[of].rows.clone());
    rows.map(|row| tree.first_row + row).collect()
}

/// A segment's queries: the row of each as a key, and its own.
fn queries_of(tree: &Tree, place: &Place) -> impl Iterator<Item = (usize, usize)> {
    let rows = place.rows.end - place.queries.len()..place.rows.end;
    let (row, query) = (tree.first_row, tree.first_query);
    rows.map(move |of| row + of).zip(place.queries.clone().map(move |of| query + of))
}

/// Gradients in f64, of rounded inputs: dq, dk, dv.
fn exact_gradients([q, k, v, dy]: [&[f32]; 4], trees: &[Tree], shape: Shape) -> [Vec<f64>; 3] {
    let Shape { heads, kv_heads, head_dim } = shape;
    let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|x| f64::from(*x)).collect() };
    let [q, k, v, dy] = [q, k, v, dy].map(wide);
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|x| vec![0.0; x.len()]);
    for tree in trees {
        for (index, place) in tree.places().into_iter().enumerate() {
            let before = path(tree, index);
            for (row, query) in queries_of(tree, &place) {
                let own = tree.first_row + place.rows.start..=row;
                let keys: Vec<usize> = before.iter().copied().chain(own).collect();
                for head in 0..heads {
                    let at = (query * heads + head) * head_dim;
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
        let segment = |parent, rows, queries| Segment { parent, rows, queries };
        // A template, two conversations, prompts and completions, as a layer has them whose other rows only serve as keys.
        let last_layer = vec![
            segment(None, 70, 0),
            segment(Some(0), 33, 0),
            segment(Some(1), 5, 1),
            segment(Some(2), 40, 40),
            segment(Some(2), 0, 0),
            segment(Some(1), 64, 1),
            segment(Some(5), 31, 31),
            segment(Some(0), 66, 0),
            segment(Some(7), 1, 1),
        ];
        let trees = [
            Tree::of_prompt(1, 37, &[5, 0, 70]),
            Tree::of_prompt(113, 1, &[]),
            Tree { first_row: 115, first_query: 114, segments: last_layer },
            Tree { first_query: 190, ..Tree::of_prompt(426, 70, &[1, 33]) },
            // Keys that nobody sees.
            Tree { first_row: 531, first_query: 294, segments: vec![segment(None, 3, 0)] },
        ];
        let (rows, queries) = (536, 296);
        let of = |seed: u64, rows: usize, heads: usize, scale: f32| -> Vec<f32> {
            values(seed, rows * heads * head_dim).iter().map(|x| x * scale).collect()
        };
        let (q, k) = (of(1, queries, heads, 3.0), of(2, rows, kv_heads, 1.0));
        let (v, dy) = (of(3, rows, kv_heads, 1.0), of(4, queries, heads, 1.0));

        // Forward on the CPU, for y and the log-sums that both backward passes start from.
        let (mut spans, mut tables, mut slots) = (vec![], vec![], vec![]);
        let mut pages = 0u32;
        for tree in &trees {
            for (index, place) in tree.places().into_iter().enumerate() {
                // Every segment has its own copy of the keys before.
                let before = path(tree, index);
                let all =
                    before.into_iter().chain(place.rows.clone().map(|of| tree.first_row + of));
                let all: Vec<usize> = all.collect();
                let table: Vec<u32> = (pages..).take(all.len().div_ceil(PAGE)).collect();
                pages += table.len() as u32;
                let slot = |p: usize| table[p / PAGE] * PAGE as u32 + (p % PAGE) as u32;
                slots.extend(all.iter().enumerate().map(|(position, row)| (*row, slot(position))));
                let start = tables.len();
                tables.extend(&table);
                spans.push(Span {
                    first_row: tree.first_query + place.queries.start,
                    rows: place.queries.len(),
                    first_position: all.len() - place.queries.len(),
                    table: start..tables.len(),
                });
            }
        }
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
        let mut log_sums = vec![0.0; queries * heads];
        let cache = Cache::Bf16 { keys: &keys, values: &cached };
        attention::forward(&cpu, &mut y, Some(&mut log_sums), &q, cache, &tables, &spans, shape);

        let mut naive = [&q, &k, &k].map(|x| vec![0.0; x.len()]);
        let [dq, dk, dv] = &mut naive;
        let saved = Saved { q: &q, k: &k, v: &v, y: &y, log_sums: &log_sums, rounded: true };
        attention::backward(&cpu, [dq, dk, dv], &dy, saved, &trees, shape);
        let [qr, kr, vr] = [&q, &k, &v].map(|x| rounded(x));
        let exact =
            exact_gradients([&widened(&qr), &widened(&kr), &widened(&vr), &dy], &trees, shape);

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
