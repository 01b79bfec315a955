//! [`crate::cpu::add`] on the device.

use super::launch::{Grid, args, expect};
use super::{Buffer, Error, Gpu, entries};

impl Gpu {
    /// Reference: [`crate::cpu::add::accumulate`]: y += x.
    pub fn add(&self, y: &mut Buffer<f32>, x: &Buffer<f32>) -> Result<(), Error> {
        let vectors = self.vectors(x);
        expect(self, "y", y, &[x.len()]);
        // SAFETY: a thread takes four elements below the length of both.
        unsafe {
            self.launch(&entries::ADD_ACCUMULATE, Grid::over(vectors, 1, 256), args![y, x, vectors])
        }
    }

    /// The sum, in order, of the `count` slices that x is, as long as y each; added to y, or written to it.
    pub fn add_slices(&self, y: &mut Buffer<f32>, x: &Buffer<f32>, add: bool) -> Result<(), Error> {
        let vectors = self.vectors(y);
        let count = x.len().checked_div(y.len()).unwrap_or(1);
        expect(self, "x", x, &[count, y.len()]);
        assert!(count > 0, "a sum of no slices");
        let args = args![y, x, vectors, count, add];
        // SAFETY: a thread takes four elements of each slice and of y.
        unsafe { self.launch(&entries::ADD_SLICES, Grid::over(vectors, 1, 256), args) }
    }
}
