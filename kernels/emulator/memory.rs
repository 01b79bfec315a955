//! Device memory: an address space of its own, in which no address is one of the host's.
//!
//! Addresses start above what any 48-bit host hands out, are never given twice, and lie apart by at
//! least the size of the allocation before them, so that an index that is off by a lot still hits
//! nothing. What was freed is remembered, to tell a use after free from a stray pointer.

use std::collections::BTreeMap;

use crate::checks::{Checks, limits};
use crate::shadow::{self, Shadow};

/// First device address. Not canonical on x86-64 and beyond 48 bits elsewhere.
const FIRST_ADDRESS: u64 = 0x00a1_0000_0000_0000;
/// Alignment of allocations: 512 bytes, as `cuMemAlloc` gives.
const ALIGN: u64 = 512;
/// Least distance between allocations.
const GAP: u64 = 1 << 20;
/// Memory up to this size starts as NaN, so that a result computed from it shows.
const POISONED_BYTES: usize = 64 << 20;
/// Freed ranges that are remembered.
const FREED: usize = 1 << 16;

/// All allocations of a device.
pub(crate) struct Memory {
    live: BTreeMap<u64, Allocation>,
    freed: BTreeMap<u64, u64>,
    next: u64,
    used: u64,
    /// The next actor number of global shadow memory; see [`crate::shadow`].
    next_number: u32,
}

struct Allocation {
    size: u64,
    /// 16-byte units, so that the widest access is aligned.
    data: Vec<u128>,
    writers: Vec<u32>,
    readers: Vec<u32>,
}

/// An allocation as a kernel sees it.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) data: *mut u8,
    /// Null pointers where there is no shadow.
    pub(crate) shadow: Shadow,
}

// SAFETY: regions are handed to the threads of one launch while `Memory` is borrowed; the bytes
// behind them are only touched through raw pointers. Two threads touch the same byte at the same time
// only if two blocks of the emulated kernel race, which the checks report.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// Why a host access was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    OutOfBounds,
    Freed,
}

impl Memory {
    pub(crate) fn new() -> Memory {
        Memory {
            live: BTreeMap::new(),
            freed: BTreeMap::new(),
            next: FIRST_ADDRESS,
            used: 0,
            next_number: 1,
        }
    }

    /// The address of `size` new bytes; `None` if the device is full.
    pub(crate) fn allocate(&mut self, size: u64, checks: &Checks) -> Option<u64> {
        if size == 0 || self.used.checked_add(size)? > limits::DEVICE_MEMORY {
            return None;
        }
        let units = size.div_ceil(16) as usize;
        let mut data = Vec::new();
        // The host may have less than the device claims to.
        data.try_reserve_exact(units).ok()?;
        let poison = if size as usize <= POISONED_BYTES { u128::MAX } else { 0 };
        if poison == 0 {
            data = vec![0; units];
        } else {
            data.resize(units, poison);
        }
        let words = if checks.shadow() { units * 4 } else { 0 };
        let allocation =
            Allocation { size, data, writers: vec![0; words], readers: vec![0; words] };
        let address = self.next;
        self.next = (address + size + GAP.max(size)).next_multiple_of(ALIGN);
        self.used += size;
        self.live.insert(address, allocation);
        Some(address)
    }

    /// Frees what starts at the address; `false` if nothing does.
    pub(crate) fn free(&mut self, address: u64) -> bool {
        let Some(allocation) = self.live.remove(&address) else { return false };
        self.used -= allocation.size;
        if self.freed.len() >= FREED {
            self.freed.pop_first();
        }
        self.freed.insert(address, allocation.size);
        true
    }

    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Address and size of everything that is allocated.
    pub(crate) fn allocations(&self) -> Vec<(u64, u64)> {
        self.live.iter().map(|(&address, allocation)| (address, allocation.size)).collect()
    }

    /// Start of the allocation that holds the address.
    pub(crate) fn allocation_of(&self, address: u64) -> Option<u64> {
        let (&start, allocation) = self.live.range(..=address).next_back()?;
        (address - start < allocation.size).then_some(start)
    }

    fn find(&self, address: u64, length: u64) -> Result<u64, Refused> {
        if let Some((&start, allocation)) = self.live.range(..=address).next_back()
            && address - start <= allocation.size
            && length <= allocation.size - (address - start)
        {
            return Ok(start);
        }
        Err(if self.is_freed(address) { Refused::Freed } else { Refused::OutOfBounds })
    }

    /// Whether the range may be accessed by the host.
    pub(crate) fn check(&self, address: u64, length: u64) -> Result<(), Refused> {
        self.find(address, length).map(|_| ())
    }

    pub(crate) fn is_freed(&self, address: u64) -> bool {
        self.freed
            .range(..=address)
            .next_back()
            .is_some_and(|(&start, &size)| address - start < size)
    }

    /// Copies to the host.
    pub(crate) fn read(&self, address: u64, out: &mut [u8]) -> Result<(), Refused> {
        let start = self.find(address, out.len() as u64)?;
        let bytes = bytes_of(&self.live[&start].data);
        let from = (address - start) as usize;
        out.copy_from_slice(&bytes[from..from + out.len()]);
        Ok(())
    }

    /// Copies from the host.
    pub(crate) fn write(&mut self, address: u64, source: &[u8]) -> Result<(), Refused> {
        self.with_bytes(address, source.len(), |bytes| bytes.copy_from_slice(source))
    }

    /// Repeats a pattern.
    pub(crate) fn fill(
        &mut self,
        address: u64,
        pattern: &[u8],
        count: usize,
    ) -> Result<(), Refused> {
        let length = pattern.len().checked_mul(count).ok_or(Refused::OutOfBounds)?;
        self.with_bytes(address, length, |bytes| {
            for chunk in bytes.chunks_exact_mut(pattern.len()) {
                chunk.copy_from_slice(pattern);
            }
        })
    }

    /// Copies within the device, with what is known of the bytes: copying bytes that nobody wrote is
    /// no fault, reading the copy is.
    pub(crate) fn copy(&mut self, to: u64, from: u64, length: usize) -> Result<(), Refused> {
        self.find(to, length as u64)?;
        let start = self.find(from, length as u64)?;
        let mut bytes = vec![0; length];
        self.read(from, &mut bytes)?;
        let written: Vec<bool> = {
            let writers = &self.live[&start].writers;
            let offset = (from - start) as usize;
            let initialized =
                |at: usize| writers.get(at / 4).is_none_or(|word| word >> (4 + at % 4) & 1 != 0);
            (offset..offset + length).map(initialized).collect()
        };
        self.write(to, &bytes)?;
        if written.iter().all(|&byte| byte) {
            return Ok(());
        }
        let start = self.find(to, length as u64)?;
        if let Some(allocation) = self.live.get_mut(&start) {
            let offset = (to - start) as usize;
            for (index, _) in written.iter().enumerate().filter(|(_, written)| !**written) {
                let at = offset + index;
                if let Some(word) = allocation.writers.get_mut(at / 4) {
                    *word &= !(1 << (4 + at % 4));
                }
            }
        }
        Ok(())
    }

    fn with_bytes(
        &mut self,
        address: u64,
        length: usize,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), Refused> {
        let start = self.find(address, length as u64)?;
        if let Some(allocation) = self.live.get_mut(&start) {
            let from = (address - start) as usize;
            change(&mut bytes_of_mut(&mut allocation.data)[from..from + length]);
            if !allocation.writers.is_empty() {
                shadow::initialize(&mut allocation.writers, from, length);
            }
        }
        Ok(())
    }

    /// All allocations, ordered by address, for the time of a launch.
    pub(crate) fn regions(&mut self) -> Vec<Region> {
        let region = |(&start, allocation): (&u64, &mut Allocation)| {
            let pointer = |words: &mut Vec<u32>| {
                if words.is_empty() { std::ptr::null_mut() } else { words.as_mut_ptr() }
            };
            Region {
                start,
                end: start + allocation.size,
                data: allocation.data.as_mut_ptr().cast(),
                shadow: Shadow {
                    writers: pointer(&mut allocation.writers),
                    readers: pointer(&mut allocation.readers),
                },
            }
        };
        self.live.iter_mut().map(region).collect()
    }

    /// The first of `count` actor numbers in a row; `None` if there are not so many.
    pub(crate) fn actor_numbers(&mut self, count: u64) -> Option<u32> {
        if count >= u64::from(shadow::NUMBERS) - 1 {
            return None;
        }
        if u64::from(self.next_number) + count >= u64::from(shadow::NUMBERS) {
            for allocation in self.live.values_mut() {
                shadow::forget(&mut allocation.writers, &mut allocation.readers);
            }
            self.next_number = 1;
        }
        let first = self.next_number;
        self.next_number += count as u32;
        Some(first)
    }

    /// Words of a range of an allocation that actors from `first` on read and wrote: (read, written).
    pub(crate) fn touched_words(&self, start: u64, range: (u64, u64), first: u32) -> (u64, u64) {
        let Some(allocation) = self.live.get(&start).filter(|_| range.0 < range.1) else {
            return (0, 0);
        };
        let from = ((range.0 - start) / 4) as usize;
        let to = (range.1 - start).div_ceil(4) as usize;
        let count = |words: &[u32]| {
            let words = words.get(from..to).unwrap_or(&[]);
            words.iter().filter(|&&word| shadow::number_of(word) >= first).count() as u64
        };
        (count(&allocation.readers), count(&allocation.writers))
    }
}

fn bytes_of(data: &[u128]) -> &[u8] {
    // SAFETY: any 16 bytes are bytes; the length is that of the slice.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), std::mem::size_of_val(data)) }
}

fn bytes_of_mut(data: &mut [u128]) -> &mut [u8] {
    let length = std::mem::size_of_val(data);
    // SAFETY: as `bytes_of`; any bytes are a u128.
    unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), length) }
}
