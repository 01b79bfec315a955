//! Matrix products on the tensor cores, and LoRA's factors on their way there.

use super::entries::{self, Entry};
use super::launch::{Arg, Grid, args, expect};
use super::{Buffer, Error, Gpu};

/// Up to this many rows a product streams the weights once (in a block of 64 rows each): decoding.
pub const FEW_ROWS: usize = 128;

/// Rows of x in a chunk of a factor's gradient: eight times the blocks for a batch of 4,096 rows.
const CHUNK: usize = 512;

/// Elements of k in a part of the sums of LoRA's hidden, as in matmul.cu.
const PART: usize = 256;

/// Values of f32 that wait to be added in the gradient of a LoRA factor `[rank, n]` over `rows`.
fn gradient_sums(rows: usize, rank: usize, n: usize) -> usize {
    rows.div_ceil(CHUNK) * 2 * rank * n
}

/// Parts in which LoRA's hidden l = x·Fᵀ, for `x [m, n]` and a factor `[rank, n]`, is summed. A block takes one part of
/// n where there are few blocks, else all parts. Each part has `2·m·rank` values of f32.
fn hidden_slices([m, rank, n]: [usize; 3], multiprocessors: usize) -> usize {
    let few = m <= FEW_ROWS;
    let rows_of_block = if few { 16 } else { 128 };
    let (blocks, all) = (m.div_ceil(rows_of_block) * (2 * rank).div_ceil(32), n.div_ceil(PART));
    if few || blocks * all <= multiprocessors { all } else { 1 }
}

/// Products that are added in one pass, at most.
const MOST_PRODUCTS: usize = 3;

/// One of up to three products that are added: `x [m, k]` and, in a forward pass, `w [n, k]`; in a backward
/// pass `w [k, n]`.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// Left side, bf16.
    pub x: &'a Buffer<u16>,
    /// Right side, bf16.
    pub w: &'a Buffer<u16>,
    /// First row of w that is read: 0, or the first row of a part of the vocabulary.
    pub first_row: usize,
    /// Length of the sums; a multiple of 8.
    pub k: usize,
}

/// A LoRA factor `[rank, n]` of f32 in bf16 parts, high + low: a product with it is one with three times the
/// rank. The error is that of dropping low times low, 2⁻¹⁶ of the product. The rank is a multiple of 8.
#[derive(Debug)]
pub struct Factor {
    /// `[3·rank, n]`: high, high, low.
    rows: Buffer<u16>,
    /// `[n, 3·rank]`: the same, transposed.
    columns: Buffer<u16>,
    rank: usize,
    n: usize,
}

impl Factor {
    /// The right side of `l·F` in a backward pass (`dx += dl·A`): `hidden` is the result of [`Gpu::lora_hidden`].
    pub fn backward<'a>(&'a self, hidden: &'a Buffer<u16>) -> Operands<'a> {
        Operands { x: hidden, w: &self.rows, first_row: 0, k: 3 * self.rank }
    }

    /// The right side of `l·F` in a forward pass (`y += l·Bᵀ`, F = Bᵀ): `hidden` is the result of [`Gpu::lora_hidden`].
    pub fn forward<'a>(&'a self, hidden: &'a Buffer<u16>) -> Operands<'a> {
        Operands { x: hidden, w: &self.columns, first_row: 0, k: 3 * self.rank }
    }

    /// The rank: rows of the factor.
    pub fn rank(&self) -> usize {
        self.rank
    }
}

impl Gpu {
    /// Reference: [`crate::cpu::matmul::forward`]: `y [m, n]` becomes Σ x·wᵀ over the products, or grows by it if
    /// `accumulate` (the residual connection). One product with a bf16 x is the CPU's `ComputeDtype::Bf16`.
    ///
    /// # Panics
    /// If shapes do not fit, or n or a k is not a multiple of 8, or there are more than three products.
    pub fn matmul(
        &self,
        y: &mut Buffer<f32>,
        products: &[Operands<'_>],
        [m, n]: [usize; 2],
        accumulate: bool,
    ) -> Result<(), Error> {
        expect(self, "y", y, &[m, n]);
        let added = accumulate.then_some(&*y);
        let lead = args![&*y, added];
        if m <= FEW_ROWS {
            let tile = Few::pick(self, m, n, 1);
            let entry = tile.entry(&FEW_F32);
            // SAFETY: blocks write tiles of y that lie in [m, n], and read products of the asserted shapes.
            return unsafe {
                self.product(entry, tile.grid(m, n, 1), lead, products, m, n, n, false)
            };
        }
        // SAFETY: as above.
        unsafe {
            self.product(&entries::MATMUL_NT_F32, tiles(m, n), lead, products, m, n, n, false)
        }
    }

    /// The MLP's first half in one pass: `y [m, n]`, rounded to bf16, is silu(gate)·up, where gate and up are
    /// Σ x·wᵀ with the first and the last n of w's 2n rows. Gate and up are written where they are wanted.
    pub fn matmul_swiglu(
        &self,
        y: &mut Buffer<u16>,
        kept: Option<[&mut Buffer<f32>; 2]>,
        products: &[Operands<'_>],
        [m, n]: [usize; 2],
    ) -> Result<(), Error> {
        expect(self, "y", y, &[m, n]);
        let [gate, up] = match kept {
            Some([gate, up]) => {
                expect(self, "gate", gate, &[m, n]);
                expect(self, "up", up, &[m, n]);
                [Arg::from(gate), Arg::from(up)]
            }
            None => [Arg::Address(0); 2],
        };
        let lead = &[Arg::from(y), gate, up];
        if m <= FEW_ROWS {
            let tile = Few::pick(self, m, n, 2);
            let entry = tile.entry(&FEW_SWIGLU);
            // SAFETY: as in `matmul`; w has 2n rows.
            return unsafe {
                self.product(entry, tile.grid(m, n, 2), lead, products, m, n, 2 * n, false)
            };
        }
        let grid = tiles(m, 2 * n);
        // SAFETY: as above.
        unsafe {
            self.product(&entries::MATMUL_NT_SWIGLU, grid, lead, products, m, n, 2 * n, false)
        }
    }

    /// Reference: [`crate::cpu::matmul::backward`]: `dx [m, n]` becomes Σ x·w over the products, whose w lie
    /// `[k, n]` (x is a gradient there), or grows by it.
    pub fn matmul_backward(
        &self,
        dx: &mut Buffer<f32>,
        products: &[Operands<'_>],
        [m, n]: [usize; 2],
        accumulate: bool,
    ) -> Result<(), Error> {
        expect(self, "dx", dx, &[m, n]);
        let added = accumulate.then_some(&*dx);
        let lead = args![&*dx, added];
        // SAFETY: as in `matmul`.
        unsafe { self.product(&entries::MATMUL_NN_F32, tiles(m, n), lead, products, m, n, n, true) }
    }

    /// The same with SwiGLU's backward pass behind it: the sum is the gradient of silu(gate)·up, and those of gate
    /// and up are written, rounded to bf16. All are `[m, n]`.
    pub fn matmul_swiglu_backward(
        &self,
        [dgate, dup]: [&mut Buffer<u16>; 2],
        [gate, up]: [&Buffer<f32>; 2],
        products: &[Operands<'_>],
        [m, n]: [usize; 2],
    ) -> Result<(), Error> {
        for (name, x) in [("dgate", &*dgate), ("dup", &*dup)] {
            expect(self, name, x, &[m, n]);
        }
        for (name, x) in [("gate", gate), ("up", up)] {
            expect(self, name, x, &[m, n]);
        }
        let lead = args![dgate, dup, gate, up];
        let entry = &entries::MATMUL_NN_SWIGLU_BACKWARD;
        // SAFETY: as in `matmul`.
        unsafe { self.product(entry, tiles(m, n), lead, products, m, n, n, true) }
    }

    /// `x` rounded to bf16, to nearest even.
    pub fn round(&self, y: &mut Buffer<u16>, x: &Buffer<f32>) -> Result<(), Error> {
        let vectors = self.vectors(x);
        expect(self, "y", y, &[x.len()]);
        // SAFETY: a thread takes four elements below the length of both.
        unsafe {
            self.launch(&entries::MATMUL_ROUND, Grid::over(vectors, 1, 256), args![y, x, vectors])
        }
    }

    /// Splits a factor `[rank, n]` into its bf16 parts. This is done once per optimizer step.
    pub fn factor(&self, x: &Buffer<f32>, [rank, n]: [usize; 2]) -> Result<Factor, Error> {
        assert!(rank > 0 && rank.is_multiple_of(8), "a rank of {rank}: not a multiple of 8");
        assert!(n > 0 && n.is_multiple_of(8), "a factor of {n} columns: not a multiple of 8");
        expect(self, "a factor", x, &[rank, n]);
        let (rows, columns) =
            (self.uninitialized(3 * rank * n)?, self.uninitialized(3 * rank * n)?);
        let grid = Grid::over(rank * n, 1, 256);
        // SAFETY: a thread writes the three parts of an element below rank·n.
        unsafe { self.launch(&entries::MATMUL_SPLIT_ROWS, grid, args![&rows, x, rank, n])? };
        // SAFETY: as above.
        unsafe { self.launch(&entries::MATMUL_SPLIT_COLUMNS, grid, args![&columns, x, rank, n])? };
        Ok(Factor { rows, columns, rank, n })
    }

    /// `scale`·x·Fᵀ for `x [m, n]` and a factor F `[rank, n]`, in the parts a [`Factor`] is multiplied with:
    /// `[m, 3·rank]`. LoRA's l = s·x·Aᵀ, and dl = s·dy·B with F = Bᵀ.
    pub fn lora_hidden(
        &self,
        x: &Buffer<u16>,
        factor: &Factor,
        m: usize,
        scale: f32,
    ) -> Result<Buffer<u16>, Error> {
        let Factor { rows, rank, n, .. } = factor;
        let (rank, n) = (*rank, *n);
        expect(self, "x", x, &[m, n]);
        rows.check_owner(self);
        // A block takes one part of k where there are few blocks, else all parts: the same sums, in the same order.
        let few = m <= FEW_ROWS;
        let (entry, rows_of_block, threads) = if few {
            (&entries::MATMUL_FEW_NARROW, 16, 64)
        } else {
            (&entries::MATMUL_NT_NARROW, 128, 128)
        };
        let blocks = m.div_ceil(rows_of_block) * (2 * rank).div_ceil(32);
        let slices = hidden_slices([m, rank, n], self.multiprocessors());
        let slice = if slices == 1 { n } else { PART };
        let sums = self.uninitialized::<f32>(slices * m * 2 * rank)?;
        // The last two thirds of the rows: high and low.
        let parts = Arg::Address(rows.address() + (rank * n * size_of::<u16>()) as u64);
        let shared_bytes = 4 * (rows_of_block + 32) * 64;
        let grid = Grid { blocks: [blocks, 1, slices], threads, shared_bytes };
        let args = args![&sums, x, parts, m, 2 * rank, n, slice];
        // SAFETY: slice z writes tiles of the z-th [m, 2·rank] of sums; blocks read x [m, n] and 2·rank rows of n of
        // the factor.
        unsafe { self.launch(entry, grid, args)? };
        let hidden = self.uninitialized(m * 3 * rank)?;
        let args = args![&hidden, &sums, scale, m, rank, slices];
        // SAFETY: a thread reads two elements of a row of every slice and writes three of the same row of hidden.
        unsafe { self.launch(&entries::MATMUL_LORA_HIDDEN, Grid::over(m * rank, 1, 256), args)? };
        Ok(hidden)
    }

    /// The gradient of a factor: adds lᵀ·x to `dw [rank, n]`, given [`Gpu::lora_hidden`]'s `hidden [m, 3·rank]` and
    /// `x [m, n]`: dB = lᵀ·dy (transposed), dA = dlᵀ·x. Rows are summed in chunks of 512, then the chunks in
    /// order.
    pub fn matmul_gradient(
        &self,
        dw: &mut Buffer<f32>,
        hidden: &Buffer<u16>,
        x: &Buffer<u16>,
        [m, rank, n]: [usize; 3],
        accumulate: bool,
    ) -> Result<(), Error> {
        assert!(rank.is_multiple_of(8) && n.is_multiple_of(8), "[{rank}, {n}]: not multiples of 8");
        expect(self, "dw", dw, &[rank, n]);
        expect(self, "hidden", hidden, &[m, 3 * rank]);
        expect(self, "x", x, &[m, n]);
        if m == 0 {
            return if accumulate { Ok(()) } else { self.fill_zero(dw) };
        }
        let chunks = m.div_ceil(CHUNK);
        let sums = self.uninitialized::<f32>(gradient_sums(m, rank, n))?;
        let across = (2 * rank).div_ceil(32) * n.div_ceil(128);
        let shared_bytes = 4 * (128 + 32) * 64;
        let grid = Grid { blocks: [across, 1, chunks], threads: 128, shared_bytes };
        let args = args![&sums, hidden, x, 2 * rank, n, m, 3 * rank, CHUNK];
        // SAFETY: chunk z writes the z-th [2·rank, n] of sums, from rows of hidden and x below m.
        unsafe { self.launch(&entries::MATMUL_TN, grid, args)? };
        // Of each chunk, what the high parts gave and then the low ones.
        self.add_slices(dw, &sums, accumulate)
    }

    /// Queues a product. `rows` is what w has of them if it lies `[n, k]`.
    ///
    /// # Safety
    /// `lead` is what `entry` takes before the products, its addresses valid for m rows of n.
    #[allow(clippy::too_many_arguments)] // the kernel's
    unsafe fn product(
        &self,
        entry: &'static Entry,
        grid: Grid,
        lead: &[Arg],
        products: &[Operands<'_>],
        m: usize,
        n: usize,
        rows: usize,
        backward: bool,
    ) -> Result<(), Error> {
        assert!((1..=MOST_PRODUCTS).contains(&products.len()), "{} products", products.len());
        assert!(n.is_multiple_of(8), "{n} columns: not a multiple of 8");
        let mut args = lead.to_vec();
        for Operands { x, w, first_row, k } in products {
            assert!(k.is_multiple_of(8), "a sum over {k}: not a multiple of 8");
            expect(self, "x", x, &[m, *k]);
            let [count, width] = if backward { [*k, n] } else { [rows, *k] };
            w.check_owner(self);
            let end = (first_row + count).checked_mul(width).expect("a size fits usize");
            assert!(end <= w.len(), "rows {first_row}..+{count} of {width}: w has {}", w.len());
            let begin = w.address() + (first_row * width * size_of::<u16>()) as u64;
            args.extend([Arg::from(*x), Arg::Address(begin), Arg::from(*k)]);
        }
        for _ in products.len()..MOST_PRODUCTS {
            args.extend([Arg::Address(0), Arg::Address(0), Arg::U32(0)]);
        }
        args.extend([Arg::from(m), Arg::from(n)]);
        // SAFETY: the products' shapes are asserted above, of the rest the caller says so.
        unsafe { self.launch(entry, grid, &args) }
    }
}

/// Blocks of 128x128 tiles over [m, n], their ring of four stages, and at the end a tile of sums in its place.
fn tiles(m: usize, n: usize) -> Grid {
    let shared_bytes = 128 * (128 + 8) * size_of::<f32>();
    Grid { shared_bytes, ..Grid::new(m.div_ceil(128) * n.div_ceil(128), 128) }
}

/// A tile of the kernels for few rows.
struct Few {
    rows: usize,
    columns: usize,
}

/// The entry points by tile: 16x16, 16x32, 64x16, 64x32.
type ByTile = [&'static Entry; 4];
static FEW_F32: ByTile = [
    &entries::MATMUL_FEW_F32_16X16,
    &entries::MATMUL_FEW_F32_16X32,
    &entries::MATMUL_FEW_F32_64X16,
    &entries::MATMUL_FEW_F32_64X32,
];
static FEW_SWIGLU: ByTile = [
    &entries::MATMUL_FEW_SWIGLU_16X16,
    &entries::MATMUL_FEW_SWIGLU_16X32,
    &entries::MATMUL_FEW_SWIGLU_64X16,
    &entries::MATMUL_FEW_SWIGLU_64X32,
];

impl Few {
    /// Wide tiles read x less often, narrow ones occupy more multiprocessors where n is small.
    fn pick(gpu: &Gpu, m: usize, n: usize, halves: usize) -> Few {
        let wide = (halves * n).div_ceil(32) >= gpu.multiprocessors();
        Few { rows: if m <= 16 { 16 } else { 64 }, columns: if wide { 32 } else { 16 } }
    }

    fn entry(&self, by_tile: &ByTile) -> &'static Entry {
        by_tile[usize::from(self.rows > 16) * 2 + usize::from(self.columns > 16)]
    }

    fn grid(&self, m: usize, n: usize, halves: usize) -> Grid {
        let blocks = [n.div_ceil(self.columns / halves), m.div_ceil(self.rows), 1];
        let shared_bytes = 4 * (self.rows + self.columns) * 256;
        Grid { blocks, threads: self.columns * 4, shared_bytes }
    }
}
