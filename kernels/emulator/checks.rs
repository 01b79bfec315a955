//! The switches of the checks, and the limits of the device that is emulated.

/// Which checks run. The default is all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Reads of global and shared memory that nothing has written.
    pub uninitialized: bool,
    /// Races between the warps of a block, and between the blocks of a launch.
    pub races: bool,
    /// Barriers, `mma`, `ldmatrix`, shuffles and votes by other lanes than they name.
    pub divergence: bool,
    /// Host accesses to memory that queued work may use.
    pub synchronization: bool,
    /// Counts sectors, wavefronts and unique bytes (the unique bytes need `races`).
    pub counters: bool,
    /// Instructions other than plain arithmetic that one warp may execute before it counts as
    /// endless.
    pub instruction_budget: u64,
}

impl Default for Checks {
    fn default() -> Checks {
        Checks {
            uninitialized: true,
            races: true,
            divergence: true,
            synchronization: true,
            counters: true,
            // About ten seconds of one core. The longest warp of the project's kernels executes a few 10^6.
            instruction_budget: 1 << 27,
        }
    }
}

impl Checks {
    /// Only what memory safety needs: bounds, alignment, budget.
    pub fn none() -> Checks {
        Checks {
            uninitialized: false,
            races: false,
            divergence: false,
            synchronization: false,
            counters: false,
            ..Checks::default()
        }
    }

    /// Whether shadow memory is needed.
    pub(crate) fn shadow(&self) -> bool {
        self.uninitialized || self.races
    }
}

/// Limits of compute capability 8.0 (CUDA C++ programming guide 13.0, table "Technical
/// specifications per compute capability") and of the driver.
pub mod limits {
    /// Threads in a block.
    pub const THREADS_PER_BLOCK: u32 = 1024;
    /// Blocks along x, y and z of a grid.
    pub const GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
    /// Threads along x, y and z of a block.
    pub const BLOCK: [u32; 3] = [1024, 1024, 64];
    /// Shared memory of a block without opting in to more.
    pub const SHARED_PER_BLOCK: usize = 48 * 1024;
    /// Shared memory of a block that opts in: 163 KiB.
    pub const SHARED_PER_BLOCK_OPT_IN: usize = 166_912;
    /// Shared memory of a multiprocessor: 164 KiB, of which each block costs 1 KiB more than it asks.
    pub const SHARED_PER_SM: usize = 167_936;
    /// Argument bytes of a launch that every driver accepts.
    pub const ARGUMENT_BYTES: usize = 4096;
    /// Local memory of a thread.
    pub const LOCAL_PER_THREAD: usize = 512 * 1024;
    /// Named barriers of a block.
    pub const BARRIERS: u32 = 16;
    /// Device memory: 80 GB.
    pub const DEVICE_MEMORY: u64 = 80 * (1 << 30);
}
