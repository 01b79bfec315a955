//! Matrix products: the projections, the LM head, LoRA's factors and their gradients.

use half::bf16;
use kernels::{
    cpu::{
        ComputeDtype, Cpu, Matrix,
        matmul::{self, Panels},
        product::{self, Left},
        swiglu,
    },
    cuda::{Buffer, Factor, Operands},
};

use super::{
    HEAD_DIM, HEADS, KV_HEADS, MODELS, RANK, Run, Suite, VOCAB, Widths, Work, copies,
    elements::{gated, swiglu_derivatives},
    naive::{BF16, Exact, halves, rounded, sampled, values},
};

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
        for m in [1, 16, 128, 512] {
            swiglu_forward(suite, [m, inner, hidden]);
        }
        swiglu_backward(suite, [512, hidden, inner]);
        for m in [16, 512] {
            lora(suite, [m, RANK, hidden]);
        }
        factor(suite, [512, RANK, hidden]);
        gradient(suite, [RANK, hidden, 512]);
    }
}

// The only calls of the kernel, beside what they mean for one output.

fn multiply(cpu: &Cpu, y: &mut [f32], x: &[f32], w: Matrix<'_>, shape: [usize; 3]) {
    matmul::forward(cpu, y, x, w, shape, ComputeDtype::Bf16, false);
}

fn multiply_back(cpu: &Cpu, dx: &mut [f32], dy: &[f32], w: &[bf16], shape: [usize; 3]) {
    matmul::backward(cpu, dx, dy, Matrix::Bf16(w), shape, ComputeDtype::Bf16, false, None);
}

fn multiply_f32(cpu: &Cpu, y: &mut [f32], x: &[f32], w: &[f32], shape: [usize; 3]) {
    matmul::forward(cpu, y, x, Matrix::F32(w), shape, ComputeDtype::F32, false);
}

fn work([m, n, k]: [usize; 3], weight_bytes: usize) -> Work {
    Work {
        flops: 2.0 * (m * n * k) as f64,
        bf16: weight_bytes == 2,
        bytes: (n * k * weight_bytes + 4 * m * (n + k)) as f64,
    }
}

/// The same on a GPU, where x is bf16 too.
fn work_on_gpu([m, n, k]: [usize; 3]) -> Work {
    let (flops, bytes) = (2 * m * n * k, 2 * k * (m + n) + 4 * m * n);
    Work { flops: flops as f64, bf16: true, bytes: bytes as f64 }
}

/// See [`copies`].
fn layers<T: Clone>(weights: Vec<T>) -> Vec<Vec<T>> {
    let count = copies(size_of_val(weights.as_slice()));
    vec![weights; count]
}

/// With weights where they lie, and packed; those of a GPU have one form.
fn forward(suite: &mut Suite, shape: [usize; 3]) {
    let [m, n, k] = shape;
    let check = move |y: &[f32], w: &[bf16], id: &str| {
        let x = values(1, m * k);
        for index in sampled(m * n) {
            let (x, w) = (&x[index / n * k..][..k], &w[index % n * k..][..k]);
            let terms = x.iter().zip(w).map(|(x, w)| rounded(*x) * w.to_f64());
            Exact::sum(terms).check(y[index], id, index);
        }
    };
    for packed in [false, true] {
        if packed && !Panels::suit(suite.cpu) {
            continue;
        }
        let id = format!("m{m}-n{n}-k{k}-bf16{}", if packed { "-packed" } else { "" });
        suite.bench("matmul", id.clone(), work(shape, 2), |cpu| -> Run<'_> {
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
            check(&y, &first, &id);
            Box::new(move || {
                run(&mut y);
            })
        });
    }
    let id = format!("m{m}-n{n}-k{k}-bf16");
    suite.bench_cuda("matmul", id.clone(), work_on_gpu(shape), |gpu| {
        let (x, w) = (gpu.rounded(&values(1, m * k))?, halves(2, n * k));
        let weights = gpu.layers(&w)?;
        let mut y = gpu.uninitialized(m * n)?;
        let multiply = move |y: &mut Buffer<f32>, w: &Buffer<u16>| {
            gpu.matmul(y, &[Operands { x: &x, w, first_row: 0, k }], [m, n], false)
        };
        multiply(&mut y, &weights[0])?;
        check(&gpu.download(&y)?, &w, &id);
        let mut layer = 0;
        Ok(Box::new(move || {
            layer = (layer + 1) % weights.len();
            multiply(&mut y, &weights[layer])
        }))
    });
}

fn backward(suite: &mut Suite, shape: [usize; 3]) {
    let [m, n, k] = shape;
    let id = format!("backward-m{m}-n{n}-k{k}-bf16");
    let check = move |dx: &[f32], w: &[bf16], id: &str| {
        let dy = values(1, m * n);
        for index in sampled(m * k) {
            let (dy, w) = (&dy[index / k * n..][..n], &w[index % k..]);
            let terms = dy.iter().zip(w.iter().step_by(k));
            let exact = Exact::sum(terms.map(|(dy, w)| rounded(*dy) * w.to_f64()));
            exact.check(dx[index], id, index);
        }
    };
    suite.bench("matmul", id.clone(), work(shape, 2), |cpu| -> Run<'_> {
        let (dy, weights) = (values(1, m * n), layers(halves(2, n * k)));
        let mut dx = vec![f32::NAN; m * k];
        multiply_back(cpu, &mut dx, &dy, &weights[0], shape);
        check(&dx, &weights[0], &id);
        let mut layer = 0;
        Box::new(move || {
            layer = (layer + 1) % weights.len();
            multiply_back(cpu, &mut dx, &dy, &weights[layer], shape);
        })
    });
    suite.bench_cuda("matmul", id.clone(), work_on_gpu([m, k, n]), |gpu| {
        let (dy, w) = (gpu.rounded(&values(1, m * n))?, halves(2, n * k));
        let weights = gpu.layers(&w)?;
        let mut dx = gpu.uninitialized(m * k)?;
        let multiply = move |dx: &mut Buffer<f32>, w: &Buffer<u16>| {
            gpu.matmul_backward(dx, &[Operands { x: &dy, w, first_row: 0, k: n }], [m, k], false)
        };
        multiply(&mut dx, &weights[0])?;
        check(&gpu.download(&dx)?, &w, &id);
        let mut layer = 0;
        Ok(Box::new(move || {
            layer = (layer + 1) % weights.len();
            multiply(&mut dx, &weights[layer])
        }))
    });
}

/// Gate and up, which lie one behind the other in w `[2n, k]`, and silu(gate)·up. On a GPU one kernel, which rounds the
/// result to bf16, and writes gate and up only where a backward pass is to come: of a training batch.
fn swiglu_forward(suite: &mut Suite, [m, n, k]: [usize; 3]) {
    let id = format!("swiglu-m{m}-n{n}-k{k}-bf16");
    let kept = m == 512;
    let check = move |y: &[f32], w: &[bf16], unit: f64, id: &str| {
        let x = values(1, m * k);
        for index in sampled(m * n) {
            let [gate, up] = [0, n].map(|first| {
                let (x, w) = (&x[index / n * k..][..k], &w[(first + index % n) * k..][..k]);
                Exact::sum(x.iter().zip(w).map(|(x, w)| rounded(*x) * w.to_f64()))
            });
            let y_exact = Exact::of(gated(gate.value, up.value));
            // Gate and up are off, too; of silu the derivative is at most 1.1.
            let off = 1.1 * gate.off() * (up.value.abs() + up.off()) + gate.value.abs() * up.off();
            let off = y_exact.off() + off + unit * y_exact.value.abs();
            y_exact.check_off(y[index], off, id, index);
        }
    };
    let written = m * n * if kept { 3 } else { 1 };
    let work = work([m, 2 * n, k], 2);
    let on_cpu = Work { bytes: (4 * (n * k + m * k + written)) as f64, ..work };
    let on_gpu = Work { bytes: (4 * n * k + 2 * m * k + 4 * written - 2 * m * n) as f64, ..work };
    suite.bench("matmul", id.clone(), on_cpu, |cpu| -> Run<'_> {
        let (x, weights) = (values(1, m * k), layers(halves(2, 2 * n * k)));
        let [mut gate, mut up, mut y] = [(); 3].map(|()| vec![f32::NAN; m * n]);
        let mut run = move |y: &mut [f32], w: &[bf16]| {
            let (first, last) = w.split_at(n * k);
            let product = |y, w| matmul::Product {
                y,
                w: Matrix::Bf16(w),
                n,
                accumulate: false,
                low_rank: None,
            };
            let products = &mut [product(&mut gate, first), product(&mut up, last)];
            matmul::forward_all(cpu, products, &x, [m, k], ComputeDtype::Bf16);
            swiglu::forward(cpu, y, swiglu::Inputs::F32([&gate, &up]));
        };
        run(&mut y, &weights[0]);
        check(&y, &weights[0], 0.0, &id);
        let mut layer = 0;
        Box::new(move || {
            layer = (layer + 1) % weights.len();
            run(&mut y, &weights[layer]);
        })
    });
    suite.bench_cuda("matmul", id.clone(), on_gpu, |gpu| {
        let (x, w) = (gpu.rounded(&values(1, m * k))?, halves(2, 2 * n * k));
        let weights = gpu.layers(&w)?;
        let mut y = gpu.uninitialized(m * n)?;
        let mut gate_up = match kept {
            true => Some([gpu.uninitialized(m * n)?, gpu.uninitialized(m * n)?]),
            false => None,
        };
        let mut run = move |y: &mut Buffer<u16>, w: &Buffer<u16>| {
            let kept = gate_up.as_mut().map(|[gate, up]| [gate, up]);
            gpu.matmul_swiglu(y, kept, &[Operands { x: &x, w, first_row: 0, k }], [m, n])
        };
        run(&mut y, &weights[0])?;
        check(&gpu.widened(&y)?, &w, BF16, &id);
        let mut layer = 0;
        Ok(Box::new(move || {
            layer = (layer + 1) % weights.len();
            run(&mut y, &weights[layer])
        }))
    });
}

/// Back through the product with w `[n, k]` that follows, and through SwiGLU: the gradients of gate and up, both
/// `[m, k]`. On a GPU one kernel, which rounds them to bf16.
fn swiglu_backward(suite: &mut Suite, shape: [usize; 3]) {
    let [m, n, k] = shape;
    let id = format!("backward-swiglu-m{m}-n{n}-k{k}-bf16");
    let inputs = move || (values(1, m * n), values(3, m * k), values(4, m * k));
    let check = move |gradients: [&[f32]; 2], w: &[bf16], unit: f64, id: &str| {
        let (dy, gate, up) = inputs();
        for index in sampled(m * k) {
            let (dy, w) = (&dy[index / k * n..][..n], &w[index % k..]);
            let terms = dy.iter().zip(w.iter().step_by(k));
            let product = Exact::sum(terms.map(|(dy, w)| rounded(*dy) * w.to_f64()));
            let swiglu_derivatives = swiglu_derivatives(gate[index].into(), up[index].into());
            for (got, derivative) in gradients.iter().zip(swiglu_derivatives) {
                let exact = Exact::of(product.value * derivative);
                // The product is off, too, and its error is rounded with it.
                let off = derivative.abs() * product.off() * (1.0 + unit);
                let off = exact.off() + off + unit * exact.value.abs();
                exact.check_off(got[index], off, id, index);
            }
        }
    };
    let work = work(shape, 2);
    let on_cpu = Work { bytes: (2 * n * k + 4 * m * n + 16 * m * k) as f64, ..work };
    let on_gpu = Work { bytes: (2 * n * k + 2 * m * n + 12 * m * k) as f64, ..work };
    suite.bench("matmul", id.clone(), on_cpu, |cpu| -> Run<'_> {
        let ((dy, gate, up), weights) = (inputs(), layers(halves(2, n * k)));
        let [mut product, dgate, dup] = [(); 3].map(|()| vec![f32::NAN; m * k]);
        let mut gradients = [dgate, dup];
        let mut run = move |[dgate, dup]: &mut [Vec<f32>; 2], w: &[bf16]| {
            multiply_back(cpu, &mut product, &dy, w, shape);
            swiglu::backward(cpu, [dgate, dup], &product, swiglu::Inputs::F32([&gate, &up]));
        };
        run(&mut gradients, &weights[0]);
        check(gradients.each_ref().map(Vec::as_slice), &weights[0], 0.0, &id);
        let mut layer = 0;
        Box::new(move || {
            layer = (layer + 1) % weights.len();
            run(&mut gradients, &weights[layer]);
        })
    });
    suite.bench_cuda("matmul", id.clone(), on_gpu, |gpu| {
        let ((dy, gate, up), w) = (inputs(), halves(2, n * k));
        let (dy, gate, up) = (gpu.rounded(&dy)?, gpu.upload(&gate)?, gpu.upload(&up)?);
        let weights = gpu.layers(&w)?;
        let mut gradients = [gpu.uninitialized(m * k)?, gpu.uninitialized(m * k)?];
        let run = move |[dgate, dup]: &mut [Buffer<u16>; 2], w: &Buffer<u16>| {
            let products = [Operands { x: &dy, w, first_row: 0, k: n }];
            gpu.matmul_swiglu_backward([dgate, dup], [&gate, &up], &products, [m, k])
        };
        run(&mut gradients, &weights[0])?;
        let [dgate, dup] = [gpu.widened(&gradients[0])?, gpu.widened(&gradients[1])?];
        check([&dgate, &dup], &w, BF16, &id);
        let mut layer = 0;
        Ok(Box::new(move || {
            layer = (layer + 1) % weights.len();
            run(&mut gradients, &weights[layer])
        }))
    });
}

/// A factor `[n, k]` split into bf16 parts, for products on a GPU only; checked by x·Fᵀ, and that by F.
fn factor(suite: &mut Suite, [m, n, k]: [usize; 3]) {
    let id = format!("factor-r{n}-n{k}-f32");
    // Three parts of 2 bytes, in two orders.
    let work = Work { bytes: 16.0 * (n * k) as f64, ..Work::default() };
    suite.bench_cuda("matmul", id.clone(), work, |gpu| {
        let w = values(2, n * k);
        let there = gpu.upload(&w)?;
        let factor: Factor = gpu.factor(&there, [n, k])?;
        let hidden = gpu.lora_hidden(&gpu.rounded(&values(1, m * k))?, &factor, m, 1.0)?;
        let l = joined(&gpu.widened(&hidden)?, n);
        check_hidden(&l, &w, [m, n, k], &id);
        let mut y = gpu.uninitialized(m * k)?;
        gpu.matmul(&mut y, &[factor.forward(&hidden)], [m, k], false)?;
        let y = gpu.download(&y)?;
        for index in sampled(m * k) {
            let (l, w) = (&l[index / k * n..][..n], w[index % k..].iter().step_by(k));
            let terms = l.iter().zip(w).map(|(l, w)| f64::from(*l) * f64::from(*w));
            // Low times hidden is at most 2⁻¹⁶ of a product, what the factor's parts leave out 2⁻¹⁷.
            let unit = n as f64 * f64::from(f32::EPSILON) + 2f64.powi(-15);
            Exact::sum(terms).check_within(y[index], unit, &id, index);
        }
        Ok(Box::new(move || gpu.factor(&there, [n, k]).map(drop)))
    });
}

/// Compares some of x·Aᵀ, where x was rounded to bf16 and A `[n, k]` was split.
fn check_hidden(hidden: &[f32], w: &[f32], [m, n, k]: [usize; 3], id: &str) {
    let x = values(1, m * k);
    // Parts leave out 2⁻¹⁸ of what they are of; sums are of two products each.
    let unit = k as f64 * f64::from(f32::EPSILON) + 2f64.powi(-17);
    for index in sampled(m * n) {
        let (x, w) = (&x[index / n * k..][..k], &w[index % n * k..][..k]);
        let terms = x.iter().zip(w).map(|(x, w)| rounded(*x) * f64::from(*w));
        Exact::sum(terms).check_within(hidden[index], unit, id, index);
    }
}

/// x·Aᵀ, in f32 as adapters are trained; on a GPU x is bf16, and A and the result in bf16 parts.
fn lora(suite: &mut Suite, shape: [usize; 3]) {
    let [m, n, k] = shape;
    let id = format!("m{m}-n{n}-k{k}-f32");
    suite.bench("matmul", id.clone(), work(shape, 4), |cpu| -> Run<'_> {
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
    suite.bench_cuda("matmul", id.clone(), hidden_work(shape), |gpu| {
        let (x, w) = (values(1, m * k), values(2, n * k));
        let (there, factor) = (gpu.rounded(&x)?, gpu.factor(&gpu.upload(&w)?, [n, k])?);
        let hidden = joined(&gpu.widened(&gpu.lora_hidden(&there, &factor, m, 1.0)?)?, n);
        check_hidden(&hidden, &w, shape, &id);
        Ok(Box::new(move || gpu.lora_hidden(&there, &factor, m, 1.0).map(drop)))
    });
}

/// What a product with a factor `[n, k]` in parts needs at least: 2·2 bytes for an element of it.
fn hidden_work([m, n, k]: [usize; 3]) -> Work {
    let bytes = 2 * m * k + 4 * n * (k + m);
    Work { flops: 2.0 * (m * n * k) as f64, bf16: true, bytes: bytes as f64 }
}

/// Rows of rank values from their parts: high, hidden, high.
fn joined(parts: &[f32], rank: usize) -> Vec<f32> {
    let row = |row: &[f32]| (0..rank).map(|r| row[r] + row[rank + r]).collect::<Vec<_>>();
    parts.chunks(3 * rank).flat_map(row).collect()
}

/// dA += dlowᵀ·x; on a GPU x is bf16, and dhidden in bf16 parts.
fn gradient(suite: &mut Suite, shape: [usize; 3]) {
    let [m, n, k] = shape;
    let id = format!("m{m}-n{n}-k{k}-f32");
    suite.bench("product", id.clone(), work(shape, 4), |cpu| -> Run<'_> {
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
    let work = Work { bytes: (2 * k * n + 4 * m * (k + 2 * n)) as f64, ..hidden_work(shape) };
    suite.bench_cuda("product", id.clone(), work, |gpu| {
        // Parts come of a product with a factor; this one is of 8 columns.
        let factor = gpu.factor(&gpu.upload(&values(3, m * 8))?, [m, 8])?;
        let hidden = gpu.lora_hidden(&gpu.rounded(&values(1, k * 8))?, &factor, k, 1.0)?;
        let (b, a) = (values(2, k * n), joined(&gpu.widened(&hidden)?, m));
        let there = gpu.rounded(&b)?;
        let mut y = gpu.zeros(m * n)?;
        gpu.matmul_gradient(&mut y, &hidden, &there, [k, m, n], true)?;
        let got = gpu.download(&y)?;
        // High and hidden parts are two sums.
        let unit = k as f64 * f64::from(f32::EPSILON);
        for index in sampled(m * n) {
            let (a, b) = (a[index / n..].iter().step_by(m), b[index % n..].iter().step_by(n));
            let terms = a.zip(b).map(|(a, b)| f64::from(*a) * rounded(*b));
            Exact::sum(terms).check_within(got[index], unit, &id, index);
        }
        Ok(Box::new(move || gpu.matmul_gradient(&mut y, &hidden, &there, [k, m, n], true)))
    });
}
