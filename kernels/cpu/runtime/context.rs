//! The context that every kernel takes first.

use half::{bf16, f16};

use super::pool::Pool;
use crate::cpu::Isa;
use crate::lock;
use std::sync::{Mutex, MutexGuard};

/// What a kernel needs beside its operands: the instruction set, chosen once, the threads, and
/// scratch memory that is kept between calls. Calls from several threads take turns.
#[derive(Debug)]
pub struct Cpu {
    isa: Isa,
    pool: Pool,
    scratch: Mutex<Scratch>,
}

/// Memory kernels reuse: it grows to the largest call and stays.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Rounded inputs: x of a matmul, q of attention.
    pub(crate) bf16: Vec<bf16>,
    /// The same where products are taken in f32.
    pub(crate) f32: Vec<f32>,
    /// Attention's scores and weighted sums, by thread.
    pub(crate) scores: Vec<f32>,
    /// The same where they are f64.
    pub(crate) scores_f64: Vec<f64>,
    /// Attention's logarithms of sums, by thread.
    pub(crate) log_sums: Vec<f32>,
    /// Weights, for gradients of what they multiply.
    pub(crate) transposed: Transposed,
    /// Panels packed on the way, by thread.
    pub(crate) panels: Vec<Line>,
}

/// A line of the cache, so that panels packed on the way start at one.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line([u32; 16]);

// SAFETY: numbers, of which zeros are some.
unsafe impl bytemuck::Zeroable for Line {}

/// Memory for transposed weights.
#[derive(Debug, Default)]
pub(crate) struct Transposed {
    pub(crate) bf16: Vec<bf16>,
    pub(crate) f16: Vec<f16>,
    pub(crate) f32: Vec<f32>,
}

impl Cpu {
    /// A context of `threads` threads (the caller's is one of them) with the best instruction set
    /// ([`Isa::detect`]).
    pub fn new(threads: usize) -> Cpu {
        Cpu::with_isa(threads, Isa::detect())
    }

    /// A context with a thread for each core that the process may use.
    pub fn all_cores() -> Cpu {
        Cpu::new(std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// A context with a given instruction set.
    ///
    /// # Panics
    /// If this CPU does not have it: every kernel's use of its instructions rests on this assert.
    pub fn with_isa(threads: usize, isa: Isa) -> Cpu {
        assert!(isa.is_available(), "this CPU does not have {isa}");
        Cpu { isa, pool: Pool::new(threads), scratch: Mutex::default() }
    }

    /// A context that counts memory (PyTorch's *meta* device): kernels check shapes and take their scratch memory as for
    /// `threads` threads, but compute nothing, so that what they write to is never touched. Results are zeros.
    ///
    /// # Panics
    /// As [`Cpu::with_isa`].
    pub fn counting(threads: usize, isa: Isa) -> Cpu {
        Cpu { pool: Pool::counting(threads), ..Cpu::with_isa(1, isa) }
    }

    /// Whether the context only counts memory (see [`Cpu::counting`]).
    pub fn counts(&self) -> bool {
        self.pool.counts()
    }

    /// The kernels' scratch memory so far.
    pub fn scratch_bytes(&self) -> ScratchBytes {
        let Scratch { bf16, f32, scores, scores_f64, log_sums, transposed, panels } =
            &*self.scratch();
        let Transposed { bf16: t_bf16, f16: t_f16, f32: t_f32 } = transposed;
        ScratchBytes([
            size_of_val(&bf16[..]),
            size_of_val(&f32[..]),
            size_of_val(&scores[..]),
            size_of_val(&scores_f64[..]),
            size_of_val(&log_sums[..]),
            size_of_val(&t_bf16[..]),
            size_of_val(&t_f16[..]),
            size_of_val(&t_f32[..]),
            size_of_val(&panels[..]),
        ])
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The threads, for kernels that distribute their own work.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn scratch(&self) -> MutexGuard<'_, Scratch> {
        lock(&self.scratch)
    }

    /// Splits `rows` into ranges and runs `f(first, count)` on each, on several threads if the
    /// whole is worth it. `row_cost` is about the number of f32 values touched per row.
    pub(crate) fn for_rows(&self, rows: usize, row_cost: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        /// Values a task should touch at least: about 4 µs of work, as long as waking a worker.
        const TASK: usize = 16 * 1024;
        let per_task = TASK.div_ceil(row_cost.max(1)).max(rows.div_ceil(4 * self.threads()));
        self.pool.for_each(rows.div_ceil(per_task.max(1)), &|_, task| {
            let first = task * per_task;
            f(first, per_task.min(rows - first));
        });
    }
}

/// Bytes of the kernels' scratch memory, by its parts: each grows to its largest use and stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScratchBytes([usize; 9]);

impl ScratchBytes {
    /// The sum of all parts, in bytes.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|bytes| *bytes as u64).sum()
    }

    /// The larger of both, part by part: what remains after both did their work.
    pub fn joined(mut self, other: ScratchBytes) -> ScratchBytes {
        self.0.iter_mut().zip(other.0).for_each(|(bytes, other)| *bytes = other.max(*bytes));
        self
    }
}

/// The first `len` elements of scratch memory, which grows if it has to. They hold zeros, or what the last kernel left.
/// The system provides the pages of new memory when they are first written to.
pub(crate) fn grown<T: bytemuck::Zeroable>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
    if memory.len() < len {
        // The old memory is freed before the new one is requested.
        *memory = Vec::new();
        *memory = bytemuck::zeroed_vec(len);
    }
    &mut memory[..len]
}
