//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in the rotate-half form that Llama
//! and Qwen checkpoints use. For a head `x` of length `d` at position `p`, with `i < d/2`:
//!
//! ```text
//! y[i]       = x[i]·cos(p·f[i]) − x[i + d/2]·sin(p·f[i])
//! y[i + d/2] = x[i + d/2]·cos(p·f[i]) + x[i]·sin(p·f[i])        f[i] = theta^(−2i/d)
//! dx         = dy turned back by the same angle
//! ```

use kernels::cpu::rope::{self, RopeTable};

use crate::{
    tape::{Backward, Gradients, Tape},
    tensor::{Id, Tensor},
};

/// Rotates every head of `x` (`[rows, heads·head_dim]`), in place where nobody shares it; row `r`
/// stands at `positions[r]`.
pub fn rope<'m>(
    tape: &mut Tape<'m>,
    x: Tensor,
    table: &'m RopeTable,
    positions: &'m [u32],
) -> Tensor {
    let [rows, columns] = x.shape();
    assert_eq!(positions.len(), rows, "rope: x is {:?}", x.shape());
    assert_eq!(columns % table.head_dim(), 0, "rope: x is {:?}", x.shape());
    let heads = columns / table.head_dim();
    let (id, requires_grad) = (x.id(), x.requires_grad());
    let recipe = tape.recipe(&x);
    let turned = move |x: Tensor| {
        let mut y = x.into_owned();
        let device = y.device().clone();
        rope::forward(device.cpu(), y.data_mut(), positions, table, heads);
        y
    };
    let mut y = turned(x);
    if tape.records(requires_grad) {
        tape.push(&mut y, Rope { x: id, table, positions, heads });
        // Where x cannot be computed again, y takes its place.
        if let Some(recipe) = recipe {
            tape.recomputes(&y, move || turned(recipe.again()));
        }
    }
    y
}

struct Rope<'m> {
    x: Id,
    table: &'m RopeTable,
    positions: &'m [u32],
    heads: usize,
}

impl Backward for Rope<'_> {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let Rope { x, table, positions, heads } = *self;
        let mut dx = dy.into_owned();
        let device = dx.device().clone();
        rope::backward(device.cpu(), dx.data_mut(), positions, table, heads);
        gradients.add(x, dx);
    }
}

/// The frequencies `f` of heads of length `head_dim`, in the precision in which transformers
/// computes them.
pub fn frequencies(theta: f64, head_dim: usize) -> Vec<f32> {
    let exponent = |i: usize| (2 * i) as f32 / head_dim as f32;
    (0..head_dim / 2).map(|i| 1.0 / theta.powf(f64::from(exponent(i))) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check_gradient::check_gradient;

    #[test]
    fn gradient() {
        let table = RopeTable::new(&frequencies(1e4, 6), 100);
        check_gradient([3, 12], |tape, x| rope(tape, x.clone(), &table, &[0, 99, 7]));
    }
}
