//! [`crate::cpu::swiglu`] on the device.

use super::launch::{Grid, args, expect};
use super::{Buffer, Error, Gpu, Output, entries};

impl Gpu {
    /// Reference: [`crate::cpu::swiglu::forward`]: silu(gate)·up, as f32 or rounded to bf16.
    pub fn swiglu<Y: Output>(
        &self,
        y: &mut Buffer<Y>,
        gate: &Buffer<f32>,
        up: &Buffer<f32>,
    ) -> Result<(), Error> {
        let vectors = self.vectors(gate);
        expect(self, "y", y, &[gate.len()]);
        expect(self, "up", up, &[gate.len()]);
        let entry = Y::pick(&entries::SWIGLU_F32, &entries::SWIGLU_BF16);
        // SAFETY: a thread takes four elements below the length of all three.
        unsafe { self.launch(entry, Grid::over(vectors, 1, 256), args![y, gate, up, vectors]) }
    }

    /// Reference: [`crate::cpu::swiglu::backward`].
    pub fn swiglu_backward<Y: Output>(
        &self,
        [dgate, dup]: [&mut Buffer<Y>; 2],
        dy: &Buffer<f32>,
        gate: &Buffer<f32>,
        up: &Buffer<f32>,
    ) -> Result<(), Error> {
        let vectors = self.vectors(dy);
        for (name, x) in [("gate", gate), ("up", up)] {
            expect(self, name, x, &[dy.len()]);
        }
        for (name, x) in [("dgate", &*dgate), ("dup", &*dup)] {
            expect(self, name, x, &[dy.len()]);
        }
        let entry = Y::pick(&entries::SWIGLU_BACKWARD_F32, &entries::SWIGLU_BACKWARD_BF16);
        let args = args![dgate, dup, dy, gate, up, vectors];
        // SAFETY: a thread takes four elements below the length of all five.
        unsafe { self.launch(entry, Grid::over(vectors, 1, 256), args) }
    }
}
