//! The device that owns tensors' memory and runs ops: the CPU, or a GPU through CUDA.
//!
//! An op matches on it in its own file. The CPU's path defines what is correct.
//!
//! **A GPU fails late.** Work is queued, and its errors (too little memory, for example) are known only
//! afterwards. So ops return no errors: a [`CudaDevice`] keeps its first failure and runs nothing after it. Functions that
//! bring numbers to the host return that failure ([`CudaDevice::status`]).

mod free_list;

use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use kernels::cuda::Buffer;
pub use kernels::{
    cpu::{Cpu, Isa, UnknownIsa},
    cuda::{Element, Error as DeviceError, Gpu},
};
use memmap2::MmapMut;

use free_list::FreeList;

/// Where tensors live and ops run. Cloning gives another handle to the same device.
#[derive(Clone)]
pub enum Device {
    /// The CPU.
    Cpu(CpuDevice),
    /// One GPU.
    Cuda(CudaDevice),
}

/// The CPU as a device: a context for kernels, and the memory of dropped tensors.
#[derive(Clone)]
pub struct CpuDevice(Arc<HostMemory>);

struct HostMemory {
    cpu: Cpu,
    free: Mutex<FreeList<HostBuffer>>,
    /// Room of all buffers, in use or not, in values.
    allocated: AtomicUsize,
    /// The part of them that was written to.
    written: AtomicUsize,
}

/// A tensor's memory. It has one owner while it is written to.
pub(crate) type HostBuffer = Arc<HostValues>;

/// Room for values. The first `written` have been used.
pub(crate) struct HostValues {
    memory: Memory,
    written: usize,
}

enum Memory {
    Heap(Vec<f32>),
    /// For a counting device: addresses whose pages are never touched. The heap would clear memory that it has used before.
    Counted(MmapMut),
}

impl HostValues {
    fn new(room: usize, counts: bool) -> HostValues {
        let map = || MmapMut::map_anon(room * size_of::<f32>()).ok();
        let memory = match counts.then(map).flatten() {
            Some(map) => Memory::Counted(map),
            None => Memory::Heap(vec![0.0; room]),
        };
        HostValues { memory, written: 0 }
    }
}

impl Deref for HostValues {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.memory {
            Memory::Heap(values) => values,
            Memory::Counted(map) => bytemuck::cast_slice(map),
        }
    }
}

impl DerefMut for HostValues {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.memory {
            Memory::Heap(values) => values,
            Memory::Counted(map) => bytemuck::cast_slice_mut(map),
        }
    }
}

/// A GPU as a device, and the CPU that does the host's part.
#[derive(Clone)]
pub struct CudaDevice(Arc<CudaState>);

struct CudaState {
    gpu: Gpu,
    host: Cpu,
    failure: OnceLock<DeviceError>,
}

impl Device {
    /// The CPU with all its cores.
    pub fn cpu() -> Device {
        Device::new(Cpu::all_cores())
    }

    /// The CPU with `threads` threads, the caller's included; with fewer where the system has no room for them. Results
    /// have the same bits with any number.
    pub fn cpu_threads(threads: usize) -> Device {
        Device::new(Cpu::new(threads))
    }

    /// The CPU, as the given context drives it: with a chosen instruction set ([`Cpu::with_isa`]), for example.
    pub fn new(cpu: Cpu) -> Device {
        let (free, allocated, written) = Default::default();
        Device::Cpu(CpuDevice(Arc::new(HostMemory { cpu, free, allocated, written })))
    }

    /// Whether it computes nothing and counts memory (see [`Cpu::counting`]).
    pub(crate) fn counts(&self) -> bool {
        self.host().counts()
    }

    /// A GPU by its number; `host` does the work that stays on the CPU.
    ///
    /// # Errors
    /// If there is no such GPU, or this build has no kernels for it.
    pub fn cuda(ordinal: usize, host: Cpu) -> Result<Device, DeviceError> {
        Ok(Device::Cuda(CudaDevice::new(Gpu::open(ordinal)?, host)))
    }

    /// The context of kernels on the host, for a GPU too.
    pub fn host(&self) -> &Cpu {
        match self {
            Device::Cpu(device) => &device.0.cpu,
            Device::Cuda(device) => &device.0.host,
        }
    }

    /// Whether it is a GPU.
    pub fn is_cuda(&self) -> bool {
        matches!(self, Device::Cuda(_))
    }

    /// Gives the memory of dropped tensors back to the system: between phases of different shapes.
    pub fn trim(&self) {
        match self {
            Device::Cpu(device) => device.trim(),
            Device::Cuda(device) => {
                device.run(Gpu::trim);
            }
        }
    }

    /// Bytes of all buffers: of tensors, and of buffers that wait to be used again.
    pub fn allocated_bytes(&self) -> usize {
        match self {
            Device::Cpu(device) => device.0.allocated.load(Ordering::Relaxed) * size_of::<f32>(),
            Device::Cuda(device) => device.0.gpu.memory_in_use().0,
        }
    }

    /// Bytes of buffers that were written to, and so are resident; on a GPU all of them.
    pub(crate) fn written_bytes(&self) -> usize {
        match self {
            Device::Cpu(device) => device.0.written.load(Ordering::Relaxed) * size_of::<f32>(),
            Device::Cuda(_) => self.allocated_bytes(),
        }
    }

    /// The failure of the device, if it has failed. A CPU does not fail.
    pub fn status(&self) -> Result<(), DeviceError> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Cuda(device) => device.status(),
        }
    }
}

impl CpuDevice {
    /// The context of its kernels.
    pub(crate) fn cpu(&self) -> &Cpu {
        &self.0.cpu
    }

    fn trim(&self) {
        let mut free = self.0.free.lock().expect("no panic under the lock");
        for buffer in free.clear() {
            self.0.allocated.fetch_sub(buffer.len(), Ordering::Relaxed);
            self.0.written.fetch_sub(buffer.written, Ordering::Relaxed);
        }
    }

    /// A buffer of at least `len` values, which are undefined. It has no other owner.
    pub(crate) fn take(&self, len: usize) -> HostBuffer {
        let room = FreeList::<HostBuffer>::rounded(len);
        let fitting = self.0.free.lock().expect("no panic under the lock").take(room);
        let mut buffer = fitting.unwrap_or_else(|| {
            self.0.allocated.fetch_add(room, Ordering::Relaxed);
            Arc::new(HostValues::new(room, self.0.cpu.counts()))
        });
        let owned = Arc::get_mut(&mut buffer).expect("a buffer that waits has no other owner");
        if owned.written < len {
            self.0.written.fetch_add(len - owned.written, Ordering::Relaxed);
            owned.written = len;
        }
        buffer
    }

    pub(crate) fn give_back(&self, buffer: HostBuffer) {
        if let Ok(mut free) = self.0.free.lock() {
            free.give_back(buffer.len(), buffer);
        }
    }

    #[cfg(test)]
    pub(crate) fn has_free_buffers(&self) -> bool {
        !self.0.free.lock().unwrap().is_empty()
    }
}

impl CudaDevice {
    pub(crate) fn new(gpu: Gpu, host: Cpu) -> CudaDevice {
        CudaDevice(Arc::new(CudaState { gpu, host, failure: OnceLock::new() }))
    }

    /// The device itself.
    pub fn gpu(&self) -> &Gpu {
        &self.0.gpu
    }

    /// Queues a kernel, unless the device has failed; keeps its failure.
    pub(crate) fn queue(&self, work: impl FnOnce(&Gpu) -> Result<(), DeviceError>) {
        self.run(work);
    }

    /// The same for work that makes something: `None` where the device has failed.
    pub(crate) fn run<T>(&self, work: impl FnOnce(&Gpu) -> Result<T, DeviceError>) -> Option<T> {
        self.finish(work).ok()
    }

    /// Runs work that brings results to the host.
    ///
    /// # Errors
    /// The failure of the device, now or before.
    pub(crate) fn finish<T>(
        &self,
        work: impl FnOnce(&Gpu) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        self.status()?;
        work(&self.0.gpu).map_err(|error| self.0.failure.get_or_init(|| error).clone())
    }

    /// Its failure, if it has failed.
    pub fn status(&self) -> Result<(), DeviceError> {
        self.0.failure.get().map_or(Ok(()), |error| Err(error.clone()))
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        match (self, other) {
            (Device::Cpu(a), Device::Cpu(b)) => Arc::ptr_eq(&a.0, &b.0),
            (Device::Cuda(a), Device::Cuda(b)) => Arc::ptr_eq(&a.0, &b.0),
            _ => false,
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu(device) => write!(f, "cpu, {} threads", device.0.cpu.threads()),
            Device::Cuda(device) => device.0.gpu.fmt(f),
        }
    }
}

/// A value on a GPU that is made from something on the host when it is first asked for; a clone makes its own.
pub(crate) struct DeviceCell<T>(OnceLock<T>);

impl<T> DeviceCell<T> {
    /// The value, made by `make` the first time.
    pub(crate) fn get_or_make(
        &self,
        make: impl FnOnce() -> Result<T, DeviceError>,
    ) -> Result<&T, DeviceError> {
        if let Some(value) = self.0.get() {
            return Ok(value);
        }
        let value = make()?;
        Ok(self.0.get_or_init(|| value))
    }

    /// The value, if it was made.
    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        self.0.get_mut()
    }

    /// Forgets it.
    pub(crate) fn clear(&mut self) {
        self.0.take();
    }
}

impl<T> Default for DeviceCell<T> {
    fn default() -> Self {
        DeviceCell(OnceLock::new())
    }
}

impl<T> Clone for DeviceCell<T> {
    fn clone(&self) -> Self {
        DeviceCell::default()
    }
}

impl<T> std::fmt::Debug for DeviceCell<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.get().is_some() { "made" } else { "not made" })
    }
}

/// Numbers of the host with a copy on a GPU, made when an op there first reads them: weights of norms, biases, positions,
/// tokens, slots.
#[derive(Clone, Debug, Default)]
pub struct Mirrored<T: Element> {
    host: Vec<T>,
    copy: DeviceCell<Buffer<T>>,
}

impl<T: Element> Mirrored<T> {
    /// The copy on the device.
    pub(crate) fn on(&self, gpu: &Gpu) -> Result<&Buffer<T>, DeviceError> {
        self.copy.get_or_make(|| gpu.upload(&self.host))
    }

    /// Replaces the numbers by as many others, in place on the device too: a captured graph reads them there.
    pub(crate) fn rewrite(&mut self, gpu: &Gpu, numbers: &[T]) -> Result<(), DeviceError> {
        self.host.copy_from_slice(numbers);
        self.copy.get_mut().map_or(Ok(()), |copy| gpu.write(copy, 0, &self.host))
    }

    /// The numbers, to be changed; the copy on the device is made again.
    pub(crate) fn change(&mut self) -> &mut Vec<T> {
        self.copy.clear();
        &mut self.host
    }
}

impl<T: Element> From<Vec<T>> for Mirrored<T> {
    fn from(host: Vec<T>) -> Self {
        Mirrored { host, copy: DeviceCell::default() }
    }
}

impl<T: Element> Deref for Mirrored<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.host
    }
}
