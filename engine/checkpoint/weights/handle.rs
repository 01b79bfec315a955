//! Weights as a model holds them: tensors that keep their file mapped.

use std::{
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use half::bf16;
use kernels::{
    cpu::{
        ComputeDtype, Cpu,
        matmul::{FEW_ROWS, Panels},
    },
    cuda::{Buffer, Gpu, padded_vocab},
};

use crate::tensor::device::{DeviceCell, DeviceError};

use super::{Checkpoint, Dtype, MappedFile, Matrix, TensorView, WeightsError};

/// A matrix `[rows, columns]` (a vector counts as one row) of a checkpoint, used where it lies.
/// Keeps the file mapped for as long as it lives.
#[derive(Clone)]
pub struct Weight {
    dtype: Dtype,
    rows: usize,
    columns: usize,
    source: Source,
    packing: Packing,
    packed: Arc<Packed>,
    /// In bf16 on a GPU.
    uploaded: Arc<DeviceCell<Buffer<u16>>>,
}

/// Whether matmuls read weights where their file is mapped, or a packed copy. The results have the
/// same bits; only time and memory differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// Read in place; panels are packed again for each matmul.
    #[default]
    Mapped,
    /// Packed when few rows meet a weight for the second time: then tokens are being generated, and
    /// reading the copy is faster. Or when many rows have met it some times: then this is long work.
    /// Where the system has no memory for it, as [`Packing::Mapped`].
    WhenReused,
    /// Packed at the first matmul.
    AtOnce,
}

/// The packed copy of a weight and of its clones.
#[derive(Default)]
struct Packed {
    /// Matmuls so far, with few rows and with many.
    few: AtomicU32,
    many: AtomicU32,
    /// `None` inside means that there was no memory.
    panels: OnceLock<Option<Panels>>,
}

/// Matmuls of many rows that use a weight where it is mapped: the prompt of a single judgment, in parts.
const MANY_USES: u32 = 6;

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
            found: "the files do not have it".to_owned(),
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
        Ok(Weight {
            dtype,
            rows,
            columns,
            source,
            packing: Packing::Mapped,
            packed: Arc::default(),
            uploaded: Arc::default(),
        })
    }
}

impl Weight {
    /// A matrix `[rows, columns]` of zeros in `memory`, which may be shared by all weights of a model whose memory
    /// is counted.
    pub(crate) fn counted(
        memory: &Arc<Vec<u64>>,
        dtype: Dtype,
        [rows, columns]: [usize; 2],
    ) -> Weight {
        let bytes = rows * columns * dtype.bitsize() / 8;
        Weight {
            dtype,
            rows,
            columns,
            source: Source::Copied(memory.clone(), bytes),
            packing: Packing::Mapped,
            packed: Arc::default(),
            uploaded: Arc::default(),
        }
    }

    /// Rows: the width of a projection's output.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: the width of a projection's input.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes of the elements.
    pub fn len_bytes(&self) -> usize {
        self.bytes().len()
    }

    /// Type of the elements: BF16, F16 or F32.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Chooses when matmuls pack it.
    pub(crate) fn set_packing(&mut self, packing: Packing) {
        self.packing = packing;
    }

    /// The elements for a matmul with `rows` rows of inputs in this compute dtype: packed if that pays (see
    /// [`Packing`]) and the CPU takes panels, else where they are mapped.
    pub(crate) fn for_matmul(&self, cpu: &Cpu, compute: ComputeDtype, rows: usize) -> Matrix<'_> {
        let Matrix::Bf16(w) = self.matrix() else { return self.matrix() };
        if compute != ComputeDtype::Bf16 || !Panels::suit(cpu) {
            return Matrix::Bf16(w);
        }
        let pack = match self.packing {
            Packing::Mapped => false,
            Packing::AtOnce => true,
            Packing::WhenReused => {
                let counted = |uses: &AtomicU32| uses.fetch_add(1, Ordering::Relaxed);
                let Packed { few, many, panels } = &*self.packed;
                panels.get().is_some()
                    || match rows <= FEW_ROWS {
                        true => counted(few) >= 1,
                        false => counted(many) >= MANY_USES,
                    }
            }
        };
        if !pack {
            return Matrix::Bf16(w);
        }
        let packed = self.packed.panels.get_or_init(|| {
            let copied = |elements: Range<usize>| {
                if let Source::Mapped(file, range) = &self.source {
                    let [start, end] = [elements.start, elements.end].map(|e| range.start + 2 * e);
                    file.release(start..end);
                }
            };
            Panels::pack(cpu, w, [self.rows, self.columns], &copied).ok()
        });
        packed.as_ref().map_or(Matrix::Bf16(w), |panels| Matrix::Panels(panels.whole()))
    }

    /// The elements on a GPU in bf16, with rows of zeros behind them, since kernels take a padded vocabulary. The first call
    /// copies them there.
    pub(crate) fn on(&self, gpu: &Gpu) -> Result<&Buffer<u16>, DeviceError> {
        self.uploaded.get_or_make(|| {
            let padded = padded_vocab(self.rows);
            let len = padded * self.columns;
            let mut buffer =
                if padded == self.rows { gpu.uninitialized(len)? } else { gpu.zeros(len)? };
            self.upload(gpu, &mut buffer, 0)?;
            Ok(buffer)
        })
    }

    /// Writes the elements to a buffer from `first` on, and gives the pages of the file back.
    pub(crate) fn upload(
        &self,
        gpu: &Gpu,
        buffer: &mut Buffer<u16>,
        first: usize,
    ) -> Result<(), DeviceError> {
        if gpu.counts() {
            return Ok(());
        }
        /// Elements that are converted at a time.
        const PART: usize = 1 << 20;
        fn parts<T: Copy>(
            gpu: &Gpu,
            buffer: &mut Buffer<u16>,
            first: usize,
            values: &[T],
            to_f32: impl Fn(T) -> f32,
        ) -> Result<(), DeviceError> {
            for (index, part) in values.chunks(PART).enumerate() {
                let bits: Vec<u16> =
                    part.iter().map(|x| bf16::from_f32(to_f32(*x)).to_bits()).collect();
                gpu.write(buffer, first + index * PART, &bits)?;
            }
            Ok(())
        }
        match self.matrix() {
            Matrix::Bf16(values) => gpu.write(buffer, first, bytemuck::cast_slice(values))?,
            Matrix::F16(values) => parts(gpu, buffer, first, values, half::f16::to_f32)?,
            Matrix::F32(values) => parts(gpu, buffer, first, values, |x| x)?,
            Matrix::Panels(_) => unreachable!("a weight where it lies"),
        }
        if let Source::Mapped(file, range) = &self.source {
            file.release(range.clone());
        }
        Ok(())
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
            Matrix::Panels(_) => unreachable!("a weight where it lies"),
        }
    }

    /// A copy in memory, rounded to bf16 as a GPU has it.
    pub(crate) fn rounded(&self) -> Weight {
        let values: Vec<bf16> = self.to_f32().into_iter().map(bf16::from_f32).collect();
        Weight::copied(Dtype::BF16, [self.rows, self.columns], bytemuck::cast_slice(&values))
    }

    /// A weight of f32 that lies in memory, for tests.
    #[cfg(test)]
    pub(crate) fn from_f32(rows: usize, columns: usize, values: &[f32]) -> Weight {
        assert_eq!(values.len(), rows * columns, "values for [{rows}, {columns}]");
        Weight::copied(Dtype::F32, [rows, columns], bytemuck::cast_slice(values))
    }

    fn copied(dtype: Dtype, [rows, columns]: [usize; 2], bytes: &[u8]) -> Weight {
        let mut copy = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut copy)[..bytes.len()].copy_from_slice(bytes);
        let source = Source::Copied(Arc::new(copy), bytes.len());
        Weight {
            dtype,
            rows,
            columns,
            source,
            packing: Packing::Mapped,
            packed: Arc::default(),
            uploaded: Arc::default(),
        }
    }

    fn bytes(&self) -> &[u8] {
        match &self.source {
            Source::Mapped(file, range) => &file.map[range.clone()],
            Source::Copied(copy, len_bytes) => &bytemuck::cast_slice(copy)[..*len_bytes],
        }
    }
}
