//! SwiGLU: y = gate · sigmoid(gate) · up, elementwise (Shazeer 2020, with SiLU).
//!
//! silu(x) = x / (1 + e^-x). It is 0 at -∞ and at all x whose e^-x overflows. Bound: bytes.

use half::bf16;

use super::Cpu;
use super::exp::exp;
use super::pool::Disjoint;
use super::profile::{self, Work};
use super::vector::{Element, Vector, for_each_isa};

/// Gate and up, of the same length.
#[derive(Clone, Copy)]
pub enum Inputs<'a> {
    /// IEEE single precision, as products leave them.
    F32([&'a [f32]; 2]),
    /// bfloat16, as a training pass keeps them.
    Bf16([&'a [bf16]; 2]),
}

/// Writes silu(gate)·up to `y`; all three have the same length.
pub fn forward(cpu: &Cpu, y: &mut [f32], inputs: Inputs) {
    match inputs {
        Inputs::F32(inputs) => forward_of(cpu, y, inputs),
        Inputs::Bf16(inputs) => forward_of(cpu, y, inputs),
    }
}

/// Writes the gradients of gate and up, given that of y: with σ = sigmoid(gate),
/// dgate = dy·up·σ·(1 + gate·(1 − σ)) and dup = dy·silu(gate).
pub fn backward(cpu: &Cpu, gradients: [&mut [f32]; 2], dy: &[f32], inputs: Inputs) {
    match inputs {
        Inputs::F32(inputs) => backward_of(cpu, gradients, dy, inputs),
        Inputs::Bf16(inputs) => backward_of(cpu, gradients, dy, inputs),
    }
}

fn forward_of<T: Element>(cpu: &Cpu, y: &mut [f32], [gate, up]: [&[T]; 2]) {
    assert_eq!(y.len(), gate.len(), "y and gate differ in length");
    assert_eq!(y.len(), up.len(), "y and up differ in length");
    let bytes = 4 + 2 * size_of::<T>();
    let _span = profile::span("swiglu", [y.len()], || Work::each(up.len(), 5, bytes as u64));
    /// Elements of the unit in which work is shared out; a multiple of every vector.
    const UNIT: usize = 1024;
    let y = Disjoint::new(y);
    cpu.for_rows(gate.len().div_ceil(UNIT), 4 * UNIT, &|first, count| {
        let (first, end) = (first * UNIT, gate.len().min((first + count) * UNIT));
        // SAFETY: ranges of different tasks do not overlap; `Cpu::with_isa` asserts the
        // instruction set; lengths are equal by the asserts above.
        unsafe {
            let y = y.part(first, end - first);
            swiglu_on(cpu.isa(), y, &gate[first..end], &up[first..end]);
        }
    });
}

fn backward_of<T: Element>(
    cpu: &Cpu,
    [dgate, dup]: [&mut [f32]; 2],
    dy: &[f32],
    [gate, up]: [&[T]; 2],
) {
    for len in [dgate.len(), dup.len(), gate.len(), up.len()] {
        assert_eq!(len, dy.len(), "gradients and values differ in length");
    }
    let bytes = 12 + 2 * size_of::<T>();
    let _span =
        profile::span("swiglu backward", [dy.len()], || Work::each(dy.len(), 11, bytes as u64));
    let (dgate, dup) = (Disjoint::new(dgate), Disjoint::new(dup));
    /// Elements of the unit in which work is shared out; a multiple of every vector.
    const UNIT: usize = 1024;
    cpu.for_rows(dy.len().div_ceil(UNIT), 8 * UNIT, &|first, count| {
        let (first, end) = (first * UNIT, dy.len().min((first + count) * UNIT));
        // SAFETY: ranges of different tasks do not overlap; `Cpu::with_isa` asserts the
        // instruction set; lengths are equal by the asserts above.
        unsafe {
            let gradients = [dgate.part(first, end - first), dup.part(first, end - first)];
            let range = first..end;
            gradient_on(cpu.isa(), gradients, &dy[range.clone()], &gate[range.clone()], &up[range]);
        }
    });
}

for_each_isa! {
    fn gradient_on<T: Element>(gradients: [&mut [f32]; 2], dy: &[f32], gate: &[T], up: &[T]) = gradient
}

/// # Safety
/// The CPU has the instruction set of `V`, and the slices have the same length.
#[inline(always)]
unsafe fn gradient<V: Vector, T: Element>(
    [dgate, dup]: [&mut [f32]; 2],
    dy: &[f32],
    gate: &[T],
    up: &[T],
) {
    let n = dy.len();
    let (dgate, dup) = (dgate.as_mut_ptr(), dup.as_mut_ptr());
    let (dy, gate, up) = (dy.as_ptr(), gate.as_ptr(), up.as_ptr());
    // SAFETY: i + LANES (or the count that is left) does not pass n, the length of all.
    unsafe {
        let mut i = 0;
        while i + V::LANES <= n {
            let (dy, up) = (V::load(dy.add(i)), V::widen(up.add(i)));
            let [to_gate, to_up] = gradients(dy, V::widen(gate.add(i)), up);
            to_gate.store(dgate.add(i));
            to_up.store(dup.add(i));
            i += V::LANES;
        }
        if i < n {
            let (dy, up) = (V::load_first(dy.add(i), n - i), V::widen_first(up.add(i), n - i));
            let [to_gate, to_up] = gradients(dy, V::widen_first(gate.add(i), n - i), up);
            to_gate.store_first(dgate.add(i), n - i);
            to_up.store_first(dup.add(i), n - i);
        }
    }
}

/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn gradients<V: Vector>(dy: V, gate: V, up: V) -> [V; 2] {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        let one = V::splat(1.0);
        let gate = V::splat(f32::MIN).max(gate);
        let sigmoid = one.div(exp(V::splat(0.0).sub(gate)).add(one));
        let rest = gate.mul(one.sub(sigmoid));
        let derivative = sigmoid.mul(rest.add(one));
        [dy.mul(up).mul(derivative), dy.mul(silu(gate))]
    }
}

for_each_isa! {
    fn swiglu_on<T: Element>(y: &mut [f32], gate: &[T], up: &[T]) = swiglu
}

/// # Safety
/// The CPU has the instruction set of `V`, and the slices have the same length.
#[inline(always)]
unsafe fn swiglu<V: Vector, T: Element>(y: &mut [f32], gate: &[T], up: &[T]) {
    let (y, gate, up, n) = (y.as_mut_ptr(), gate.as_ptr(), up.as_ptr(), y.len());
    // SAFETY: i + LANES (or the count that is left) does not pass n, the length of all three.
    unsafe {
        let mut i = 0;
        while i + V::LANES <= n {
            silu(V::widen(gate.add(i))).mul(V::widen(up.add(i))).store(y.add(i));
            i += V::LANES;
        }
        if i < n {
            let (gate, up) = (V::widen_first(gate.add(i), n - i), V::widen_first(up.add(i), n - i));
            silu(gate).mul(up).store_first(y.add(i), n - i);
        }
    }
}

/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn silu<V: Vector>(x: V) -> V {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        // A finite numerator keeps -∞ / ∞ away; the order of operands keeps NaN.
        let x = V::splat(f32::MIN).max(x);
        x.div(exp(V::splat(0.0).sub(x)).add(V::splat(1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::reference::{assert_close, assert_same_bits, contexts, values};

    #[test]
    fn equals_the_naive_reference() {
        for n in [0, 1, 15, 16, 33, 5000, 100_000] {
            let gate: Vec<f32> = values(1, n).iter().map(|x| x * 12.0).collect();
            let up = values(2, n);
            let naive: Vec<f32> =
                gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let pairs = gate.iter().zip(&up).map(|(g, u)| (f64::from(*g), f64::from(*u)));
            let exact: Vec<f64> = pairs.map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let mut first: Option<(super::super::Isa, Vec<f32>)> = None;
            for cpu in contexts() {
                let mut y = vec![f32::NAN; n];
                forward(&cpu, &mut y, Inputs::F32([&gate, &up]));
                assert_close(&y, &naive, &exact, 1e-6, &format!("{} {n}", cpu.isa()));
                match &first {
                    Some((isa, bits)) if *isa == cpu.isa() => assert_same_bits(&y, bits, "threads"),
                    _ => first = Some((cpu.isa(), y)),
                }
            }
        }
    }

    #[test]
    fn the_gradient_equals_the_formula() {
        for n in [0, 1, 15, 33, 5000] {
            let gate: Vec<f32> = values(1, n).iter().map(|x| x * 12.0).collect();
            let (up, dy) = (values(2, n), values(3, n));
            let formula = |g: f64, u: f64, dy: f64| {
                let sigmoid = 1.0 / (1.0 + (-g).exp());
                [dy * u * sigmoid * (1.0 + g * (1.0 - sigmoid)), dy * g * sigmoid]
            };
            let naive = |g: f32, u: f32, dy: f32| {
                let sigmoid = 1.0 / (1.0 + (-g).exp());
                [dy * u * sigmoid * (1.0 + g * (1.0 - sigmoid)), dy * g * sigmoid]
            };
            for cpu in contexts() {
                let mut got = [vec![f32::NAN; n], vec![f32::NAN; n]];
                let inputs = Inputs::F32([&gate, &up]);
                backward(&cpu, got.each_mut().map(Vec::as_mut_slice), &dy, inputs);
                for (which, got) in got.iter().enumerate() {
                    let at = |i: usize| (gate[i], up[i], dy[i]);
                    let naive: Vec<f32> =
                        (0..n).map(at).map(|(g, u, dy)| naive(g, u, dy)[which]).collect();
                    let exact = (0..n).map(at).map(|(g, u, dy)| {
                        formula(f64::from(g), f64::from(u), f64::from(dy))[which]
                    });
                    let exact: Vec<f64> = exact.collect();
                    assert_close(got, &naive, &exact, 1e-6, &format!("{} {n}", cpu.isa()));
                }
            }
        }
    }

    #[test]
    fn bf16_inputs_are_the_same_values_widened() {
        for n in [0, 1, 17, 5000] {
            let narrow = [1, 2].map(|seed| {
                values(seed, n).iter().map(|x| bf16::from_f32(x * 9.0)).collect::<Vec<bf16>>()
            });
            let wide =
                narrow.each_ref().map(|x| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>());
            let narrow = Inputs::Bf16(narrow.each_ref().map(Vec::as_slice));
            let wide = Inputs::F32(wide.each_ref().map(Vec::as_slice));
            let dy = values(3, n);
            for cpu in contexts() {
                let [got, want] = [narrow, wide].map(|inputs| {
                    let [mut y, mut dgate, mut dup] = [(); 3].map(|()| vec![f32::NAN; n]);
                    forward(&cpu, &mut y, inputs);
                    backward(&cpu, [&mut dgate, &mut dup], &dy, inputs);
                    [y, dgate, dup].concat()
                });
                assert_same_bits(&got, &want, &format!("{} {n}", cpu.isa()));
            }
        }
    }

    #[test]
    fn infinities_give_no_nan() {
        let inf = f32::INFINITY;
        let gate = [-1e30, -inf, f32::MIN, -200.0, 0.0, inf, f32::MAX, 1e30, f32::NAN];
        for cpu in contexts() {
            // Each value in a whole vector and in the tail.
            let gates: Vec<f32> = gate.iter().copied().cycle().take(27).collect();
            let mut y = vec![7.0; 27];
            forward(&cpu, &mut y, Inputs::F32([&gates, &[1.0; 27]]));
            for y in y.chunks_exact(9) {
                assert_eq!(y[..8], [0.0, 0.0, 0.0, 0.0, 0.0, inf, f32::MAX, 1e30]);
                assert!(y[8].is_nan());
            }
        }
    }
}
