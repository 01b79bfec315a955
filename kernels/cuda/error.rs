//! Why the GPU cannot do what it was asked to.

/// What went wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Feature `cuda` is off.
    #[error("this build has no CUDA kernels; build with the feature cuda, or use the CPU")]
    Disabled,
    /// libcuda.so.1 cannot be opened, or finds no device.
    #[error(
        "there is no CUDA driver: libcuda.so.1 cannot be opened, or finds no GPU; install NVIDIA's \
         driver (525 or later), or use the CPU"
    )]
    NoDriver,
    /// There is no device of that number.
    #[error("there is no CUDA device {ordinal}: the driver finds {count}")]
    NoDevice {
        /// Number that was asked for.
        ordinal: usize,
        /// Number of devices.
        count: usize,
    },
    /// The device is older than sm_80.
    #[error(
        "{name} has compute capability {major}.{minor}; the kernels need 8.0 or later (Ampere)"
    )]
    OldDevice {
        /// The name that the driver gives.
        name: String,
        /// Major number of its compute capability.
        major: i32,
        /// Minor number of its compute capability.
        minor: i32,
    },
    /// The device's memory is full.
    #[error(
        "the GPU has no room for {} MiB more: {} of {} MiB are free; lower the memory for keys and values or the batch; in training set \
         train.gradient_checkpointing to on, or lower train.micro_batch_tokens, rollout.prompts_per_step, \
         rollout.group_size or rollout.max_completion_tokens",
        wanted.div_ceil(1 << 20), free >> 20, total >> 20
    )]
    OutOfMemory {
        /// Bytes that were asked for.
        wanted: usize,
        /// Bytes that are free on the device, without the free memory of the pool.
        free: usize,
        /// Bytes of the device.
        total: usize,
    },
    /// The driver refused a call, or a kernel failed.
    #[error("CUDA: {what} failed: {result}")]
    Driver {
        /// The kernel, or the action.
        what: String,
        /// The driver's name of the error.
        result: String,
    },
}
