//! Results that a GPU rounds to bf16 as it writes them, where a product takes them next; a CPU does so behind the
//! kernel. And rounding alone.

use half::{bf16, slice::HalfFloatSliceExt as _};
use kernels::{
    cpu::{Cpu, dropout, rms_norm, round, swiglu},
    cuda::{Buffer, Error},
};

use super::{
    HEAD_DIM, HEADS, MODELS, Run, Suite, Widths, Work,
    cuda::Cuda,
    elements::{EPS, MASK, ROWS, gated, normed, swiglu_derivatives},
    naive::{BF16, Exact, halves, rounded, sampled, values},
};

pub(crate) fn bench(suite: &mut Suite) {
    for Widths { hidden, inner } in MODELS {
        for rows in ROWS {
            norm(suite, rows, hidden);
            activation(suite, rows * inner);
        }
        activation_backward(suite, 512 * inner);
        drop_out(suite, 512 * hidden);
        drop_out_rounded(suite, 512 * hidden);
        round(suite, 512 * hidden);
    }
    norm(suite, 512 * HEADS, HEAD_DIM);
}

/// A kernel with N results of one length.
pub(crate) struct Case<'s> {
    pub(crate) kernel: &'s str,
    pub(crate) id: String,
    pub(crate) len: usize,
    /// Bytes read for an element of each of the results.
    pub(crate) read: usize,
}

impl Case<'_> {
    /// Benches it on both devices. `naive` says what the results are at an index; each of the others takes the operands
    /// to a device and returns what computes the results there. All are called only if the id was asked for.
    pub(crate) fn bench<'c, const N: usize, E, C, G>(
        self,
        suite: &mut Suite<'c>,
        naive: impl Fn() -> E,
        on_cpu: impl FnOnce() -> C,
        on_gpu: impl FnOnce(Cuda<'c>) -> Result<G, Error>,
    ) where
        E: Fn(usize) -> [Exact; N],
        C: FnMut(&Cpu, &mut [Vec<f32>; N]) + 'c,
        G: FnMut(&mut [Buffer<u16>; N]) -> Result<(), Error> + 'c,
    {
        let Case { kernel, id, len, read } = self;
        let work = Work { bytes: ((read + 2 * N) * len) as f64, ..Work::default() };
        let check = |results: [&[f32]; N], id: &str| {
            let exact = naive();
            for index in sampled(len) {
                for (exact, y) in exact(index).into_iter().zip(results) {
                    // The f32 that is rounded is off as well.
                    let unit = BF16 + 16.0 * f64::from(f32::EPSILON);
                    exact.check_within(y[index], unit, id, index);
                }
            }
        };
        suite.bench(kernel, id.clone(), work, |cpu| -> Run<'_> {
            let mut compute = on_cpu();
            let mut wide = [(); N].map(|()| vec![f32::NAN; len]);
            let mut y = [(); N].map(|()| vec![bf16::NAN; len]);
            let mut run = move |y: &mut [Vec<bf16>; N]| {
                compute(cpu, &mut wide);
                y.iter_mut().zip(&wide).for_each(|(y, wide)| round::to_bf16(cpu, y, wide));
            };
            run(&mut y);
            let widened = y.each_ref().map(|y| y.to_f32_vec());
            check(widened.each_ref().map(Vec::as_slice), &id);
            Box::new(move || run(&mut y))
        });
        suite.bench_cuda(kernel, id.clone(), work, |gpu| {
            let mut compute = on_gpu(gpu)?;
            let made: Vec<Buffer<u16>> =
                (0..N).map(|_| gpu.uninitialized(len)).collect::<Result<_, _>>()?;
            let mut y: [Buffer<u16>; N] = made.try_into().expect("N of them");
            compute(&mut y)?;
            let widened: Vec<Vec<f32>> =
                y.iter().map(|y| gpu.widened(y)).collect::<Result<_, _>>()?;
            check(std::array::from_fn(|i| widened[i].as_slice()), &id);
            Ok(Box::new(move || compute(&mut y)))
        });
    }
}

fn norm(suite: &mut Suite, rows: usize, n: usize) {
    let id = format!("r{rows}-n{n}-bf16");
    let inputs = move || (values(1, rows * n), values(2, n));
    Case { kernel: "rms_norm", id, len: rows * n, read: 4 }.bench(
        suite,
        || {
            let (x, w) = inputs();
            move |index| [Exact::of(normed(&x, &w, index))]
        },
        || {
            let (x, w) = inputs();
            move |cpu: &Cpu, [y]: &mut [Vec<f32>; 1]| rms_norm::forward(cpu, y, &x, &w, EPS)
        },
        |gpu| {
            let (x, w) = inputs();
            let (x, w) = (gpu.upload(&x)?, gpu.upload(&w)?);
            Ok(move |[y]: &mut [Buffer<u16>; 1]| gpu.rms_norm(y, &x, &w, EPS))
        },
    );
}

fn activation(suite: &mut Suite, len: usize) {
    let inputs = move || (values(1, len), values(2, len));
    Case { kernel: "swiglu", id: format!("n{len}-bf16"), len, read: 8 }.bench(
        suite,
        || {
            let (gate, up) = inputs();
            move |i| [Exact::of(gated(gate[i].into(), up[i].into()))]
        },
        || {
            let (gate, up) = inputs();
            move |cpu: &Cpu, [y]: &mut [Vec<f32>; 1]| {
                swiglu::forward(cpu, y, swiglu::Inputs::F32([&gate, &up]));
            }
        },
        |gpu| {
            let (gate, up) = inputs();
            let (gate, up) = (gpu.upload(&gate)?, gpu.upload(&up)?);
            Ok(move |[y]: &mut [Buffer<u16>; 1]| gpu.swiglu(y, &gate, &up))
        },
    );
}

fn activation_backward(suite: &mut Suite, len: usize) {
    let inputs = move || (values(1, len), values(2, len), values(3, len));
    Case { kernel: "swiglu", id: format!("backward-n{len}-bf16"), len, read: 12 }.bench(
        suite,
        || {
            let (gate, up, dy) = inputs();
            move |i| {
                let swiglu_derivatives = swiglu_derivatives(gate[i].into(), up[i].into());
                swiglu_derivatives.map(|derivative| Exact::of(f64::from(dy[i]) * derivative))
            }
        },
        || {
            let (gate, up, dy) = inputs();
            move |cpu: &Cpu, [dgate, dup]: &mut [Vec<f32>; 2]| {
                swiglu::backward(cpu, [dgate, dup], &dy, swiglu::Inputs::F32([&gate, &up]));
            }
        },
        |gpu| {
            let (gate, up, dy) = inputs();
            let (gate, up, dy) = (gpu.upload(&gate)?, gpu.upload(&up)?, gpu.upload(&dy)?);
            Ok(move |[dgate, dup]: &mut [Buffer<u16>; 2]| {
                gpu.swiglu_backward([dgate, dup], &dy, &gate, &up)
            })
        },
    );
}

/// An element of x behind the mask.
fn masked(x: f64, index: usize) -> [Exact; 1] {
    let word = MASK.key.words((index / 4) as u32)[index % 4];
    let kept = f64::from(word) >= f64::from(MASK.probability) * f64::from(u32::MAX);
    [Exact::of(if kept { x / (1.0 - f64::from(MASK.probability)) } else { 0.0 })]
}

fn drop_out(suite: &mut Suite, len: usize) {
    Case { kernel: "dropout", id: format!("n{len}-bf16"), len, read: 4 }.bench(
        suite,
        || {
            let x = values(1, len);
            move |index| masked(x[index].into(), index)
        },
        || {
            let x = values(1, len);
            move |cpu: &Cpu, [y]: &mut [Vec<f32>; 1]| dropout::forward(cpu, y, &x, MASK)
        },
        |gpu| {
            let x = gpu.upload(&values(1, len))?;
            Ok(move |[y]: &mut [Buffer<u16>; 1]| gpu.dropout(y, &x, MASK))
        },
    );
}

/// Of values that are bf16 before, too.
fn drop_out_rounded(suite: &mut Suite, len: usize) {
    Case { kernel: "dropout", id: format!("n{len}-bf16-to-bf16"), len, read: 2 }.bench(
        suite,
        || {
            let x = halves(1, len);
            move |index| masked(x[index].to_f64(), index)
        },
        || {
            let (x, mut wide) = (halves(1, len), vec![f32::NAN; len]);
            move |cpu: &Cpu, [y]: &mut [Vec<f32>; 1]| {
                round::from_bf16(cpu, &mut wide, &x);
                dropout::forward(cpu, y, &wide, MASK);
            }
        },
        |gpu| {
            let x = gpu.rounded(&values(1, len))?;
            Ok(move |[y]: &mut [Buffer<u16>; 1]| gpu.dropout_rounded(y, &x, MASK))
        },
    );
}

fn round(suite: &mut Suite, len: usize) {
    let id = format!("n{len}");
    let work = Work { bytes: 6.0 * len as f64, ..Work::default() };
    let check = |y: &[f32], id: &str| {
        let x = values(1, len);
        for index in sampled(len) {
            Exact::of(rounded(x[index])).check_off(y[index], 0.0, id, index);
        }
    };
    suite.bench("round", id.clone(), work, |cpu| -> Run<'_> {
        let (x, mut y) = (values(1, len), vec![bf16::NAN; len]);
        round::to_bf16(cpu, &mut y, &x);
        check(&y.to_f32_vec(), &id);
        Box::new(move || round::to_bf16(cpu, &mut y, &x))
    });
    suite.bench_cuda("round", id.clone(), work, |gpu| {
        let x = gpu.upload(&values(1, len))?;
        let mut y = gpu.uninitialized(len)?;
        gpu.round(&mut y, &x)?;
        check(&gpu.widened(&y)?, &id);
        Ok(Box::new(move || gpu.round(&mut y, &x)))
    });
}
