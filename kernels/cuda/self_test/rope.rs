//! Rotary position embedding, alone and behind QK-norm.

use super::{Comparisons, rounded, uploaded, values};
use crate::cpu::{self, Cpu};
use crate::cuda::Error;

pub(crate) fn rope_equals_its_reference_bit_for_bit(on: &mut Comparisons<'_>) -> Result<(), Error> {
    let gpu = on.gpu;
    let cpu = Cpu::new(1);
    for (rows, heads, head_dim, scale) in [
        (0, 2, 8, 1.0),
        (1, 1, 8, 1.0),
        (5, 3, 64, 1.0),
        (33, 2, 128, 1.0),
        (7, 2, 64, 1.138_629_4),
    ] {
        let inv_freq: Vec<f32> =
            (0..head_dim / 2).map(|i| 1e6f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
        let positions: Vec<u32> = (0..rows as u32).map(|i| (i * 37 + 255) % 500).collect();
        let x = values(1, rows * heads * head_dim);
        let table = cpu::rope::RopeTable::new(&inv_freq, scale, 500);
        let on_gpu = gpu.rope_table(&inv_freq, scale, 500)?;
        let at = gpu.upload(&positions)?;
        let [mut there, mut back] = [(); 2].map(|()| x.clone());
        cpu::rope::forward(&cpu, &mut there, &positions, &table, heads);
        cpu::rope::backward(&cpu, &mut back, &positions, &table, heads);
        for (direction, want) in [(false, &there), (true, &back)] {
            let mut y = gpu.upload(&x)?;
            gpu.rope(&mut y, &at, &on_gpu, direction)?;
            on.same_bits(&gpu.download(&y)?, want, "rope");
        }
        {
            let w = values(7, head_dim);
            let mut want = vec![0.0; x.len()];
            cpu::rms_norm::forward(&cpu, &mut want, &x, &w, 1e-6);
            cpu::rope::forward(&cpu, &mut want, &positions, &table, heads);
            let [x, w] = uploaded(gpu, [&x, &w])?;
            let mut y = gpu.zeros::<f32>(want.len())?;
            gpu.rope_norm(&mut y, &x, &w, 1e-6, &at, &on_gpu)?;
            on.same_bits(&gpu.download(&y)?, &want, "norm and rope");
            let mut y = gpu.zeros::<u16>(want.len())?;
            gpu.rope_norm(&mut y, &x, &w, 1e-6, &at, &on_gpu)?;
            on.same_rounded(&gpu.download(&y)?, &rounded(&want), "norm and rope to bf16");
        }
        let mut y = gpu.zeros(x.len())?;
        gpu.rope_into(&mut y, &gpu.upload(&x)?, &at, &on_gpu)?;
        on.same_rounded(&gpu.download(&y)?, &rounded(&there), "rope to bf16");
    }
    Ok(())
}
