//! Attention against a naive reference, and the same bits however rows are cut.

use half::bf16;

use super::*;
use crate::cpu::Isa;
use crate::cpu::reference::{
    assert_close, assert_rounded_once, assert_same_bits, contexts, values,
};

/// A sequence of `len` tokens with a page table that jumps about.
struct Sequence {
    shape: Shape,
    len: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    table: Vec<u32>,
}

/// Keys and values of a sequence as one context keeps them, in both types.
struct Caches {
    bf16: [Vec<bf16>; 2],
    f32: [Vec<f32>; 2],
}

impl Caches {
    fn each(&self) -> [Cache<'_>; 2] {
        [
            Cache::Bf16 { keys: &self.bf16[0], values: &self.bf16[1] },
            Cache::F32 { keys: &self.f32[0], values: &self.f32[1] },
        ]
    }
}

impl Sequence {
    fn new(shape: Shape, len: usize) -> Sequence {
        let Shape { heads, kv_heads, head_dim } = shape;
        let pages = len.div_ceil(PAGE) + 3;
        // Every third page, modulo the number of pages where that reaches all of them.
        let step = if pages.is_multiple_of(3) { 1 } else { 3 };
        let table = (0..len.div_ceil(PAGE)).map(|i| ((i * step + 2) % pages) as u32).collect();
        Sequence {
            shape,
            len,
            // Large enough for some softmax to be peaked.
            q: values(1, len * heads * head_dim).iter().map(|x| x * 3.0).collect(),
            k: values(2, len * kv_heads * head_dim),
            v: values(3, len * kv_heads * head_dim),
            table,
        }
    }

    /// A cache of both types, whose other slots hold NaN.
    fn caches(&self, cpu: &Cpu) -> Caches {
        let Shape { kv_heads, head_dim, .. } = self.shape;
        let elements = (self.len.div_ceil(PAGE) + 3) * kv_heads * PAGE * head_dim;
        let mut caches = Caches {
            bf16: [(); 2].map(|()| vec![bf16::NAN; elements]),
            f32: [(); 2].map(|()| vec![f32::NAN; elements]),
        };
        // In two parts, the first of which ends within a page and a pair of slots.
        let slots: Vec<u32> =
            (0..self.len).map(|p| self.table[p / PAGE] * PAGE as u32 + (p % PAGE) as u32).collect();
        let part = self.len.min(PAGE + 3);
        for of in [0..part, part..self.len] {
            let width = kv_heads * head_dim;
            let [k, v] = [&self.k, &self.v].map(|x| &x[of.start * width..of.end * width]);
            let [keys, values] = &mut caches.bf16;
            append(cpu, CacheMut::Bf16 { keys, values }, k, v, &slots[of.clone()], self.shape);
            let [keys, values] = &mut caches.f32;
            append(cpu, CacheMut::F32 { keys, values }, k, v, &slots[of], self.shape);
        }
        caches
    }

    fn width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    fn span(&self, first_row: usize, rows: usize, first_position: usize) -> Span {
        Span { first_row, rows, first_position, table: 0..self.table.len() }
    }

    /// All rows at once.
    fn prefill(&self, cpu: &Cpu, cache: Cache<'_>) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.q.len()];
        let spans = [self.span(0, self.len, 0)];
        forward(cpu, &mut out, None, &self.q, cache, &self.table, &spans, self.shape);
        out
    }

    /// The naive reference in f32 and the exact result in f64, from k and v, not from the cache.
    /// `rounds`: q, k and v to bf16; `rounds_p`: the probabilities, too.
    fn references(&self, rounds: bool, rounds_p: bool) -> (Vec<f32>, Vec<f64>) {
        let Shape { heads, kv_heads, head_dim } = self.shape;
        let round = |x: &Vec<f32>| -> Vec<f32> {
            x.iter().map(|x| if rounds { bf16::from_f32(*x).to_f32() } else { *x }).collect()
        };
        let (q, k, v) = (round(&self.q), round(&self.k), round(&self.v));
        let (mut naive, mut exact) = (Vec::new(), Vec::new());
        for row in 0..self.len {
            for head in 0..heads {
                let q = &q[(row * heads + head) * head_dim..][..head_dim];
                let at = |j: usize| (j * kv_heads + head / (heads / kv_heads)) * head_dim;
                let pairs = |j: usize| q.iter().zip(&k[at(j)..]);

                let scale = 1.0 / (head_dim as f32).sqrt();
                let s: Vec<f32> =
                    (0..=row).map(|j| pairs(j).map(|(q, k)| q * k).sum::<f32>() * scale).collect();
                let max = s.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let p: Vec<f32> = s.iter().map(|s| (s - max).exp()).collect();
                let total: f32 = p.iter().sum();
                let p: Vec<f32> = p
                    .iter()
                    .map(|p| if rounds_p { bf16::from_f32(*p).to_f32() } else { *p })
                    .collect();
                let sum = |d: usize| (0..=row).map(|j| p[j] * v[at(j) + d]).sum::<f32>() / total;
                naive.extend((0..head_dim).map(sum));

                let dot = |j: usize| -> f64 {
                    pairs(j).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum()
                };
                let scale = 1.0 / (head_dim as f64).sqrt();
                let p: Vec<f64> = (0..=row).map(|j| (dot(j) * scale).exp()).collect();
                let total: f64 = p.iter().sum();
                let sum = |d: usize| -> f64 {
                    (0..=row).map(|j| p[j] * f64::from(v[at(j) + d])).sum::<f64>() / total
                };
                exact.extend((0..head_dim).map(sum));
            }
        }
        (naive, exact)
    }
}

#[test]
fn equals_the_naive_reference_on_awkward_shapes() {
    let contexts = contexts();
    let shapes = [
        // heads, kv_heads, head_dim, positions
        (1, 1, 16, 96),
        (2, 1, 32, 33),
        (4, 4, 64, 34),
        (7, 1, 80, 66),
        (14, 2, 128, 65),
        (4, 2, 128, 96),
        (3, 3, 1, 32),
        (50, 1, 5, 40),
        (2, 2, 7, 1),
    ];
    for (heads, kv_heads, head_dim, len) in shapes {
        let sequence = Sequence::new(Shape { heads, kv_heads, head_dim }, len);
        let exact_references = sequence.references(false, false);
        let [references, rounded_p_references] =
            [false, true].map(|p| sequence.references(true, p));
        let mut first: Option<Vec<f32>> = None;
        for cpu in &contexts {
            for cache in sequence.caches(cpu).each() {
                let got = sequence.prefill(cpu, cache);
                let rounds = matches!(cache, Cache::Bf16 { .. });
                let case = format!("{} {:?} bf16 {rounds}", cpu.isa(), sequence.shape);
                if !rounds {
                    assert_rounded_once(&got, &exact_references.1, 1e-14, &case);
                    let bits = first.get_or_insert_with(|| got.clone());
                    assert_same_bits(&got, bits, "instruction sets");
                    continue;
                }
                let rounds_p = cpu.isa() == Isa::Avx512Bf16 && head_dim % 32 == 0;
                let (naive, exact) = if rounds_p { &rounded_p_references } else { &references };
                assert_close(&got, naive, exact, 1e-6, &case);
                // By position too, so that a wrong short row does not hide behind a long one.
                for row in [0, 1, 31, 32, 33, 95] {
                    let of = row * sequence.width()..(row + 1) * sequence.width();
                    if row < len {
                        let (naive, exact) = (&naive[of.clone()], &exact[of.clone()]);
                        assert_close(&got[of], naive, exact, 2e-6, &format!("{case} {row}"));
                    }
                }
            }
        }
    }
}

#[test]
fn prefill_chunks_and_decode_give_the_same_bits() {
    let shapes = [(2, 1, 16, 1000), (16, 8, 128, 101), (7, 1, 80, 130), (3, 3, 33, 70)];
    for (heads, kv_heads, head_dim, len) in shapes {
        let sequence = Sequence::new(Shape { heads, kv_heads, head_dim }, len);
        let width = sequence.width();
        let mut references: [Option<(Isa, Vec<f32>)>; 2] = [None, None];
        for cpu in contexts() {
            for (cache, reference) in sequence.caches(&cpu).each().into_iter().zip(&mut references)
            {
                let whole = sequence.prefill(&cpu, cache);
                match reference {
                    Some((isa, bits)) if *isa == cpu.isa() => {
                        assert_same_bits(&whole, bits, "threads");
                    }
                    _ => *reference = Some((cpu.isa(), whole.clone())),
                }
                let run = |q: &[f32], spans: &[Span]| {
                    let mut out = vec![f32::NAN; q.len()];
                    forward(&cpu, &mut out, None, q, cache, &sequence.table, spans, sequence.shape);
                    out
                };
                for chunk in [7, 64] {
                    for first in (0..len).step_by(chunk) {
                        let rows = chunk.min(len - first);
                        let of = first * width..(first + rows) * width;
                        let out = run(&sequence.q[of.clone()], &[sequence.span(0, rows, first)]);
                        assert_same_bits(&out, &whole[of], "a chunk");
                    }
                }
                for row in [0, 1, 31, 32, 33, 63, 64, 69, 95, 128, 500, 999] {
                    if row < len {
                        let of = row * width..(row + 1) * width;
                        let out = run(&sequence.q[of.clone()], &[sequence.span(0, 1, row)]);
                        assert_same_bits(&out, &whole[of], "a row alone");
                    }
                }
                // A batch of spans, among them an empty one, rows in none between them.
                let spans = [
                    sequence.span(0, 5, 0),
                    sequence.span(5, 0, 3),
                    sequence.span(7, 1, 7),
                    sequence.span(10, len - 10, 10),
                ];
                let out = run(&sequence.q, &spans);
                for row in 0..len {
                    let of = row * width..(row + 1) * width;
                    if [5, 6, 8, 9].contains(&row) {
                        assert!(out[of].iter().all(|x| x.is_nan()), "row {row} is in no span");
                    } else {
                        assert_same_bits(&out[of.clone()], &whole[of], "a batch of spans");
                    }
                }
            }
        }
    }
}

#[test]
fn append_rounds_and_places_rows() {
    let shape = Shape { heads: 2, kv_heads: 2, head_dim: 19 };
    let sequence = Sequence::new(shape, 40);
    let Caches { f32: wide, bf16: narrow } = sequence.caches(&Cpu::new(2));
    for p in 0..40 {
        for head in 0..2 {
            let page = sequence.table[p / PAGE] as usize;
            let at = ((page * 2 + head) * PAGE + p % PAGE) * 19;
            for d in 0..19 {
                let x = sequence.k[(p * 2 + head) * 19 + d];
                assert_eq!(wide[0][at + d], x);
                assert_eq!(narrow[0][at + d], bf16::from_f32(x));
                let x = sequence.v[(p * 2 + head) * 19 + d];
                assert_eq!(wide[1][at + d], x);
                assert_eq!(narrow[1][at + d], bf16::from_f32(x));
            }
        }
    }
    let written = wide[0].iter().filter(|x| !x.is_nan()).count();
    assert_eq!(written, sequence.k.len(), "nothing else is written");
}

#[test]
#[should_panic(expected = "page 9 in a cache of 2 pages")]
fn page_tables_are_checked() {
    let cache = [0.0; 2 * PAGE * 4];
    let cache = Cache::F32 { keys: &cache, values: &cache };
    let spans = [Span { first_row: 0, rows: 1, first_position: 40, table: 0..2 }];
    let shape = Shape { heads: 1, kv_heads: 1, head_dim: 4 };
    forward(&Cpu::new(1), &mut [0.0; 4], None, &[0.0; 4], cache, &[0, 9], &spans, shape);
}

#[test]
#[should_panic(expected = "rows 1..+2 of 4 after row 2")]
fn overlapping_spans_are_refused() {
    let cache = [0.0; PAGE * 4];
    let cache = Cache::F32 { keys: &cache, values: &cache };
    let span = |first_row| Span { first_row, rows: 2, first_position: 0, table: 0..1 };
    let shape = Shape { heads: 1, kv_heads: 1, head_dim: 4 };
    let (mut out, q, spans) = ([0.0; 16], [0.0; 16], [span(0), span(1)]);
    forward(&Cpu::new(1), &mut out, None, &q, cache, &[0], &spans, shape);
}

#[test]
#[should_panic(expected = "beyond any memory")]
fn rows_whose_elements_wrap_are_not_appended() {
    // Two rows of 2^31 heads of 2^32 values are none, modulo 2^64.
    let shape = Shape { heads: 1 << 31, kv_heads: 1 << 31, head_dim: 1 << 32 };
    let cache = CacheMut::F32 { keys: &mut [], values: &mut [] };
    append(&Cpu::new(1), cache, &[], &[], &[0, 1], shape);
}
