//! Products on the tensor cores.

use super::{Comparisons, all, rounded, uploaded, values, widened};
use crate::cpu::{self, Cpu};
use crate::cuda::{Error, FEW_ROWS, Operands};

/// Values that are bf16 already: as bits, and widened.
fn operand(seed: u64, len: usize) -> (Vec<u16>, Vec<f32>) {
    let bits = rounded(&values(seed, len));
    let wide = widened(&bits);
    (bits, wide)
}

/// x [m, k] · w [n, k]ᵀ added to y: naively in f32, and in f64.
fn product(y: &mut ([Vec<f32>; 1], Vec<f64>), x: &[f32], w: &[f32], [m, n, k]: [usize; 3]) {
    for i in 0..m {
        for j in 0..n {
            let products = || x[i * k..(i + 1) * k].iter().zip(&w[j * k..(j + 1) * k]);
            y.0[0][i * n + j] += products().map(|(x, w)| x * w).sum::<f32>();
            y.1[i * n + j] += products().map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
        }
    }
}

fn sums(start: &[f32]) -> ([Vec<f32>; 1], Vec<f64>) {
    ([start.to_vec()], start.iter().map(|y| f64::from(*y)).collect())
}

fn transposed(x: &[f32], rows: usize) -> Vec<f32> {
    let columns = x.len() / rows;
    (0..x.len()).map(|i| x[i % rows * columns + i / rows]).collect()
}

/// [m, n, k]; the last has many rows and more steps of k than the ring of tiles has places.
const SHAPES: [[usize; 3]; 7] = [
    [1, 8, 8],
    [5, 40, 24],
    [17, 72, 200],
    [70, 24, 136],
    [129, 136, 72],
    [260, 264, 40],
    [133, 40, 264],
];

pub(crate) fn forward_equals_the_naive_reference_in_every_form(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    for [m, n, k] in SHAPES {
        let ((x, xf), (w, wf), y0) = (operand(1, m * k), operand(2, n * k), values(3, m * n));
        let [dx, dw] = uploaded(gpu, [&x, &w])?;
        for accumulate in [false, true] {
            let start = if accumulate { y0.clone() } else { vec![0.0; m * n] };
            let mut want = sums(&start);
            product(&mut want, &xf, &wf, [m, n, k]);
            let mut y = gpu.upload(&y0)?;
            gpu.matmul(
                &mut y,
                &[Operands { x: &dx, w: &dw, first_row: 0, k }],
                [m, n],
                accumulate,
            )?;
            let case = format!("[{m}, {n}, {k}] {accumulate}");
            on.close(&gpu.download(&y)?, &want.0[0], &want.1, 1e-6, &case);
        }
    }
    Ok(())
}

pub(crate) fn a_row_has_the_same_bits_in_any_batch_and_kernel(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    let (m, n, k, k1) = (FEW_ROWS + 20, 40, 168, 24);
    let ((x, _), (w, _)) = (operand(4, m * k), operand(5, n * k));
    let ((x1, _), (w1, _)) = (operand(6, m * k1), operand(7, n * k1));
    let of = |first: usize, rows: usize| {
        let part = |x: &[u16], k: usize| gpu.upload(&x[first * k..(first + rows) * k]);
        let (x, x1) = (part(&x, k)?, part(&x1, k1)?);
        let [w, w1] = all([&w, &w1].map(|w| gpu.upload(w)))?;
        let mut y = gpu.zeros(rows * n)?;
        let products = [
            Operands { x: &x, w: &w, first_row: 0, k },
            Operands { x: &x1, w: &w1, first_row: 0, k: k1 },
        ];
        gpu.matmul(&mut y, &products, [rows, n], false)?;
        gpu.download(&y)
    };
    let whole = of(0, m)?;
    for (first, rows) in [(0, 1), (3, 16), (5, 17), (7, FEW_ROWS), (19, FEW_ROWS + 1)] {
        let part = of(first, rows)?;
        on.same_bits(&part, &whole[first * n..(first + rows) * n], &format!("{rows} rows"));
    }
    Ok(())
}

/// Parts of k that have blocks of their own, or one block in turn: the rank and k make both happen above FEW_ROWS.
pub(crate) fn a_row_of_lora_hidden_has_the_same_bits_in_any_batch(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    let (m, k) = (FEW_ROWS + 12, 14 * 256 + 40);
    let (x, _) = operand(1, m * k);
    for rank in [8, 64] {
        let factor = gpu.factor(&gpu.upload(&values(2, rank * k))?, [rank, k])?;
        let of = |first: usize, rows: usize| {
            let part = gpu.upload(&x[first * k..(first + rows) * k])?;
            gpu.download(&gpu.lora_hidden(&part, &factor, rows, 0.5)?)
        };
        let whole = of(0, m)?;
        for (first, rows) in [(0, 1), (3, 17), (m - FEW_ROWS, FEW_ROWS), (9, FEW_ROWS + 1)] {
            let want = &whole[first * 3 * rank..(first + rows) * 3 * rank];
            on.same_rounded(&of(first, rows)?, want, &format!("{rows} rows, rank {rank}"));
        }
    }
    Ok(())
}

pub(crate) fn backward_adds_the_products_of_its_pairs(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    for [m, n, k] in SHAPES {
        let k1 = 8 + k % 32;
        let ((x, xf), (w, wf)) = (operand(1, m * k), operand(2, k * n));
        let ((x1, x1f), (w1, w1f)) = (operand(3, m * k1), operand(4, k1 * n));
        let old = values(5, m * n);
        let mut want = sums(&old);
        product(&mut want, &xf, &transposed(&wf, k), [m, n, k]);
        product(&mut want, &x1f, &transposed(&w1f, k1), [m, n, k1]);
        let [x, w, x1, w1] = all([&x, &w, &x1, &w1].map(|x| gpu.upload(x)))?;
        let mut dx = gpu.upload(&old)?;
        let products = [
            Operands { x: &x, w: &w, first_row: 0, k },
            Operands { x: &x1, w: &w1, first_row: 0, k: k1 },
        ];
        gpu.matmul_backward(&mut dx, &products, [m, n], true)?;
        let case = format!("[{m}, {n}, {k}]");
        on.close(&gpu.download(&dx)?, &want.0[0], &want.1, 1e-6, &case);
    }
    Ok(())
}

/// Widths and sums as long as Qwen3-0.6B's, on decode's and training's tiles; some rows are compared.
pub(crate) fn products_of_a_models_widths_equal_the_naive_reference(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    // So wide that the kernels for few rows take their wide tiles on this GPU.
    let wide = 32 * gpu.multiprocessors();
    let shapes =
        [[16, 1024, 3072], [64, 3072, 1024], [320, 1024, 1024], [16, wide, 40], [40, wide, 40]];
    for [m, n, k] in shapes {
        let ((x, xf), (w, wf)) = (operand(1, m * k), operand(2, n * k));
        let rows = [0, 9, 15, m / 2, m - 1];
        let of = |all: &[f32], width: usize| -> Vec<f32> {
            rows.iter().flat_map(|row| &all[row * width..(row + 1) * width]).copied().collect()
        };
        let zeros = vec![0.0; rows.len() * n];
        let [mut forward, mut backward] = [sums(&zeros), sums(&zeros)];
        product(&mut forward, &of(&xf, k), &wf, [rows.len(), n, k]);
        product(&mut backward, &of(&xf, k), &transposed(&wf, k), [rows.len(), n, k]);
        let [x, w] = uploaded(gpu, [&x, &w])?;
        let product = [Operands { x: &x, w: &w, first_row: 0, k }];
        let mut y = gpu.zeros(m * n)?;
        gpu.matmul(&mut y, &product, [m, n], false)?;
        let case = format!("[{m}, {n}, {k}]");
        on.close(&of(&gpu.download(&y)?, n), &forward.0[0], &forward.1, 1e-6, &case);
        gpu.matmul_backward(&mut y, &product, [m, n], false)?;
        on.close(&of(&gpu.download(&y)?, n), &backward.0[0], &backward.1, 1e-6, &case);
    }
    Ok(())
}

/// What the fused kernel gives must have the bits of a product and SwiGLU one after the other.
pub(crate) fn swiglu_behind_a_product_is_the_two_in_turn(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    // The last two for the wide tiles, as above: gate and up stand side by side.
    let wide = 16 * gpu.multiprocessors();
    for [m, n, k] in [[1, 8, 24], [19, 40, 136], [131, 72, 40], [3, wide, 24], [19, wide, 24]] {
        let ((x, _), (w, _)) = (operand(1, m * k), operand(2, 2 * n * k));
        let (dy, _) = operand(3, m * 32);
        let (down, _) = operand(4, 32 * n);
        let x = gpu.upload(&x)?;
        let half = |w: &[u16]| {
            let w = gpu.upload(w)?;
            let mut y = gpu.zeros(m * n)?;
            gpu.matmul(&mut y, &[Operands { x: &x, w: &w, first_row: 0, k }], [m, n], false)?;
            Ok(y)
        };
        let halves = all([&w[..n * k], &w[n * k..]].map(half))?;
        let w = gpu.upload(&w)?;
        let [mut gate, mut up] = all([(); 2].map(|()| gpu.zeros::<f32>(m * n)))?;
        let mut want = gpu.zeros::<u16>(m * n)?;
        gpu.swiglu(&mut want, &halves[0], &halves[1])?;
        let want = gpu.download(&want)?;
        for keeps in [false, true] {
            let mut y = gpu.zeros::<u16>(m * n)?;
            let kept = keeps.then_some([&mut gate, &mut up]);
            gpu.matmul_swiglu(&mut y, kept, &[Operands { x: &x, w: &w, first_row: 0, k }], [m, n])?;
            on.same_rounded(&gpu.download(&y)?, &want, &format!("[{m}, {n}, {k}]"));
        }
        for (got, want) in [&gate, &up].iter().zip(&halves) {
            let (got, want) = (gpu.download(got)?, gpu.download(want)?);
            on.same_bits(&got, &want, "gate and up");
        }

        let [dy, down] = all([&dy, &down].map(|x| gpu.upload(x)))?;
        let product = [Operands { x: &dy, w: &down, first_row: 0, k: 32 }];
        let mut d = gpu.zeros(m * n)?;
        gpu.matmul_backward(&mut d, &product, [m, n], false)?;
        let [mut a, mut b, mut c, mut e] = all([(); 4].map(|()| gpu.zeros::<u16>(m * n)))?;
        gpu.swiglu_backward([&mut a, &mut b], &d, &gate, &up)?;
        gpu.matmul_swiglu_backward([&mut c, &mut e], [&gate, &up], &product, [m, n])?;
        for (got, want) in [(c, a), (e, b)] {
            on.same_rounded(&gpu.download(&got)?, &gpu.download(&want)?, "gradients");
        }
    }
    Ok(())
}

pub(crate) fn rounding_is_to_nearest_even(on: &mut Comparisons<'_>) -> Result<(), Error> {
    let gpu = on.gpu;
    let mut x = values(1, 4096);
    x[..8].copy_from_slice(&[
        0.0,
        -0.0,
        1e-40,
        f32::MAX,
        f32::INFINITY,
        f32::MIN,
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
    ]);
    let mut y = gpu.zeros(x.len())?;
    gpu.round(&mut y, &gpu.upload(&x)?)?;
    on.same_rounded(&gpu.download(&y)?, &rounded(&x), "[4096]");
    Ok(())
}

/// LoRA: l = s·x·Aᵀ, y += l·Bᵀ, dl = s·dy·B, dx += dl·A, dA = dlᵀ·x, dB = lᵀ·dy, against f64 and against
/// the CPU's f32 of the same inputs.
pub(crate) fn lora_products_are_as_good_as_f32(on: &mut Comparisons<'_>) -> Result<(), Error> {
    let gpu = on.gpu;
    let cpu = Cpu::new(1);
    for [m, n, k, rank] in [[3, 24, 40, 8], [140, 72, 136, 16], [520, 16, 24, 24], [18, 8, 600, 8]]
    {
        let scale = 2.0;
        let (x, xf) = operand(1, m * k);
        let (a, b) = (values(3, rank * k), values(4, rank * n));
        let [da, db] =
            all([(&a, k), (&b, n)].map(|(factor, n)| gpu.factor(&gpu.upload(factor)?, [rank, n])))?;
        let x = gpu.upload(&x)?;
        let hidden = gpu.lora_hidden(&x, &da, m, scale)?;
        let zero = [gpu.zeros(m * 8)?, gpu.zeros(n * 8)?];
        let mut y = gpu.zeros(m * n)?;
        let products =
            [Operands { x: &zero[0], w: &zero[1], first_row: 0, k: 8 }, db.forward(&hidden)];
        gpu.matmul(&mut y, &products, [m, n], false)?;

        // l, its delta and the gradient of B, with x = dy's stand-in for the last.
        let hidden_exact: Vec<f64> = (0..m * rank)
            .map(|i| {
                let (row, r) = (i / rank, i % rank);
                let products = (0..k).map(|c| f64::from(xf[row * k + c]) * f64::from(a[r * k + c]));
                f64::from(scale) * products.sum::<f64>()
            })
            .collect();
        let hidden_naive: Vec<f32> = hidden_exact.iter().map(|l| *l as f32).collect();
        let exact: Vec<f64> = (0..m * n)
            .map(|i| {
                (0..rank)
                    .map(|r| hidden_exact[i / n * rank + r] * f64::from(b[r * n + i % n]))
                    .sum()
            })
            .collect();
        let mut naive = vec![0.0; m * n];
        let shape = [m, n, rank];
        let left = cpu::product::Left::Rows;
        cpu::product::accumulate(&cpu, &mut naive, &hidden_naive, left, &b, shape);
        // Dropped: low times low, twice, of sums over k and rank of products below 2.
        let floor = 2f64.powi(-16) * 2.0 * (k * rank) as f64;
        let case = format!("[{m}, {n}, {k}] rank {rank}");
        on.close(&gpu.download(&y)?, &naive, &exact, floor, &case);

        let (dy, dyf) = operand(5, m * n);
        let dy = gpu.upload(&dy)?;
        let mut dw = gpu.zeros(rank * n)?;
        gpu.matmul_gradient(&mut dw, &hidden, &dy, [m, rank, n], true)?;
        let exact: Vec<f64> = (0..rank * n)
            .map(|i| {
                (0..m)
                    .map(|row| hidden_exact[row * rank + i / n] * f64::from(dyf[row * n + i % n]))
                    .sum()
            })
            .collect();
        let mut naive = vec![0.0; rank * n];
        let shape = [rank, n, m];
        let left = cpu::product::Left::Columns;
        cpu::product::accumulate(&cpu, &mut naive, &hidden_naive, left, &dyf, shape);
        let floor = 2f64.powi(-16) * 2.0 * (m * k) as f64;
        on.close(&gpu.download(&dw)?, &naive, &exact, floor, &format!("dB, {case}"));

        // dx += dl·A with dl = s·dy·B.
        let dhidden = gpu.lora_hidden(&dy, &db, m, scale)?;
        let mut dx = gpu.zeros(m * k)?;
        gpu.matmul_backward(&mut dx, &[da.backward(&dhidden)], [m, k], false)?;
        let dhidden_exact: Vec<f64> = (0..m * rank)
            .map(|i| {
                let (row, r) = (i / rank, i % rank);
                let products =
                    (0..n).map(|c| f64::from(dyf[row * n + c]) * f64::from(b[r * n + c]));
                f64::from(scale) * products.sum::<f64>()
            })
            .collect();
        let exact: Vec<f64> = (0..m * k)
            .map(|i| {
                (0..rank)
                    .map(|r| dhidden_exact[i / k * rank + r] * f64::from(a[r * k + i % k]))
                    .sum()
            })
            .collect();
        let naive: Vec<f32> = exact.iter().map(|x| *x as f32).collect();
        let floor = 2f64.powi(-16) * 2.0 * (n * rank) as f64;
        on.close(&gpu.download(&dx)?, &naive, &exact, floor, &format!("dx, {case}"));
    }
    Ok(())
}
