//! One AdamW step, fused (Loshchilov and Hutter 2019, algorithm 2, with the decay scaled by the
//! learning rate as PyTorch has it). Masters w and moments m, v are f32. Bound: bytes.
//!
//! ```text
//! g = dw·scale               what clipping by the global norm leaves
//! w = w·decay                decay = 1 - lr·λ
//! m = m + (1 - β₁)(g - m)
//! v = v·β₂ + (1 - β₂)·g·g
//! w = w - step_size·m / (√v / correction + ε)
//!                            step_size = lr / (1 - β₁ᵗ), correction = √(1 - β₂ᵗ)
//! ```
//!
//! The operations and their order are those of `torch.optim.AdamW` (`_single_tensor_adam`), each
//! rounded once and none fused, so the bits are the same on every instruction set.

use super::Cpu;
use super::pool::Disjoint;
use super::profile::{self, Work};
use super::vector::{Vector, for_each_isa};

/// The numbers of one step, the same for every element; the formula at the top says what each is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Factor of the gradient: the clipping coefficient, 1 where nothing is clipped.
    pub scale: f32,
    /// 1 - lr·λ.
    pub decay: f32,
    /// 1 - β₁.
    pub first_weight: f32,
    /// β₂.
    pub second_decay: f32,
    /// 1 - β₂.
    pub second_weight: f32,
    /// √(1 - β₂ᵗ).
    pub correction: f32,
    /// ε.
    pub epsilon: f32,
    /// lr / (1 - β₁ᵗ).
    pub step_size: f32,
}

/// Updates `w`, `m` and `v` in place by the gradient `dw`; all four have the same length.
pub fn step(cpu: &Cpu, w: &mut [f32], m: &mut [f32], v: &mut [f32], dw: &[f32], step: &Step) {
    assert_eq!(w.len(), dw.len(), "w and dw differ in length");
    assert_eq!(w.len(), m.len(), "w and m differ in length");
    assert_eq!(w.len(), v.len(), "w and v differ in length");
    let _span = profile::span("adamw", [w.len()], || Work::each(dw.len(), 15, 28));
    /// Elements of the unit in which work is shared out; a multiple of every vector.
    const UNIT: usize = 1024;
    let n = w.len();
    let (w, m, v) = (Disjoint::new(w), Disjoint::new(m), Disjoint::new(v));
    cpu.for_rows(n.div_ceil(UNIT), 4 * UNIT, &|first, count| {
        let (first, end) = (first * UNIT, n.min((first + count) * UNIT));
        let len = end - first;
        // SAFETY: ranges of different tasks do not overlap; `Cpu::with_isa` asserts the
        // instruction set; lengths are equal by the asserts above.
        unsafe {
            let (w, m, v) = (w.part(first, len), m.part(first, len), v.part(first, len));
            adamw_on(cpu.isa(), w, m, v, &dw[first..end], step);
        }
    });
}

for_each_isa! {
    fn adamw_on(w: &mut [f32], m: &mut [f32], v: &mut [f32], dw: &[f32], step: &Step) = adamw
}

/// # Safety
/// The CPU has the instruction set of `V`, and the slices have the same length.
#[inline(always)]
unsafe fn adamw<V: Vector>(w: &mut [f32], m: &mut [f32], v: &mut [f32], dw: &[f32], step: &Step) {
    let n = w.len();
    let (w, m, v, dw) = (w.as_mut_ptr(), m.as_mut_ptr(), v.as_mut_ptr(), dw.as_ptr());
    // SAFETY: i + LANES (or the count that is left) does not pass n, the length of all four.
    unsafe {
        let mut i = 0;
        while i + V::LANES <= n {
            let old = [V::load(w.add(i)), V::load(m.add(i)), V::load(v.add(i))];
            let [new_w, new_m, new_v] = update(old, V::load(dw.add(i)), step);
            new_w.store(w.add(i));
            new_m.store(m.add(i));
            new_v.store(v.add(i));
            i += V::LANES;
        }
        if i < n {
            let count = n - i;
            let old = [
                V::load_first(w.add(i), count),
                V::load_first(m.add(i), count),
                V::load_first(v.add(i), count),
            ];
            let [new_w, new_m, new_v] = update(old, V::load_first(dw.add(i), count), step);
            new_w.store_first(w.add(i), count);
            new_m.store_first(m.add(i), count);
            new_v.store_first(v.add(i), count);
        }
    }
}

/// The formula at the top, for one vector of elements.
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn update<V: Vector>([w, m, v]: [V; 3], dw: V, step: &Step) -> [V; 3] {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        let g = dw.mul(V::splat(step.scale));
        let w = w.mul(V::splat(step.decay));
        let m = m.add(V::splat(step.first_weight).mul(g.sub(m)));
        let v = v.mul(V::splat(step.second_decay));
        let v = v.add(V::splat(step.second_weight).mul(g).mul(g));
        let denominator = v.sqrt().div(V::splat(step.correction)).add(V::splat(step.epsilon));
        let w = w.sub(V::splat(step.step_size).mul(m).div(denominator));
        [w, m, v]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::reference::{assert_same_bits, contexts, values};

    /// The formula in plain f32, element by element.
    fn naive(w: &mut [f32], m: &mut [f32], v: &mut [f32], dw: &[f32], s: &Step) {
        for i in 0..w.len() {
            let g = dw[i] * s.scale;
            w[i] *= s.decay;
            m[i] += s.first_weight * (g - m[i]);
            v[i] = v[i] * s.second_decay + s.second_weight * g * g;
            w[i] -= s.step_size * m[i] / (v[i].sqrt() / s.correction + s.epsilon);
        }
    }

    #[test]
    fn equals_the_naive_reference_bit_for_bit() {
        let step_of = |t: i32| Step {
            scale: 0.37,
            decay: 1.0 - 1e-3 * 0.1,
            first_weight: 0.1,
            second_decay: 0.99,
            second_weight: 0.01,
            correction: (1.0 - 0.99f64.powi(t)).sqrt() as f32,
            epsilon: 1e-8,
            step_size: (1e-3 / (1.0 - 0.9f64.powi(t))) as f32,
        };
        for n in [0, 1, 7, 16, 33, 1024, 5_001, 70_003] {
            let start = values(1, n);
            let (mut w, mut m, mut v) = (start.clone(), vec![0.0; n], vec![0.0; n]);
            for t in 1..=3 {
                naive(&mut w, &mut m, &mut v, &values(9 + t as u64, n), &step_of(t));
            }
            for cpu in contexts() {
                let (mut x, mut y, mut z) = (start.clone(), vec![0.0; n], vec![0.0; n]);
                for t in 1..=3 {
                    let dw = values(9 + t as u64, n);
                    step(&cpu, &mut x, &mut y, &mut z, &dw, &step_of(t));
                }
                let case = format!("{} {n} on {}", cpu.isa(), cpu.threads());
                assert_same_bits(&x, &w, &format!("w, {case}"));
                assert_same_bits(&y, &m, &format!("m, {case}"));
                assert_same_bits(&z, &v, &format!("v, {case}"));
            }
        }
    }

    #[test]
    #[should_panic(expected = "w and v differ in length")]
    fn lengths_are_checked() {
        let s = Step {
            scale: 1.0,
            decay: 1.0,
            first_weight: 0.1,
            second_decay: 0.9,
            second_weight: 0.1,
            correction: 1.0,
            epsilon: 1e-8,
            step_size: 1.0,
        };
        step(&Cpu::new(1), &mut [0.0; 4], &mut [0.0; 4], &mut [0.0; 3], &[0.0; 4], &s);
    }
}
