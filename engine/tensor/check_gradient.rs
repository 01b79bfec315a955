//! The check that every op's backward pass meets: central differences, in f64, of the f32 op. For tests.

use crate::tensor::{
    Tensor,
    device::{Cpu, Device, Isa},
    tape::{Gradients, Tape},
};

/// The device tests run on where one is enough.
#[cfg(test)]
pub(crate) fn device() -> Device {
    Device::cpu_threads(2)
}

/// Values in [-1, 1), the same for the same seed.
#[cfg(test)]
pub(crate) fn values(seed: u64, shape: [usize; 2]) -> Tensor {
    values_on(&device(), seed, shape)
}

fn values_on(device: &Device, seed: u64, [rows, columns]: [usize; 2]) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let values: Vec<f32> = (0..rows * columns)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_slice(device, rows, columns, &values)
}

/// Compares the gradient of L = Σ c·f(x), for an x of this shape and a c of f(x)'s, both random in [-1, 1), with
/// differences of the fourth order: (8·(L(h) − L(−h)) − (L(2h) − L(−2h))) / 12h, on the CPU with every instruction set
/// that it has. `f` must be smooth on [-1.04, 1.04], and may not depend on what ran before.
///
/// What f32 rounds in f, 6e-8 a value, is divided by h, and the remainder is of the order h⁴. See
/// [`tape`](crate::tensor::tape#an-op-of-your-own) for an example.
///
/// # Panics
/// If a value of the gradient differs from its difference by more than 2e-5 of the gradient's largest value (at least 1)
/// and 4e-6·√n, for n values of f(x); or if no gradient reaches x.
pub fn check_gradient<'m>(shape: [usize; 2], f: impl Fn(&mut Tape<'m>, &Tensor) -> Tensor) {
    for isa in Isa::available() {
        let device = Device::new(Cpu::with_isa(2, isa));
        let mut x = values_on(&device, 1, shape);
        x.set_requires_grad(true);
        let mut tape = Tape::new();
        let y = f(&mut tape, &x);
        let c = values_on(&device, 2, y.shape());
        let mut gradients = Gradients::default();
        tape.backward(&y, c.clone(), &mut gradients);
        let got = gradients.get(&x).expect("a gradient reached x").data().to_vec();

        let loss = |element: usize, step: f32| {
            let mut moved = Tensor::from_slice(&device, shape[0], shape[1], x.data());
            moved.data_mut()[element] += step;
            let y = f(&mut Tape::off(), &moved);
            let terms = y.data().iter().zip(c.data());
            terms.map(|(y, c)| f64::from(*y) * f64::from(*c)).sum::<f64>()
        };
        const H: f32 = 1.0 / 64.0;
        let largest = got.iter().fold(1.0, |largest: f32, dx| largest.max(dx.abs()));
        let size = (y.data().len() as f64).sqrt();
        let bound = f64::from(largest) * 2e-5 + 4e-6 * size;
        for (element, &got) in got.iter().enumerate() {
            let near = loss(element, H) - loss(element, -H);
            let far = loss(element, 2.0 * H) - loss(element, -2.0 * H);
            let want = (8.0 * near - far) / (12.0 * f64::from(H));
            let error = (f64::from(got) - want).abs();
            assert!(error <= bound, "{isa} {shape:?} {element}: {got}, {want} by differences");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Id;
    use crate::tensor::tape::Backward;

    /// x², with a gradient of slope·x.
    fn square(tape: &mut Tape<'_>, x: &Tensor, slope: f32) -> Tensor {
        struct Square(Id, Tensor, f32);
        impl Backward for Square {
            fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
                let mut dx = dy.into_owned();
                let x = self.1.data().iter();
                dx.data_mut().iter_mut().zip(x).for_each(|(d, x)| *d *= self.2 * x);
                gradients.add(self.0, dx);
            }
        }
        let mut y = x.clone().into_owned();
        y.data_mut().iter_mut().for_each(|y| *y *= *y);
        if tape.records(x.requires_grad()) {
            tape.push(&mut y, Square(x.id(), x.clone(), slope));
        }
        y
    }

    #[test]
    fn a_right_gradient_passes() {
        check_gradient([3, 5], |tape, x| square(tape, x, 2.0));
    }

    #[test]
    #[should_panic(expected = "by differences")]
    fn a_gradient_that_is_off_by_a_thousandth_is_found() {
        check_gradient([3, 5], |tape, x| square(tape, x, 2.002));
    }
}
