//! Rows of a table of bf16, widened.

use half::bf16;

use super::{Comparisons, rounded, values};
use crate::cpu::{self, Cpu};
use crate::cuda::Error;

pub(crate) fn embedding_equals_its_reference_bit_for_bit(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    for (rows, n) in [(0, 8), (3, 8), (7, 1032)] {
        let table = rounded(&values(1, 11 * n));
        let ids: Vec<u32> = (0..rows as u32).map(|i| i * 5 % 11).collect();
        let mut y = gpu.zeros(rows * n)?;
        gpu.embedding(&mut y, &gpu.upload(&ids)?, &gpu.upload(&table)?, n)?;
        let table: Vec<bf16> = table.into_iter().map(bf16::from_bits).collect();
        let mut want = vec![0.0; rows * n];
        cpu::embedding::forward(&Cpu::new(1), &mut want, &ids, cpu::Matrix::Bf16(&table), n);
        on.same_bits(&gpu.download(&y)?, &want, "embedding");
    }
    Ok(())
}
