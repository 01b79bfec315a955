//! Counts heap allocations by thread, for tests that warm code makes none. Nothing is counted unless a
//! test binary makes [`Counting`] its global allocator; the program never does.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cpu::Cpu;

/// The system's allocator with a counter.
#[derive(Debug)]
pub struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

/// Adds one on this thread. A thread may allocate after its locals are gone: that is not counted.
fn count() {
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every method is the system allocator's, after adding to a counter that allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    // Its own, because the system's zeroed memory is mapped when touched: a cache of keys needs that.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Allocations so far on this thread and on all others of the context's pool, whatever other threads of
/// the process do.
pub fn allocations(cpu: &Cpu) -> usize {
    let total = AtomicUsize::new(0);
    cpu.pool().run(&|_| {
        total.fetch_add(COUNT.get(), Ordering::Relaxed);
    });
    total.into_inner()
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::cpu::attention::{Cache, CacheMut, PAGE, Shape, Span};
    use crate::cpu::reference::values;
    use crate::cpu::rope::RopeTable;
    use crate::cpu::{ComputeDtype, Isa, Matrix};
    use crate::cpu::{adamw, attention, embedding, matmul, norm, rms_norm, rope, swiglu};

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    #[test]
    fn warm_kernels_do_not_allocate() {
        // A profile that is recorded allocates buffers.
        let _alone = crate::cpu::profile::tests::alone();
        let (rows, n, k) = (40, 256, 512);
        let x = values(1, rows * k);
        let w: Vec<bf16> = values(2, n * k).iter().map(|x| bf16::from_f32(*x)).collect();
        let mut y = vec![0.0; rows * n];
        let shape = Shape { heads: 4, kv_heads: 2, head_dim: 64 };
        let pages = rows.div_ceil(PAGE);
        let mut keys = vec![bf16::ZERO; pages * 2 * PAGE * 64];
        let mut stored = keys.clone();
        let f32_cache = vec![0.0; keys.len()];
        let (mut m, mut v) = (vec![0.0; rows * n], vec![0.0; rows * n]);
        let step = adamw::Step {
            scale: 1.0,
            decay: 1.0,
            first_weight: 0.1,
            second_decay: 0.9,
            second_weight: 0.1,
            correction: 1.0,
            epsilon: 1e-8,
            step_size: 1e-3,
        };
        let tables: Vec<u32> = (0..pages as u32).collect();
        let positions: Vec<u32> = (0..rows as u32).collect();
        let spans = [Span { first_row: 0, rows, first_position: 0, table: 0..pages }];
        let table = RopeTable::new(&[1.0; 32], 1.0, rows);
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(3, isa);
            let mut all = || {
                let weights = Matrix::Bf16(&w);
                for compute in [ComputeDtype::Bf16, ComputeDtype::F32, ComputeDtype::F64] {
                    matmul::forward(&cpu, &mut y, &x, weights, [rows, n, k], compute, true);
                }
                rms_norm::forward(&cpu, &mut y, &x[..rows * n], &x[..n], 1e-6);
                rope::forward(&cpu, &mut y, &positions, &table, 4);
                let inputs = swiglu::Inputs::F32([&x[..rows * n], &x[rows * n..]]);
                swiglu::forward(&cpu, &mut y, inputs);
                embedding::forward(&cpu, &mut y, &positions, weights, n);
                let cache = CacheMut::Bf16 { keys: &mut keys, values: &mut stored };
                let half = rows * n / 2;
                attention::append(&cpu, cache, &x[..half], &x[half..2 * half], &positions, shape);
                let cache = Cache::Bf16 { keys: &keys, values: &stored };
                attention::forward(
                    &cpu,
                    &mut y,
                    None,
                    &x[..rows * n],
                    cache,
                    &tables,
                    &spans,
                    shape,
                );
                let cache = Cache::F32 { keys: &f32_cache, values: &f32_cache };
                attention::forward(
                    &cpu,
                    &mut y,
                    None,
                    &x[..rows * n],
                    cache,
                    &tables,
                    &spans,
                    shape,
                );
                adamw::step(&cpu, &mut y, &mut m, &mut v, &x[..rows * n], &step);
                std::hint::black_box(norm::sum_of_squares(&cpu, &x));
            };
            all();
            // Which thread takes which task varies: a thread may meet a kernel late.
            let before = allocations(&cpu);
            for _ in 0..20 {
                all();
            }
            assert_eq!(allocations(&cpu), before, "{isa}");
        }
        let cpu = Cpu::new(1);
        let before = allocations(&cpu);
        drop(std::hint::black_box(vec![1u8; 100]));
        assert_eq!(allocations(&cpu), before + 1, "the counter counts");
    }
}
