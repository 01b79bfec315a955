//! The self-test as a whole.

use std::collections::BTreeSet;

use super::gpu;
use crate::cuda::Gpu;
use crate::cuda::entries::ENTRIES;

/// A kernel without a check cannot be added: what ran is compared with the table of all.
#[test]
fn it_launches_every_entry_point_and_passes() {
    // Of its own: which kernels were launched is asked of it.
    let Some(gpu) = gpu().map(|_| Gpu::open(0).unwrap()) else { return };
    let mut seen = BTreeSet::new();
    let mut each = |comparison: crate::cuda::Comparison| {
        seen.extend(comparison.kernels.iter().copied());
        super::must_pass(comparison);
    };
    gpu.self_test(&mut each).unwrap();
    let table: BTreeSet<_> = ENTRIES.iter().map(|entry| entry.symbol).collect();
    let missing: Vec<_> = table.difference(&seen).collect();
    assert!(missing.is_empty(), "no check of the self-test launches {missing:?}");
    let unknown: Vec<_> = seen.difference(&table).collect();
    assert!(unknown.is_empty(), "not in entries.rs: {unknown:?}");
}
