//! Matrix product with row-major weights: `y[m,n] = x[m,k] · w[n,k]ᵀ`, or y += that, with LoRA's delta
//! added on the way.
//!
//! Where bf16 weights meet rounded inputs and the CPU multiplies pairs of bf16 (AVX-512 BF16), weights
//! go through the multipliers as panels, packed once ([`Panels`]) or on the way from where they lie,
//! with the same bits (bf16_dot.rs). Everything else is products of f32: few rows of x as dot products of
//! contiguous rows (gemv.rs), many as tiles over panels of widened weights (tiles.rs), with the same
//! bits. So products are batch-invariant, whatever their form.

#[cfg(target_arch = "x86_64")]
mod bf16_dot;
mod gemv;
#[cfg(target_arch = "x86_64")]
mod pack;
mod panels;
mod tiles;

#[cfg(target_arch = "x86_64")]
pub(crate) use bf16_dot::{TILE, multiply};
#[cfg(target_arch = "x86_64")]
pub(crate) use pack::{pack_columns, pack_rows};
pub(crate) use panels::PANEL_ROWS;
pub use panels::{PanelSlice, Panels};
use tiles::takes_tiles;

use super::product::{self, Left};
use super::profile::{self, Work};
use half::{bf16, f16};

use super::Cpu;

/// Row-major weights [n, k], used where they lie (a memory-mapped checkpoint).
#[derive(Clone, Copy, Debug)]
pub enum Matrix<'a> {
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// IEEE single precision.
    F32(&'a [f32]),
    /// bfloat16, packed: only for products of rounded inputs ([`ComputeDtype::Bf16`]).
    Panels(PanelSlice<'a>),
}

impl<'a> Matrix<'a> {
    /// Some of its rows, of `k` elements.
    pub fn rows(self, rows: std::ops::Range<usize>, k: usize) -> Matrix<'a> {
        let elements = rows.start * k..rows.end * k;
        match self {
            Matrix::Bf16(data) => Matrix::Bf16(&data[elements]),
            Matrix::F16(data) => Matrix::F16(&data[elements]),
            Matrix::F32(data) => Matrix::F32(&data[elements]),
            Matrix::Panels(panels) => Matrix::Panels(panels.rows(rows)),
        }
    }
}

impl Matrix<'_> {
    /// Asserts that it has `n` rows of `k` elements.
    pub(crate) fn assert_shape(&self, [n, k]: [usize; 2]) {
        let len = match self {
            Matrix::Bf16(data) => data.len(),
            Matrix::F16(data) => data.len(),
            Matrix::F32(data) => data.len(),
            Matrix::Panels(panels) => {
                assert_eq!(panels.shape(), [n, k], "w is not [{n}, {k}]");
                return;
            }
        };
        assert_eq!(Some(len), n.checked_mul(k), "w is not [{n}, {k}]");
    }

    /// Bytes of the elements.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Matrix::Bf16(data) => size_of_val(*data),
            Matrix::F16(data) => size_of_val(*data),
            Matrix::F32(data) => size_of_val(*data),
            Matrix::Panels(panels) => panels.len_bytes(),
        }
    }
}

/// The compute dtype of a matmul: the type in which x is multiplied, and the type in which products are accumulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComputeDtype {
    /// x is rounded to bf16, to nearest even, where the weights are bf16; with f16 and f32 weights it is not rounded.
    /// Sums are f32.
    Bf16,
    /// x is not rounded. Sums are f32.
    F32,
    /// x is not rounded. Products are exact, sums are f64, and y is rounded to f32 once: y = x·wᵀ, or y + x·wᵀ when
    /// accumulating. The bits are the same on every instruction set. For reference results.
    F64,
}

/// Weights (in elements) a task of few rows streams at least; less is not worth waking a thread.
const STREAM: usize = 64 * 1024;

/// Up to this many rows of x a product of pairs streams w once: its time is that of reading w.
pub const FEW_ROWS: usize = 36;

/// Products that share an x, at most.
const MOST_PRODUCTS: usize = 4;

/// One of several products with the same x.
#[derive(Debug)]
pub struct Product<'a> {
    /// The result, `[m, n]`.
    pub y: &'a mut [f32],
    /// Weights `[n, k]`.
    pub w: Matrix<'a>,
    /// Rows of w.
    pub n: usize,
    /// Whether the product is added to y.
    pub accumulate: bool,
    /// LoRA's delta, which is added too.
    pub low_rank: Option<LowRank<'a>>,
}

/// A product of two thin matrices that is added to y: LoRA's delta. It is computed in f32, or in f64 where all sums are.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// `[m, rank]`.
    pub left: &'a [f32],
    /// `[rank, n]`.
    pub right: &'a [f32],
    /// Columns of left, rows of right.
    pub rank: usize,
}

impl LowRank<'_> {
    fn check(&self, m: usize, n: usize) {
        assert_eq!(Some(self.left.len()), m.checked_mul(self.rank), "left is not [{m}, rank]");
        assert_eq!(Some(self.right.len()), n.checked_mul(self.rank), "right is not [rank, {n}]");
    }
}

/// Writes x·wᵀ to `y`, or adds it to `y` if `accumulate`. Shapes: `y [m,n]`, `x [m,k]`, `w [n,k]`.
/// `compute` is the compute dtype.
pub fn forward(
    cpu: &Cpu,
    y: &mut [f32],
    x: &[f32],
    w: Matrix<'_>,
    [m, n, k]: [usize; 3],
    compute: ComputeDtype,
    accumulate: bool,
) {
    let product = Product { y, w, n, accumulate, low_rank: None };
    forward_all(cpu, &mut [product], x, [m, k], compute);
}

/// Several products (at most four) with the same x `[m, k]`, which is rounded once: q, k and v, or
/// gate and up.
pub fn forward_all(
    cpu: &Cpu,
    products: &mut [Product<'_>],
    x: &[f32],
    [m, k]: [usize; 2],
    compute: ComputeDtype,
) {
    assert_eq!(Some(x.len()), m.checked_mul(k), "x is not [{m}, {k}]");
    assert!(products.len() <= MOST_PRODUCTS, "{} products at once", products.len());
    for Product { y, w, n, low_rank, .. } in products.iter() {
        assert_eq!(Some(y.len()), m.checked_mul(*n), "y is not [{m}, {n}]");
        w.assert_shape([*n, k]);
        low_rank.iter().for_each(|delta| delta.check(m, *n));
    }
    let [n, bytes] = products
        .iter()
        .fold([0, 0], |[n, bytes], product| [n + product.n, bytes + product.w.bytes()]);
    let added = products.iter().any(|product| product.accumulate);
    let work = || Work::product([m, n, k], [4 * m * k, bytes], added);
    let _span = profile::span("matmul", [m, n, k], work);
    #[cfg(target_arch = "x86_64")]
    if takes_pairs(cpu, products.iter().map(|product| product.w), compute) {
        let mut products = products.iter_mut();
        let jobs: [_; MOST_PRODUCTS] = std::array::from_fn(|_| {
            let Product { y, w, n, accumulate, low_rank } = products.next()?;
            let source = match *w {
                Matrix::Panels(panels) => bf16_dot::Source::Panels(panels),
                Matrix::Bf16(w) => bf16_dot::Source::Rows { w, n: *n, k },
                _ => unreachable!("bf16 by takes_pairs"),
            };
            let y = super::pool::Disjoint::new(y);
            Some(bf16_dot::Job { y, source, accumulate: *accumulate, low_rank: *low_rank })
        });
        return bf16_dot::run(cpu, x, [m, k], &jobs);
    }
    tiles::forward(cpu, products, x, [m, k], compute);
    for Product { y, w, n, accumulate, low_rank } in products {
        if !takes_tiles(cpu.isa(), [m, *n], compute) {
            gemv::forward(cpu, y, x, *w, [m, *n, k], compute, *accumulate);
        }
        add_low_rank(cpu, y, *low_rank, [m, *n], compute);
    }
}

/// Writes dy·w to `dx`, or adds it: the gradient of x in y = x·wᵀ. Shapes: `dx [m,k]`, `dy [m,n]`,
/// `w [n,k]`, a delta's left `[m, rank]` and right `[rank, k]`. dy is rounded as x would be; w's
/// own gradient is not computed.
#[allow(clippy::too_many_arguments)] // as forward's, and the delta
pub fn backward(
    cpu: &Cpu,
    dx: &mut [f32],
    dy: &[f32],
    w: Matrix<'_>,
    [m, n, k]: [usize; 3],
    compute: ComputeDtype,
    accumulate: bool,
    low_rank: Option<LowRank<'_>>,
) {
    assert_eq!(Some(dx.len()), m.checked_mul(k), "dx is not [{m}, {k}]");
    assert_eq!(Some(dy.len()), m.checked_mul(n), "dy is not [{m}, {n}]");
    w.assert_shape([n, k]);
    low_rank.iter().for_each(|delta| delta.check(m, k));
    let work = || Work::product([m, k, n], [4 * m * n, w.bytes()], accumulate);
    let _span = profile::span("matmul backward", [m, n, k], work);
    #[cfg(target_arch = "x86_64")]
    if takes_pairs(cpu, [w].into_iter(), compute) {
        let source = match w {
            Matrix::Panels(panels) => bf16_dot::Source::PanelColumns(panels),
            Matrix::Bf16(w) => bf16_dot::Source::Columns { w, n: k, k: n },
            _ => unreachable!("bf16 by takes_pairs"),
        };
        let y = super::pool::Disjoint::new(dx);
        return bf16_dot::run(
            cpu,
            dy,
            [m, n],
            &[Some(bf16_dot::Job { y, source, accumulate, low_rank })],
        );
    }
    match compute {
        ComputeDtype::F64 => gemv::backward(cpu, dx, dy, w, [m, n, k], compute, accumulate),
        _ => tiles::backward(cpu, dx, dy, w, [m, n, k], compute, accumulate),
    }
    add_low_rank(cpu, dx, low_rank, [m, k], compute);
}

/// Whether products run as pairs: all or none.
#[cfg(target_arch = "x86_64")]
fn takes_pairs<'a>(
    cpu: &Cpu,
    mut weights: impl Iterator<Item = Matrix<'a>>,
    compute: ComputeDtype,
) -> bool {
    compute == ComputeDtype::Bf16
        && Panels::suit(cpu)
        && weights.all(|w| matches!(w, Matrix::Bf16(_) | Matrix::Panels(_)))
}

fn add_low_rank(
    cpu: &Cpu,
    y: &mut [f32],
    delta: Option<LowRank<'_>>,
    [m, n]: [usize; 2],
    compute: ComputeDtype,
) {
    let Some(LowRank { left, right, rank }) = delta else { return };
    match compute {
        ComputeDtype::F64 => {
            gemv::backward(cpu, y, left, Matrix::F32(right), [m, rank, n], compute, true);
        }
        _ => product::accumulate(cpu, y, left, Left::Rows, right, [m, n, rank]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::reference::{
        assert_close, assert_rounded_once, assert_same_bits, contexts, values,
    };

    const DTYPES: [ComputeDtype; 3] = [ComputeDtype::Bf16, ComputeDtype::F32, ComputeDtype::F64];

    /// Weights in the three types.
    struct Weights {
        bf16: Vec<bf16>,
        f16: Vec<f16>,
        f32: Vec<f32>,
    }

    impl Weights {
        fn new(seed: u64, len: usize) -> Weights {
            let f32 = values(seed, len);
            let bf16 = f32.iter().map(|x| bf16::from_f32(*x)).collect();
            let f16 = f32.iter().map(|x| f16::from_f32(*x)).collect();
            Weights { bf16, f16, f32 }
        }

        fn matrices(&self) -> [Matrix<'_>; 3] {
            [Matrix::Bf16(&self.bf16), Matrix::F16(&self.f16), Matrix::F32(&self.f32)]
        }
    }

    fn widened(w: Matrix<'_>) -> Vec<f32> {
        match w {
            Matrix::Bf16(w) => w.iter().map(|w| w.to_f32()).collect(),
            Matrix::F16(w) => w.iter().map(|w| w.to_f32()).collect(),
            Matrix::F32(w) => w.to_vec(),
            Matrix::Panels(_) => unreachable!("the tests' weights lie row by row"),
        }
    }

    /// The naive reference in f32, and the exact result in f64, of x as it is rounded.
    fn references(
        y: &[f32],
        x: &[f32],
        w: Matrix<'_>,
        [m, n, k]: [usize; 3],
        compute: ComputeDtype,
    ) -> (Vec<f32>, Vec<f64>) {
        let rounds = compute == ComputeDtype::Bf16 && matches!(w, Matrix::Bf16(_));
        let round = |x: &f32| if rounds { bf16::from_f32(*x).to_f32() } else { *x };
        let (x, w): (Vec<f32>, _) = (x.iter().map(round).collect(), widened(w));
        let (mut naive, mut exact) = (y.to_vec(), Vec::new());
        for i in 0..m {
            for j in 0..n {
                let pairs = || x[i * k..(i + 1) * k].iter().zip(&w[j * k..(j + 1) * k]);
                naive[i * n + j] += pairs().map(|(x, w)| x * w).sum::<f32>();
                let sum: f64 = pairs().map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                exact.push(f64::from(y[i * n + j]) + sum);
            }
        }
        (naive, exact)
    }

    #[test]
    fn equals_the_naive_reference_on_awkward_shapes() {
        let contexts = contexts();
        let shapes = [
            [0, 5, 7],
            [3, 0, 7],
            [2, 3, 0],
            [1, 1, 1],
            [1, 4, 16],
            [2, 5, 15],
            [3, 33, 33],
            [5, 7, 31],
            [7, 2, 100],
            [13, 9, 1025],
            [14, 67, 48],
            [200, 66, 17],
            [1, 130, 2100],
        ];
        for shape in shapes {
            let [m, n, k] = shape;
            let (x, w, y) = (values(1, m * k), Weights::new(2, n * k), values(3, m * n));
            for w in w.matrices() {
                for compute in DTYPES {
                    let zeros = vec![0.0; m * n];
                    for (old, accumulate) in [(&zeros, false), (&y, true)] {
                        let (naive, exact) = references(old, &x, w, shape, compute);
                        let mut first: Option<Vec<f32>> = None;
                        for cpu in &contexts {
                            // Not read unless accumulating: NaN would show.
                            let mut got =
                                if accumulate { y.clone() } else { vec![f32::NAN; m * n] };
                            forward(cpu, &mut got, &x, w, shape, compute, accumulate);
                            let case = format!("{} {shape:?} {compute:?}", cpu.isa());
                            if compute == ComputeDtype::F64 {
                                assert_rounded_once(&got, &exact, 1e-13, &case);
                                let bits = first.get_or_insert_with(|| got.clone());
                                assert_same_bits(&got, bits, "instruction sets");
                            } else {
                                assert_close(&got, &naive, &exact, 1e-6, &case);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_batch_on_any_number_of_threads() {
        for [n, k] in [[70, 16], [37, 1500], [150, 2049], [33, 7]] {
            let (x, w) = (values(4, 256 * k), Weights::new(5, n * k));
            for w in w.matrices() {
                for compute in DTYPES {
                    let mut reference: Option<(Isa, Vec<f32>)> = None;
                    for cpu in contexts() {
                        let mut whole = vec![0.0; 256 * n];
                        forward(&cpu, &mut whole, &x, w, [256, n, k], compute, false);
                        match &reference {
                            Some((isa, rows)) if *isa == cpu.isa() => {
                                assert_same_bits(&whole, rows, "threads");
                            }
                            _ => reference = Some((cpu.isa(), whole.clone())),
                        }
                        for batch in [1, 3, 7, 16, 64] {
                            // From the end, so that rows fall on other places of the tiles.
                            let first = 256 - batch;
                            let mut part = vec![0.0; batch * n];
                            let x = &x[first * k..];
                            forward(&cpu, &mut part, x, w, [batch, n, k], compute, false);
                            let case = format!("{} batch {batch}", cpu.isa());
                            assert_same_bits(&part, &whole[first * n..], &case);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_gradient_of_x_is_the_product_with_w_itself() {
        let contexts = contexts();
        for [m, n, k] in [[0, 5, 7], [3, 1, 33], [7, 100, 15], [30, 65, 70]] {
            let (dy, w, old) = (values(8, m * n), Weights::new(9, n * k), values(10, m * k));
            for w in w.matrices() {
                let rows = widened(w);
                let columns: Vec<f32> =
                    (0..k * n).map(|index| rows[index % n * k + index / n]).collect();
                for compute in DTYPES {
                    let rounds = compute == ComputeDtype::Bf16 && matches!(w, Matrix::Bf16(_));
                    let round = |x: &f32| if rounds { bf16::from_f32(*x).to_f32() } else { *x };
                    let dy_rounded: Vec<f32> = dy.iter().map(round).collect();
                    let shape = [m, k, n];
                    let columns = Matrix::F32(&columns);
                    let (naive, exact) =
                        references(&old, &dy_rounded, columns, shape, ComputeDtype::F32);
                    for cpu in &contexts {
                        let mut dx = old.clone();
                        backward(cpu, &mut dx, &dy, w, [m, n, k], compute, true, None);
                        let case = format!("{} [{m}, {n}, {k}] {compute:?}", cpu.isa());
                        assert_close(&dx, &naive, &exact, 1e-6, &case);
                    }
                }
            }
        }
    }

    #[test]
    fn tiles_give_the_bits_of_dot_products() {
        let shapes =
            [[0, 5, 7], [3, 0, 40], [1, 1, 1], [4, 17, 16], [29, 1100, 31], [13, 2049, 33]];
        for [m, n, k] in shapes.into_iter().chain([[150, 70, 200]]) {
            let (dy, w, old) = (values(11, m * n), Weights::new(12, n * k), values(13, m * k));
            for w in w.matrices() {
                for compute in [ComputeDtype::Bf16, ComputeDtype::F32] {
                    for cpu in contexts() {
                        for accumulate in [false, true] {
                            // Not read unless accumulating: NaN would show.
                            let start =
                                if accumulate { old.clone() } else { vec![f32::NAN; m * k] };
                            let [mut dots, mut tiles] = [start.clone(), start];
                            let shape = [m, n, k];
                            gemv::backward(&cpu, &mut dots, &dy, w, shape, compute, accumulate);
                            tiles::backward(&cpu, &mut tiles, &dy, w, shape, compute, accumulate);
                            let case = format!("{} {shape:?} {compute:?}", cpu.isa());
                            assert_same_bits(&tiles, &dots, &case);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn room_for_tiles_by_hand() {
        // Four tiles of up to four rows: eight lanes of a chunk of 1024, eight of one step, gaps.
        assert_eq!(
            tiles::tile_elements(Isa::Portable, 13, 1030),
            4 * 8 * ((128 * 4 + 16) + (4 + 16))
        );
        assert_eq!(tiles::tile_elements(Isa::Portable, 0, 1030), 0);
    }

    #[test]
    fn infinities_and_nans_pass_through() {
        // As many rows as make tiles; a rest of k, where what the part before left must not count.
        for [m, n, k] in [[3, 4, 40], [30, 40, 70]] {
            let w = Weights::new(6, n * k);
            let mut x = values(7, m * k);
            (x[7], x[k + 7]) = (f32::INFINITY, f32::NAN);
            for w in w.matrices() {
                for (cpu, compute) in contexts().iter().flat_map(|cpu| DTYPES.map(|r| (cpu, r))) {
                    let mut y = vec![0.0; m * n];
                    forward(cpu, &mut y, &x, w, [m, n, k], compute, false);
                    assert!(y[..n].iter().all(|y| y.is_infinite()), "{y:?}");
                    assert!(y[n..2 * n].iter().all(|y| y.is_nan()), "{y:?}");
                    assert!(y[2 * n..].iter().all(|y| y.is_finite()), "{y:?}");
                }
            }
        }
    }

    #[test]
    fn packed_and_mapped_weights_give_the_same_bits() {
        if !Isa::Avx512Bf16.is_available() {
            crate::shared::skipped("this CPU has no AVX-512 BF16");
            return;
        }
        let shapes =
            [[0, 5, 7], [1, 1, 1], [1, 70, 33], [5, 33, 1030], [16, 64, 48], [40, 100, 66]];
        for [m, n, k] in shapes.into_iter().chain([[200, 65, 1100], [400, 31, 17]]) {
            let (x, w) = (values(11, m * k), Weights::new(12, n * k));
            let (left, right) = (values(13, m * 3), values(14, n * 3));
            let delta = LowRank { left: &left, right: &right, rank: 3 };
            for threads in [1, 2, 5] {
                let cpu = &Cpu::with_isa(threads, Isa::Avx512Bf16);
                let panels = Panels::pack(cpu, &w.bf16, [n, k], &|_| ()).expect("memory");
                for (accumulate, low_rank) in [(false, None), (true, Some(delta))] {
                    let [mapped, packed] = [Matrix::Bf16(&w.bf16), Matrix::Panels(panels.whole())]
                        .map(|w| {
                            let (mut y, mut dx) = (values(15, m * n), values(16, m * k));
                            let product = Product { y: &mut y, w, n, accumulate, low_rank };
                            forward_all(cpu, &mut [product], &x, [m, k], ComputeDtype::Bf16);
                            backward(
                                cpu,
                                &mut dx,
                                &y,
                                w,
                                [m, n, k],
                                ComputeDtype::Bf16,
                                accumulate,
                                None,
                            );
                            (y, dx)
                        });
                    assert_same_bits(&mapped.0, &packed.0, &format!("[{m}, {n}, {k}]"));
                    assert_same_bits(&mapped.1, &packed.1, &format!("d [{m}, {n}, {k}]"));
                }
            }
        }
    }

    #[test]
    fn products_with_the_same_x_are_those_of_separate_calls_with_updates_added() {
        let [m, k, rank] = [30, 70, 4];
        let widths = [33usize, 5, 64];
        let x = values(20, m * k);
        for cpu in contexts() {
            for compute in DTYPES {
                let weights = widths.map(|n| Weights::new(n as u64, n * k));
                let deltas = widths.map(|n| (values(21, m * rank), values(22, rank * n)));
                let mut together = widths.map(|n| values(23, m * n));
                let mut products: Vec<Product<'_>> = together
                    .iter_mut()
                    .enumerate()
                    .map(|(i, y)| Product {
                        y,
                        w: weights[i].matrices()[0],
                        n: widths[i],
                        accumulate: true,
                        low_rank: Some(LowRank { left: &deltas[i].0, right: &deltas[i].1, rank }),
                    })
                    .collect();
                forward_all(&cpu, &mut products, &x, [m, k], compute);
                for (i, y) in together.iter().enumerate() {
                    let n = widths[i];
                    // One row of factors more: the delta as part of a single product.
                    let w = widened(weights[i].matrices()[0]);
                    let (left, right) = &deltas[i];
                    let rounds = compute == ComputeDtype::Bf16;
                    let round = |x: f32| if rounds { bf16::from_f32(x).to_f32() } else { x };
                    let old = values(23, m * n);
                    let (mut naive, mut exact) = (old.clone(), Vec::new());
                    for row in 0..m {
                        for j in 0..n {
                            let (mut sum, at) = (f64::from(old[row * n + j]), row * n + j);
                            for l in 0..k {
                                let (a, b) = (round(x[row * k + l]), w[j * k + l]);
                                naive[at] += a * b;
                                sum += f64::from(a) * f64::from(b);
                            }
                            for r in 0..rank {
                                let (a, b) = (left[row * rank + r], right[r * n + j]);
                                naive[at] += a * b;
                                sum += f64::from(a) * f64::from(b);
                            }
                            exact.push(sum);
                        }
                    }
                    let case = format!("{} {compute:?} {n}", cpu.isa());
                    assert_close(y, &naive, &exact, 1e-6, &case);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "w is not [4, 8]")]
    fn shapes_are_checked() {
        let cpu = Cpu::new(1);
        let w = Matrix::F32(&[0.0; 31]);
        forward(&cpu, &mut [0.0; 8], &[0.0; 16], w, [2, 4, 8], ComputeDtype::F32, false);
    }
}
