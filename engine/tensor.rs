//! Tensors: dense row-major matrices of f32 in the memory of a [`Device`].
//!
//! A forward pass makes the same tensors again and again. Their buffers come from the device's
//! free list and go back to it when a tensor is dropped, so that a warm pass allocates nothing.

mod bf16_tensor;
pub mod check_gradient;
pub mod device;
pub mod tape;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

pub(crate) use bf16_tensor::Bf16Tensor;
use half::bf16;
use kernels::cuda::Buffer;

pub use crate::tensor::device::Device;
use crate::tensor::device::{CudaDevice, DeviceError, HostBuffer};

/// Identity of a value, by which its gradient is found. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(u64);

impl Id {
    fn new() -> Id {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Id(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A matrix `[rows, columns]` of f32: always two dimensions and one element type, by design.
///
/// A row is a token's: the models need no more, and no op has to ask for strides, a rank or a type. Heads lie side by
/// side in a row. Weights, which may be bf16 or f16, are no tensors but [`Weight`](crate::checkpoint::weights::Weight)s.
///
/// The values are in the device's memory; on a GPU rounded to bf16 where only matmuls read them. Clones share them and are
/// the same value to the tape; a shared tensor is not written to.
pub struct Tensor {
    rows: usize,
    columns: usize,
    storage: Storage,
    device: Device,
    id: Id,
    requires_grad: bool,
}

#[derive(Clone)]
enum Storage {
    Host(HostBuffer),
    Cuda(Arc<Buffer<f32>>),
    CudaBf16(Arc<Buffer<u16>>),
    /// The device has failed, or the tensor is being dropped.
    Lost,
}

impl Tensor {
    /// A tensor with the values that its buffer happens to hold: for outputs that are written whole.
    pub(crate) fn uninitialized(device: &Device, rows: usize, columns: usize) -> Tensor {
        let len = rows.checked_mul(columns).expect("tensor size fits usize");
        match device {
            Device::Cpu(cpu) => Tensor::of(device, [rows, columns], Storage::Host(cpu.take(len))),
            Device::Cuda(cuda) => {
                Tensor::cuda(cuda, [rows, columns], cuda.run(|gpu| gpu.uninitialized(len)))
            }
        }
    }

    /// The same for what only matmuls read: on a GPU in bf16.
    pub(crate) fn uninitialized_for_matmul(device: &Device, rows: usize, columns: usize) -> Tensor {
        match device {
            Device::Cpu(_) => Tensor::uninitialized(device, rows, columns),
            Device::Cuda(cuda) => {
                let len = rows.checked_mul(columns).expect("tensor size fits usize");
                Tensor::cuda_bf16(cuda, [rows, columns], cuda.run(|gpu| gpu.uninitialized(len)))
            }
        }
    }

    /// A tensor of zeros.
    pub fn zeros(device: &Device, rows: usize, columns: usize) -> Tensor {
        match device {
            Device::Cpu(_) => {
                let mut tensor = Tensor::uninitialized(device, rows, columns);
                tensor.on_host(|to| to.fill(0.0));
                tensor
            }
            Device::Cuda(cuda) => {
                Tensor::cuda(cuda, [rows, columns], cuda.run(|gpu| gpu.zeros(rows * columns)))
            }
        }
    }

    /// A copy of `values`, row after row.
    ///
    /// # Panics
    /// If there are not rows · columns values.
    pub fn from_slice(device: &Device, rows: usize, columns: usize, values: &[f32]) -> Tensor {
        assert_eq!(values.len(), rows * columns, "values for [{rows}, {columns}]");
        match device {
            Device::Cpu(_) => {
                let mut tensor = Tensor::uninitialized(device, rows, columns);
                tensor.on_host(|to| to.copy_from_slice(values));
                tensor
            }
            Device::Cuda(cuda) => {
                Tensor::cuda(cuda, [rows, columns], cuda.run(|gpu| gpu.upload(values)))
            }
        }
    }

    fn of(device: &Device, [rows, columns]: [usize; 2], storage: Storage) -> Tensor {
        let device = device.clone();
        Tensor { rows, columns, storage, device, id: Id::new(), requires_grad: false }
    }

    /// The result of an op on a GPU; `None` if the device has failed.
    pub(crate) fn cuda(
        device: &CudaDevice,
        shape: [usize; 2],
        buffer: Option<Buffer<f32>>,
    ) -> Tensor {
        let storage = buffer.map_or(Storage::Lost, |buffer| Storage::Cuda(Arc::new(buffer)));
        Tensor::of(&Device::Cuda(device.clone()), shape, storage)
    }

    /// The same, rounded to bf16.
    pub(crate) fn cuda_bf16(
        device: &CudaDevice,
        shape: [usize; 2],
        buffer: Option<Buffer<u16>>,
    ) -> Tensor {
        let storage = buffer.map_or(Storage::Lost, |buffer| Storage::CudaBf16(Arc::new(buffer)));
        Tensor::of(&Device::Cuda(device.clone()), shape, storage)
    }

    /// The values on the GPU, in f32.
    pub(crate) fn f32(&self) -> &Buffer<f32> {
        match &self.storage {
            Storage::Cuda(buffer) => buffer,
            _ => panic!("{self:?} is not f32 on a GPU that works"),
        }
    }

    /// The same, to be written to.
    pub(crate) fn f32_mut(&mut self) -> &mut Buffer<f32> {
        match &mut self.storage {
            Storage::Cuda(buffer) => {
                Arc::get_mut(buffer).expect("a tensor that is shared is not written to")
            }
            _ => panic!("not f32 on a GPU that works"),
        }
    }

    /// The values on the GPU, in bf16: of what [`Tensor::for_matmul`] returns, for example.
    pub(crate) fn bf16(&self) -> &Buffer<u16> {
        match &self.storage {
            Storage::CudaBf16(buffer) => buffer,
            _ => panic!("{self:?} is not bf16 on a GPU that works"),
        }
    }

    /// The same, to be written to.
    pub(crate) fn bf16_mut(&mut self) -> &mut Buffer<u16> {
        match &mut self.storage {
            Storage::CudaBf16(buffer) => {
                Arc::get_mut(buffer).expect("a tensor that is shared is not written to")
            }
            _ => panic!("not bf16 on a GPU that works"),
        }
    }

    /// The values as matmuls read them: on a GPU in bf16, rounded if they are not yet; on a CPU as they are.
    pub(crate) fn for_matmul(&self) -> Tensor {
        match (&self.device, &self.storage) {
            (Device::Cuda(cuda), Storage::Cuda(x)) => {
                let mut y = Tensor::uninitialized_for_matmul(&self.device, self.rows, self.columns);
                cuda.queue(|gpu| gpu.round(y.bf16_mut(), x));
                y
            }
            _ => self.clone(),
        }
    }

    /// A copy of all values on the host, row after row; from a GPU, or why it failed.
    pub fn to_vec(&self) -> Result<Vec<f32>, DeviceError> {
        match (&self.device, &self.storage) {
            (Device::Cuda(cuda), Storage::Cuda(buffer)) => cuda.finish(|gpu| gpu.download(buffer)),
            (Device::Cuda(cuda), Storage::CudaBf16(buffer)) => {
                let bits = cuda.finish(|gpu| gpu.download(buffer))?;
                Ok(bits.into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect())
            }
            (Device::Cuda(cuda), _) => {
                Err(cuda.status().expect_err("values are lost by a failure only"))
            }
            (Device::Cpu(_), _) => Ok(self.data().to_vec()),
        }
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// The device it lives on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All values, row after row.
    ///
    /// # Panics
    /// If they are on a GPU: [`Tensor::to_vec`] copies them.
    pub fn data(&self) -> &[f32] {
        match &self.storage {
            Storage::Host(buffer) => &buffer[..self.rows * self.columns],
            _ => panic!("{self:?} is not in the host's memory"),
        }
    }

    /// All values, row after row.
    ///
    /// # Panics
    /// If a clone shares them, or they are on a GPU.
    pub fn data_mut(&mut self) -> &mut [f32] {
        let len = self.rows * self.columns;
        match &mut self.storage {
            Storage::Host(buffer) => {
                let buffer = Arc::get_mut(buffer);
                &mut buffer.expect("a tensor that is shared is not written to")[..len]
            }
            _ => panic!("not in the host's memory"),
        }
    }

    /// Lets `write` change the values on the host. A counting device skips it and leaves its memory untouched.
    pub(crate) fn on_host(&mut self, write: impl FnOnce(&mut [f32])) {
        if !self.device.counts() {
            write(self.data_mut());
        }
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data()[row * self.columns..][..self.columns]
    }

    /// The same values as a new value to the tape, to be written to: in place if nothing else shares them, else a copy.
    ///
    /// # Panics
    /// If they are rounded to bf16, which happens on a GPU only.
    pub fn into_owned(mut self) -> Tensor {
        let (shape, len) = ([self.rows, self.columns], self.len());
        match &mut self.storage {
            Storage::Host(buffer) => {
                if Arc::get_mut(buffer).is_none() {
                    return Tensor::from_slice(&self.device, self.rows, self.columns, self.data());
                }
            }
            Storage::Cuda(buffer) => {
                if Arc::get_mut(buffer).is_none()
                    && let Device::Cuda(cuda) = &self.device
                {
                    let copied = cuda.run(|gpu| {
                        let mut copy = gpu.uninitialized(len)?;
                        gpu.copy(&mut copy, 0, buffer, 0, len)?;
                        Ok(copy)
                    });
                    return Tensor::cuda(cuda, shape, copied);
                }
            }
            Storage::CudaBf16(_) => panic!("what is rounded for products is not written to"),
            Storage::Lost => {}
        }
        self.id = Id::new();
        self.requires_grad = false;
        self
    }

    /// Its identity: an op's backward pass names its inputs by it. Clones have the same.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Whether gradients flow to it.
    pub fn requires_grad(&self) -> bool {
        self.requires_grad
    }

    /// Makes it a leaf with or without a gradient.
    pub fn set_requires_grad(&mut self, requires_grad: bool) {
        self.requires_grad = requires_grad;
    }
}

impl Clone for Tensor {
    fn clone(&self) -> Tensor {
        let Tensor { rows, columns, id, requires_grad, .. } = *self;
        let (storage, device) = (self.storage.clone(), self.device.clone());
        Tensor { rows, columns, storage, device, id, requires_grad }
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // A GPU's buffers go back to its pool by themselves.
        if let Storage::Host(mut buffer) = std::mem::replace(&mut self.storage, Storage::Lost)
            && Arc::get_mut(&mut buffer).is_some()
            && let Device::Cpu(device) = &self.device
        {
            device.give_back(buffer);
        }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor [{}, {}] on {:?}", self.rows, self.columns, self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::cpu::Cpu;

    #[test]
    fn a_dropped_buffer_is_used_again() {
        let device = Device::new(Cpu::new(1));
        let mut first = Tensor::uninitialized(&device, 3, 5);
        first.data_mut().fill(7.0);
        let address = first.data().as_ptr();
        drop(first);
        let second = Tensor::uninitialized(&device, 2, 6);
        assert_eq!(second.data().as_ptr(), address, "15 and 12 values share a length");
        assert_eq!(second.shape(), [2, 6]);
        let third = Tensor::uninitialized(&device, 2, 6);
        assert_ne!(third.data().as_ptr(), address, "second is still alive");
        drop(second);
        device.trim();
        let Device::Cpu(host) = &device else { unreachable!("made above") };
        assert!(!host.has_free_buffers());
        assert_eq!(device.allocated_bytes(), 16 * 4, "the third's");
    }

    #[test]
    fn shared_values_are_copied_before_they_are_written_to() {
        let device = Device::new(Cpu::new(1));
        let first = Tensor::from_slice(&device, 1, 2, &[1.0, 2.0]);
        let clone = first.clone();
        assert_eq!(clone.id(), first.id());
        let address = first.data().as_ptr();
        let mut copy = clone.into_owned();
        copy.data_mut()[0] = 5.0;
        assert_ne!(copy.id(), first.id());
        assert_eq!(first.data(), [1.0, 2.0]);
        let same = first.into_owned();
        assert_eq!(same.data().as_ptr(), address);
    }

    #[test]
    #[should_panic(expected = "a tensor that is shared is not written to")]
    fn shared_values_cannot_be_written_to() {
        let mut tensor = Tensor::zeros(&Device::new(Cpu::new(1)), 1, 1);
        let _clone = tensor.clone();
        tensor.data_mut()[0] = 1.0;
    }
}
