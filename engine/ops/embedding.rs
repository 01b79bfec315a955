//! Token embedding: row `tokens[i]` of the table becomes row `i`.

use kernels::cpu;

use crate::{
    checkpoint::weights::Weight,
    tensor::{
        Tensor,
        device::{Device, Resident},
    },
};

/// Looks up `tokens` in `table` (`[vocab, n]`): `[tokens.len(), n]`. Panics on ids beyond the table.
pub fn embedding(device: &Device, table: &Weight, tokens: &Resident<u32>) -> Tensor {
    let n = table.columns();
    match device {
        Device::Cpu(_) => {
            let mut y = Tensor::uninitialized(device, tokens.len(), n);
            cpu::embedding::forward(device.host(), y.data_mut(), tokens, table.matrix(), n);
            y
        }
        Device::Cuda(cuda) => {
            cpu::gather::check(tokens, table.rows());
            let y = cuda.run(|gpu| {
                let mut y = gpu.uninitialized(tokens.len() * n)?;
                gpu.embedding(&mut y, tokens.on(gpu)?, table.on(gpu)?, n)?;
                Ok(y)
            });
            Tensor::cuda(cuda, [tokens.len(), n], y)
        }
    }
}
