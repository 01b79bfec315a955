//! What the kernels' scratch memory grows to, call by call.

use kernels::cpu::{Isa, Rounding, attention::score_elements, matmul};

use super::{CacheDtype, DryRun, Dtype, TrainedModel};

impl DryRun<'_> {
    /// Whether products of weights like these take pairs of bf16.
    fn takes_pairs(&self, dtype: Dtype, rounding: Rounding) -> bool {
        self.model.isa == Isa::Avx512Bf16 && dtype == Dtype::BF16 && rounding == Rounding::Bf16
    }

    pub(super) fn matmul(
        &mut self,
        [m, n]: [usize; 2],
        k: usize,
        dtype: Dtype,
        rounding: Rounding,
    ) {
        let elements = m * (k.next_multiple_of(32) + 32);
        if self.takes_pairs(dtype, rounding) {
            let threads = self.model.threads;
            grow(&mut self.scratch.rounded_bf16, 2 * elements);
            grow(&mut self.scratch.panels, matmul::panel_bytes(threads));
            grow(&mut self.scratch.rounded_f32, 4 * matmul::partial_elements(m, threads));
        } else if matmul::takes_tiles(self.model.isa, [m, n], rounding) {
            self.tiles(m, k);
        } else if dtype == Dtype::BF16 && rounding == Rounding::Bf16 {
            grow(&mut self.scratch.rounded_f32, 4 * elements);
        }
    }

    fn tiles(&mut self, m: usize, k: usize) {
        let TrainedModel { isa, threads, .. } = self.model;
        grow(&mut self.scratch.panels, matmul::tile_panel_bytes(isa, threads));
        grow(&mut self.scratch.rounded_f32, 4 * matmul::tile_elements(isa, m, k));
    }

    pub(super) fn matmul_backward(
        &mut self,
        [m, n]: [usize; 2],
        k: usize,
        dtype: Dtype,
        rounding: Rounding,
    ) {
        match dtype {
            _ if self.takes_pairs(dtype, rounding) => self.matmul([m, k], n, dtype, rounding),
            _ if rounding != Rounding::F64Sums => self.tiles(m, n),
            Dtype::F32 => grow(&mut self.scratch.transposed_f32, 4 * n * k),
            _ => grow(&mut self.scratch.transposed_16bit, 2 * n * k),
        }
    }

    pub(super) fn scores(&mut self, longest: usize) {
        let (shape, threads) = (self.attention_shape(), self.model.threads);
        let bf16 = self.cache_dtype() == CacheDtype::Bf16;
        let bytes = if bf16 { 4 } else { 8 };
        grow(&mut self.scratch.scores, bytes * score_elements(shape, longest, bf16, threads));
    }
}

/// At least `bytes`.
pub(super) fn grow(part: &mut u64, bytes: usize) {
    *part = (bytes as u64).max(*part);
}
