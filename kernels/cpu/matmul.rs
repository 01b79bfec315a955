//! Matrix product with row-major weights: y[m,n] = x[m,k] · w[n,k]ᵀ, or y += that.

use half::bf16;

use super::{Cpu, Matrix, Rounding};

/// Writes x·wᵀ to `y`, or adds it to `y` if `accumulate`. Shapes: y [m,n], x [m,k], w [n,k].
pub fn forward(
    cpu: &Cpu,
    y: &mut [f32],
    x: &[f32],
    w: Matrix<'_>,
    [m, n, k]: [usize; 3],
    rounding: Rounding,
    accumulate: bool,
) {
    assert_eq!(y.len(), m * n, "y is not [{m}, {n}]");
    assert_eq!(x.len(), m * k, "x is not [{m}, {k}]");
    assert_eq!(w.len(), n * k, "w is not [{n}, {k}]");
    let _ = cpu;
    let round = |x: f32| match (w, rounding) {
        (Matrix::Bf16(_), Rounding::Bf16) => bf16::from_f32(x).to_f32(),
        _ => x,
    };
    for i in 0..m {
        for j in 0..n {
            let mut sum = 0.0;
            for l in 0..k {
                let w = match w {
                    Matrix::Bf16(w) => w[j * k + l].to_f32(),
                    Matrix::F16(w) => w[j * k + l].to_f32(),
                    Matrix::F32(w) => w[j * k + l],
                };
                sum += round(x[i * k + l]) * w;
            }
            y[i * n + j] = if accumulate { y[i * n + j] + sum } else { sum };
        }
    }
}
