//! Token embedding: row `tokens[i]` of the table becomes row `i`.

use kernels::cpu;

use crate::{
    checkpoint::weights::Weight,
    tensor::{
        Tensor,
        device::{Device, Mirrored},
    },
};

/// Looks up `tokens` in `table` (`[vocab, n]`): `[tokens.len(), n]`. Panics on ids beyond the table.
pub fn embedding(device: &Device, table: &Weight, tokens: &Mirrored<u32>) -> Tensor {
    let n = table.columns();
    let mut y = Tensor::uninitialized(device, tokens.len(), n);
    match device {
        Device::Cpu(device) => {
            cpu::embedding::forward(device.cpu(), y.data_mut(), tokens, table.matrix(), n);
        }
        Device::Cuda(cuda) => {
            cpu::gather::check(tokens, table.rows());
            cuda.queue(|gpu| gpu.embedding(y.f32_mut(), tokens.on(gpu)?, table.on(gpu)?, n));
        }
    }
    y
}
