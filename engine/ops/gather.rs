//! Rows of a matrix, some of them several times:
//!
//! ```text
//! y[i]  = x[rows[i]]              x [.., n], y [rows, n]
//! dx[r] = Σ dy[i]                 over the i with rows[i] = r, in their order
//! ```

use kernels::cpu::gather::{self, Places};

use crate::tensor::{
    Id, Tensor,
    device::{Device, Mirrored},
    tape::{Backward, Gradients, Tape},
};

/// Copies the named rows of `x` into a new tensor, in the order given. Panics on rows that it has not.
pub fn gather<'m>(tape: &mut Tape<'m>, x: &Tensor, rows: &'m Mirrored<u32>) -> Tensor {
    let mut y = forward(x, rows);
    if tape.records(x.requires_grad()) {
        tape.push(&mut y, Gather { x: x.id(), from: x.shape()[0], rows });
    }
    y
}

/// The same without a tape.
pub(crate) fn forward(x: &Tensor, rows: &Mirrored<u32>) -> Tensor {
    let [from, n] = x.shape();
    let mut y = Tensor::uninitialized(x.device(), rows.len(), n);
    match x.device() {
        Device::Cpu(device) => gather::forward(device.cpu(), y.data_mut(), x.data(), rows, n),
        Device::Cuda(cuda) => {
            gather::check(rows, from);
            cuda.queue(|gpu| gpu.gather(y.f32_mut(), x.f32(), rows.on(gpu)?, n));
        }
    }
    y
}

struct Gather<'m> {
    x: Id,
    /// Rows that x has.
    from: usize,
    rows: &'m Mirrored<u32>,
}

impl Backward for Gather<'_> {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let Gather { x, from, rows } = *self;
        let [_, n] = dy.shape();
        let places = Places::new(rows, from);
        let mut dx = Tensor::uninitialized(dy.device(), from, n);
        match dy.device() {
            Device::Cpu(device) => {
                gather::backward(device.cpu(), dx.data_mut(), dy.data(), &places, n);
            }
            Device::Cuda(cuda) => cuda.queue(|gpu| {
                let lists = [gpu.upload(&places.starts)?, gpu.upload(&places.sources)?];
                gpu.gather_backward(dx.f32_mut(), dy.f32(), lists.each_ref(), n)
            }),
        }
        gradients.add(x, dx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::check_gradient::{check_gradient, values};

    #[test]
    fn gradient_of_gathered_rows() {
        let rows = Mirrored::from(vec![2, 0, 2, 3, 2]);
        check_gradient([4, 5], |tape, x| gather(tape, x, &rows));
    }

    #[test]
    fn rows_are_taken_in_order_and_zero_rows_are_fine() {
        let x = values(1, [3, 2]);
        let y = forward(&x, &vec![2, 0, 2].into());
        assert_eq!(y.data(), [x.row(2), x.row(0), x.row(2)].concat());
        assert_eq!(forward(&x, &vec![].into()).data(), [] as [f32; 0]);
    }
}
