//! The optimizer's step and what clips it.

use super::launch::{Grid, args, expect};
use super::{Buffer, Error, Gpu};
use crate::cpu::adamw::Step;
use crate::ptx;

/// Partial sums of a norm, as in norm.cu.
const PARTS: usize = 256;

impl Gpu {
    /// Twin of [`crate::cpu::adamw::step`], bit for bit: updates w, m and v in place by the gradient dw.
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
        unsafe { self.launch(&ptx::ADAMW_STEP, Grid::over(vectors, 1, 256), &args) }
    }

    /// Twin of [`crate::cpu::norm::sum_of_squares`]: Σ x², in f64, to `out[slot]`.
    pub fn sum_of_squares(
        &self,
        out: &mut Buffer<f64>,
        slot: usize,
        x: &Buffer<f32>,
    ) -> Result<(), Error> {
        let vectors = self.vectors(x);
        out.check_owner(self);
        assert!(slot < out.len(), "slot {slot} of {}", out.len());
        let parts = self.uninitialized::<f64>(PARTS)?;
        // SAFETY: each of PARTS blocks writes its part; 4-vectors below the length are read.
        unsafe {
            self.launch(&ptx::NORM_PARTS, Grid::new(PARTS, 256), args![&parts, x, vectors])?;
        }
        // SAFETY: the warp reads PARTS parts and writes one element, which exists.
        unsafe { self.launch(&ptx::NORM_JOIN, Grid::new(1, 32), args![out, &parts, slot]) }
    }
}
