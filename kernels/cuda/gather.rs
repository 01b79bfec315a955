//! [`crate::cpu::gather`] on the device.

use super::launch::{Grid, args, expect};
use super::{Buffer, Error, Gpu, entries};

impl Gpu {
    /// Reference: [`crate::cpu::gather::forward`]: row `rows[i]` of `x` `[.., n]` becomes row i of `y`. Rows must exist:
    /// check them where they come from.
    ///
    /// # Panics
    /// If shapes do not fit, or n is not a multiple of 4.
    pub fn gather(
        &self,
        y: &mut Buffer<f32>,
        x: &Buffer<f32>,
        rows: &Buffer<u32>,
        n: usize,
    ) -> Result<(), Error> {
        assert!(n > 0 && n.is_multiple_of(4), "rows of {n}: not a multiple of 4");
        expect(self, "y", y, &[rows.len(), n]);
        expect(self, "x", x, &[x.len() / n, n]);
        expect(self, "rows", rows, &[rows.len()]);
        let args = args![y, x, rows, n];
        // SAFETY: a block writes a row of n of `rows.len()`; that rows lie in x is the caller's business.
        unsafe { self.launch(&entries::GATHER_FORWARD, Grid::new(rows.len(), 128), args) }
    }

    /// Reference: [`crate::cpu::gather::backward`]: `places` are [`crate::cpu::gather::Places`]' starts and sources.
    pub fn gather_backward(
        &self,
        dx: &mut Buffer<f32>,
        dy: &Buffer<f32>,
        [starts, sources]: [&Buffer<u32>; 2],
        n: usize,
    ) -> Result<(), Error> {
        assert!(n > 0 && n.is_multiple_of(4), "rows of {n}: not a multiple of 4");
        let from = starts.len().checked_sub(1).expect("starts end with the number of sources");
        expect(self, "dx", dx, &[from, n]);
        expect(self, "dy", dy, &[sources.len(), n]);
        expect(self, "starts", starts, &[from + 1]);
        expect(self, "sources", sources, &[sources.len()]);
        let args = args![dx, dy, starts, sources, n];
        // SAFETY: a block writes a row of n of `from`, from rows of dy that `Places` made.
        unsafe { self.launch(&entries::GATHER_BACKWARD, Grid::new(from, 128), args) }
    }
}
