//! What kernels run on: threads, memory, and the recorder of profiles.

pub mod allocations;
pub mod arena;
pub(crate) mod context;
pub mod heap;
pub(crate) mod pool;
pub mod profile;
