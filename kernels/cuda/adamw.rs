//! [`crate::cpu::adamw`] on the device.

use super::launch::{Grid, args, expect};
use super::{Buffer, Error, Gpu, entries};
use crate::cpu::adamw::Step;

impl Gpu {
    /// Reference: [`crate::cpu::adamw::step`], bit for bit: updates w, m and v in place by the gradient dw.
    pub fn adamw(
        &self,
        w: &mut Buffer<f32>,
        m: &mut Buffer<f32>,
        v: &mut Buffer<f32>,
        dw: &Buffer<f32>,
        step: &Step,
    ) -> Result<(), Error> {
        let vectors = self.vectors(dw);
        for (name, x) in [("w", &*w), ("m", &*m), ("v", &*v)] {
            expect(self, name, x, &[dw.len()]);
        }
        let Step {
            scale,
            decay,
            first_weight,
            second_decay,
            second_weight,
            correction,
            epsilon,
            step_size,
        } = *step;
        let first = args![w, m, v, dw, vectors, scale, decay, first_weight];
        let rest = args![second_decay, second_weight, correction, epsilon, step_size];
        let args: Vec<_> = first.iter().chain(rest).copied().collect();
        // SAFETY: a thread takes four elements below the length of all four.
        unsafe { self.launch(&entries::ADAMW_STEP, Grid::over(vectors, 1, 256), &args) }
    }
}
