//! Stands in for `cuda.rs` in a build without feature `cuda`.
//!
//! `Gpu` has no values, so nothing of this can be called, yet code that calls it compiles. What each function
//! does is said there.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::cpu::adamw::Step;
use crate::cpu::attention::{Shape, Span, Tree};
use crate::cpu::log_prob::{LogitsError, RowError};
use crate::cpu::repetition_penalty::Penalized;
use crate::cpu::sample::Sample;

pub use crate::cuda_args::{Draws, Queued, SampleRequest};
pub use crate::cuda_comparison::Comparison;
pub use crate::cuda_data_sheet::{DataSheet, data_sheet};
pub use crate::cuda_error::Error;
pub use crate::cuda_memory::FEW_ROWS;

/// See `cuda.rs`.
pub fn padded_vocab(vocab: usize) -> usize {
    vocab.next_multiple_of(8)
}

/// What a buffer may hold.
pub trait Element: bytemuck::Pod + Send + Sync + std::fmt::Debug {}
impl Element for f32 {}
impl Element for f64 {}
impl Element for u16 {}
impl Element for u32 {}
impl Element for u64 {}

/// Where results of a kernel go.
pub trait Output: Element {}
impl Output for f32 {}
impl Output for u16 {}

/// A device that cannot exist in this build.
#[derive(Clone, Debug)]
pub struct Gpu(Infallible);

/// A buffer that cannot exist in this build.
#[derive(Debug)]
pub struct Buffer<T: Element>(Infallible, PhantomData<T>);

impl<T: Element> Buffer<T> {
    /// See `cuda.rs`.
    pub fn len(&self) -> usize {
        match self.0 {}
    }

    /// See `cuda.rs`.
    pub fn is_empty(&self) -> bool {
        match self.0 {}
    }

    /// See `cuda.rs`.
    pub fn gpu(&self) -> &Gpu {
        match self.0 {}
    }
}

/// A buffer gives its memory back, so that giving one up early is said with `drop` in every build.
impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {}
}

/// See `cuda.rs`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // said there
pub struct Pair<'a> {
    pub x: &'a Buffer<u16>,
    pub w: &'a Buffer<u16>,
    pub first_row: usize,
    pub k: usize,
}

/// See `cuda.rs`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // said there
pub struct Head<'a> {
    pub weight: &'a Buffer<u16>,
    pub vocab: usize,
    pub k: usize,
}

/// See `cuda.rs`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // said there
pub struct AttentionSaved<'a> {
    pub q: &'a Buffer<u16>,
    pub k: &'a Buffer<u16>,
    pub v: &'a Buffer<u16>,
    pub y: &'a Buffer<f32>,
    pub log_sums: &'a Buffer<f32>,
}

/// Types without values, and their functions.
macro_rules! absent {
    ($($type:ident { $(fn $name:ident($($arg:ident: $of:ty),*) -> $output:ty;)* })*) => { $(
        /// Cannot exist in this build.
        #[derive(Debug)]
        pub struct $type(Infallible);

        impl $type {
            $(
                /// See `cuda.rs`.
                pub fn $name(&self, $($arg: $of),*) -> $output {
                    let _ = ($($arg,)*);
                    match self.0 {}
                }
            )*
        }
    )* };
}

absent! {
    AttentionPlan {}
    BackwardPlan {}
    Distributions {}
    Penalties {}
    RopeTable {
        fn positions() -> usize;
        fn head_dim() -> usize;
    }
    Factor {
        fn rank() -> usize;
    }
    Graph {}
    Workspace {}
    Timer {}
}

impl Factor {
    /// See `cuda.rs`.
    pub fn forward<'a>(&'a self, _: &'a Buffer<u16>) -> Pair<'a> {
        match self.0 {}
    }

    /// See `cuda.rs`.
    pub fn backward<'a>(&'a self, _: &'a Buffer<u16>) -> Pair<'a> {
        match self.0 {}
    }
}

impl Graph {
    /// See `cuda.rs`.
    pub fn launch(&mut self) -> Result<(), Error> {
        match self.0 {}
    }
}

impl Timer {
    /// See `cuda.rs`.
    pub fn stop(self) -> Result<f64, Error> {
        match self.0 {}
    }
}

/// Functions of [`Gpu`].
macro_rules! functions {
    ($(fn $name:ident $(<$($generic:ident: $bound:path),*>)? ($($arg:ident: $of:ty),* $(,)?) -> $output:ty;)*) => {
        impl Gpu {
            $(
                /// See `cuda.rs`.
                #[allow(clippy::too_many_arguments)] // as there
                pub fn $name $(<$($generic: $bound),*>)? (&self, $($arg: $of),*) -> Result<$output, Error> {
                    let _ = ($($arg,)*);
                    match self.0 {}
                }
            )*
        }
    };
}

type F32 = Buffer<f32>;
type Bf16 = Buffer<u16>;
type U32 = Buffer<u32>;

functions! {
    fn synchronize() -> ();
    fn self_test(each: &mut dyn FnMut(Comparison)) -> ();
    fn trim() -> ();
    fn memory() -> (usize, usize);
    fn timer() -> Timer;
    fn uninitialized<T: Element>(len: usize) -> Buffer<T>;
    fn lasting_zeros<T: Element>(len: usize) -> Buffer<T>;
    fn zeros<T: Element>(len: usize) -> Buffer<T>;
    fn fill_zero<T: Element>(buffer: &mut Buffer<T>) -> ();
    fn upload<T: Element>(data: &[T]) -> Buffer<T>;
    fn write<T: Element>(buffer: &mut Buffer<T>, first: usize, data: &[T]) -> ();
    fn download<T: Element>(buffer: &Buffer<T>) -> Vec<T>;
    fn read<T: Element>(buffer: &Buffer<T>, first: usize, data: &mut [T]) -> ();
    fn copy<T: Element>(
        to: &mut Buffer<T>, to_first: usize, from: &Buffer<T>, from_first: usize, len: usize,
    ) -> ();
    fn copy_within<T: Element>(
        buffer: &mut Buffer<T>, to_first: usize, from_first: usize, len: usize,
    ) -> ();
    fn gather(y: &mut F32, x: &F32, rows: &U32, n: usize) -> ();
    fn gather_backward(dx: &mut F32, dy: &F32, places: [&U32; 2], n: usize) -> ();
    fn rms_norm<Y: Output>(y: &mut Buffer<Y>, x: &F32, w: &F32, eps: f32) -> ();
    fn rms_norm_backward(dx: &mut F32, dy: &F32, x: &F32, w: &F32, eps: f32, add: bool) -> ();
    fn embedding(y: &mut F32, ids: &U32, table: &Bf16, n: usize) -> ();
    fn rope_table(inv_freq: &[f32], scale: f32, positions: usize) -> RopeTable;
    fn rope(x: &mut F32, positions: &U32, table: &RopeTable, back: bool) -> ();
    fn rope_into(y: &mut Bf16, x: &F32, positions: &U32, table: &RopeTable) -> ();
    fn rope_norm<Y: Output>(
        y: &mut Buffer<Y>, x: &F32, w: &F32, eps: f32, positions: &U32, table: &RopeTable,
    ) -> ();
    fn swiglu<Y: Output>(y: &mut Buffer<Y>, gate: &F32, up: &F32) -> ();
    fn swiglu_backward<Y: Output>(
        gradients: [&mut Buffer<Y>; 2], dy: &F32, gate: &F32, up: &F32,
    ) -> ();
    fn add(y: &mut F32, x: &F32) -> ();
    fn add_slices(y: &mut F32, x: &F32, add: bool) -> ();
    fn dropout<Y: Output>(y: &mut Buffer<Y>, x: &F32, draws: Draws, probability: f32) -> ();
    fn dropout_rounded(y: &mut Bf16, x: &Bf16, draws: Draws, probability: f32) -> ();
    fn matmul(y: &mut F32, pairs: &[Pair<'_>], shape: [usize; 2], accumulate: bool) -> ();
    fn matmul_swiglu(
        y: &mut Bf16, kept: Option<[&mut F32; 2]>, pairs: &[Pair<'_>], shape: [usize; 2],
    ) -> ();
    fn matmul_backward(dx: &mut F32, pairs: &[Pair<'_>], shape: [usize; 2], accumulate: bool) -> ();
    fn matmul_swiglu_backward(
        gradients: [&mut Bf16; 2], kept: [&F32; 2], pairs: &[Pair<'_>], shape: [usize; 2],
    ) -> ();
    fn matmul_gradient(
        dw: &mut F32, low: &Bf16, x: &Bf16, shape: [usize; 3], accumulate: bool,
    ) -> ();
    fn round(y: &mut Bf16, x: &F32) -> ();
    fn factor(x: &F32, shape: [usize; 2]) -> Factor;
    fn low_rank(x: &Bf16, factor: &Factor, m: usize, scale: f32) -> Bf16;
    fn attention_append(cache: [&mut Bf16; 2], rows: [&F32; 2], slots: &U32, shape: Shape) -> ();
    fn attention_plan(
        spans: &[Span], tables: &[u32], pages: usize, shape: Shape, longest: usize,
    ) -> AttentionPlan;
    fn rewrite_plan(plan: &mut AttentionPlan, spans: &[Span], tables: &[u32]) -> ();
    fn attention(
        out: &mut Bf16, kept: Option<[&mut F32; 2]>, q: &Bf16, cache: [&Bf16; 2],
        plan: &AttentionPlan,
    ) -> ();
    fn workspace() -> Arc<Workspace>;
    fn record(
        name: &'static str, workspace: &Arc<Workspace>, work: impl FnOnce() -> Result<(), Error>,
    ) -> Graph;
    fn backward_plan(trees: &[Tree], shape: Shape) -> BackwardPlan;
    fn attention_backward(
        gradients: [&mut F32; 3], dy: &F32, saved: AttentionSaved<'_>, plan: &BackwardPlan,
    ) -> ();
    fn log_prob(
        out: &mut F32, x: &Bf16, head: Head<'_>, tokens: &U32, temperature: f32,
    ) -> Distributions;
    fn log_prob_backward(
        dx: &mut F32, gradients: &F32, x: &Bf16, head: Head<'_>, tokens: &U32,
        distributions: &Distributions,
    ) -> ();
    fn check_distributions(distributions: &Distributions) -> Result<(), RowError>;
    fn sample_requests(requests: &[SampleRequest]) -> U32;
    fn rewrite_requests(to: &mut U32, requests: &[SampleRequest]) -> ();
    fn penalties(rows: &[Penalized<'_>], room: usize, vocab: usize) -> Penalties;
    fn rewrite_penalties(to: &mut Penalties, rows: &[Penalized<'_>]) -> ();
    fn repetition_penalty(logits: &mut F32, penalties: &Penalties) -> ();
    fn sample(out: &mut U32, logits: &F32, requests: &U32, vocab: usize) -> ();
    fn samples(out: &U32) -> Vec<Result<Sample, LogitsError>>;
    fn adamw(w: &mut F32, m: &mut F32, v: &mut F32, dw: &F32, step: &Step) -> ();
    fn sum_of_squares(out: &mut Buffer<f64>, slot: usize, x: &F32) -> ();
}

impl Gpu {
    /// Always fails.
    pub fn open(_: usize) -> Result<Gpu, Error> {
        Err(Error::Disabled)
    }

    /// See `cuda.rs`.
    pub fn ordinal(&self) -> usize {
        match self.0 {}
    }

    /// See `cuda.rs`.
    pub fn name(&self) -> &str {
        match self.0 {}
    }

    /// See `cuda.rs`.
    pub fn multiprocessors(&self) -> usize {
        match self.0 {}
    }

    /// See `cuda.rs`.
    pub fn memory_in_use(&self) -> (usize, usize) {
        match self.0 {}
    }

    /// See `cuda.rs`.
    pub fn queued(&self) -> Queued {
        match self.0 {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_a_device_says_how_to_get_one() {
        let error = Gpu::open(0).unwrap_err();
        assert_eq!(error, Error::Disabled);
        assert!(error.to_string().contains("--features cuda"), "{error}");
    }
}
