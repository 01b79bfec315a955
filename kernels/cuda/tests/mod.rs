//! Every CUDA kernel against its CPU reference, on awkward shapes: the checks of `self_test`, one test each.
//!
//! They run on the emulator with all of its checks on, or on the driver that `CUDA_DRIVER_LIB` names:
//! `CUDA_DRIVER_LIB=libcuda.so.1` is a real GPU's. Where that cannot be opened they say so and pass.
//!
//! `seed_faults.py` checks that these tests notice bugs: it puts one bug at a time into a copy of a kernel and asks
//! what reports it. `faults.csv` has the bugs and the answers.

mod device;
mod sass;
mod self_test;
mod wavefronts;

use std::sync::OnceLock;

pub(crate) use crate::cpu::values::values;
pub(crate) use crate::cuda::self_test::rounded;
use crate::cuda::self_test::{Check, Comparisons, for_each_check};
use crate::cuda::{Comparison, Error, Gpu};

/// The device all tests share; `None`, with a message, where there is no driver.
pub(crate) fn gpu() -> Option<Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    if std::env::var_os("CUDA_DRIVER_LIB").is_none() {
        // Refused once it is in use, which is all the same.
        let _ = cuda_driver::set_resolver(emulator::resolve);
    }
    let open = || match Gpu::open(0) {
        Ok(gpu) => Some(gpu),
        Err(Error::NoDriver) => None,
        Err(error) => panic!("{error}"),
    };
    let gpu = GPU.get_or_init(open).clone();
    if gpu.is_none() {
        crate::shared::skipped("the driver that CUDA_DRIVER_LIB names cannot be opened");
    }
    gpu
}

/// Panics with the first comparison that is out of bounds.
pub(crate) fn must_pass(Comparison { check, case, error, bound, .. }: Comparison) {
    // NaN must not pass.
    assert!(error <= bound, "{check}: {case}: error {error:e} above {bound:e}");
}

/// Runs one check.
fn passes(name: &'static str, check: Check) {
    let Some(gpu) = gpu() else { return };
    if let Err(error) = check(&mut Comparisons::new(&gpu, name, &mut must_pass)) {
        panic!("{name}: {error}");
    }
}

macro_rules! tests {
    ($($file:ident { $($check:ident)* })*) => { $(
        mod $file {
            $(
                #[test]
                fn $check() {
                    super::passes(stringify!($check), crate::cuda::self_test::$file::$check);
                }
            )*
        }
    )* };
}
for_each_check!(tests);
