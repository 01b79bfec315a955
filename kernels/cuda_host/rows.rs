//! Kernels that work row by row or element by element.

use super::launch::{Arg, Grid, args, expect};
use super::{Buffer, Element, Error, Gpu};
use crate::cuda_args::{self, Draws};
use crate::ptx::{self, Entry};

/// Where results of a kernel go: as f32, or rounded to bf16 because a product comes next.
pub trait Output: Element {
    /// Of the entry points for f32 and bf16, the one that writes this.
    fn pick(f32: &'static Entry, bf16: &'static Entry) -> &'static Entry;
}

impl Output for f32 {
    fn pick(f32: &'static Entry, _: &'static Entry) -> &'static Entry {
        f32
    }
}

impl Output for u16 {
    fn pick(_: &'static Entry, bf16: &'static Entry) -> &'static Entry {
        bf16
    }
}

/// Cosines and sines by position, on the device.
#[derive(Debug)]
pub struct RopeTable {
    /// `[positions, head_dim]`: a position's cosines, then its sines.
    table: Buffer<f32>,
    head_dim: usize,
    positions: usize,
}

impl RopeTable {
    /// The number of positions it holds.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }
}

/// Rows up to this long are a warp's.
const NARROW: usize = 256;
/// The longest rows a norm takes.
const LONGEST: usize = 4096;

impl Gpu {
    /// Twin of [`crate::cpu::rms_norm::forward`]: normalizes each row of `x` `[rows, n]` into `y`, as f32 or
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
            let entry = Y::pick(&ptx::RMS_NORM_NARROW_F32, &ptx::RMS_NORM_NARROW_BF16);
            let args = args![y, x, w, rows, n, eps];
            // SAFETY: a warp reads and writes a row of n below `rows`; w has n elements.
            return unsafe { self.launch(entry, Grid::over(rows, 1, 4).threads(128), args) };
        }
        let entry = Y::pick(&ptx::RMS_NORM_WIDE_F32, &ptx::RMS_NORM_WIDE_BF16);
        // SAFETY: a block reads and writes a row of n, and there are `rows` blocks; w has n elements.
        unsafe { self.launch(entry, Grid::new(rows, 256), args![y, x, w, n, eps]) }
    }

    /// Twin of [`crate::cpu::rms_norm::backward`]: writes the gradient of `x`, given that of y, or adds it to
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
                (&ptx::RMS_NORM_NARROW_BACKWARD, args![dx, dy, x, w, rows, n, eps, add]);
            // SAFETY: as in `rms_norm`.
            return unsafe { self.launch(entry, Grid::over(rows, 1, 4).threads(128), args) };
        }
        let (entry, args) = (&ptx::RMS_NORM_WIDE_BACKWARD, args![dx, dy, x, w, n, eps, add]);
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

    /// Twin of [`crate::cpu::embedding::forward`]: row `ids[i]` of `table` `[vocab, n]` becomes row i of `y`, for
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
            self.launch(&ptx::EMBEDDING_FORWARD, Grid::new(ids.len(), 128), args![y, ids, table, n])
        }
    }

    /// Twin of [`crate::cpu::gather::forward`]: row `rows[i]` of `x` `[.., n]` becomes row i of `y`. Rows must exist:
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
        unsafe { self.launch(&ptx::GATHER_FORWARD, Grid::new(rows.len(), 128), args) }
    }

    /// Twin of [`crate::cpu::gather::backward`]: `places` are [`crate::cpu::gather::Places`]' starts and sources.
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
        unsafe { self.launch(&ptx::GATHER_BACKWARD, Grid::new(from, 128), args) }
    }

    /// The cosines and sines of positions below `positions`, as [`crate::cpu::rope::RopeTable`] has them.
    /// `inv_freq` has head_dim / 2 entries, a multiple of 4; `scale` multiplies what is turned.
    pub fn rope_table(
        &self,
        inv_freq: &[f32],
        scale: f32,
        positions: usize,
    ) -> Result<RopeTable, Error> {
        assert!(
            inv_freq.len().is_multiple_of(4) && !inv_freq.is_empty(),
            "{} angles",
            inv_freq.len()
        );
        let table = self.upload(&cuda_args::angles(inv_freq, scale, positions))?;
        Ok(RopeTable { table, head_dim: 2 * inv_freq.len(), positions })
    }

    /// Twin of [`crate::cpu::rope::forward`], in place: rotates each row of `x` `[rows, heads, head_dim]` by its
    /// position, of which the table must have as many; `back` turns a gradient back.
    pub fn rope(
        &self,
        x: &mut Buffer<f32>,
        positions: &Buffer<u32>,
        table: &RopeTable,
        back: bool,
    ) -> Result<(), Error> {
        let [rows, heads] = self.rope_shape(x, positions, table);
        let grid = Grid::over(rows * heads * table.head_dim / 8, 1, 256);
        let direction = if back { -1.0f32 } else { 1.0 };
        let args = args![&*x, &*x, positions, &table.table, rows, heads, table.head_dim, direction];
        // SAFETY: a thread reads and writes four pairs of x below rows·heads·head_dim, and reads the table at
        // a position, which the caller keeps below the table's.
        unsafe { self.launch(&ptx::ROPE_F32, grid, args) }
    }

    /// The same into `y`, rounded to bf16: queries on their way to attention.
    pub fn rope_into(
        &self,
        y: &mut Buffer<u16>,
        x: &Buffer<f32>,
        positions: &Buffer<u32>,
        table: &RopeTable,
    ) -> Result<(), Error> {
        let [rows, heads] = self.rope_shape(x, positions, table);
        expect(self, "y", y, &[rows, heads, table.head_dim]);
        let grid = Grid::over(rows * heads * table.head_dim / 8, 1, 256);
        let args = args![y, x, positions, &table.table, rows, heads, table.head_dim, 1.0f32];
        // SAFETY: as in `rope`.
        unsafe { self.launch(&ptx::ROPE_BF16, grid, args) }
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
        table: &RopeTable,
    ) -> Result<(), Error> {
        let [rows, heads] = self.rope_shape(x, positions, table);
        expect(self, "y", y, &[rows, heads, table.head_dim]);
        expect(self, "w", w, &[table.head_dim]);
        let entry = match table.head_dim {
            64 => Y::pick(&ptx::ROPE_NORM_64_F32, &ptx::ROPE_NORM_64_BF16),
            128 => Y::pick(&ptx::ROPE_NORM_128_F32, &ptx::ROPE_NORM_128_BF16),
            head_dim => {
                // Sizes of small models: in two passes.
                let mut normed = self.uninitialized::<f32>(x.len())?;
                self.rms_norm(&mut normed, x, w, eps)?;
                let entry = Y::pick(&ptx::ROPE_F32, &ptx::ROPE_BF16);
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
        table: &RopeTable,
    ) -> [usize; 2] {
        let (rows, head_dim) = (positions.len(), table.head_dim);
        let heads = x.len().checked_div(rows * head_dim).unwrap_or(0);
        expect(self, "x", x, &[rows, heads, head_dim]);
        expect(self, "positions", positions, &[rows]);
        expect(self, "the table", &table.table, &[table.positions, head_dim]);
        [rows, heads]
    }

    /// Twin of [`crate::cpu::swiglu::forward`]: silu(gate)·up, as f32 or rounded to bf16.
    pub fn swiglu<Y: Output>(
        &self,
        y: &mut Buffer<Y>,
        gate: &Buffer<f32>,
        up: &Buffer<f32>,
    ) -> Result<(), Error> {
        let vectors = self.vectors(gate);
        expect(self, "y", y, &[gate.len()]);
        expect(self, "up", up, &[gate.len()]);
        let entry = Y::pick(&ptx::SWIGLU_F32, &ptx::SWIGLU_BF16);
        // SAFETY: a thread takes four elements below the length of all three.
        unsafe { self.launch(entry, Grid::over(vectors, 1, 256), args![y, gate, up, vectors]) }
    }

    /// Twin of [`crate::cpu::swiglu::backward`].
    pub fn swiglu_backward<Y: Output>(
        &self,
        [dgate, dup]: [&mut Buffer<Y>; 2],
        dy: &Buffer<f32>,
        gate: &Buffer<f32>,
        up: &Buffer<f32>,
    ) -> Result<(), Error> {
        let vectors = self.vectors(dy);
        for (name, x) in [("gate", gate), ("up", up)] {
            expect(self, name, x, &[dy.len()]);
        }
        for (name, x) in [("dgate", &*dgate), ("dup", &*dup)] {
            expect(self, name, x, &[dy.len()]);
        }
        let entry = Y::pick(&ptx::SWIGLU_BACKWARD_F32, &ptx::SWIGLU_BACKWARD_BF16);
        let args = args![dgate, dup, dy, gate, up, vectors];
        // SAFETY: a thread takes four elements below the length of all five.
        unsafe { self.launch(entry, Grid::over(vectors, 1, 256), args) }
    }

    /// Twin of [`crate::cpu::add::accumulate`]: y += x.
    pub fn add(&self, y: &mut Buffer<f32>, x: &Buffer<f32>) -> Result<(), Error> {
        let vectors = self.vectors(x);
        expect(self, "y", y, &[x.len()]);
        // SAFETY: a thread takes four elements below the length of both.
        unsafe {
            self.launch(&ptx::ADD_ACCUMULATE, Grid::over(vectors, 1, 256), args![y, x, vectors])
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
        unsafe { self.launch(&ptx::ADD_SLICES, Grid::over(vectors, 1, 256), args) }
    }

    /// Twin of [`crate::cpu::dropout::forward`]: `x` through a mask that is drawn by element, as f32 or rounded.
    pub fn dropout<Y: Output>(
        &self,
        y: &mut Buffer<Y>,
        x: &Buffer<f32>,
        draws: Draws,
        probability: f32,
    ) -> Result<(), Error> {
        expect(self, "y", y, &[x.len()]);
        let entry = Y::pick(&ptx::DROPOUT_F32, &ptx::DROPOUT_BF16);
        // SAFETY: both have the elements of x.
        unsafe { self.masked(entry, Arg::from(y), Arg::from(x), x.len(), draws, probability) }
    }

    /// The same from values that are rounded already, rounded again.
    pub fn dropout_rounded(
        &self,
        y: &mut Buffer<u16>,
        x: &Buffer<u16>,
        draws: Draws,
        probability: f32,
    ) -> Result<(), Error> {
        x.check_owner(self);
        expect(self, "y", y, &[x.len()]);
        let entry = &ptx::DROPOUT_ROUNDED;
        // SAFETY: both have the elements of x.
        unsafe { self.masked(entry, Arg::from(y), Arg::from(x), x.len(), draws, probability) }
    }

    /// # Safety
    /// y and x have `len` elements of what `entry` takes.
    unsafe fn masked(
        &self,
        entry: &'static Entry,
        y: Arg,
        x: Arg,
        len: usize,
        draws: Draws,
        probability: f32,
    ) -> Result<(), Error> {
        assert!((0.0..1.0).contains(&probability), "dropout of {probability}");
        assert!(len.is_multiple_of(4), "{len} elements: not a multiple of 4");
        let [key0, key1, stream, sequence0, sequence1] = draws.words();
        let threshold = (f64::from(probability) * f64::from(u32::MAX)).round() as u32;
        let scale = 1.0 / (1.0 - probability);
        let vectors = len / 4;
        let draws = args![vectors, key0, key1, stream, sequence0, sequence1, threshold, scale];
        let args: Vec<Arg> = [y, x].iter().chain(draws).copied().collect();
        // SAFETY: a thread takes four elements below the length of both.
        unsafe { self.launch(entry, Grid::over(vectors, 1, 256), &args) }
    }

    /// Number of 4-vectors; asserts that the length is a multiple of 4.
    pub(super) fn vectors(&self, x: &Buffer<f32>) -> usize {
        x.check_owner(self);
        assert!(x.len().is_multiple_of(4), "{} elements: not a multiple of 4", x.len());
        x.len() / 4
    }
}
