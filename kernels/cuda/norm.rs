//! [`crate::cpu::norm`] on the device.

use super::launch::{Grid, args};
use super::{Buffer, Error, Gpu, entries};

/// Partial sums of a norm, as in norm.cu.
const PARTS: usize = 256;

impl Gpu {
    /// Reference: [`crate::cpu::norm::sum_of_squares`]: Σ x², in f64, to `out[slot]`.
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
            self.launch(&entries::NORM_PARTS, Grid::new(PARTS, 256), args![&parts, x, vectors])?;
        }
        // SAFETY: the warp reads PARTS parts and writes one element, which exists.
        unsafe { self.launch(&entries::NORM_JOIN, Grid::new(1, 32), args![out, &parts, slot]) }
    }
}
