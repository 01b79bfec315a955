//! Dense row-major f32 tensors, and the device that owns their memory.
//!
//! A forward pass makes the same tensors again and again. Their buffers come from the device's
//! free list and go back to it when a tensor is dropped, so that a warm pass allocates nothing.

mod free_list;
mod narrow;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

pub(crate) use free_list::FreeList;
use kernels::cpu::Cpu;
pub(crate) use narrow::Narrow;

/// Where tensors live and ops run. Cloning gives another handle to the same device.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    cpu: Cpu,
    free: Mutex<FreeList<Arc<Buffer>>>,
    /// Values that all buffers have room for, in use or not.
    allocated: AtomicUsize,
}

type Buffer = Vec<f32>;

impl Device {
    /// The CPU, as the given context drives it.
    pub fn new(cpu: Cpu) -> Device {
        Device(Arc::new(Inner { cpu, free: Mutex::default(), allocated: AtomicUsize::new(0) }))
    }

    /// The context that kernels take.
    pub fn cpu(&self) -> &Cpu {
        &self.0.cpu
    }

    /// Gives the memory of dropped tensors back to the system: between phases of different shapes.
    pub fn trim(&self) {
        let dropped = self.0.free.lock().expect("no panic under the lock").clear();
        self.0.allocated.fetch_sub(dropped, Ordering::Relaxed);
    }

    /// Bytes of all buffers: those of tensors, and those that wait to be used again.
    pub fn allocated_bytes(&self) -> usize {
        self.0.allocated.load(Ordering::Relaxed) * size_of::<f32>()
    }

    /// A buffer of at least `len` values, whatever they are. Its owner is the only one.
    fn take(&self, len: usize) -> Arc<Buffer> {
        let len = FreeList::<Arc<Buffer>>::rounded(len);
        let fitting = self.0.free.lock().expect("no panic under the lock").take(len);
        fitting.unwrap_or_else(|| {
            self.0.allocated.fetch_add(len, Ordering::Relaxed);
            Arc::new(vec![0.0; len])
        })
    }

    fn give_back(&self, buffer: Arc<Buffer>) {
        if let Ok(mut free) = self.0.free.lock() {
            free.give_back(buffer.len(), buffer);
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cpu, {} threads", self.0.cpu.threads())
    }
}

/// Identity of a value, by which its gradient is found. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Id(u64);

impl Id {
    fn new() -> Id {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Id(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A matrix `[rows, columns]` of f32 in the device's memory. Clones share it and are the same value
/// to the tape; a shared tensor is not written to.
pub struct Tensor {
    rows: usize,
    columns: usize,
    /// `None` only while it is dropped.
    buffer: Option<Arc<Buffer>>,
    device: Device,
    id: Id,
    requires_grad: bool,
}

impl Tensor {
    /// A tensor whose values are whatever the buffer held: for outputs that are written whole.
    pub(crate) fn uninitialized(device: &Device, rows: usize, columns: usize) -> Tensor {
        let len = rows.checked_mul(columns).expect("tensor size fits usize");
        Tensor {
            rows,
            columns,
            buffer: Some(device.take(len)),
            device: device.clone(),
            id: Id::new(),
            requires_grad: false,
        }
    }

    /// A tensor of zeros.
    pub fn zeros(device: &Device, rows: usize, columns: usize) -> Tensor {
        let mut tensor = Tensor::uninitialized(device, rows, columns);
        tensor.data_mut().fill(0.0);
        tensor
    }

    /// A copy of `values`, row after row.
    ///
    /// # Panics
    /// If there are not rows · columns values.
    pub fn from_slice(device: &Device, rows: usize, columns: usize, values: &[f32]) -> Tensor {
        let mut tensor = Tensor::uninitialized(device, rows, columns);
        assert_eq!(values.len(), rows * columns, "values for [{rows}, {columns}]");
        tensor.data_mut().copy_from_slice(values);
        tensor
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// The device it lives on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All values, row after row.
    pub fn data(&self) -> &[f32] {
        &self.buffer.as_ref().expect("alive")[..self.rows * self.columns]
    }

    /// All values, row after row.
    ///
    /// # Panics
    /// If a clone shares them.
    pub fn data_mut(&mut self) -> &mut [f32] {
        let len = self.rows * self.columns;
        let buffer = Arc::get_mut(self.buffer.as_mut().expect("alive"));
        &mut buffer.expect("a tensor that is shared is not written to")[..len]
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data()[row * self.columns..][..self.columns]
    }

    /// Copies the named rows into a new tensor, in the order given.
    pub fn gather_rows(&self, rows: &[usize]) -> Tensor {
        let mut out = Tensor::uninitialized(&self.device, rows.len(), self.columns);
        for (to, &from) in out.data_mut().chunks_exact_mut(self.columns).zip(rows) {
            to.copy_from_slice(self.row(from));
        }
        out
    }

    /// The same values as a new value to the tape, to be written to: in place if nobody shares them.
    pub(crate) fn into_owned(mut self) -> Tensor {
        let shared = Arc::get_mut(self.buffer.as_mut().expect("alive")).is_none();
        if shared {
            return Tensor::from_slice(&self.device, self.rows, self.columns, self.data());
        }
        self.id = Id::new();
        self.requires_grad = false;
        self
    }

    pub(crate) fn id(&self) -> Id {
        self.id
    }

    /// Whether gradients flow to it.
    pub fn requires_grad(&self) -> bool {
        self.requires_grad
    }

    /// Makes it a leaf whose gradient is wanted, or one whose is not.
    pub fn set_requires_grad(&mut self, requires_grad: bool) {
        self.requires_grad = requires_grad;
    }
}

impl Clone for Tensor {
    fn clone(&self) -> Tensor {
        let Tensor { rows, columns, id, requires_grad, .. } = *self;
        let (buffer, device) = (self.buffer.clone(), self.device.clone());
        Tensor { rows, columns, buffer, device, id, requires_grad }
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        let mut buffer = self.buffer.take().expect("dropped once");
        if Arc::get_mut(&mut buffer).is_some() {
            self.device.give_back(buffer);
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
        assert!(device.0.free.lock().unwrap().is_empty());
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

    #[test]
    fn gather_takes_rows_in_order_and_zero_rows_are_fine() {
        let device = Device::new(Cpu::new(1));
        let x = Tensor::from_slice(&device, 3, 2, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(x.gather_rows(&[2, 0, 2]).data(), [4.0, 5.0, 0.0, 1.0, 4.0, 5.0]);
        assert_eq!(x.gather_rows(&[]).data(), [] as [f32; 0]);
    }
}
