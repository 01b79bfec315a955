//! [`crate::cpu::rope`] on the device.

use super::launch::{Grid, args, expect};
use super::{Buffer, Error, Gpu, Output, entries};

/// Cosines and sines by position, on the device.
#[derive(Debug)]
pub struct RopeBuffer {
    /// `[positions, head_dim]`: a position's cosines, then its sines.
    table: Buffer<f32>,
    head_dim: usize,
    positions: usize,
}

impl RopeBuffer {
    /// The number of positions it holds.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }
}

/// A position's cosines, then its sines, for all positions: those of [`crate::cpu::rope::RopeTable`], the
/// angle an f32 product and its functions taken in f64, then multiplied by `scale`.
fn angles(inv_freq: &[f32], scale: f32, positions: usize) -> Vec<f32> {
    let mut table = Vec::with_capacity(positions * 2 * inv_freq.len());
    for position in 0..positions {
        let angle = |f: &f32| f64::from(position as f32 * f);
        table.extend(inv_freq.iter().map(|f| angle(f).cos() as f32 * scale));
        table.extend(inv_freq.iter().map(|f| angle(f).sin() as f32 * scale));
    }
    table
}

impl Gpu {
    /// The cosines and sines of positions below `positions`, as [`crate::cpu::rope::RopeTable`] has them.
    /// `inv_freq` has head_dim / 2 entries, a multiple of 4; `scale` multiplies what is turned.
    pub fn rope_table(
        &self,
        inv_freq: &[f32],
        scale: f32,
        positions: usize,
    ) -> Result<RopeBuffer, Error> {
        assert!(
            inv_freq.len().is_multiple_of(4) && !inv_freq.is_empty(),
            "{} angles",
            inv_freq.len()
        );
        let table = match self.counts() {
            true => self.uninitialized(positions * 2 * inv_freq.len())?,
            false => self.upload(&angles(inv_freq, scale, positions))?,
        };
        Ok(RopeBuffer { table, head_dim: 2 * inv_freq.len(), positions })
    }

    /// Reference: [`crate::cpu::rope::forward`], in place: rotates each row of `x` `[rows, heads, head_dim]` by its
    /// position, of which the table must have as many; `back` turns a gradient back.
    pub fn rope(
        &self,
        x: &mut Buffer<f32>,
        positions: &Buffer<u32>,
        table: &RopeBuffer,
        back: bool,
    ) -> Result<(), Error> {
        let [rows, heads] = self.rope_shape(x, positions, table);
        let grid = Grid::over(rows * heads * table.head_dim / 8, 1, 256);
        let direction = if back { -1.0f32 } else { 1.0 };
        let args = args![&*x, &*x, positions, &table.table, rows, heads, table.head_dim, direction];
        // SAFETY: a thread reads and writes four pairs of x below rows·heads·head_dim, and reads the table at
        // a position, which the caller keeps below the table's.
        unsafe { self.launch(&entries::ROPE_F32, grid, args) }
    }

    /// The same into `y`, rounded to bf16: queries on their way to attention.
    pub fn rope_into(
        &self,
        y: &mut Buffer<u16>,
        x: &Buffer<f32>,
        positions: &Buffer<u32>,
        table: &RopeBuffer,
    ) -> Result<(), Error> {
        let [rows, heads] = self.rope_shape(x, positions, table);
        expect(self, "y", y, &[rows, heads, table.head_dim]);
        let grid = Grid::over(rows * heads * table.head_dim / 8, 1, 256);
        let args = args![y, x, positions, &table.table, rows, heads, table.head_dim, 1.0f32];
        // SAFETY: as in `rope`.
        unsafe { self.launch(&entries::ROPE_BF16, grid, args) }
    }

    /// QK-norm and then the rotation, in one pass where head_dim is 64 or 128: each head of `x` `[rows, heads, head_dim]`
    /// normalized with `w` `[head_dim]` and rotated into `y`, as f32 (keys on their way to the cache) or rounded
    /// to bf16 (queries).
    pub fn rope_norm<Y: Output>(
        &self,
        y: &mut Buffer<Y>,
        x: &Buffer<f32>,
        w: &Buffer<f32>,
        eps: f32,
        positions: &Buffer<u32>,
        table: &RopeBuffer,
    ) -> Result<(), Error> {
        let [rows, heads] = self.rope_shape(x, positions, table);
        expect(self, "y", y, &[rows, heads, table.head_dim]);
        expect(self, "w", w, &[table.head_dim]);
        let entry = match table.head_dim {
            64 => Y::pick(&entries::ROPE_NORM_64_F32, &entries::ROPE_NORM_64_BF16),
            128 => Y::pick(&entries::ROPE_NORM_128_F32, &entries::ROPE_NORM_128_BF16),
            head_dim => {
                // Sizes of small models: in two passes.
                let mut normed = self.uninitialized::<f32>(x.len())?;
                self.rms_norm(&mut normed, x, w, eps)?;
                let entry = Y::pick(&entries::ROPE_F32, &entries::ROPE_BF16);
                let args =
                    args![y, &normed, positions, &table.table, rows, heads, head_dim, 1.0f32];
                // SAFETY: as in `rope`.
                return unsafe {
                    self.launch(entry, Grid::over(rows * heads * head_dim / 8, 1, 256), args)
                };
            }
        };
        let args = args![y, x, w, positions, &table.table, rows, heads, eps];
        // SAFETY: a warp reads and writes a head below rows·heads, and reads w and the table at a position, which
        // the caller keeps below the table's.
        unsafe { self.launch(entry, Grid::over(rows * heads, 1, 4).threads(128), args) }
    }

    fn rope_shape(
        &self,
        x: &Buffer<f32>,
        positions: &Buffer<u32>,
        table: &RopeBuffer,
    ) -> [usize; 2] {
        let (rows, head_dim) = (positions.len(), table.head_dim);
        let heads = x.len().checked_div(rows * head_dim).unwrap_or(0);
        expect(self, "x", x, &[rows, heads, head_dim]);
        expect(self, "positions", positions, &[rows]);
        expect(self, "the table", &table.table, &[table.positions, head_dim]);
        [rows, heads]
    }
}
