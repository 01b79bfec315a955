//! The heap: memory given back to the system, and a place for very many small values.
//!
//! A tokenizer is 600,000 small strings and three large tables that are read in no order. From the C library's heap each string
//! takes 32 bytes of pages of 4 KiB: half of the time goes to finding memory, to clearing pages and to looking their addresses up.
//! [`Heap`] gives them neighboring bytes in pages of 2 MiB instead, where [`in_large_pages`] asks for it. Building the tables of
//! Qwen3's tokenizer took 80 ms before and 39 ms so (EPYC Zen 4, 2026-11-25).

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
};

use memmap2::{MmapOptions, MmapRaw};

use crate::signals;

/// Gives memory that was freed back to the system. glibc keeps it for later, and after many small values, such
/// as those of a tokenizer's file, that is tens of megabytes which nobody asks for again. Elsewhere it does nothing.
pub fn give_back_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: glibc has the function (malloc.h) and any thread may call it at any time.
        unsafe { malloc_trim(0) };
    }
}

/// The system's allocator, but for what is allocated inside [`in_large_pages`]. For a program's `#[global_allocator]`.
/// What cannot be had ends the process with a sentence, except inside [`fallible`].
#[derive(Debug)]
pub struct Heap;

/// A region is address space until it is touched. A tokenizer of 33 MB, the largest of the field, takes half of one.
const REGION_BYTES: usize = 128 << 20;

/// So many at a time: a file's text, its vocabulary, its merges, and one more.
const REGIONS: usize = 4;

/// Regions are reserved where `ulimit -v` allows so many times their addresses.
const SPARE: u64 = 16;

const LARGE_PAGE: usize = 2 << 20;

/// Counted for a region while it is filled, on top of its blocks.
const FILLING: i64 = 1 << 40;

/// Where the regions begin; 0 until they are reserved.
static BASE: AtomicUsize = AtomicUsize::new(0);

static RESERVED: OnceLock<Option<MmapRaw>> = OnceLock::new();

static TAKEN: [AtomicBool; REGIONS] = [const { AtomicBool::new(false) }; REGIONS];

/// Blocks in use by region.
static BLOCKS: [AtomicI64; REGIONS] = [const { AtomicI64::new(0) }; REGIONS];

/// The region that a thread fills: bytes that are left, from `next` on.
#[derive(Clone, Copy)]
struct Filling {
    next: *mut u8,
    left: usize,
    blocks: i64,
}

const NOWHERE: Filling = Filling { next: ptr::null_mut(), left: 0, blocks: 0 };

thread_local! {
    static CURRENT: Cell<Filling> = const { Cell::new(NOWHERE) };
    static FALLIBLE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with this thread's allocations side by side in pages of 2 MiB, where the program's allocator is [`Heap`], the
/// system grants such pages and fewer than four places of this kind are in use. For what is built at once and dropped at
/// once: the memory goes back when the last of its blocks is freed, by whomever, and no part of it before.
pub fn in_large_pages<T>(work: impl FnOnce() -> T) -> T {
    let Some(region) = take_region() else { return work() };
    let mut guard = Region { region, outer: NOWHERE };
    guard.outer = CURRENT.replace(Filling { next: start(region), left: REGION_BYTES, blocks: 0 });
    work()
}

/// A region while it is filled; a panic ends that too.
struct Region {
    region: usize,
    outer: Filling,
}

impl Drop for Region {
    fn drop(&mut self) {
        let filled = CURRENT.replace(self.outer);
        blocks_left(self.region, FILLING - filled.blocks);
    }
}

/// A region that nobody uses.
fn take_region() -> Option<usize> {
    let reserved = RESERVED.get_or_init(|| {
        // One more page, as the map may begin anywhere. Memory is taken page by page, when they are touched.
        let len = REGIONS * REGION_BYTES + LARGE_PAGE;
        // Where addresses are few, other things need them more.
        if signals::address_space_limit().is_some_and(|limit| limit < SPARE * len as u64) {
            return None;
        }
        let map = MmapRaw::from(MmapOptions::new().len(len).no_reserve_swap().map_anon().ok()?);
        // Only a wish. Other systems do not know it.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        BASE.store((map.as_mut_ptr() as usize).next_multiple_of(LARGE_PAGE), Ordering::Relaxed);
        Some(map)
    });
    reserved.as_ref()?;
    // Acquire: whoever had it before is done with it.
    let free = TAKEN.iter().position(|taken| !taken.swap(true, Ordering::Acquire))?;
    BLOCKS[free].store(FILLING, Ordering::Relaxed);
    Some(free)
}

fn start(region: usize) -> *mut u8 {
    let map = RESERVED.get().and_then(Option::as_ref).expect("regions are reserved");
    map.as_mut_ptr().with_addr(BASE.load(Ordering::Relaxed) + region * REGION_BYTES)
}

/// Counts blocks that are no longer in use. After the last one the region's memory goes back to the system.
fn blocks_left(region: usize, fewer: i64) {
    // As in `Arc`: every use of a block is before its count, and every count before the memory goes.
    if BLOCKS[region].fetch_sub(fewer, Ordering::AcqRel) != fewer {
        return;
    }
    #[cfg(target_os = "linux")]
    if let Some(map) = RESERVED.get().and_then(Option::as_ref) {
        let offset = start(region) as usize - map.as_mut_ptr() as usize;
        // SAFETY: no block of the region is in use (the count above), and none is made before TAKEN is cleared below.
        let _ = unsafe {
            map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, REGION_BYTES)
        };
    }
    TAKEN[region].store(false, Ordering::Release);
}

/// The region that an address lies in.
fn region_of(address: *mut u8) -> Option<usize> {
    let base = BASE.load(Ordering::Relaxed);
    let offset = (address as usize).wrapping_sub(base);
    (offset < REGIONS * REGION_BYTES && base != 0).then_some(offset / REGION_BYTES)
}

impl Filling {
    /// The next `layout.size()` bytes, if so many are left.
    fn take(&mut self, layout: Layout) -> Option<*mut u8> {
        let gap = self.next.align_offset(layout.align());
        let bytes = gap.checked_add(layout.size()).filter(|bytes| *bytes <= self.left)?;
        let block = self.next.wrapping_add(gap);
        self.next = self.next.wrapping_add(bytes);
        self.left -= bytes;
        self.blocks += 1;
        Some(block)
    }
}

/// Lets allocations that fail inside `work` be its own affair (`Vec::try_reserve`). Elsewhere one that fails ends the process
/// with a sentence, where the program's allocator is [`Heap`]. Rust's own way to end is to print, which allocates, and can
/// wait for ever on a lock that a panic holds.
pub fn fallible<T>(work: impl FnOnce() -> T) -> T {
    let outer = FALLIBLE.replace(true);
    let result = work();
    FALLIBLE.set(outer);
    result
}

fn had(block: *mut u8, bytes: usize) -> *mut u8 {
    if block.is_null() && !FALLIBLE.get() {
        signals::out_of_memory(bytes);
    }
    block
}

// SAFETY: blocks come from the system's allocator and go back to it, or they are parts of a region: aligned, within it, and
// disjoint, as `take` only moves forward and a region is filled once between being taken and being given back, which waits for
// all of its blocks. Nothing here allocates (thread-local without a destructor) or panics.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut filling = CURRENT.get();
        if filling.left != 0
            && let Some(block) = filling.take(layout)
        {
            CURRENT.set(filling);
            return block;
        }
        // SAFETY: the caller's promise.
        had(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if CURRENT.get().left == 0 {
            // SAFETY: the caller's promise. The system need not clear what is new.
            return had(unsafe { System.alloc_zeroed(layout) }, layout.size());
        }
        // SAFETY: the caller's promise, and what `alloc` returns has `layout.size()` bytes.
        unsafe {
            let block = self.alloc(layout);
            if !block.is_null() {
                block.write_bytes(0, layout.size());
            }
            block
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match region_of(block) {
            Some(region) => blocks_left(region, 1),
            // SAFETY: the caller's promise; what is in no region is the system's.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_len: usize) -> *mut u8 {
        if region_of(block).is_none() {
            // SAFETY: the caller's promise; it stays the system's, inside `in_large_pages` too.
            return had(unsafe { System.realloc(block, layout, new_len) }, new_len);
        }
        let mut filling = CURRENT.get();
        let more = new_len.wrapping_sub(layout.size());
        if filling.blocks != 0
            && new_len >= layout.size()
            && ptr::eq(block.wrapping_add(layout.size()), filling.next)
            && more <= filling.left
        {
            // The last block grows where it is, as strings and vectors do.
            filling.next = filling.next.wrapping_add(more);
            filling.left -= more;
            CURRENT.set(filling);
            return block;
        }
        // SAFETY: the caller's promise: `new_len` and the alignment make a layout. The blocks are disjoint and as long as said.
        unsafe {
            let longer = self.alloc(Layout::from_size_align_unchecked(new_len, layout.align()));
            if !longer.is_null() {
                block.copy_to_nonoverlapping(longer, layout.size().min(new_len));
                self.dealloc(block, layout);
            }
            longer
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken() -> usize {
        TAKEN.iter().filter(|taken| taken.load(Ordering::Relaxed)).count()
    }

    /// One test, because regions belong to the process.
    #[test]
    fn blocks_lie_side_by_side_until_the_last_is_freed() {
        let layout = |size, align| Layout::from_size_align(size, align).unwrap();
        let (odd, wide) = (layout(7, 1), layout(100, 64));
        // SAFETY: blocks are used within their layouts and freed once, with the layout that they have then; the one read after
        // that is of a region, which stays mapped.
        unsafe {
            let outside = Heap.alloc(odd);
            let (first, second, third) = in_large_pages(|| {
                assert_eq!(taken(), 1);
                let first = Heap.alloc(odd);
                let second = Heap.alloc_zeroed(odd);
                assert_eq!(second, first.wrapping_add(7));
                assert_eq!([second.read(), second.wrapping_add(6).read()], [0, 0]);
                first.write_bytes(1, 7);
                second.write_bytes(2, 7);
                // The last block grows in place, another one moves with what it holds.
                assert_eq!(Heap.realloc(second, odd, 9), second);
                let moved = Heap.realloc(first, odd, 20);
                assert_eq!(moved, second.wrapping_add(9));
                assert_eq!(std::slice::from_raw_parts(moved, 7), [1; 7]);
                let third = Heap.alloc(wide);
                assert!(third > moved && (third as usize).is_multiple_of(64));
                third.write_bytes(3, 100);
                let shrunk = Heap.realloc(third, wide, 50);
                assert_eq!(std::slice::from_raw_parts(shrunk, 50), [3; 50]);
                assert_eq!(region_of(outside), None);
                let outside = Heap.realloc(outside, odd, 1000);
                assert_eq!(region_of(outside), None, "what is the system's stays there");
                Heap.dealloc(outside, layout(1000, 1));
                // More than a region has is the system's.
                let large = layout(REGION_BYTES, 1);
                let block = Heap.alloc(large);
                assert_eq!(region_of(block), None);
                Heap.dealloc(block, large);
                (moved as usize, second as usize, shrunk as usize)
            });
            let after = Heap.alloc(odd);
            assert_eq!(region_of(after), None);
            Heap.dealloc(after, odd);
            let free = |address: usize, layout| Heap.dealloc(address as *mut u8, layout);
            free(first, layout(20, 1));
            free(second, layout(9, 1));
            assert_eq!(taken(), 1);
            std::thread::spawn(move || free(third, layout(50, 64))).join().unwrap();
            assert_eq!(taken(), 0);
            // What was freed is new again, where the system takes it back.
            #[cfg(target_os = "linux")]
            assert_eq!((first as *mut u8).read(), 0);
        }

        // Within one another, each its own; the fifth gets none; a panic gives its region back.
        fn nested(depth: usize) {
            let there = taken();
            let caught = std::panic::catch_unwind(|| {
                in_large_pages(|| {
                    assert_eq!(taken(), (there + 1).min(REGIONS));
                    // SAFETY: as above.
                    unsafe {
                        let layout = Layout::from_size_align(REGION_BYTES / 2 + 1, 1).unwrap();
                        let block = Heap.alloc(layout);
                        assert_eq!(region_of(block).is_some(), depth > 0);
                        let next = Heap.realloc(block, layout, 1);
                        assert!(region_of(next).is_some() == (depth > 0));
                        if depth > 0 {
                            nested(depth - 1);
                        }
                        Heap.dealloc(next, Layout::from_size_align(1, 1).unwrap());
                    }
                    std::panic::resume_unwind(Box::new("given up"));
                })
            });
            assert_eq!(*caught.unwrap_err().downcast::<&str>().unwrap(), "given up");
            assert_eq!(taken(), there);
        }
        nested(REGIONS);
    }
}
