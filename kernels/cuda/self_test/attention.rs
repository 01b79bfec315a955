//! Attention over paged keys and values.

use super::{Comparisons, all, rounded, uploaded, values, widened};
use crate::cpu::attention::{PAGE, Shape, Span};
use crate::cuda::{Buffer, Error, Gpu};
use half::bf16;

pub(crate) const SHAPES: [Shape; 2] =
    [Shape { heads: 4, kv_heads: 2, head_dim: 64 }, Shape { heads: 2, kv_heads: 1, head_dim: 128 }];

/// Heads that do not divide a block's vectors, and small ones.
pub(super) const MORE_SHAPES: [Shape; 2] =
    [Shape { heads: 3, kv_heads: 1, head_dim: 16 }, Shape { heads: 5, kv_heads: 5, head_dim: 32 }];

/// What attention gave, in bf16 and in f32, and ln Σ e^s.
pub(crate) struct Attended {
    out: Vec<u16>,
    exact: Vec<f32>,
    log_sums: Vec<f32>,
}

/// Sequences whose pages lie in some order of the cache, with their keys and values appended.
pub(crate) struct Case {
    spans: Vec<Span>,
    tables: Vec<u32>,
    pages: usize,
    q: Vec<f32>,
    keys: Buffer<u16>,
    values: Buffer<u16>,
}

impl Case {
    /// Sequences of `(keys, queries)`: the last `queries` positions ask.
    pub(crate) fn new(
        gpu: &Gpu,
        sequences: &[(usize, usize)],
        shape: Shape,
    ) -> Result<Case, Error> {
        let Shape { heads, kv_heads, head_dim } = shape;
        let (mut spans, mut tables, mut slots, mut rows) = (vec![], vec![], vec![], 0);
        let pages: usize = sequences.iter().map(|(keys, _)| keys.div_ceil(PAGE)).sum();
        // Downward, so that no table is in the order of memory.
        let mut next = pages as u32;
        for &(keys, queries) in sequences {
            let start = tables.len();
            for _ in 0..keys.div_ceil(PAGE) {
                next -= 1;
                tables.push(next);
            }
            let slot = |position: usize| {
                tables[start + position / PAGE] * PAGE as u32 + (position % PAGE) as u32
            };
            slots.extend((0..keys).map(slot));
            let table = start..tables.len();
            spans.push(Span {
                first_row: rows,
                rows: queries,
                first_position: keys - queries,
                table,
            });
            rows += queries;
        }
        let width = kv_heads * head_dim;
        let [k, v] = all([2, 3].map(|seed| gpu.upload(&values(seed, slots.len() * width))))?;
        // Whatever lies behind a sequence's end must not count: NaN would show.
        let nan = vec![0x7fc0u16; pages * PAGE * width];
        let [mut keys, mut cached] = uploaded(gpu, [&nan, &nan])?;
        let slots = gpu.upload(&slots)?;
        gpu.attention_append([&mut keys, &mut cached], [&k, &v], &slots, shape)?;
        let q = values(1, rows * heads * head_dim).iter().map(|q| q * 3.0).collect();
        Ok(Case { spans, tables, pages, q, keys, values: cached })
    }

    pub(crate) fn run(
        &self,
        on: &mut Comparisons<'_>,
        shape: Shape,
        longest: usize,
    ) -> Result<Attended, Error> {
        let gpu = on.gpu;
        let q = gpu.upload(&rounded(&self.q))?;
        let rows = self.q.len() / (shape.heads * shape.head_dim);
        let mut out = gpu.zeros::<u16>(self.q.len())?;
        let mut exact = gpu.zeros::<f32>(self.q.len())?;
        let mut log_sums = gpu.zeros::<f32>(rows * shape.heads)?;
        let plan = gpu.attention_plan(&self.spans, &self.tables, self.pages, shape, longest)?;
        let cache = [&self.keys, &self.values];
        gpu.attention(&mut out, Some([&mut exact, &mut log_sums]), &q, cache, &plan)?;
        let out = gpu.download(&out)?;
        let mut bare = gpu.zeros::<u16>(self.q.len())?;
        gpu.attention(&mut bare, None, &q, cache, &plan)?;
        on.same_rounded(&gpu.download(&bare)?, &out, "the same if nothing is kept");
        Ok(Attended { out, exact: gpu.download(&exact)?, log_sums: gpu.download(&log_sums)? })
    }
}

/// See [`naive`].
struct Naive {
    naive: Vec<f32>,
    exact: Vec<f64>,
    log_sums: Vec<f64>,
}

/// Attention of every row: naively in f32 with probabilities rounded to bf16, and in f64; and ln Σ e^s.
fn naive(gpu: &Gpu, case: &Case, shape: Shape) -> Result<Naive, Error> {
    let Shape { heads, kv_heads, head_dim } = shape;
    let [keys, cached] = all([&case.keys, &case.values].map(|x| gpu.download(x)))?;
    let [keys, cached] = [keys, cached].map(|x| widened(&x));
    let q = widened(&rounded(&case.q));
    let mut naive = vec![0.0; q.len()];
    let mut exact = vec![0.0; q.len()];
    let mut log_sums = vec![0.0; q.len() / head_dim];
    for span in &case.spans {
        for row in 0..span.rows {
            for head in 0..heads {
                let vector = (span.first_row + row) * heads + head;
                let q = &q[vector * head_dim..][..head_dim];
                let place = |j: usize| {
                    let page = case.tables[span.table.start + j / PAGE] as usize;
                    ((page * kv_heads + head / (heads / kv_heads)) * PAGE + j % PAGE) * head_dim
                };
                let seen = 0..span.first_position + row + 1;
                let scores: Vec<f64> = seen
                    .map(|j| {
                        let k = &keys[place(j)..][..head_dim];
                        let dot: f64 =
                            q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                        dot / (head_dim as f64).sqrt()
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = p.iter().sum();
                log_sums[vector] = max + total.ln();
                for d in 0..head_dim {
                    let v = |j: usize| cached[place(j) + d];
                    let at = vector * head_dim + d;
                    exact[at] = (0..p.len()).map(|j| p[j] * f64::from(v(j))).sum::<f64>() / total;
                    let rough = |p: f64| bf16::from_f64(p).to_f32();
                    let sum: f32 = (0..p.len()).map(|j| rough(p[j]) * v(j)).sum();
                    naive[at] = sum / total as f32;
                }
            }
        }
    }
    Ok(Naive { naive, exact, log_sums })
}

pub(crate) fn keys_and_values_go_to_their_slots_and_nowhere_else(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    for shape @ Shape { kv_heads, head_dim, .. } in SHAPES {
        let (pages, slots) = (3, [5u32, 2 * PAGE as u32, PAGE as u32 - 1, 3 * PAGE as u32 - 3]);
        let [k, v] = [2, 3].map(|seed| values(seed, slots.len() * kv_heads * head_dim));
        let mut want = [(); 2].map(|()| vec![0x7fc0u16; pages * kv_heads * PAGE * head_dim]);
        let [mut keys, mut cached] = all(want.each_ref().map(|cache| gpu.upload(cache)))?;
        let [dk, dv] = all([&k, &v].map(|x| gpu.upload(x)))?;
        let both = [&mut keys, &mut cached];
        gpu.attention_append(both, [&dk, &dv], &gpu.upload(&slots)?, shape)?;
        for (want, from) in want.iter_mut().zip([&k, &v]) {
            for (row, slot) in slots.iter().map(|slot| *slot as usize).enumerate() {
                for head in 0..kv_heads {
                    let to = ((slot / PAGE * kv_heads + head) * PAGE + slot % PAGE) * head_dim;
                    let from = &from[(row * kv_heads + head) * head_dim..][..head_dim];
                    want[to..to + head_dim].copy_from_slice(&rounded(from));
                }
            }
        }
        for (got, want) in [&keys, &cached].into_iter().zip(&want) {
            on.same_rounded(&gpu.download(got)?, want, &format!("{shape:?}"));
        }
    }
    Ok(())
}

pub(crate) fn forward_is_as_good_as_the_naive_reference(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    for shape in SHAPES.into_iter().chain(MORE_SHAPES) {
        // The last three: a block of keys that lacks one, a warp whose last row sees one key of a block, three partitions.
        let sequences = [(1, 1), (5, 5), (70, 40), (33, 0), (64, 33), (130, 2), (560, 50)];
        let sequences = [&sequences[..], &[(127, 40), (89, 40), (1100, 20)]].concat();
        let case = Case::new(gpu, &sequences, shape)?;
        let Attended { out, exact: got, log_sums } = case.run(on, shape, 0)?;
        let Naive { naive, exact, log_sums: want } = naive(gpu, &case, shape)?;
        on.close(&got, &naive, &exact, 1e-6, &format!("{shape:?}"));
        on.same_rounded(&out, &rounded(&got), "rounding comes last");
        let errors = log_sums.iter().zip(&want).map(|(got, want)| (f64::from(*got) - want).abs());
        on.within(errors.map(|error| (error, 1e-5)), "log-sums");
    }
    Ok(())
}

pub(crate) fn a_row_has_the_same_bits_in_decoding_as_in_a_prefill(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    for shape in SHAPES.into_iter().chain(MORE_SHAPES) {
        let len = 1060;
        let whole = Case::new(gpu, &[(len, 40)], shape)?;
        let Attended { out, exact: got, log_sums } = whole.run(on, shape, 0)?;
        let width = shape.heads * shape.head_dim;
        // Alone, by two, by more than half a warp has, and by chunks that begin elsewhere; with room for more
        // partitions too.
        for (queries, longest) in [(1, 0), (2, 4096), (7, 0), (17, 0)] {
            let first = len - 40 + 11;
            let table = whole.spans[0].table.clone();
            let spans = [Span { first_row: 0, rows: queries, first_position: first, table }];
            let q = whole.q[11 * width..(11 + queries) * width].to_vec();
            let part = Case {
                spans: spans.to_vec(),
                tables: whole.tables.clone(),
                pages: whole.pages,
                q,
                keys: gpu.upload(&gpu.download(&whole.keys)?)?,
                values: gpu.upload(&gpu.download(&whole.values)?)?,
            };
            let part = part.run(on, shape, longest)?;
            let case = format!("{queries} rows of {shape:?}");
            on.same_bits(&part.exact, &got[11 * width..(11 + queries) * width], &case);
            on.same_rounded(&part.out, &out[11 * width..(11 + queries) * width], &case);
            let heads = shape.heads;
            on.same_bits(&part.log_sums, &log_sums[11 * heads..(11 + queries) * heads], &case);
        }
    }
    Ok(())
}
