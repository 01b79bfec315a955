//! [`crate::cpu::dropout`] on the device.

use super::entries::{self, Entry};
use super::launch::{Arg, Grid, args, expect};
use super::{Buffer, Error, Gpu, Output};
use crate::cpu::dropout::Mask;

impl Gpu {
    /// Reference: [`crate::cpu::dropout::forward`]: `x` through a mask that is drawn by element, as f32 or rounded.
    pub fn dropout<Y: Output>(
        &self,
        y: &mut Buffer<Y>,
        x: &Buffer<f32>,
        mask: Mask,
    ) -> Result<(), Error> {
        expect(self, "y", y, &[x.len()]);
        let entry = Y::pick(&entries::DROPOUT_F32, &entries::DROPOUT_BF16);
        // SAFETY: both have the elements of x.
        unsafe { self.masked(entry, Arg::from(y), Arg::from(x), x.len(), mask) }
    }

    /// As [`Gpu::dropout`], from bf16 values to bf16.
    pub fn dropout_rounded(
        &self,
        y: &mut Buffer<u16>,
        x: &Buffer<u16>,
        mask: Mask,
    ) -> Result<(), Error> {
        x.check_owner(self);
        expect(self, "y", y, &[x.len()]);
        let entry = &entries::DROPOUT_ROUNDED;
        // SAFETY: both have the elements of x.
        unsafe { self.masked(entry, Arg::from(y), Arg::from(x), x.len(), mask) }
    }

    /// # Safety
    /// y and x have `len` elements of what `entry` takes.
    unsafe fn masked(
        &self,
        entry: &'static Entry,
        y: Arg,
        x: Arg,
        len: usize,
        mask: Mask,
    ) -> Result<(), Error> {
        let Mask { key, probability } = mask;
        assert!((0.0..1.0).contains(&probability), "dropout of {probability}");
        assert!(len.is_multiple_of(4), "{len} elements: not a multiple of 4");
        let [key0, key1, stream, sequence0, sequence1] = key.device_words();
        let threshold = (f64::from(probability) * f64::from(u32::MAX)).round() as u32;
        let scale = 1.0 / (1.0 - probability);
        let vectors = len / 4;
        let mask = args![vectors, key0, key1, stream, sequence0, sequence1, threshold, scale];
        let args: Vec<Arg> = [y, x].iter().chain(mask).copied().collect();
        // SAFETY: a thread takes four elements below the length of both.
        unsafe { self.launch(entry, Grid::over(vectors, 1, 256), &args) }
    }
}
