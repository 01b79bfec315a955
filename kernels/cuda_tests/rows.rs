//! Row by row and element by element.

use super::{assert_close, assert_same_bits, gpu, rounded, values};
use crate::cpu::{self, Cpu};

#[test]
fn rms_norm_equals_its_twin() {
    let Some(gpu) = gpu() else { return };
    let cpu = Cpu::new(1);
    let eps = 1e-6;
    for (rows, n) in [(0, 8), (1, 4), (5, 36), (9, 128), (3, 1024), (2, 1028), (1, 4096)] {
        let (x, w, dy) = (values(1, rows * n), values(2, n), values(3, rows * n));
        let mut want = vec![0.0; rows * n];
        cpu::rms_norm::forward(&cpu, &mut want, &x, &w, eps);
        let [dx, dw, ddy] = [&x, &w, &dy].map(|x| gpu.upload(x).unwrap());

        let mut y = gpu.uninitialized::<f32>(rows * n).unwrap();
        gpu.rms_norm(&mut y, &dx, &dw, eps).unwrap();
        // Both round an f64 once; the sums' orders differ in their last bits only.
        assert_same_bits(&gpu.download(&y).unwrap(), &want, &format!("[{rows}, {n}]"));
        let mut y = gpu.uninitialized::<u16>(rows * n).unwrap();
        gpu.rms_norm(&mut y, &dx, &dw, eps).unwrap();
        assert_eq!(gpu.download(&y).unwrap(), rounded(&want), "[{rows}, {n}] in bf16");

        let mut gradient = vec![0.0; rows * n];
        cpu::rms_norm::backward(&cpu, &mut gradient, &dy, &x, &w, eps);
        for add in [false, true] {
            let old = values(4, rows * n);
            let mut to = gpu.upload(&old).unwrap();
            gpu.rms_norm_backward(&mut to, &ddy, &dx, &dw, eps, add).unwrap();
            let want: Vec<f32> =
                gradient.iter().zip(&old).map(|(g, old)| if add { old + g } else { *g }).collect();
            let exact: Vec<f64> = want.iter().map(|x| f64::from(*x)).collect();
            // The coefficient of x is rounded to f32 from sums that may differ in their last bit.
            assert_close(&gpu.download(&to).unwrap(), &want, &exact, 1e-6, "gradient");
        }
    }
}
