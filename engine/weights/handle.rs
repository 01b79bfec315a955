//! A tensor that keeps its file mapped: what a model holds.

use std::{ops::Range, sync::Arc};

use kernels::cpu::Matrix;

use super::{Checkpoint, Dtype, MappedFile, TensorView, WeightsError};

/// A matrix `[rows, columns]` (a vector counts as one row) of a checkpoint, used where it lies.
/// Keeps the file mapped for as long as it lives.
#[derive(Clone)]
pub struct Weight {
    dtype: Dtype,
    rows: usize,
    columns: usize,
    source: Source,
}

#[derive(Clone)]
enum Source {
    Mapped(Arc<MappedFile>, Range<usize>),
    /// The aligned copy of a misaligned tensor.
    Copied(Arc<Vec<u64>>, usize),
}

impl Checkpoint {
    /// The float matrix or vector of this name.
    pub fn weight(&self, name: &str) -> Result<Weight, WeightsError> {
        let missing = || WeightsError::Missing {
            path: self.files[0].path.clone(),
            count: 1,
            names: name.to_string(),
        };
        let TensorView { dtype, shape, bytes } = self.tensor(name)?.ok_or_else(missing)?;
        let tensor = &self.tensors[name];
        let path = || self.files[tensor.file].path.clone();
        if !matches!(dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32) {
            return Err(WeightsError::Dtype { path: path(), name: name.to_string(), got: dtype });
        }
        let (rows, columns) = match *shape {
            [columns] => (1, columns),
            [rows, columns] => (rows, columns),
            _ => {
                return Err(WeightsError::Shape {
                    path: path(),
                    name: name.to_string(),
                    expected: vec![0, 0],
                    got: shape.to_vec(),
                });
            }
        };
        let source = match tensor.copy.get() {
            Some(copy) => Source::Copied(copy.clone(), bytes.len()),
            None => Source::Mapped(self.files[tensor.file].clone(), tensor.info.range.clone()),
        };
        Ok(Weight { dtype, rows, columns, source })
    }
}

impl Weight {
    /// Rows: the width of a projection's output.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: the width of a projection's input.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Type of the elements: BF16, F16 or F32.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The elements, as kernels take them.
    pub fn matrix(&self) -> Matrix<'_> {
        match self.dtype {
            Dtype::BF16 => Matrix::Bf16(bytemuck::cast_slice(self.bytes())),
            Dtype::F16 => Matrix::F16(bytemuck::cast_slice(self.bytes())),
            _ => Matrix::F32(bytemuck::cast_slice(self.bytes())),
        }
    }

    /// A copy of the elements in f32, for norm weights and biases.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.matrix() {
            Matrix::Bf16(data) => data.iter().map(|x| x.to_f32()).collect(),
            Matrix::F16(data) => data.iter().map(|x| x.to_f32()).collect(),
            Matrix::F32(data) => data.to_vec(),
        }
    }

    /// A weight of f32 that lies in memory, for tests.
    #[cfg(test)]
    pub(crate) fn from_f32(rows: usize, columns: usize, values: &[f32]) -> Weight {
        assert_eq!(values.len(), rows * columns, "values for [{rows}, {columns}]");
        let mut copy = vec![0u64; values.len().div_ceil(2)];
        let bytes: &[u8] = bytemuck::cast_slice(values);
        bytemuck::cast_slice_mut::<u64, u8>(&mut copy)[..bytes.len()].copy_from_slice(bytes);
        let source = Source::Copied(Arc::new(copy), bytes.len());
        Weight { dtype: Dtype::F32, rows, columns, source }
    }

    fn bytes(&self) -> &[u8] {
        match &self.source {
            Source::Mapped(file, range) => &file.map[range.clone()],
            Source::Copied(copy, len_bytes) => &bytemuck::cast_slice(copy)[..*len_bytes],
        }
    }
}
