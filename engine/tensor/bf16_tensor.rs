//! Values held in bf16: half the memory, for tensors that are read as bf16 anyway.

use half::bf16;
use kernels::cpu::round;

use super::Tensor;

/// A tensor's values rounded to bf16, two in the memory of one f32.
pub(crate) struct Bf16Tensor {
    storage: Tensor,
    shape: [usize; 2],
}

impl Bf16Tensor {
    /// Rounds all of `x`, to nearest even.
    pub(crate) fn of(x: &Tensor) -> Bf16Tensor {
        let ([rows, columns], cpu) = (x.shape(), x.device().host());
        let len = rows * columns;
        let mut storage = Tensor::uninitialized(x.device(), 1, len.div_ceil(2));
        let to = bytemuck::cast_slice_mut::<f32, bf16>(storage.data_mut());
        round::to_bf16(cpu, &mut to[..len], x.data());
        Bf16Tensor { storage, shape: [rows, columns] }
    }

    /// All values, row after row.
    pub(crate) fn values(&self) -> &[bf16] {
        let [rows, columns] = self.shape;
        &bytemuck::cast_slice::<f32, bf16>(self.storage.data())[..rows * columns]
    }

    /// The values in f32.
    pub(crate) fn widened(&self) -> Tensor {
        let ([rows, columns], device) = (self.shape, self.storage.device());
        let mut x = Tensor::uninitialized(device, rows, columns);
        round::from_bf16(device.host(), x.data_mut(), self.values());
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::check_gradient::values;

    #[test]
    fn an_odd_number_of_values_is_rounded_and_widened() {
        let x = values(1, [3, 5]);
        let narrow = Bf16Tensor::of(&x);
        let want: Vec<bf16> = x.data().iter().map(|x| bf16::from_f32(*x)).collect();
        assert_eq!(narrow.values(), want);
        let wide = narrow.widened();
        assert_eq!(wide.shape(), [3, 5]);
        assert!(wide.data().iter().zip(&want).all(|(x, want)| *x == want.to_f32()));
    }
}
