//! Sums of tensors, and of the slices of one.

use super::{Comparisons, values};
use crate::cpu::{self, Cpu};
use crate::cuda::Error;

pub(crate) fn add_equals_its_reference_bit_for_bit(on: &mut Comparisons<'_>) -> Result<(), Error> {
    let gpu = on.gpu;
    for n in [0, 24, 7 * 1032] {
        let (mut want, x, slices) = (values(1, n), values(2, n), values(3, 3 * n));
        let mut y = gpu.upload(&want)?;
        gpu.add(&mut y, &gpu.upload(&x)?)?;
        cpu::add::accumulate(&Cpu::new(1), &mut want, &x);
        on.same_bits(&gpu.download(&y)?, &want, "add");
        gpu.add_slices(&mut y, &gpu.upload(&slices)?, true)?;
        for i in 0..n {
            want[i] += slices[i] + slices[n + i] + slices[2 * n + i];
        }
        on.same_bits(&gpu.download(&y)?, &want, "add_slices");
    }
    Ok(())
}
