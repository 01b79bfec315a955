//! The CUDA driver's functions, found at run time.
//!
//! cust links against libcuda. This crate defines the symbols it uses, each of which calls the function of
//! the same name in `libcuda.so.1`, opened when the first of them is called (`CUDA_DRIVER_LIB` names another
//! file). So a program that uses cust builds without a CUDA toolkit and starts where there is no driver:
//! there every call returns `CUDA_ERROR_NO_DEVICE`. [`set_resolver`] takes the functions from this process
//! instead, which is how tests run on an emulated device.
//!
//! cust holds results in a closed enum, for which a number it does not know would be undefined behavior:
//! what newer drivers return beyond it becomes `CUDA_ERROR_UNKNOWN`.

#![allow(non_snake_case)] // the driver's names

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

/// Finds a driver function by its name; null where there is none.
pub type Resolver = fn(&CStr) -> *const c_void;

static RESOLVER: OnceLock<Resolver> = OnceLock::new();
static LIBRARY: OnceLock<Library> = OnceLock::new();

const NO_DEVICE: u32 = 100;
const NOT_SUPPORTED: u32 = 801;
const UNKNOWN: u32 = 999;

/// Makes `resolver` stand for the driver. Fails if a driver, or another resolver, is already in use.
pub fn set_resolver(resolver: Resolver) -> Result<(), AlreadyInUse> {
    if LIBRARY.get().is_some() {
        return Err(AlreadyInUse);
    }
    RESOLVER.set(resolver).map_err(|_| AlreadyInUse)
}

/// A driver was opened before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlreadyInUse;

impl std::fmt::Display for AlreadyInUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a CUDA driver is already in use")
    }
}

impl std::error::Error for AlreadyInUse {}

/// Whether there is a driver (or a resolver). Opens it.
pub fn is_present() -> bool {
    !matches!(library(), Library::None)
}

/// Where functions come from.
enum Library {
    Resolver(Resolver),
    /// Of `dlopen`, never closed.
    Handle(usize),
    None,
}

#[cfg(unix)]
unsafe extern "C" {
    fn dlopen(file: *const c_char, mode: c_int) -> *mut c_void;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

fn library() -> &'static Library {
    LIBRARY.get_or_init(|| match RESOLVER.get() {
        Some(resolver) => Library::Resolver(*resolver),
        None => open(),
    })
}

#[cfg(unix)]
fn open() -> Library {
    const NOW: c_int = 2;
    let named = std::env::var_os("CUDA_DRIVER_LIB").map(|file| {
        use std::os::unix::ffi::OsStringExt;
        CString::new(file.into_vec()).expect("the environment has no zero bytes")
    });
    let files = named.map_or(vec![c"libcuda.so.1".into(), c"libcuda.so".into()], |file| vec![file]);
    for file in files {
        // SAFETY: the name ends in zero; loading a driver runs its initializers, which is its purpose.
        let handle = unsafe { dlopen(file.as_ptr(), NOW) };
        if !handle.is_null() {
            return Library::Handle(handle as usize);
        }
    }
    Library::None
}

#[cfg(not(unix))]
fn open() -> Library {
    Library::None
}

fn find(name: &CStr) -> *const c_void {
    match library() {
        Library::Resolver(resolver) => resolver(name),
        #[cfg(unix)]
        // SAFETY: the handle is of a library that is never closed; the name ends in zero.
        Library::Handle(handle) => unsafe { dlsym(*handle as *mut c_void, name.as_ptr()) },
        _ => std::ptr::null(),
    }
}

/// The address of a function, looked up once.
fn cached(cell: &OnceLock<usize>, name: &CStr) -> Option<usize> {
    let address = *cell.get_or_init(|| find(name) as usize);
    (address != 0).then_some(address)
}

fn absent() -> u32 {
    if is_present() { NOT_SUPPORTED } else { NO_DEVICE }
}

/// A result that cust's `CUresult` has.
fn known(result: u32) -> u32 {
    match result {
        0..=8
        | 34
        | 100..=102
        | 200..=202
        | 205..=224
        | 300..=304
        | 400
        | 401
        | 500
        | 600
        | 700..=705
        | 708..=720
        | 800..=809
        | 900..=911 => result,
        _ => UNKNOWN,
    }
}

type P = *mut c_void;

macro_rules! forward {
    ($($name:ident($($arg:ident: $type:ty),*);)*) => { $(
        /// The driver's function of this name.
        ///
        /// # Safety
        /// As the driver's manual says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> u32 {
            static ADDRESS: OnceLock<usize> = OnceLock::new();
            const NAME: &CStr = match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => panic!("a name without zeros"),
            };
            let Some(address) = cached(&ADDRESS, NAME) else { return absent() };
            // SAFETY: this is the signature that cuda.h declares for the name.
            let function: unsafe extern "C" fn($($type),*) -> u32 = unsafe { std::mem::transmute(address) };
            // SAFETY: the caller's promise, passed on.
            known(unsafe { function($($arg),*) })
        }
    )* };
}

forward! {
    cuGetErrorString(a: u32, b: P);
    cuGetErrorName(a: u32, b: P);
    cuInit(a: u32);
    cuDriverGetVersion(a: P);
    cuDeviceGet(a: P, b: i32);
    cuDeviceGetCount(a: P);
    cuDeviceGetName(a: P, b: i32, c: i32);
    cuDeviceTotalMem_v2(a: P, b: i32);
    cuDeviceGetAttribute(a: P, b: u32, c: i32);
    cuDevicePrimaryCtxRetain(a: P, b: i32);
    cuDevicePrimaryCtxRelease_v2(a: i32);
    cuDevicePrimaryCtxSetFlags_v2(a: i32, b: u32);
    cuCtxSetCurrent(a: P);
    cuCtxSynchronize();
    cuModuleLoadDataEx(a: P, b: P, c: u32, d: P, e: P);
    cuModuleUnload(a: P);
    cuModuleGetFunction(a: P, b: P, c: P);
    cuModuleGetGlobal_v2(a: P, b: P, c: P, d: P);
    cuMemGetInfo_v2(a: P, b: P);
    cuMemAlloc_v2(a: P, b: usize);
    cuMemFree_v2(a: u64);
    cuMemAllocHost_v2(a: P, b: usize);
    cuMemFreeHost(a: P);
    cuMemAllocManaged(a: P, b: usize, c: u32);
    cuMemcpyHtoD_v2(a: u64, b: P, c: usize);
    cuMemcpyDtoH_v2(a: P, b: u64, c: usize);
    cuMemcpyDtoD_v2(a: u64, b: u64, c: usize);
    cuMemcpyHtoDAsync_v2(a: u64, b: P, c: usize, d: P);
    cuMemcpyDtoHAsync_v2(a: P, b: u64, c: usize, d: P);
    cuMemcpyDtoDAsync_v2(a: u64, b: u64, c: usize, d: P);
    cuMemsetD8_v2(a: u64, b: u8, c: usize);
    cuMemsetD16_v2(a: u64, b: u16, c: usize);
    cuMemsetD32_v2(a: u64, b: u32, c: usize);
    cuMemsetD8Async(a: u64, b: u8, c: usize, d: P);
    cuMemsetD16Async(a: u64, b: u16, c: usize, d: P);
    cuMemsetD32Async(a: u64, b: u32, c: usize, d: P);
    cuMemFreeAsync(a: u64, b: P);
    cuMemAllocAsync(a: P, b: usize, c: P);
    cuStreamCreateWithPriority(a: P, b: u32, c: i32);
    cuStreamWaitEvent(a: P, b: P, c: u32);
    cuStreamBeginCapture_v2(a: P, b: u32);
    cuStreamEndCapture(a: P, b: P);
    cuStreamQuery(a: P);
    cuStreamSynchronize(a: P);
    cuStreamDestroy_v2(a: P);
    cuEventCreate(a: P, b: u32);
    cuEventRecord(a: P, b: P);
    cuEventQuery(a: P);
    cuEventSynchronize(a: P);
    cuEventDestroy_v2(a: P);
    cuEventElapsedTime(a: P, b: P, c: P);
    cuFuncGetAttribute(a: P, b: u32, c: P);
    cuFuncSetAttribute(a: P, b: u32, c: i32);
    cuFuncSetCacheConfig(a: P, b: u32);
    cuLaunchKernel(a: P, b: u32, c: u32, d: u32, e: u32, f: u32, g: u32, h: u32, i: P, j: P, k: P);
    cuLaunchHostFunc(a: P, b: P, c: P);
    cuGraphInstantiateWithFlags(a: P, b: P, c: u64);
    cuGraphLaunch(a: P, b: P);
    cuGraphExecDestroy(a: P);
    cuGraphDestroy(a: P);
    cuOccupancyMaxActiveBlocksPerMultiprocessor(a: P, b: P, c: i32, d: usize);
    cuOccupancyMaxPotentialBlockSize(a: P, b: P, c: P, d: P, e: usize, f: i32);
    cuOccupancyAvailableDynamicSMemPerBlock(a: P, b: P, c: i32, d: i32);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(name: &CStr) -> *const c_void {
        unsafe extern "C" fn init(_: u32) -> u32 {
            4_711
        }
        unsafe extern "C" fn get(ordinal: P, _: i32) -> u32 {
            assert!(ordinal.is_null());
            101
        }
        match name.to_str() {
            Ok("cuInit") => init as *const c_void,
            Ok("cuDeviceGet") => get as *const c_void,
            _ => std::ptr::null(),
        }
    }

    #[test]
    fn functions_come_from_the_resolver_and_results_are_known_to_cust() {
        set_resolver(resolve).unwrap();
        assert!(is_present());
        // SAFETY: the functions above take any arguments.
        unsafe {
            assert_eq!(cuInit(0), UNKNOWN);
            assert_eq!(cuDeviceGet(std::ptr::null_mut(), 0), 101);
            assert_eq!(cuCtxSynchronize(), NOT_SUPPORTED);
        }
        assert_eq!(set_resolver(resolve), Err(AlreadyInUse));
    }
}
