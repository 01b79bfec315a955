//! Rows of a matrix, and back.

use super::{Comparisons, uploaded, values};
use crate::cpu::{self, Cpu};
use crate::cuda::Error;

pub(crate) fn gathered_rows_equal_their_reference_bit_for_bit(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    let cpu = Cpu::new(1);
    for (from, n, rows) in
        [(3, 4, vec![]), (5, 36, vec![4, 0, 4, 4, 1]), (2, 1028, vec![1]), (1, 516, vec![0, 0])]
    {
        let (x, dy) = (values(1, from * n), values(2, rows.len() * n));
        let mut want = vec![0.0; rows.len() * n];
        cpu::gather::forward(&cpu, &mut want, &x, &rows, n);
        let mut y = gpu.uninitialized(want.len())?;
        let [x, dy_there] = uploaded(gpu, [&x, &dy])?;
        gpu.gather(&mut y, &x, &gpu.upload(&rows)?, n)?;
        on.same_bits(&gpu.download(&y)?, &want, "rows");

        let places = cpu::gather::Places::new(&rows, from);
        let mut want = vec![f32::NAN; from * n];
        cpu::gather::backward(&cpu, &mut want, &dy, &places, n);
        let mut dx = gpu.uninitialized(from * n)?;
        let lists = uploaded(gpu, [&places.starts, &places.sources])?;
        gpu.gather_backward(&mut dx, &dy_there, lists.each_ref(), n)?;
        on.same_bits(&gpu.download(&dx)?, &want, "dx");
    }
    Ok(())
}
