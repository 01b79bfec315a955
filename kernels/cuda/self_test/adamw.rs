//! AdamW, two steps.

use super::{Comparisons, uploaded, values};
use crate::cpu::adamw::Step;
use crate::cpu::{self, Cpu};
use crate::cuda::Error;

pub(crate) fn adamw_equals_its_reference_bit_for_bit(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    let cpu = Cpu::new(1);
    for n in [0, 4, 1028, 70_000] {
        let [mut w, mut m] = [1, 2].map(|seed| values(seed, n));
        let mut v: Vec<f32> = values(3, n).iter().map(|v| v * v).collect();
        let [mut dw, mut dm, mut dv] = uploaded(gpu, [&w, &m, &v])?;
        for t in 1..=2 {
            let step = Step {
                scale: 0.37,
                decay: 1.0 - 1e-3 * 0.1,
                first_weight: 0.1,
                second_decay: 0.99,
                second_weight: 0.01,
                correction: (1.0 - 0.99f64.powi(t)).sqrt() as f32,
                epsilon: 1e-8,
                step_size: (1e-3 / (1.0 - 0.9f64.powi(t))) as f32,
            };
            let gradient = values(9 + t as u64, n);
            cpu::adamw::step(&cpu, &mut w, &mut m, &mut v, &gradient, &step);
            let gradient = gpu.upload(&gradient)?;
            gpu.adamw(&mut dw, &mut dm, &mut dv, &gradient, &step)?;
        }
        for (got, want) in [(&dw, &w), (&dm, &m), (&dv, &v)] {
            on.same_bits(&gpu.download(got)?, want, "adamw");
        }
    }
    Ok(())
}
