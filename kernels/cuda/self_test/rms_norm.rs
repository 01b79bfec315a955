//! RMSNorm and its gradient.

use super::{Comparisons, rounded, uploaded, values};
use crate::cpu::{self, Cpu};
use crate::cuda::Error;

pub(crate) fn rms_norm_equals_its_reference(on: &mut Comparisons<'_>) -> Result<(), Error> {
    let gpu = on.gpu;
    let cpu = Cpu::new(1);
    let eps = 1e-6;
    for (rows, n) in [(0, 8), (1, 4), (5, 36), (9, 128), (3, 1024), (2, 1028), (1, 4096)] {
        let (x, w, dy) = (values(1, rows * n), values(2, n), values(3, rows * n));
        let mut want = vec![0.0; rows * n];
        cpu::rms_norm::forward(&cpu, &mut want, &x, &w, eps);
        let [dx, dw, ddy] = uploaded(gpu, [&x, &w, &dy])?;

        let mut y = gpu.uninitialized::<f32>(rows * n)?;
        gpu.rms_norm(&mut y, &dx, &dw, eps)?;
        // Both round an f64 once; the sums' orders differ in their last bits only.
        on.same_bits(&gpu.download(&y)?, &want, &format!("[{rows}, {n}]"));
        let mut y = gpu.uninitialized::<u16>(rows * n)?;
        gpu.rms_norm(&mut y, &dx, &dw, eps)?;
        on.same_rounded(&gpu.download(&y)?, &rounded(&want), &format!("[{rows}, {n}] in bf16"));

        let mut gradient = vec![0.0; rows * n];
        cpu::rms_norm::backward(&cpu, &mut gradient, &dy, &x, &w, eps);
        for add in [false, true] {
            let old = values(4, rows * n);
            let mut to = gpu.upload(&old)?;
            gpu.rms_norm_backward(&mut to, &ddy, &dx, &dw, eps, add)?;
            let want: Vec<f32> =
                gradient.iter().zip(&old).map(|(g, old)| if add { old + g } else { *g }).collect();
            let exact: Vec<f64> = want.iter().map(|x| f64::from(*x)).collect();
            // The coefficient of x is rounded to f32 from sums that may differ in their last bit.
            on.close(&gpu.download(&to)?, &want, &exact, 1e-6, "gradient");
        }
    }
    Ok(())
}
