//! Gradients against the formula.

use super::*;
use crate::cpu::Isa;
use crate::cpu::reference::{assert_close, assert_same_bits, contexts, values};

/// Keys that each query of the tree sees, as rows of the tree, and its own.
fn seen(tree: &Tree) -> Vec<Vec<usize>> {
    let places = tree.places();
    let mut all = Vec::new();
    for (index, place) in places.iter().enumerate() {
        let before: Vec<usize> =
            tree.ancestors(index).iter().flat_map(|&of| places[of].rows.clone()).collect();
        for own in place.rows.end - place.queries.len()..place.rows.end {
            all.push(before.iter().copied().chain(place.rows.start..=own).collect());
        }
    }
    all
}

fn tree(first_row: usize, prompt: usize, branches: &[usize]) -> Tree {
    Tree::of_prompt(first_row, prompt, branches)
}

/// A tree of segments with a parent, rows and queries each.
fn deep(first_row: usize, first_query: usize, segments: &[(usize, usize, usize)]) -> Tree {
    let segment = |(index, &(parent, rows, queries)): (usize, &(usize, usize, usize))| Segment {
        parent: (index > 0).then_some(parent),
        rows,
        queries,
    };
    let segments = segments.iter().enumerate().map(segment).collect();
    Tree { first_row, first_query, segments }
}

/// A template, conversations, prompts and completions; with queries as all layers but the last have them, or as the last.
fn of_a_step(last: bool) -> Tree {
    let only = |queries: usize, all: usize| if last { queries } else { all };
    deep(
        0,
        0,
        &[
            (0, 70, only(0, 70)),
            (0, 33, only(0, 33)),
            (1, 5, only(1, 5)),
            (2, 40, 40),
            (2, 0, 0),
            (1, 64, only(1, 64)),
            (5, 31, 31),
            (5, 3, 3),
            (0, 66, only(1, 66)),
            (8, 1, 1),
        ],
    )
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> Shape {
    Shape { heads, kv_heads, head_dim }
}

/// The formula, in f64 or in f32 (`narrow`): y, log-sums and the three gradients.
struct Reference {
    y: Vec<f64>,
    log_sums: Vec<f64>,
    gradients: [Vec<f64>; 3],
}

fn reference(inputs: [&[f32]; 4], trees: &[Tree], shape: Shape, narrow: bool) -> Reference {
    reference_of(inputs, trees, shape, narrow, false)
}

/// `pairs`: what meets another operand in the gradients is rounded to bf16: dy, p and ds.
fn reference_of(
    inputs: [&[f32]; 4],
    trees: &[Tree],
    shape: Shape,
    narrow: bool,
    pairs: bool,
) -> Reference {
    let [q, k, v, dy] = inputs;
    let Shape { heads, kv_heads, head_dim: d } = shape;
    let cut = |x: f64| if narrow { f64::from(x as f32) } else { x };
    let pair = |x: f64| if pairs { half::bf16::from_f64(x).to_f64() } else { x };
    let scale = cut(1.0 / (d as f64).sqrt());
    let at = |x: &[f32], place: usize, i: usize| f64::from(x[place * d + i]);
    let mut y = vec![0.0; q.len()];
    let mut log_sums = vec![0.0; q.len() / d];
    let mut gradients = [vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]];
    for tree in trees {
        for (index, keys) in seen(tree).iter().enumerate() {
            for head in 0..heads {
                let query = (tree.first_query + index) * heads + head;
                let kv = |key: usize| (tree.first_row + key) * kv_heads + head / (heads / kv_heads);
                let scores: Vec<f64> = keys
                    .iter()
                    .map(|&key| {
                        let s =
                            (0..d).fold(0.0, |s, i| cut(s + at(q, query, i) * at(k, kv(key), i)));
                        cut(s * scale)
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum = scores.iter().fold(0.0, |sum, s| cut(sum + cut((s - max).exp())));
                log_sums[query] = cut(max + sum.ln());
                let p: Vec<f64> = scores.iter().map(|s| cut((s - log_sums[query]).exp())).collect();
                for (&key, p) in keys.iter().zip(&p) {
                    for i in 0..d {
                        y[query * d + i] = cut(y[query * d + i] + p * at(v, kv(key), i));
                    }
                }
                let delta = (0..d).fold(0.0, |s, i| cut(s + at(dy, query, i) * y[query * d + i]));
                for (&key, p) in keys.iter().zip(&p) {
                    let dp = (0..d)
                        .fold(0.0, |s, i| cut(s + pair(at(dy, query, i)) * at(v, kv(key), i)));
                    let (p, ds) = (pair(*p), pair(cut(p * (dp - delta) * scale)));
                    let [dq, dk, dv] = &mut gradients;
                    for i in 0..d {
                        let (from, to) = (query * d + i, kv(key) * d + i);
                        dq[from] = cut(dq[from] + ds * at(k, kv(key), i));
                        dk[to] = cut(dk[to] + ds * at(q, query, i));
                        dv[to] = cut(dv[to] + p * pair(at(dy, query, i)));
                    }
                }
            }
        }
    }
    Reference { y, log_sums, gradients }
}

/// Rows of keys and of queries.
fn sizes(trees: &[Tree]) -> (usize, usize) {
    let last = trees.last().expect("a tree");
    (last.first_row + last.rows(), last.first_query + last.queries())
}

fn narrowed(x: &[f64]) -> Vec<f32> {
    x.iter().map(|x| *x as f32).collect()
}

fn cases() -> Vec<(Vec<Tree>, Shape)> {
    vec![
        (vec![tree(0, 1, &[])], shape(1, 1, 1)),
        (vec![tree(0, 5, &[])], shape(2, 1, 16)),
        (vec![tree(0, 7, &[3, 0, 1, 90])], shape(4, 2, 33)),
        (vec![tree(0, 130, &[65, 64]), tree(259, 20, &[])], shape(3, 3, 64)),
        (vec![tree(0, 0, &[2, 70])], shape(6, 2, 8)),
        (vec![of_a_step(false)], shape(4, 2, 16)),
        (vec![of_a_step(true), deep(313, 78, &[(0, 9, 1)])], shape(4, 2, 16)),
        // More than one task's: the gradients of what all see are sums over them.
        (vec![deep(0, 0, &[(0, 600, 3), (0, 500, 2), (1, 9, 9), (0, 8, 8)])], shape(2, 1, 8)),
    ]
}

#[test]
fn equals_the_formula_with_the_same_bits_on_any_number_of_threads() {
    for (trees, shape) in cases() {
        let (rows, queries) = sizes(&trees);
        let Shape { heads, kv_heads, head_dim } = shape;
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let [q, dy] = [1, 2].map(|seed| values(seed, queries * width));
        let [k, v] = [3, 4].map(|seed| values(seed, rows * kv_width));
        let q: Vec<f32> = q.iter().map(|q| q * 3.0).collect();
        let exact = reference([&q, &k, &v, &dy], &trees, shape, false);
        let naive = reference([&q, &k, &v, &dy], &trees, shape, true);
        let (y, log_sums) = (narrowed(&exact.y), narrowed(&exact.log_sums));
        let saved = Saved { q: &q, k: &k, v: &v, y: &y, log_sums: &log_sums, rounded: false };
        let mut first: Option<(Isa, Vec<Vec<f32>>)> = None;
        for cpu in contexts() {
            let mut got = [q.len(), k.len(), v.len()].map(|len| vec![f32::NAN; len]);
            backward(&cpu, got.each_mut().map(Vec::as_mut_slice), &dy, saved, &trees, shape);
            for (which, got) in got.iter().enumerate() {
                let case = format!("{} {trees:?} {shape:?} gradient {which}", cpu.isa());
                let naive = narrowed(&naive.gradients[which]);
                assert_close(got, &naive, &exact.gradients[which], 1e-6, &case);
            }
            match &first {
                Some((isa, bits)) if *isa == cpu.isa() => {
                    got.iter().zip(bits).for_each(|(a, b)| assert_same_bits(a, b, "threads"));
                }
                _ => first = Some((cpu.isa(), got.to_vec())),
            }
        }
    }
}

#[test]
fn pairs_equal_the_formula_with_rounded_operands_on_any_number_of_threads() {
    if !Isa::Avx512Bf16.is_available() {
        crate::shared::skipped("this CPU has no AVX-512 BF16");
        return;
    }
    for (trees, shape) in [
        (vec![tree(0, 1, &[])], shape(1, 1, 32)),
        (vec![tree(0, 7, &[3, 0, 1, 90])], shape(4, 2, 32)),
        (vec![tree(0, 130, &[65, 64]), tree(259, 20, &[])], shape(6, 2, 64)),
        (vec![tree(0, 0, &[2, 70])], shape(4, 2, 128)),
        (vec![tree(0, 33, &[31, 32])], shape(7, 1, 96)),
        (vec![of_a_step(false)], shape(2, 1, 64)),
        (vec![of_a_step(true), deep(313, 78, &[(0, 9, 1)])], shape(4, 2, 32)),
        (vec![deep(0, 0, &[(0, 600, 3), (0, 500, 2), (1, 9, 9), (0, 8, 8)])], shape(2, 1, 32)),
    ] {
        let (rows, queries) = sizes(&trees);
        let Shape { heads, kv_heads, head_dim } = shape;
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let round = |x: Vec<f32>| -> Vec<f32> {
            x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect()
        };
        let dy = values(2, queries * width);
        let [k, v] = [3, 4].map(|seed| round(values(seed, rows * kv_width)));
        let q = round(values(1, queries * width).iter().map(|q| q * 3.0).collect());
        let exact = reference([&q, &k, &v, &dy], &trees, shape, false);
        // Sums in f64 of rounded operands: the error that the rounding itself makes.
        let rounded = reference_of([&q, &k, &v, &dy], &trees, shape, false, true);
        let (y, log_sums) = (narrowed(&exact.y), narrowed(&exact.log_sums));
        let saved = Saved { q: &q, k: &k, v: &v, y: &y, log_sums: &log_sums, rounded: true };
        let mut first: Option<Vec<Vec<f32>>> = None;
        for threads in [1, 2, 5] {
            let cpu = Cpu::with_isa(threads, Isa::Avx512Bf16);
            let mut got = [q.len(), k.len(), v.len()].map(|len| vec![f32::NAN; len]);
            backward(&cpu, got.each_mut().map(Vec::as_mut_slice), &dy, saved, &trees, shape);
            for (which, got) in got.iter().enumerate() {
                let case = format!("{trees:?} {shape:?} gradient {which}");
                let naive = narrowed(&rounded.gradients[which]);
                assert_close(got, &naive, &exact.gradients[which], 1e-6, &case);
                // Nearly every p and ds rounds to the same bf16, so most elements are much closer.
                let off = |x: &f32, want: &f64| (f64::from(*x) - want).abs();
                let pairs = got.iter().zip(&rounded.gradients[which]);
                let mean = pairs.map(|(x, want)| off(x, want)).sum::<f64>() / got.len() as f64;
                let errors = naive.iter().zip(&exact.gradients[which]);
                let error = errors.map(|(x, want)| off(x, want)).sum::<f64>() / got.len() as f64;
                assert!(mean <= 0.1 * error + 1e-6, "{case}: {mean:e} of {error:e}");
            }
            match &first {
                Some(bits) => {
                    got.iter().zip(bits).for_each(|(a, b)| assert_same_bits(a, b, "threads"));
                }
                None => first = Some(got.to_vec()),
            }
        }
    }
}

#[test]
fn rounds_what_the_forward_pass_rounded() {
    let shape = Shape { heads: 2, kv_heads: 1, head_dim: 16 };
    let trees = [tree(0, 9, &[4, 3])];
    let (q, k, v, dy) = (values(1, 512), values(2, 256), values(3, 256), values(4, 512));
    let round = |x: &[f32]| x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect::<Vec<_>>();
    let (rounded_q, rounded_k, rounded_v) = (round(&q), round(&k), round(&v));
    let exact = reference([&rounded_q, &rounded_k, &rounded_v, &dy], &trees, shape, false);
    let (y, log_sums) = (narrowed(&exact.y), narrowed(&exact.log_sums));
    let cpu = Cpu::new(2);
    let run = |saved: Saved| {
        let mut got = [512, 256, 256].map(|len| vec![f32::NAN; len]);
        backward(&cpu, got.each_mut().map(Vec::as_mut_slice), &dy, saved, &trees, shape);
        got
    };
    let (y, log_sums) = (y.as_slice(), log_sums.as_slice());
    let rounding = run(Saved { q: &q, k: &k, v: &v, y, log_sums, rounded: true });
    let (q, k, v) = (&rounded_q, &rounded_k, &rounded_v);
    assert_eq!(rounding, run(Saved { q, k, v, y, log_sums, rounded: false }));
}

/// Trees whose rows wrap lie over each other, and their tasks would write the same gradients.
#[test]
fn trees_whose_rows_wrap_are_refused() {
    let shape = Shape { heads: 1, kv_heads: 1, head_dim: 2 };
    for trees in
        [[tree(0, 2, &[usize::MAX]), tree(1, 1, &[])], [tree(1, usize::MAX, &[]), tree(0, 1, &[])]]
    {
        let run = || {
            let (x, mut d) = ([0.0; 4], [[0.0; 4]; 3]);
            let saved = Saved { q: &x, k: &x, v: &x, y: &x, log_sums: &[0.0; 2], rounded: false };
            let [dq, dk, dv] = &mut d;
            backward(&contexts()[0], [dq, dk, dv], &x, saved, &trees, shape);
        };
        let panic = std::panic::catch_unwind(run).expect_err("refused");
        let message = panic.downcast_ref::<String>().cloned();
        let message = message.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        assert!(message.is_some_and(|message| message.contains("can be counted")));
    }
}
