//! Rows of W + scale B A, from bytes to bytes.

use half::{bf16, f16};

use super::{LoraFactors, MergeError};
use crate::checkpoint::weights::{Dtype, StoredTensor};

/// The delta of one matrix W `[out, in]`.
pub(super) struct Delta<'a> {
    factors: &'a LoraFactors,
    /// Columns of W.
    inputs: usize,
    /// A row of B A.
    sums: Vec<f64>,
    /// Whether any byte of W changed.
    pub(super) changed: bool,
}

impl<'a> Delta<'a> {
    pub(super) fn new(factors: &'a LoraFactors, inputs: usize) -> Delta<'a> {
        Delta { factors, inputs, sums: vec![0.0; inputs], changed: false }
    }

    /// Bytes of a row of W.
    pub(super) fn row_bytes(&self, dtype: Dtype) -> usize {
        self.inputs * dtype.bitsize() / 8
    }

    /// Row `row` of the tensor, whose bytes are `w`, with the delta added, to `y`.
    pub(super) fn apply(
        &mut self,
        tensor: &StoredTensor,
        row: usize,
        w: &[u8],
        y: &mut Vec<u8>,
    ) -> Result<(), MergeError> {
        let LoraFactors { a, b, rank, scale } = self.factors;
        self.sums.fill(0.0);
        for (a, &b) in a.chunks_exact(self.inputs).zip(&b[row * rank..][..*rank]) {
            let b = f64::from(b);
            self.sums.iter_mut().zip(a).for_each(|(sum, &a)| *sum += b * f64::from(a));
        }
        let scale = f64::from(*scale);
        y.clear();
        let overflow = match tensor.dtype {
            Dtype::F32 => add::<4, f32>(w, &self.sums, scale, y),
            Dtype::BF16 => add::<2, bf16>(w, &self.sums, scale, y),
            Dtype::F16 => add::<2, f16>(w, &self.sums, scale, y),
            other => unreachable!("{other} is not among the types that were checked"),
        };
        self.changed |= y.as_slice() != w;
        overflow.map_or(Ok(()), |(column, value)| {
            let (name, dtype) = (tensor.name.to_owned(), tensor.dtype);
            Err(MergeError::Overflow { name, row, column, value, dtype })
        })
    }
}

/// A type that weights are stored in.
trait Stored<const N: usize> {
    fn read(bytes: [u8; N]) -> f32;
    /// Rounds to nearest, ties to even.
    fn write(value: f32) -> [u8; N];
}

impl Stored<4> for f32 {
    fn read(bytes: [u8; 4]) -> f32 {
        f32::from_le_bytes(bytes)
    }
    fn write(value: f32) -> [u8; 4] {
        value.to_le_bytes()
    }
}

impl Stored<2> for bf16 {
    fn read(bytes: [u8; 2]) -> f32 {
        bf16::from_le_bytes(bytes).to_f32()
    }
    fn write(value: f32) -> [u8; 2] {
        bf16::from_f32(value).to_le_bytes()
    }
}

impl Stored<2> for f16 {
    fn read(bytes: [u8; 2]) -> f32 {
        f16::from_le_bytes(bytes).to_f32()
    }
    fn write(value: f32) -> [u8; 2] {
        f16::from_f32(value).to_le_bytes()
    }
}

/// Appends w + scale * sums to y. Returns the column and value that overflowed, if one did.
fn add<const N: usize, T: Stored<N>>(
    w: &[u8],
    sums: &[f64],
    scale: f64,
    y: &mut Vec<u8>,
) -> Option<(usize, f32)> {
    let mut overflow = None;
    for (column, (&bytes, &sum)) in w.as_chunks::<N>().0.iter().zip(sums).enumerate() {
        let delta = scale * sum;
        if delta == 0.0 {
            y.extend_from_slice(&bytes); // -0 + 0 would be 0
            continue;
        }
        let w = T::read(bytes);
        let value = (f64::from(w) + delta) as f32;
        let rounded = T::write(value);
        if w.is_finite() && !T::read(rounded).is_finite() {
            overflow = overflow.or(Some((column, value)));
        }
        y.extend_from_slice(&rounded);
    }
    overflow
}

#[cfg(test)]
mod tests {
    use super::*;

    /// W [2, 3] + 2 B A with B [2, 1] and A [1, 3].
    fn updated(dtype: Dtype, w: &[u8], b: [f32; 2]) -> Result<Vec<u8>, MergeError> {
        let factors = LoraFactors { a: vec![1.0, -2.0, 0.0], b: b.to_vec(), rank: 1, scale: 2.0 };
        let mut delta = Delta::new(&factors, 3);
        let tensor = StoredTensor { name: "w", dtype, bytes: w };
        let (mut all, mut y) = (Vec::new(), Vec::new());
        for (row, bytes) in w.chunks(delta.row_bytes(dtype)).enumerate() {
            delta.apply(&tensor, row, bytes, &mut y)?;
            all.extend_from_slice(&y);
        }
        Ok(all)
    }

    #[test]
    fn the_update_is_added_and_rounded_once() {
        let w: Vec<u8> = [1.0f32, 1.0, -0.0, 8.0, 8.0, 8.0].map(f32::to_le_bytes).concat();
        let y = updated(Dtype::F32, &w, [0.5, 0.0]).unwrap();
        let expected = [2.0f32, -1.0, -0.0, 8.0, 8.0, 8.0].map(f32::to_le_bytes).concat();
        assert_eq!(y, expected);

        // bf16 has 8 bits: 1 + 2^-8 is half way and goes to even, a little more goes up. The product of 2^-9 keeps it in f32.
        let w: Vec<u8> = [1.0f32; 6].map(|w| bf16::from_f32(w).to_le_bytes()).concat();
        let half = 2f32.powi(-9);
        let y = updated(Dtype::BF16, &w, [half, half * (1.0 + 2f32.powi(-8))]).unwrap();
        let up = 1.0 + 2f32.powi(-7);
        let expected = [1.0, 1.0 - 2f32.powi(-7), 1.0, up, 1.0 - 2f32.powi(-7), 1.0];
        assert_eq!(y, expected.map(|w| bf16::from_f32(w).to_le_bytes()).concat());
    }

    #[test]
    fn an_overflow_is_named() {
        let w: Vec<u8> = [60000.0f32; 6].map(|w| f16::from_f32(w).to_le_bytes()).concat();
        let error = updated(Dtype::F16, &w, [0.0, -4000.0]).unwrap_err();
        assert!(
            matches!(error, MergeError::Overflow { row: 1, column: 1, .. })
                && error.to_string().contains("76000"),
            "{error}"
        );
        // Elements that were not finite before are the source's.
        let w: Vec<u8> = [f32::INFINITY; 6].map(|w| f16::from_f32(w).to_le_bytes()).concat();
        assert_eq!(updated(Dtype::F16, &w, [1.0, 1.0]).unwrap(), w);
    }
}
