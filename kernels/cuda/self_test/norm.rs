//! The sum of squares, for the gradient's norm.

use super::{Comparisons, values};
use crate::cpu::{self, Cpu};
use crate::cuda::Error;

pub(crate) fn sums_of_squares_equal_their_reference_to_the_order_of_sums(
    on: &mut Comparisons<'_>,
) -> Result<(), Error> {
    let gpu = on.gpu;
    // The last is more than all threads take at once: they go round.
    for n in [0, 4, 1028, 70_000, 300_000] {
        let x = values(1, n);
        let mut sums = gpu.zeros::<f64>(3)?;
        gpu.sum_of_squares(&mut sums, 1, &gpu.upload(&x)?)?;
        let want = cpu::norm::sum_of_squares(&Cpu::new(1), &x);
        let got = gpu.download(&sums)?;
        let allowed = [0.0, want * f64::EPSILON * n as f64, 0.0];
        let errors = got.iter().zip([0.0, want, 0.0]).map(|(got, want)| (got - want).abs());
        on.within(errors.zip(allowed), &format!("sum of {n} squares"));
    }
    Ok(())
}
