//! SwiGLU and its gradient.

use super::{Comparisons, all, rounded, uploaded, values};
use crate::cpu::{self, Cpu};
use crate::cuda::Error;

pub(crate) fn swiglu_equals_its_reference(on: &mut Comparisons<'_>) -> Result<(), Error> {
    let gpu = on.gpu;
    let cpu = Cpu::new(1);
    for n in [0, 4, 36, 1028, 5000] {
        let [mut gate, up, dy] = [1, 2, 3].map(|seed| values(seed, n));
        gate.iter_mut().for_each(|x| *x *= 20.0);
        if n > 8 {
            gate[..4].copy_from_slice(&[f32::NEG_INFINITY, -200.0, 88.0, f32::INFINITY]);
        }
        let mut want = vec![0.0; n];
        let inputs = cpu::swiglu::Inputs::F32([&gate, &up]);
        cpu::swiglu::forward(&cpu, &mut want, inputs);
        let [g, u, d] = uploaded(gpu, [&gate, &up, &dy])?;
        let mut y = gpu.zeros::<f32>(n)?;
        gpu.swiglu(&mut y, &g, &u)?;
        let got = gpu.download(&y)?;
        close_or_equal(on, &got, &want, "y");
        let mut y = gpu.zeros::<u16>(n)?;
        gpu.swiglu(&mut y, &g, &u)?;
        on.same_rounded(&gpu.download(&y)?, &rounded(&got), "rounding comes last");

        let [mut dgate, mut dup] = [(); 2].map(|()| vec![0.0; n]);
        cpu::swiglu::backward(&cpu, [&mut dgate, &mut dup], &dy, inputs);
        let [mut a, mut b] = all([(); 2].map(|()| gpu.zeros::<f32>(n)))?;
        gpu.swiglu_backward([&mut a, &mut b], &d, &g, &u)?;
        close_or_equal(on, &gpu.download(&a)?, &dgate, "dgate");
        close_or_equal(on, &gpu.download(&b)?, &dup, "dup");
    }
    Ok(())
}

/// Within four units in the last place (both take exponentials within two), or the same special value.
fn close_or_equal(on: &mut Comparisons<'_>, got: &[f32], want: &[f32], case: &str) {
    let errors = got.iter().zip(want).map(|(got, want)| {
        let same = got == want || (got.is_nan() && want.is_nan());
        let error = (f64::from(*got) - f64::from(*want)).abs();
        let bound = 4.0 * f64::from(f32::EPSILON) * (f64::from(*want).abs() + 1.0);
        match same {
            true => (0.0, 0.0),
            // Nothing else is near what is infinite.
            false => (error, if bound.is_finite() { bound } else { 0.0 }),
        }
    });
    on.within(errors, case);
}
