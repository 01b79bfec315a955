//! [`crate::cpu::embedding`] on the device.

use super::launch::{Grid, args, expect};
use super::{Buffer, Error, Gpu, entries};

impl Gpu {
    /// Reference: [`crate::cpu::embedding::forward`]: row `ids[i]` of `table` `[vocab, n]` becomes row i of `y`, for
    /// the first `rows` ids. They must be below vocab: check them where they come from.
    ///
    /// # Panics
    /// If shapes do not fit, or n is not a multiple of 8.
    pub fn embedding(
        &self,
        y: &mut Buffer<f32>,
        ids: &Buffer<u32>,
        table: &Buffer<u16>,
        n: usize,
    ) -> Result<(), Error> {
        assert!(n > 0 && n.is_multiple_of(8), "rows of {n}: not a multiple of 8");
        expect(self, "y", y, &[ids.len(), n]);
        expect(self, "the table", table, &[table.len() / n, n]);
        expect(self, "ids", ids, &[ids.len()]);
        // SAFETY: a block writes a row of n of `ids.len()`; that ids lie in the table is the caller's business,
        // as the doc says.
        unsafe {
            self.launch(
                &entries::EMBEDDING_FORWARD,
                Grid::new(ids.len(), 128),
                args![y, ids, table, n],
            )
        }
    }
}
