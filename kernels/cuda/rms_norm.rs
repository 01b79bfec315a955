//! [`crate::cpu::rms_norm`] on the device.

use super::launch::{Grid, args, expect};
use super::{Buffer, Error, Gpu, Output, entries};

/// Rows up to this long are a warp's.
const NARROW: usize = 256;
/// The longest rows a norm takes.
const LONGEST: usize = 4096;

impl Gpu {
    /// Reference: [`crate::cpu::rms_norm::forward`]: normalizes each row of `x` `[rows, n]` into `y`, as f32 or
    /// rounded to bf16.
    ///
    /// # Panics
    /// If shapes do not fit, or n is not a multiple of 4 up to 4096.
    pub fn rms_norm<Y: Output>(
        &self,
        y: &mut Buffer<Y>,
        x: &Buffer<f32>,
        w: &Buffer<f32>,
        eps: f32,
    ) -> Result<(), Error> {
        let (rows, n) = self.norm_shape(x, w);
        expect(self, "y", y, &[rows, n]);
        if n <= NARROW {
            let entry = Y::pick(&entries::RMS_NORM_NARROW_F32, &entries::RMS_NORM_NARROW_BF16);
            let args = args![y, x, w, rows, n, eps];
            // SAFETY: a warp reads and writes a row of n below `rows`; w has n elements.
            return unsafe { self.launch(entry, Grid::over(rows, 1, 4).threads(128), args) };
        }
        let entry = Y::pick(&entries::RMS_NORM_WIDE_F32, &entries::RMS_NORM_WIDE_BF16);
        // SAFETY: a block reads and writes a row of n, and there are `rows` blocks; w has n elements.
        unsafe { self.launch(entry, Grid::new(rows, 256), args![y, x, w, n, eps]) }
    }

    /// Reference: [`crate::cpu::rms_norm::backward`]: writes the gradient of `x`, given that of y, or adds it to
    /// what is there, which is the gradient that passes by on the residual connection.
    pub fn rms_norm_backward(
        &self,
        dx: &mut Buffer<f32>,
        dy: &Buffer<f32>,
        x: &Buffer<f32>,
        w: &Buffer<f32>,
        eps: f32,
        add: bool,
    ) -> Result<(), Error> {
        let (rows, n) = self.norm_shape(x, w);
        expect(self, "dx", dx, &[rows, n]);
        expect(self, "dy", dy, &[rows, n]);
        if n <= NARROW {
            let (entry, args) =
                (&entries::RMS_NORM_NARROW_BACKWARD, args![dx, dy, x, w, rows, n, eps, add]);
            // SAFETY: as in `rms_norm`.
            return unsafe { self.launch(entry, Grid::over(rows, 1, 4).threads(128), args) };
        }
        let (entry, args) = (&entries::RMS_NORM_WIDE_BACKWARD, args![dx, dy, x, w, n, eps, add]);
        // SAFETY: as in `rms_norm`.
        unsafe { self.launch(entry, Grid::new(rows, 256), args) }
    }

    fn norm_shape(&self, x: &Buffer<f32>, w: &Buffer<f32>) -> (usize, usize) {
        let n = w.len();
        assert!(
            n > 0 && n.is_multiple_of(4) && n <= LONGEST,
            "rows of {n}: not 4, 8, .. {LONGEST}"
        );
        let rows = x.len() / n;
        expect(self, "x", x, &[rows, n]);
        expect(self, "w", w, &[n]);
        (rows, n)
    }
}
