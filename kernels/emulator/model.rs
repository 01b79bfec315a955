//! What the counts mean on an A100 80GB SXM: the cycles each resource needs, the slowest of which
//! bounds the kernel. Modelled, not measured: latencies, the L2's hits and ptxas's scheduling are
//! not in it.
//!
//! PTX instructions stand for those that ptxas makes of them. It merges some (multiply and add, address
//! arithmetic into accesses) and removes moves, so that the issue bound is an upper one; moves and
//! packing are left out of it.

use crate::counters::{KernelCounters, SECTOR_BYTES};
use crate::program::Category;

/// Rates of a device. Where nothing else is said, per multiprocessor and cycle.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Multiprocessors.
    pub multiprocessors: u64,
    /// Cycles per second.
    pub clock_hz: f64,
    /// Warp instructions issued: 4 schedulers, one each.
    pub issue: f64,
    /// Lanes of f32 add, multiply, fused multiply-add.
    pub float_lanes: f64,
    /// Lanes of 32-bit integer arithmetic and comparisons.
    pub integer_lanes: f64,
    /// Lanes of paired 16-bit arithmetic.
    pub half_lanes: f64,
    /// Lanes of f64 arithmetic.
    pub double_lanes: f64,
    /// Lanes of exponentials, reciprocals, roots.
    pub special_lanes: f64,
    /// Lanes of conversions.
    pub convert_lanes: f64,
    /// Lanes of shuffles and votes.
    pub exchange_lanes: f64,
    /// Dense bf16 multiply-adds of the tensor cores.
    pub tensor_products: f64,
    /// Bytes of shared memory: one wavefront of 32 banks.
    pub shared_bytes: f64,
    /// Lanes of loads and stores.
    pub access_lanes: f64,
    /// Bytes from the L2, of the whole device.
    pub l2_bytes: f64,
    /// Bytes per second from the device's memory.
    pub memory_bytes_per_second: f64,
}

/// The A100 80GB SXM4. Sources:
/// - 108 multiprocessors, 1410 MHz boost, 1024 dense bf16 multiply-adds per multiprocessor and cycle
///   (312 TFLOP/s), L2 reads of 5120 bytes per cycle, 2039 GB/s: NVIDIA A100 Tensor Core GPU
///   Architecture whitepaper (2020), tables 1 and 4, and the A100 80GB datasheet (2021);
/// - lanes of each kind: CUDA C++ Programming Guide 13.0, table "Throughput of native arithmetic
///   instructions", column 8.0;
/// - shared memory: 32 banks of 4 bytes, same guide, section on compute capability 8.x.
pub const A100: Rates = Rates {
    multiprocessors: 108,
    clock_hz: 1.41e9,
    issue: 4.0,
    float_lanes: 64.0,
    integer_lanes: 64.0,
    half_lanes: 64.0,
    double_lanes: 32.0,
    special_lanes: 16.0,
    convert_lanes: 64.0,
    exchange_lanes: 32.0,
    tensor_products: 1024.0,
    shared_bytes: 128.0,
    access_lanes: 32.0,
    l2_bytes: 5120.0,
    memory_bytes_per_second: 2.039e12,
};

/// What may bound a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Tensor cores.
    Tensor,
    /// Shared memory.
    Shared,
    /// Schedulers.
    Issue,
    /// f32 lanes.
    Float,
    /// Integer lanes.
    Integer,
    /// Special function units.
    Special,
    /// Other pipes: halves, doubles, conversions, exchanges; the busiest of them.
    Other,
    /// Load and store units.
    Access,
    /// The L2.
    L2,
    /// The device's memory.
    Memory,
}

/// A kernel on the modelled device.
#[derive(Clone, Debug)]
pub struct Modelled {
    /// The kernel.
    pub name: String,
    /// Launches these seconds are for.
    pub launches: u64,
    /// Seconds that each resource needs for all launches, the slowest first.
    pub seconds: Vec<(Resource, f64)>,
    /// What bounds the kernel.
    pub bound: Resource,
    /// The modelled time of all launches: that of the slowest resource.
    pub time_seconds: f64,
    /// Share of the tensor cores' peak that this time means.
    pub tensor_share: f64,
    /// Share of the memory's peak, counting each byte of a launch once.
    pub memory_share: f64,
    /// Sectors that requests touched, over the fewest that hold the bytes they asked for.
    pub sectors_per_fewest: f64,
    /// Wavefronts of shared memory, `ldmatrix` included.
    pub shared_wavefronts: u64,
}

/// The kernel on the device.
pub fn modelled(counters: &KernelCounters, rates: &Rates) -> Modelled {
    let category = |category: Category| counters.warps(category) as f64;
    let lanes = |count: f64, rate: f64| count * 32.0 / rate;
    // Blocks are spread evenly; the multiprocessor with most of them is the last to end. Work of a
    // block is taken as the mean over all.
    let share = if counters.blocks == 0 {
        0.0
    } else {
        counters.busiest_blocks as f64 / counters.blocks as f64
    };
    let wavefronts = counters.shared_load.wavefronts
        + counters.shared_store.wavefronts
        + counters.matrix_wavefronts;
    let accesses = [
        Category::GlobalLoad,
        Category::GlobalStore,
        Category::SharedLoad,
        Category::SharedStore,
        Category::LoadMatrix,
        Category::CopyAsync,
        Category::Local,
        Category::Atomic,
    ]
    .into_iter()
    .map(category)
    .sum::<f64>();
    let other = [
        lanes(category(Category::Half), rates.half_lanes),
        lanes(category(Category::Double), rates.double_lanes),
        lanes(category(Category::Convert), rates.convert_lanes),
        lanes(category(Category::Exchange), rates.exchange_lanes),
    ]
    .into_iter()
    .fold(0.0, f64::max);
    let issued = counters.issued() as f64 - category(Category::Move);
    // Cycles on one multiprocessor, were all blocks there.
    let cycles = [
        (Resource::Tensor, counters.mma_products as f64 / rates.tensor_products),
        (Resource::Shared, wavefronts as f64 * 128.0 / rates.shared_bytes),
        (Resource::Issue, issued / rates.issue),
        (Resource::Float, lanes(category(Category::Float), rates.float_lanes)),
        (
            Resource::Integer,
            lanes(category(Category::Integer) + category(Category::Predicate), rates.integer_lanes),
        ),
        (Resource::Special, lanes(category(Category::Special), rates.special_lanes)),
        (Resource::Other, other),
        (Resource::Access, lanes(accesses, rates.access_lanes)),
    ];
    let mut seconds: Vec<(Resource, f64)> = cycles
        .into_iter()
        .map(|(resource, cycles)| (resource, cycles * share / rates.clock_hz))
        .collect();
    let sectors = counters.load.sectors + counters.store.sectors;
    let l2_bytes = (sectors * SECTOR_BYTES) as f64;
    seconds.push((Resource::L2, l2_bytes / rates.l2_bytes / rates.clock_hz));
    let unique = (counters.unique_read_bytes + counters.unique_written_bytes) as f64;
    seconds.push((Resource::Memory, unique / rates.memory_bytes_per_second));
    seconds.sort_by(|a, b| b.1.total_cmp(&a.1));
    let (bound, time_seconds) = seconds[0];
    let of_time = |seconds: f64| if time_seconds > 0.0 { seconds / time_seconds } else { 0.0 };
    let all_products = rates.tensor_products * rates.multiprocessors as f64 * rates.clock_hz;
    let fewest = (counters.load.bytes + counters.store.bytes) as f64 / SECTOR_BYTES as f64;
    Modelled {
        name: counters.name.clone(),
        launches: counters.launches,
        bound,
        time_seconds,
        tensor_share: of_time(counters.mma_products as f64 / all_products),
        memory_share: of_time(unique / rates.memory_bytes_per_second),
        sectors_per_fewest: if fewest > 0.0 { sectors as f64 / fewest } else { 0.0 },
        shared_wavefronts: wavefronts,
        seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_product_is_bound_by_the_tensor_cores() {
        let mut counters = KernelCounters {
            name: "gemm".to_owned(),
            launches: 1,
            blocks: 216,
            busiest_blocks: 2,
            mma_products: 216 * 1024 * 1000,
            unique_read_bytes: 1000,
            ..KernelCounters::default()
        };
        let even = modelled(&counters, &A100);
        assert_eq!(even.bound, Resource::Tensor);
        assert!((even.time_seconds - 2000.0 / 1.41e9).abs() < 1e-12);
        assert!((even.tensor_share - 1.0).abs() < 1e-9);
        // A 217th block makes one multiprocessor work on a third.
        (counters.blocks, counters.busiest_blocks) = (217, 3);
        let uneven = modelled(&counters, &A100);
        assert!(uneven.tensor_share < 0.7, "{}", uneven.tensor_share);
    }
}
