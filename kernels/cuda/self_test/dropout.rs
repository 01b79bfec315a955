//! Dropout, from f32 and from bf16.

use super::{Comparisons, rounded, values, widened};
use crate::cpu::dropout::Mask;
use crate::cpu::philox::{RngKey, Stream};
use crate::cpu::{self, Cpu};
use crate::cuda::Error;

pub(crate) fn dropout_equals_its_reference_bit_for_bit(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    let cpu = Cpu::new(1);
    for n in [0, 24, 7 * 1032] {
        let x = values(2, n);
        let (mut y, dx, mut want) = (gpu.zeros(n)?, gpu.upload(&x)?, vec![0.0; n]);
        let key = RngKey::new(7 << 33, 3 << 32 | 5, Stream::DROPOUT);
        let mask = Mask { key, probability: 0.1 };
        cpu::dropout::forward(&cpu, &mut want, &x, mask);
        gpu.dropout(&mut y, &dx, mask)?;
        on.same_bits(&gpu.download(&y)?, &want, "dropout");
        let mut y = gpu.zeros::<u16>(n)?;
        gpu.dropout(&mut y, &dx, mask)?;
        on.same_rounded(&gpu.download(&y)?, &rounded(&want), "dropout to bf16");
        let coarse = rounded(&x);
        cpu::dropout::forward(&cpu, &mut want, &widened(&coarse), mask);
        gpu.dropout_rounded(&mut y, &gpu.upload(&coarse)?, mask)?;
        on.same_rounded(&gpu.download(&y)?, &rounded(&want), "dropout of bf16");
    }
    Ok(())
}
