//! Dense row-major f32 tensors, and the device that owns their memory.
//!
//! A forward pass makes the same tensors again and again. Their buffers come from the device's
//! free list and go back to it when a tensor is dropped, so that a warm pass allocates nothing.

use std::sync::{Arc, Mutex};

use kernels::cpu::Cpu;

/// Where tensors live and ops run. Cloning gives another handle to the same device.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    cpu: Cpu,
    /// Buffers by the power of two of their length.
    free: Mutex<[Vec<Vec<f32>>; usize::BITS as usize]>,
}

impl Device {
    /// The CPU, as the given context drives it.
    pub fn new(cpu: Cpu) -> Device {
        Device(Arc::new(Inner { cpu, free: Mutex::new(std::array::from_fn(|_| Vec::new())) }))
    }

    /// The context that kernels take.
    pub fn cpu(&self) -> &Cpu {
        &self.0.cpu
    }

    /// A buffer of at least `len` values, whatever they are.
    fn take(&self, len: usize) -> Vec<f32> {
        let class = len.next_power_of_two().trailing_zeros() as usize;
        let recycled = self.0.free.lock().expect("no panic under the lock")[class].pop();
        recycled.unwrap_or_else(|| vec![0.0; 1 << class])
    }

    fn give_back(&self, buffer: Vec<f32>) {
        let class = buffer.len().trailing_zeros() as usize;
        if let Ok(mut free) = self.0.free.lock() {
            free[class].push(buffer);
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cpu, {} threads", self.0.cpu.threads())
    }
}

/// A matrix `[rows, columns]` of f32 in the device's memory.
pub struct Tensor {
    rows: usize,
    columns: usize,
    buffer: Vec<f32>,
    device: Device,
}

impl Tensor {
    /// A tensor whose values are whatever the buffer held: for outputs that are written whole.
    pub(crate) fn uninitialized(device: &Device, rows: usize, columns: usize) -> Tensor {
        let len = rows.checked_mul(columns).expect("tensor size fits usize");
        Tensor { rows, columns, buffer: device.take(len), device: device.clone() }
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
        &self.buffer[..self.rows * self.columns]
    }

    /// All values, row after row.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.rows * self.columns]
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
}

impl Drop for Tensor {
    fn drop(&mut self) {
        self.device.give_back(std::mem::take(&mut self.buffer));
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
        assert_eq!(second.data().as_ptr(), address, "15 and 12 values share a size class");
        assert_eq!(second.shape(), [2, 6]);
        let third = Tensor::uninitialized(&device, 2, 6);
        assert_ne!(third.data().as_ptr(), address, "second is still alive");
    }

    #[test]
    fn gather_takes_rows_in_order_and_zero_rows_are_fine() {
        let device = Device::new(Cpu::new(1));
        let mut x = Tensor::uninitialized(&device, 3, 2);
        x.data_mut().copy_from_slice(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(x.gather_rows(&[2, 0, 2]).data(), [4.0, 5.0, 0.0, 1.0, 4.0, 5.0]);
        assert_eq!(x.gather_rows(&[]).data(), [] as [f32; 0]);
    }
}
