//! What is counted: instructions by class, 32-byte sectors of global memory, wavefronts of shared
//! memory. The rules are those of Nsight Compute's metrics of the same names on compute capability 8.0.

use crate::lanes::LANES;
use crate::program::{Category, Program};

/// Bytes of a sector, the unit in which global memory moves.
pub const SECTOR_BYTES: u64 = 32;

/// Counts of one launch, or of the blocks that one thread ran.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    /// Warp instructions, and lanes that took part, by instruction.
    pub(crate) executed: Vec<u64>,
    pub(crate) lanes: Vec<u64>,
    pub(crate) blocks: u64,
    pub(crate) barriers: u64,
    pub(crate) load: Traffic,
    pub(crate) store: Traffic,
    pub(crate) shared_load: Shared,
    pub(crate) shared_store: Shared,
    pub(crate) matrix_wavefronts: u64,
    pub(crate) mma_products: u64,
    pub(crate) copied_bytes: u64,
    /// Lowest and highest address accessed in each region; the first above the second if none.
    pub(crate) touched: Vec<(u64, u64)>,
}

/// Requests of warps to global memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Warp instructions that reached memory.
    pub requests: u64,
    /// 32-byte sectors they touched, each request by itself.
    pub sectors: u64,
    /// Bytes the lanes asked for.
    pub bytes: u64,
}

/// Requests of warps to shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// Warp instructions.
    pub requests: u64,
    /// Passes through the 32 banks they took; one or, for 8 and 16 bytes per lane, 2 and 4 without a
    /// conflict.
    pub wavefronts: u64,
}

/// Counts of all launches of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelCounters {
    /// The kernel.
    pub name: String,
    /// Launches that ended well.
    pub launches: u64,
    /// Blocks of all launches.
    pub blocks: u64,
    /// Blocks on the multiprocessor that gets most of them, summed over launches.
    pub busiest_blocks: u64,
    /// Threads of a block, of the last launch.
    pub threads_per_block: u32,
    /// Static and dynamic shared memory of a block, of the last launch.
    pub shared_bytes: u64,
    /// Warp instructions by [`Category`].
    pub warp_instructions: [u64; Category::COUNT],
    /// Lanes that took part in those instructions.
    pub lane_instructions: u64,
    /// Reads of global memory, `cp.async` included.
    pub load: Traffic,
    /// Writes of global memory; atomics count here.
    pub store: Traffic,
    /// Bytes read at least once in a launch: what must come from memory. Needs the race check.
    pub unique_read_bytes: u64,
    /// Bytes written at least once in a launch.
    pub unique_written_bytes: u64,
    /// Loads from shared memory, without `ldmatrix`.
    pub shared_load: Shared,
    /// Stores to shared memory, `cp.async` included.
    pub shared_store: Shared,
    /// Wavefronts of `ldmatrix`: one for each 8×8 matrix without a conflict.
    pub matrix_wavefronts: u64,
    /// Multiply-adds of `mma`.
    pub mma_products: u64,
    /// Bytes copied by `cp.async`.
    pub copied_bytes: u64,
    /// Barriers that blocks went through.
    pub barriers: u64,
}

impl KernelCounters {
    /// All warp instructions that a processor would issue.
    pub fn issued(&self) -> u64 {
        let free = self.warp_instructions[Category::Free as usize];
        self.warp_instructions.iter().sum::<u64>() - free
    }

    /// Warp instructions of one class.
    pub fn warps(&self, category: Category) -> u64 {
        self.warp_instructions[category as usize]
    }

    pub(crate) fn add(&mut self, program: &Program, counts: &Counts) {
        self.launches += 1;
        self.blocks += counts.blocks;
        self.busiest_blocks += counts.blocks.div_ceil(crate::model::A100.multiprocessors);
        for (at, instruction) in program.code.iter().enumerate() {
            self.warp_instructions[instruction.category as usize] += counts.executed[at];
            if instruction.category != Category::Free {
                self.lane_instructions += counts.lanes[at];
            }
        }
        self.load.add(&counts.load);
        self.store.add(&counts.store);
        self.shared_load.add(&counts.shared_load);
        self.shared_store.add(&counts.shared_store);
        self.matrix_wavefronts += counts.matrix_wavefronts;
        self.mma_products += counts.mma_products;
        self.copied_bytes += counts.copied_bytes;
        self.barriers += counts.barriers;
    }
}

impl Traffic {
    fn add(&mut self, other: &Traffic) {
        self.requests += other.requests;
        self.sectors += other.sectors;
        self.bytes += other.bytes;
    }
}

impl Shared {
    fn add(&mut self, other: &Shared) {
        self.requests += other.requests;
        self.wavefronts += other.wavefronts;
    }
}

impl Counts {
    pub(crate) fn new(instructions: usize, regions: usize) -> Counts {
        Counts {
            executed: vec![0; instructions],
            lanes: vec![0; instructions],
            blocks: 0,
            barriers: 0,
            load: Traffic::default(),
            store: Traffic::default(),
            shared_load: Shared::default(),
            shared_store: Shared::default(),
            matrix_wavefronts: 0,
            mma_products: 0,
            copied_bytes: 0,
            touched: vec![(u64::MAX, 0); regions],
        }
    }

    pub(crate) fn add(&mut self, other: &Counts) {
        let pairs = self.executed.iter_mut().zip(&other.executed);
        pairs.chain(self.lanes.iter_mut().zip(&other.lanes)).for_each(|(sum, more)| *sum += more);
        self.blocks += other.blocks;
        self.barriers += other.barriers;
        self.load.add(&other.load);
        self.store.add(&other.store);
        self.shared_load.add(&other.shared_load);
        self.shared_store.add(&other.shared_store);
        self.matrix_wavefronts += other.matrix_wavefronts;
        self.mma_products += other.mma_products;
        self.copied_bytes += other.copied_bytes;
        for (range, more) in self.touched.iter_mut().zip(&other.touched) {
            *range = (range.0.min(more.0), range.1.max(more.1));
        }
    }

    pub(crate) fn global(&mut self, store: bool, sectors: u64, bytes: u64) {
        let traffic = if store { &mut self.store } else { &mut self.load };
        traffic.add(&Traffic { requests: 1, sectors, bytes });
    }

    #[inline(always)]
    pub(crate) fn touch(&mut self, region: usize, low: u64, high: u64) {
        let range = &mut self.touched[region];
        *range = (range.0.min(low), range.1.max(high));
    }

    pub(crate) fn shared(&mut self, store: bool, wavefronts: u64) {
        let shared = if store { &mut self.shared_store } else { &mut self.shared_load };
        shared.add(&Shared { requests: 1, wavefronts });
    }
}

/// Distinct 32-byte sectors that the lanes of a request touch.
pub(crate) fn sectors(addresses: &[u64; LANES], mask: u32, bytes: usize) -> u64 {
    // An aligned access of up to 16 bytes lies in one sector. Mostly the sectors rise from lane to
    // lane, and are counted as they change; else they are sorted first.
    let mut list = [0; LANES];
    let mut length = 0;
    let mut rising = true;
    for (lane, address) in addresses.iter().enumerate() {
        if mask >> lane & 1 != 0 {
            let sector = address / SECTOR_BYTES;
            rising &= length == 0 || sector >= list[length - 1];
            list[length] = sector;
            length += 1;
        }
    }
    debug_assert!(bytes <= 16);
    let list = &mut list[..length];
    if !rising {
        list.sort_unstable();
    }
    u64::from(length > 0) + list.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64
}

/// Passes through shared memory's 32 banks of 4 bytes that a request takes. Lanes of up to 4 bytes go
/// together, of 8 bytes by half warps, of 16 bytes by quarter warps; lanes that want the same word of
/// a bank share a pass.
pub(crate) fn wavefronts(addresses: &[u64; LANES], mask: u32, bytes: usize) -> u64 {
    let unit = bytes.max(4);
    let group = (128 / unit).min(LANES);
    let mut total = 0;
    for first in (0..LANES).step_by(group) {
        let lanes = mask >> first & if group == 32 { u32::MAX } else { (1 << group) - 1 };
        if lanes == 0 {
            continue;
        }
        // Units of one access: banks in groups as wide as a lane's bytes.
        let mut columns = 0u32;
        let mut count = 0;
        for lane in 0..group {
            if lanes >> lane & 1 != 0 {
                columns |= 1 << (addresses[first + lane] as usize / unit % group);
                count += 1;
            }
        }
        total +=
            if columns.count_ones() == count { 1 } else { passes(addresses, first, lanes, unit) };
    }
    total
}

/// The most distinct units that lanes of a group want from one column of banks.
fn passes(addresses: &[u64; LANES], first: usize, lanes: u32, unit: usize) -> u64 {
    let group = (128 / unit).min(LANES);
    let mut units = [0; LANES];
    let mut length = 0;
    for lane in 0..group {
        if lanes >> lane & 1 != 0 {
            units[length] = addresses[first + lane] / unit as u64;
            length += 1;
        }
    }
    let units = &mut units[..length];
    units.sort_unstable();
    let mut per_column = [0u64; LANES];
    let mut before = None;
    for &unit in units.iter() {
        if before != Some(unit) {
            per_column[unit as usize % group] += 1;
        }
        before = Some(unit);
    }
    per_column.iter().copied().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strided(stride: u64) -> [u64; LANES] {
        std::array::from_fn(|lane| lane as u64 * stride)
    }

    #[test]
    fn sectors_of_known_patterns() {
        assert_eq!(sectors(&strided(4), u32::MAX, 4), 4);
        assert_eq!(sectors(&strided(16), u32::MAX, 16), 16);
        assert_eq!(sectors(&strided(128), u32::MAX, 4), 32);
        assert_eq!(sectors(&[64; LANES], u32::MAX, 4), 1);
        assert_eq!(sectors(&strided(4).map(|address| address + 16), u32::MAX, 4), 5);
        let mut backward = strided(4);
        backward.reverse();
        assert_eq!(sectors(&backward, u32::MAX, 4), 4);
        assert_eq!(sectors(&strided(4), 0xff, 4), 1);
    }

    #[test]
    fn wavefronts_of_known_patterns() {
        assert_eq!(wavefronts(&strided(4), u32::MAX, 4), 1);
        assert_eq!(wavefronts(&[64; LANES], u32::MAX, 4), 1, "a broadcast");
        for (stride, ways) in [(8, 2), (16, 4), (32, 8), (128, 32), (132, 1)] {
            assert_eq!(wavefronts(&strided(stride), u32::MAX, 4), ways, "stride {stride}");
        }
        assert_eq!(wavefronts(&strided(8), u32::MAX, 8), 2, "two half warps");
        assert_eq!(wavefronts(&strided(16), u32::MAX, 16), 4, "four quarter warps");
        assert_eq!(wavefronts(&strided(128), u32::MAX, 16), 32, "8 rows in the same banks");
        assert_eq!(wavefronts(&strided(144), u32::MAX, 16), 4, "padded rows");
        assert_eq!(wavefronts(&strided(2), u32::MAX, 2), 1);
    }
}
