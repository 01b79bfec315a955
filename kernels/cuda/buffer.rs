//! Device memory: buffers of one element type, taken from a pool and given back to it when dropped.
//!
//! All work is on one stream, so memory that is given back may be handed out at once: what is queued for the new
//! owner runs after what was queued for the old one. What a capture takes comes from a workspace
//! instead (graph.rs), and goes back there: the graph will write to it again.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use super::driver::{self, Staging};
use super::{Error, Gpu, lock};

/// Bytes that the pool takes for a buffer of `bytes` bytes. Sizes are multiples of 512 bytes and, above 4 KiB, of an
/// eighth of their power of two, so that similar sizes share memory and at most an eighth is wasted.
fn buffer_bytes(bytes: usize) -> usize {
    let step = (bytes.max(1).next_power_of_two() / 16).max(512);
    bytes.max(1).next_multiple_of(step)
}

/// Bytes that the pool takes for a large, long-lived buffer of `bytes` bytes.
fn lasting_bytes(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(512)
}

/// An element type of buffers: plain numbers, in the device's layout. bf16 is `u16`.
pub trait Element: bytemuck::Pod + Send + Sync + std::fmt::Debug {}
impl Element for f32 {}
impl Element for f64 {}
impl Element for u16 {}
impl Element for u32 {}
impl Element for u64 {}

/// `len` elements in the memory of one device.
pub struct Buffer<T: Element> {
    address: u64,
    len: usize,
    /// Its size in bytes, and the workspace that it goes back to.
    size: usize,
    workspace: Option<u64>,
    gpu: Gpu,
    element: PhantomData<T>,
}

/// Addresses by size.
type Free = BTreeMap<usize, Vec<u64>>;

/// Free memory of the pool.
#[derive(Default)]
pub(super) struct Pool {
    free: Free,
    /// Bytes taken from the driver, and how many of them are free.
    reserved: usize,
    waiting: usize,
    most: usize,
    /// Free memory of each workspace that exists. It counts as in use.
    workspaces: BTreeMap<u64, Free>,
    next_workspace: u64,
    /// The workspace that memory is taken from during a capture.
    pub(super) capturing: Option<u64>,
}

impl Pool {
    pub(super) fn open_workspace(&mut self) -> u64 {
        self.next_workspace += 1;
        self.workspaces.insert(self.next_workspace, Free::default());
        self.next_workspace
    }

    /// Ends a workspace: its memory goes back to the pool.
    pub(super) fn close_workspace(&mut self, id: u64) {
        for (size, addresses) in self.workspaces.remove(&id).unwrap_or_default() {
            self.waiting += size * addresses.len();
            self.free.entry(size).or_default().extend(addresses);
        }
    }

    /// Memory of the workspace that is captured in, of at most twice the size, and its size.
    fn take_captured(&mut self, size: usize) -> Option<(u64, usize)> {
        let free = self.workspaces.get_mut(&self.capturing?)?;
        let fitting = free.range_mut(size..=2 * size).find(|(_, addresses)| !addresses.is_empty());
        let (size, addresses) = fitting?;
        addresses.pop().map(|address| (address, *size))
    }

    fn give_back(&mut self, address: u64, size: usize, workspace: Option<u64>) {
        let free = match workspace.and_then(|id| self.workspaces.get_mut(&id)) {
            Some(free) => free,
            None => {
                self.waiting += size;
                &mut self.free
            }
        };
        free.entry(size).or_default().push(address);
    }
}

impl Gpu {
    /// A buffer of `len` elements with any values, for results that are written whole.
    pub fn uninitialized<T: Element>(&self, len: usize) -> Result<Buffer<T>, Error> {
        self.sized(len, buffer_bytes)
    }

    /// A buffer of `len` elements, for which `size` says how many bytes the pool takes.
    fn sized<T: Element>(&self, len: usize, size: fn(usize) -> usize) -> Result<Buffer<T>, Error> {
        let size = size(len.checked_mul(size_of::<T>()).expect("a size fits usize"));
        let (address, size, workspace) = self.take(size)?;
        Ok(Buffer { address, len, size, workspace, gpu: self.clone(), element: PhantomData })
    }

    /// A large, long-lived buffer of zeros. It takes no more memory than it needs, and does not share its size with
    /// similar ones.
    pub fn lasting_zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>, Error> {
        let mut buffer = self.sized(len, lasting_bytes)?;
        self.fill_zero(&mut buffer)?;
        Ok(buffer)
    }

    /// A buffer of zeros.
    pub fn zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>, Error> {
        let mut buffer = self.uninitialized(len)?;
        self.fill_zero(&mut buffer)?;
        Ok(buffer)
    }

    /// Sets all elements to 0.
    pub(crate) fn fill_zero<T: Element>(&self, buffer: &mut Buffer<T>) -> Result<(), Error> {
        buffer.check_owner(self);
        if buffer.len == 0 {
            return Ok(());
        }
        let _entered = self.0.enter()?;
        // SAFETY: the buffer has that many bytes.
        unsafe { driver::zero(self, buffer.address, buffer.len * size_of::<T>()) }
    }

    /// A copy of `data` on the device.
    pub fn upload<T: Element>(&self, data: &[T]) -> Result<Buffer<T>, Error> {
        let mut buffer = self.uninitialized(data.len())?;
        self.write(&mut buffer, 0, data)?;
        Ok(buffer)
    }

    /// Copies `data` to `buffer`, from element `first` on, through pinned memory. `data` may change when this
    /// returns. Refused within a capture.
    pub fn write<T: Element>(
        &self,
        buffer: &mut Buffer<T>,
        first: usize,
        data: &[T],
    ) -> Result<(), Error> {
        buffer.check_owner(self);
        let room = buffer.len.saturating_sub(first);
        assert!(data.len() <= room, "{} elements at {first} of {}", data.len(), buffer.len);
        let _entered = self.0.enter()?;
        self.0.refuse_in_capture("copying to the device")?;
        let Some(opened) = &self.0.opened else { return Ok(()) };
        let mut staging = lock(&opened.staging);
        let staging = match &mut *staging {
            Some(staging) => staging,
            empty => empty.insert(Staging::new()?),
        };
        let to = buffer.address + (first * size_of::<T>()) as u64;
        // SAFETY: the elements lie in the buffer by the assert above.
        unsafe { staging.copy_in(self, to, bytemuck::cast_slice(data)) }
    }

    /// Waits for what is queued and copies the buffer to the host.
    pub fn download<T: Element>(&self, buffer: &Buffer<T>) -> Result<Vec<T>, Error> {
        let mut data = vec![T::zeroed(); buffer.len];
        self.read(buffer, 0, &mut data)?;
        Ok(data)
    }

    /// Waits for what is queued and copies elements from `first` on to `data`.
    pub fn read<T: Element>(
        &self,
        buffer: &Buffer<T>,
        first: usize,
        data: &mut [T],
    ) -> Result<(), Error> {
        buffer.check_owner(self);
        let room = buffer.len.saturating_sub(first);
        assert!(data.len() <= room, "{} elements at {first} of {}", data.len(), buffer.len);
        let _entered = self.0.enter()?;
        self.0.refuse_in_capture("copying to the host")?;
        if data.is_empty() {
            return self.0.finish("reading");
        }
        let from = buffer.address + (first * size_of::<T>()) as u64;
        // SAFETY: the elements lie in the buffer by the assert above, and `data` lives until the copy has run,
        // which is waited for here.
        let queued =
            unsafe { driver::copy_out(self, data.as_mut_ptr().cast(), from, size_of_val(data)) };
        self.0.finish("reading").and(queued)
    }

    /// Copies `len` elements from `from_first` of one buffer to `to_first` of another.
    pub fn copy<T: Element>(
        &self,
        to: &mut Buffer<T>,
        to_first: usize,
        from: &Buffer<T>,
        from_first: usize,
        len: usize,
    ) -> Result<(), Error> {
        to.check_owner(self);
        from.check_owner(self);
        assert!(len <= to.len.saturating_sub(to_first), "{len} at {to_first} of {}", to.len);
        assert!(
            len <= from.len.saturating_sub(from_first),
            "{len} at {from_first} of {}",
            from.len
        );
        if len == 0 {
            return Ok(());
        }
        let _entered = self.0.enter()?;
        let place = |address: u64, first: usize| address + (first * size_of::<T>()) as u64;
        let (to, from) = (place(to.address, to_first), place(from.address, from_first));
        // SAFETY: both have the elements by the asserts above; two buffers do not overlap.
        unsafe { driver::copy_within(self, to, from, len * size_of::<T>()) }
    }

    /// Copies `len` elements of a buffer to another place in it.
    ///
    /// # Panics
    /// If the places overlap, or do not lie in it.
    pub fn copy_within<T: Element>(
        &self,
        buffer: &mut Buffer<T>,
        to_first: usize,
        from_first: usize,
        len: usize,
    ) -> Result<(), Error> {
        buffer.check_owner(self);
        for first in [to_first, from_first] {
            let room = buffer.len.saturating_sub(first);
            assert!(len <= room, "{len} at {first} of {}", buffer.len);
        }
        assert!(to_first.abs_diff(from_first) >= len, "{from_first} to {to_first} overlap");
        if len == 0 {
            return Ok(());
        }
        let _entered = self.0.enter()?;
        let place = |first: usize| buffer.address + (first * size_of::<T>()) as u64;
        // SAFETY: both places lie in the buffer and do not overlap, by the asserts above.
        unsafe {
            driver::copy_within(self, place(to_first), place(from_first), len * size_of::<T>())
        }
    }

    /// Gives free memory of the pool back to the driver.
    pub fn trim(&self) -> Result<(), Error> {
        self.synchronize()?;
        self.empty(&mut lock(&self.0.pool));
        Ok(())
    }

    /// Trims the pool if more of it is free than the driver has left, since nothing can be given back within a capture.
    pub(super) fn make_room(&self) -> Result<(), Error> {
        let (free, _) = self.memory()?;
        if free < 2 * lock(&self.0.pool).waiting { self.trim() } else { Ok(()) }
    }

    /// Bytes of buffers and workspaces that exist, and the most that existed at once.
    pub fn memory_in_use(&self) -> (usize, usize) {
        let pool = lock(&self.0.pool);
        (pool.reserved - pool.waiting, pool.most)
    }

    /// Bytes that are free, the pool's free memory included, and bytes of the device.
    pub fn memory(&self) -> Result<(usize, usize), Error> {
        let _entered = self.0.enter()?;
        let (free, total) = driver::memory(self)?;
        Ok((free + lock(&self.0.pool).waiting, total))
    }

    fn empty(&self, pool: &mut Pool) {
        for (size, addresses) in std::mem::take(&mut pool.free) {
            for address in addresses {
                // SAFETY: of `allocate`; no buffer owns it, and the stream has run all that used it.
                unsafe { driver::free(self.0.opened.as_ref(), address) };
                pool.reserved -= size;
                pool.waiting -= size;
            }
        }
    }

    /// Memory of at least `size` bytes: where it is, how large, and of which workspace.
    fn take(&self, size: usize) -> Result<(u64, usize, Option<u64>), Error> {
        let _entered = self.0.enter()?;
        let mut pool = lock(&self.0.pool);
        let workspace = pool.capturing;
        if let Some((address, size)) = pool.take_captured(size) {
            return Ok((address, size, workspace));
        }
        let waiting = pool.free.get_mut(&size).and_then(Vec::pop);
        let address = match waiting {
            Some(address) => {
                pool.waiting -= size;
                address
            }
            None => {
                let mut address = driver::allocate(self, size)?;
                if address.is_none() && workspace.is_none() {
                    // Free memory of other sizes may make room.
                    self.0.finish("making room")?;
                    self.empty(&mut pool);
                    address = driver::allocate(self, size)?;
                }
                let Some(address) = address else {
                    let (free, total) = driver::memory(self).unwrap_or_default();
                    return Err(Error::OutOfMemory { wanted: size, free, total });
                };
                pool.reserved += size;
                address
            }
        };
        pool.most = pool.most.max(pool.reserved - pool.waiting);
        Ok((address, size, workspace))
    }
}

impl<T: Element> Buffer<T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device of the buffer.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Its device address, which the host cannot read from.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Asserts that it is memory of `gpu`.
    pub(super) fn check_owner(&self, gpu: &Gpu) {
        assert!(
            std::sync::Arc::ptr_eq(&self.gpu.0, &gpu.0),
            "a buffer of {:?} on {gpu:?}",
            self.gpu
        );
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        lock(&self.gpu.0.pool).give_back(self.address, self.size, self.workspace);
    }
}

impl Drop for super::Inner {
    fn drop(&mut self) {
        let _entered = self.enter();
        let _ = self.finish("closing");
        for address in std::mem::take(&mut lock(&self.pool).free).into_values().flatten() {
            // SAFETY: no buffer is left (each holds this value), and the stream has run all there was.
            unsafe { driver::free(self.opened.as_ref(), address) };
        }
    }
}

impl<T: Element> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {} on {:?}", self.len, std::any::type_name::<T>(), self.gpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_by_at_most_an_eighth() {
        assert_eq!([0, 1, 512, 513, 4096].map(buffer_bytes), [512, 512, 512, 1024, 4096]);
        for bytes in (4096..1 << 20).step_by(1111).chain([(3 << 30) + 5]) {
            let size = buffer_bytes(bytes);
            assert!(size >= bytes && size - bytes <= bytes / 8, "{bytes} {size}");
            assert_eq!(buffer_bytes(size), size);
        }
    }
}
