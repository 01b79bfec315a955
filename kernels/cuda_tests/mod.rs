//! Every CUDA kernel against its CPU twin, on awkward shapes.
//!
//! They run on any driver: a real one, or the emulator (`CUDA_DRIVER_LIB`, or the resolver a build sets up
//! here). Where there is none they say so and pass.

mod attention;
mod device;
mod log_prob;
mod matmul;
mod rows;
mod sass;
// The comparison is the CPU kernels'; what only they use is dead here.
#[allow(dead_code, clippy::duplicate_mod)]
#[path = "../cpu/twin.rs"]
mod twin;

use std::sync::OnceLock;

use crate::cpu::{Cpu, Isa};
use crate::cuda::{Error, Gpu};
use half::bf16;
pub(crate) use twin::{assert_close, assert_same_bits, values};

/// The device all tests share; `None`, with a message, where there is no driver.
pub(crate) fn gpu() -> Option<Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    let open = || match Gpu::open(0) {
        Ok(gpu) => Some(gpu),
        Err(Error::NoDriver) => {
            eprintln!("skipped: no CUDA driver, real or emulated (CUDA_DRIVER_LIB)");
            None
        }
        Err(error) => panic!("{error}"),
    };
    GPU.get_or_init(open).clone()
}

/// Bits of `x` rounded to bf16.
pub(crate) fn rounded(x: &[f32]) -> Vec<u16> {
    x.iter().map(|x| bf16::from_f32(*x).to_bits()).collect()
}

/// The values of bf16 bits.
pub(crate) fn widened(x: &[u16]) -> Vec<f32> {
    x.iter().map(|x| bf16::from_bits(*x).to_f32()).collect()
}
