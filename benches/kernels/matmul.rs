//! Matrix products: the projections, the LM head, LoRA's factors and their gradients.

use half::bf16;
use kernels::cpu::{
    Cpu, Matrix, Rounding,
    matmul::{self, Panels},
    product::{self, Left},
};

use super::{
    HEAD_DIM, HEADS, KV_HEADS, LAYERS, MODELS, RANK, Run, Suite, VOCAB, Widths, Work,
    naive::{Exact, halves, sampled, values},
};

/// Bytes of weights that no cache keeps from one use to the next.
const STREAMED: usize = 256 << 20;

pub(crate) fn bench(suite: &mut Suite) {
    for Widths { hidden, inner } in MODELS {
        let (query, key_value) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        // q, k and v, o, gate and up, down; output width first.
        let shapes = [
            [query, hidden],
            [key_value, hidden],
            [hidden, query],
            [inner, hidden],
            [hidden, inner],
        ];
        for [n, k] in shapes {
            forward(suite, [1, n, k]);
            forward(suite, [512, n, k]);
        }
        for m in [4, 16, 32, 128] {
            forward(suite, [m, inner, hidden]);
        }
        for m in [1, 16] {
            forward(suite, [m, VOCAB, hidden]);
        }
        for [n, k] in [[inner, hidden], [hidden, inner]] {
            backward(suite, [512, n, k]);
        }
        lora(suite, [512, RANK, hidden]);
        gradient(suite, [RANK, hidden, 512]);
    }
}

// The only calls of the kernel, beside what they mean for one output.

fn multiply(cpu: &Cpu, y: &mut [f32], x: &[f32], w: Matrix<'_>, shape: [usize; 3]) {
    matmul::forward(cpu, y, x, w, shape, Rounding::Bf16, false);
}

fn multiply_back(cpu: &Cpu, dx: &mut [f32], dy: &[f32], w: &[bf16], shape: [usize; 3]) {
    matmul::backward(cpu, dx, dy, Matrix::Bf16(w), shape, Rounding::Bf16, false, None);
}

fn multiply_f32(cpu: &Cpu, y: &mut [f32], x: &[f32], w: &[f32], shape: [usize; 3]) {
    matmul::forward(cpu, y, x, Matrix::F32(w), shape, Rounding::F32, false);
}

fn rounded(x: f32) -> f64 {
    bf16::from_f32(x).to_f64()
}

fn work([m, n, k]: [usize; 3], weight_bytes: usize) -> Work {
    Work {
        flops: 2.0 * (m * n * k) as f64,
        bf16: weight_bytes == 2,
        bytes: (n * k * weight_bytes + 4 * m * (n + k)) as f64,
    }
}

/// As many copies of `weights` as layers have, or as leave every cache: a pass meets each but once.
fn layers<T: Clone>(weights: Vec<T>) -> Vec<Vec<T>> {
    let bytes = size_of_val(weights.as_slice());
    let copies = STREAMED.div_ceil(bytes).clamp(1, LAYERS);
    vec![weights; copies]
}

/// With weights where they lie, and packed.
fn forward(suite: &mut Suite, shape: [usize; 3]) {
    let [m, n, k] = shape;
    for packed in [false, true] {
        if packed && !Panels::suit(suite.cpu) {
            continue;
        }
        let id = format!("m{m}-n{n}-k{k}-bf16{}", if packed { "-packed" } else { "" });
        suite.bench("matmul", id.clone(), work(shape, 2), move |cpu| -> Run<'_> {
            let (x, weights) = (values(1, m * k), layers(halves(2, n * k)));
            let pack =
                |w: &Vec<bf16>| Panels::pack(cpu, w, [n, k], &|_| ()).expect("memory for panels");
            let panels: Vec<Panels> = match packed {
                true => weights.iter().map(pack).collect(),
                false => Vec::new(),
            };
            let count = weights.len();
            let first = weights[0].clone();
            let weights = if packed { Vec::new() } else { weights };
            let mut y = vec![f32::NAN; m * n];
            let mut layer = 0;
            let mut run = move |y: &mut [f32]| {
                layer = (layer + 1) % count;
                let w = match panels.get(layer) {
                    Some(panels) => Matrix::Panels(panels.whole()),
                    None => Matrix::Bf16(&weights[layer]),
                };
                multiply(cpu, y, &x, w, shape);
            };
            run(&mut y);
            let x = values(1, m * k);
            for index in sampled(m * n) {
                let (x, w) = (&x[index / n * k..][..k], &first[index % n * k..][..k]);
                let terms = x.iter().zip(w).map(|(x, w)| rounded(*x) * w.to_f64());
                Exact::sum(terms).check(y[index], &id, index);
            }
            Box::new(move || {
                run(&mut y);
            })
        });
    }
}

fn backward(suite: &mut Suite, shape: [usize; 3]) {
    let [m, n, k] = shape;
    let id = format!("backward-m{m}-n{n}-k{k}-bf16");
    suite.bench("matmul", id.clone(), work(shape, 2), move |cpu| -> Run<'_> {
        let (dy, weights) = (values(1, m * n), layers(halves(2, n * k)));
        let mut dx = vec![f32::NAN; m * k];
        multiply_back(cpu, &mut dx, &dy, &weights[0], shape);
        for index in sampled(m * k) {
            let (dy, w) = (&dy[index / k * n..][..n], &weights[0][index % k..]);
            let terms = dy.iter().zip(w.iter().step_by(k));
            let exact = Exact::sum(terms.map(|(dy, w)| rounded(*dy) * w.to_f64()));
            exact.check(dx[index], &id, index);
        }
        let mut layer = 0;
        Box::new(move || {
            layer = (layer + 1) % weights.len();
            multiply_back(cpu, &mut dx, &dy, &weights[layer], shape);
        })
    });
}

/// x·Aᵀ, in f32 as adapters are trained.
fn lora(suite: &mut Suite, shape: [usize; 3]) {
    let [m, n, k] = shape;
    let id = format!("m{m}-n{n}-k{k}-f32");
    suite.bench("matmul", id.clone(), work(shape, 4), move |cpu| -> Run<'_> {
        let (x, w) = (values(1, m * k), values(2, n * k));
        let mut y = vec![f32::NAN; m * n];
        multiply_f32(cpu, &mut y, &x, &w, shape);
        for index in sampled(m * n) {
            let (x, w) = (&x[index / n * k..][..k], &w[index % n * k..][..k]);
            let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
            Exact::sum(terms).check(y[index], &id, index);
        }
        Box::new(move || multiply_f32(cpu, &mut y, &x, &w, shape))
    });
}

/// dA += dlowᵀ·x.
fn gradient(suite: &mut Suite, shape: [usize; 3]) {
    let [m, n, k] = shape;
    let id = format!("m{m}-n{n}-k{k}-f32");
    suite.bench("product", id.clone(), work(shape, 4), move |cpu| -> Run<'_> {
        let (a, b) = (values(1, k * m), values(2, k * n));
        let mut y = vec![0.0; m * n];
        product::accumulate(cpu, &mut y, &a, Left::Columns, &b, shape);
        for index in sampled(m * n) {
            let (a, b) = (a[index / n..].iter().step_by(m), b[index % n..].iter().step_by(n));
            let terms = a.zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
            Exact::sum(terms).check(y[index], &id, index);
        }
        Box::new(move || product::accumulate(cpu, &mut y, &a, Left::Columns, &b, shape))
    });
}
