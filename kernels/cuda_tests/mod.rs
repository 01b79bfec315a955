//! Every CUDA kernel against its CPU twin, on awkward shapes.
//!
//! They run on the emulator with all of its checks on, or on the driver that `CUDA_DRIVER_LIB` names:
//! `CUDA_DRIVER_LIB=libcuda.so.1` is a real GPU's. Where that cannot be opened they say so and pass.
//!
//! That these tests and the checks would notice: `seed_faults.py` puts one bug at a time into a copy of a kernel and
//! asks what reports it; `faults.csv` has the bugs and the answers.

mod attention;
mod device;
mod log_prob;
mod matmul;
mod rows;
mod sass;
mod wavefronts;

use std::sync::OnceLock;

pub(crate) use crate::cpu::twin::{assert_close, assert_same_bits, values};
use crate::cuda::{Error, Gpu};
use half::bf16;

/// The device all tests share; `None`, with a message, where there is no driver.
pub(crate) fn gpu() -> Option<Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    if std::env::var_os("CUDA_DRIVER_LIB").is_none() {
        // Refused once it is in use, which is all the same.
        let _ = cuda_driver::set_resolver(emulator::resolve);
    }
    let open = || match Gpu::open(0) {
        Ok(gpu) => Some(gpu),
        Err(Error::NoDriver) => {
            eprintln!("skipped: the driver that CUDA_DRIVER_LIB names cannot be opened");
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
