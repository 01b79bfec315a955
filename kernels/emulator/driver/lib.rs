//! The emulator as a stand-in for `libcuda.so.1`: `CUDA_DRIVER_LIB=target/release/libemulator_driver.so`
//! runs the shipped binary on it. Only the exported names are here; the functions are the emulator's.

#![allow(non_snake_case, missing_docs)] // the driver's names, documented by it
#![allow(clippy::missing_safety_doc)] // as the driver's reference says
#![allow(clippy::too_many_arguments)] // the driver's

use std::ffi::{c_char, c_void};

macro_rules! export {
    ($($name:ident($($parameter:ident: $kind:ty),* $(,)?);)*) => {
        $(
            // SAFETY: this library stands in for the driver, and is the only one with its names.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($parameter: $kind),*) -> u32 {
                // SAFETY: the caller's, as the emulator's function asks for the same.
                unsafe { emulator::api::$name($($parameter),*) }
            }
        )*
    };
}
emulator::driver_functions!(export);
