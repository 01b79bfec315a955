//! Token embedding: row `tokens[i]` of the table becomes row `i`.

use kernels::cpu;

use crate::{
    tensor::{Device, Tensor},
    weights::Weight,
};

/// Looks up `tokens` in `table` (`[vocab, n]`): `[tokens.len(), n]`. Panics on ids beyond the table.
pub fn embedding(device: &Device, table: &Weight, tokens: &[u32]) -> Tensor {
    let mut y = Tensor::uninitialized(device, tokens.len(), table.columns());
    cpu::embedding::forward(device.cpu(), y.data_mut(), tokens, table.matrix(), table.columns());
    y
}
