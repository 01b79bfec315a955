//! RMSNorm over rows of `n`: y = x·r·w, r = (mean(x²) + eps)^-1/2.
//! Also QK-norm: rows·heads rows of head_dim.

use super::Cpu;

/// Normalizes each row of `x` into `y`; the rows are as long as `w`.
pub fn forward(cpu: &Cpu, y: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    let n = w.len();
    assert!(n > 0, "w is empty");
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    assert_eq!(x.len() % n, 0, "x of {} is not rows of {n}", x.len());
    let _ = cpu;
    for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
        let r = (x.iter().map(|v| v * v).sum::<f32>() / n as f32 + eps).sqrt().recip();
        for i in 0..n {
            y[i] = x[i] * r * w[i];
        }
    }
}
