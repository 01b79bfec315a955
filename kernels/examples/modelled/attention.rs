//! Attention at head_dim d, 128 as in Qwen3 or 64. The rule: over a whole causal sequence counts are a polynomial of second degree in
//! its length, by partitions of 512 keys forward and by 256 rows backward, and kv heads do the same work. Runs have one
//! kv head of two query heads, as Qwen3 has. Decoding: counts are a line over sequences of equal length.

use kernels::cpu::attention::{PAGE, Shape, Span, Tree};
use kernels::cuda::{AttentionSaved, Error};

use super::counts::{Figure, Lab, scaled};

const D: usize = 128;
const GROUP: usize = 2;
pub(crate) const KV_HEADS: usize = 8;
pub(crate) const HEADS: usize = KV_HEADS * GROUP;

fn one(d: usize) -> Shape {
    Shape { heads: GROUP, kv_heads: 1, head_dim: d }
}

/// Multiply-adds of one product over the lower triangle: half of rows x rows, as FlashAttention counts.
fn triangle(rows: usize, d: usize) -> usize {
    rows * rows / 2 * d * HEADS
}

/// Forward over one sequence of `rows`, result in bf16 and f32, log-sums kept.
pub(crate) fn forward(lab: &Lab, rows: usize, d: usize) -> Result<Figure, Error> {
    let kernel = &format!("attention_rows_{d}");
    let runs = lab.runs(kernel.clone(), 2, 512, 512, |rows| {
        let tables: Vec<u32> = (0..(rows / PAGE) as u32).collect();
        let table = 0..tables.len();
        let spans = [Span { first_row: 0, rows, first_position: 0, table }];
        let plan = lab.gpu.attention_plan(&spans, &tables, tables.len(), one(d), 0)?;
        let q = lab.halves(rows * GROUP * d)?;
        let [keys, values] = [lab.halves(rows * d)?, lab.halves(rows * d)?];
        let mut out = lab.halves(rows * GROUP * d)?;
        let [mut exact, mut log_sums] = [lab.floats(rows * GROUP * d)?, lab.floats(rows * GROUP)?];
        lab.count(|gpu| {
            let kept = Some([&mut exact, &mut log_sums]);
            gpu.attention(&mut out, kept, &q, [&keys, &values], &plan)
        })
    })?;
    let counters = runs.at(kernel, rows);
    let counters = scaled(&counters, counters.blocks as usize * KV_HEADS);
    let fewest = rows * d * (HEADS * (2 + 2 + 4) + KV_HEADS * 4) + rows * HEADS * 4;
    Ok(Figure::new(format!("t{rows}"), counters, fewest, 2 * triangle(rows, d)))
}

/// Backward over one sequence of `rows`: deltas, the keys' gradients, the queries'.
pub(crate) fn backward(lab: &Lab, rows: usize, d: usize) -> Result<[Figure; 3], Error> {
    let runs = lab.runs(format!("attention_backward_{d}"), 2, 256, 256, |rows| {
        let tree = Tree::of_prompt(0, rows, &[]);
        let plan = lab.gpu.backward_plan(&[tree], one(d))?;
        let wide = rows * GROUP * d;
        let [q, k, v] = [lab.halves(wide)?, lab.halves(rows * d)?, lab.halves(rows * d)?];
        let [y, dy, log_sums] = [lab.floats(wide)?, lab.floats(wide)?, lab.floats(rows * GROUP)?];
        let [mut dq, mut dk, mut dv] =
            [lab.floats(wide)?, lab.floats(rows * d)?, lab.floats(rows * d)?];
        let saved = AttentionSaved { q: &q, k: &k, v: &v, y: &y, log_sums: &log_sums };
        lab.count(|gpu| gpu.attention_backward([&mut dq, &mut dk, &mut dv], &dy, saved, &plan))
    })?;
    let figure = |kernel: &str, fewest: usize, products: usize| {
        let counters = runs.at(&format!("attention_backward_{kernel}_{d}"), rows);
        let counters = scaled(&counters, counters.blocks as usize * KV_HEADS);
        Figure::new(format!("t{rows}"), counters, fewest, products)
    };
    let (wide, narrow, numbers) = (rows * HEADS * d, rows * KV_HEADS * d, rows * HEADS * 4);
    let deltas = figure("deltas", wide * 10 + 3 * numbers, 0);
    // ds passes from one to the other through memory: no input and no result.
    let both = wide * 4 + narrow * 4 + 2 * numbers;
    let keys = figure("keys", both + narrow * 8, 4 * triangle(rows, d));
    let queries = figure("queries", both + wide * 4, triangle(rows, d));
    Ok([deltas, keys, queries])
}

/// One query of each of `batch` sequences of `context` keys: the partitions, and their joining.
pub(crate) fn decode(lab: &Lab, batch: usize, context: usize) -> Result<[Figure; 2], Error> {
    let shape = Shape { heads: HEADS, kv_heads: KV_HEADS, head_dim: D };
    let runs = lab.runs(format!("attention_part_128, {context} keys"), 1, 1, 1, |batch| {
        let pages = context / PAGE;
        let tables: Vec<u32> = (0..(batch * pages) as u32).collect();
        let span = |row: usize| {
            let table = row * pages..(row + 1) * pages;
            Span { first_row: row, rows: 1, first_position: context - 1, table }
        };
        let spans: Vec<Span> = (0..batch).map(span).collect();
        let plan = lab.gpu.attention_plan(&spans, &tables, tables.len(), shape, 0)?;
        let [q, mut out] = [lab.halves(batch * HEADS * D)?, lab.halves(batch * HEADS * D)?];
        let held = batch * context * KV_HEADS * D;
        let [keys, values] = [lab.halves(held)?, lab.halves(held)?];
        lab.count(|gpu| gpu.attention(&mut out, None, &q, [&keys, &values], &plan))
    })?;
    let vectors = batch * HEADS;
    let parts = vectors * context.div_ceil(512) * (D + 2) * 4;
    let fewest = batch * context * KV_HEADS * D * 4 + vectors * D * 2 + parts;
    let products = 2 * batch * context * HEADS * D;
    let name = format!("batch{batch} context{context}");
    let part = Figure::new(name.clone(), runs.at("attention_part_128", batch), fewest, products);
    let fewest = parts + vectors * D * 2;
    Ok([part, Figure::new(name, runs.at("attention_join", batch), fewest, 0)])
}
