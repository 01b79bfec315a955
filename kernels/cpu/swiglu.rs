//! SwiGLU: y = gate · sigmoid(gate) · up, elementwise.

use super::Cpu;

/// Writes silu(gate)·up to `y`; all three have the same length.
pub fn forward(cpu: &Cpu, y: &mut [f32], gate: &[f32], up: &[f32]) {
    assert_eq!(y.len(), gate.len(), "y and gate differ in length");
    assert_eq!(y.len(), up.len(), "y and up differ in length");
    let _ = cpu;
    for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
        *y = gate.max(f32::MIN) / (1.0 + (-gate).exp()) * up;
    }
}
