//! `ldmatrix` and `mma`, by the fragment layouts of the PTX manual ("Matrix fragments for mma").
//!
//! Products are summed in f32 in the order of k with one rounding each, which is not a tensor core's
//! order: it adds groups of products with less rounding. Results agree within that rounding.

use super::access::Kind;
use super::block::{Warp, Worker};
use crate::fault::{Fault, FaultKind};
use crate::lanes::{Frame, Isa, LANES, for_each_isa};
use crate::numeric::from_f16;
use crate::program::{Instruction, Mode, Register};

impl Worker<'_> {
    fn whole_warp(&self, warp: &Warp, mask: u32, what: &str) -> Result<(), Box<Fault>> {
        if mask == u32::MAX || !self.launch.checks.divergence {
            return Ok(());
        }
        let message =
            format!("{what} needs all lanes; {mask:#010x} of {:#010x} are here", warp.alive);
        Err(Fault::new(FaultKind::Divergence, message))
    }

    pub(super) fn load_matrix(
        &mut self,
        warp: &mut Warp,
        instruction: &Instruction,
        mask: u32,
    ) -> Result<(), Box<Fault>> {
        self.whole_warp(warp, mask, "ldmatrix")?;
        let detail = &self.launch.program.details[instruction.detail as usize];
        let facts = &detail.facts;
        let place = (facts.short_address, facts.offset);
        // Lanes 8i..8i+8 hold the rows' addresses of matrix i; the others' are not looked at.
        let matrices = facts.count as usize;
        let used = if matrices == 4 { u32::MAX } else { (1 << (8 * matrices)) - 1 };
        let addresses = self.addresses(warp, instruction.inputs[0], place, used);
        let rows = self.shared_pointers(&addresses, used, 16)?;
        self.shared_shadow_lanes(warp.number, &addresses, used, 16, Kind::Read)?;
        if self.launch.checks.counters {
            self.counts.matrix_wavefronts += crate::counters::wavefronts(&addresses, used, 16);
        }
        for (matrix, register) in detail.outputs.iter().enumerate() {
            let rows = &rows[8 * matrix..8 * matrix + 8];
            // SAFETY: each row is 16 bytes of shared memory, checked above and aligned to 16; a row
            // holds 4 words, and 8 halves.
            let value = |lane: usize| unsafe {
                if facts.transposed {
                    let half = |row: usize| u32::from(*rows[row].cast::<u16>().add(lane / 4));
                    half(2 * (lane % 4)) | half(2 * (lane % 4) + 1) << 16
                } else {
                    *rows[lane / 4].cast::<u32>().add(lane % 4)
                }
            };
            let values: [u32; LANES] = std::array::from_fn(value);
            self.store_word(warp, register.slot, &values, u32::MAX);
        }
        Ok(())
    }

    pub(super) fn mma(
        &mut self,
        warp: &mut Warp,
        instruction: &Instruction,
        mask: u32,
    ) -> Result<(), Box<Fault>> {
        type Product = unsafe fn(&Frame, &[Register], &[Register]);
        const BF16: [Product; 3] = for_each_isa!(
            multiply_bf16(frame: &Frame, inputs: &[Register], outputs: &[Register]) -> ()
        );
        const F16: [Product; 3] = for_each_isa!(
            multiply_f16(frame: &Frame, inputs: &[Register], outputs: &[Register]) -> ()
        );
        const TF32: [Product; 3] = for_each_isa!(
            multiply_tf32(frame: &Frame, inputs: &[Register], outputs: &[Register]) -> ()
        );
        self.whole_warp(warp, mask, "mma")?;
        let detail = &self.launch.program.details[instruction.detail as usize];
        let table = match detail.facts.mode {
            Mode::MmaBf16 => BF16,
            Mode::MmaF16 => F16,
            _ => TF32,
        };
        self.counts.mma_products += 16 * 8 * u64::from(detail.facts.count);
        let frame = warp.frame();
        // SAFETY: lowering checked the numbers of registers and keeps slots within the frame; the
        // function is the one for this processor.
        unsafe { table[Isa::detect() as usize](&frame, &detail.inputs, &detail.outputs) };
        Ok(())
    }
}

/// # Safety
/// As [`multiply_halves`].
#[inline(always)]
unsafe fn multiply_bf16(frame: &Frame, inputs: &[Register], outputs: &[Register]) {
    let widen = |word: u32| (f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000));
    // SAFETY: the caller's.
    unsafe { multiply_halves(frame, inputs, outputs, widen) }
}

/// # Safety
/// As [`multiply_halves`].
#[inline(always)]
unsafe fn multiply_f16(frame: &Frame, inputs: &[Register], outputs: &[Register]) {
    let widen = |word: u32| (from_f16(word & 0xffff), from_f16(word >> 16));
    // SAFETY: the caller's.
    unsafe { multiply_halves(frame, inputs, outputs, widen) }
}

/// D = A·B + C, 16×8×16 or 16×8×8, A and B of 16 bits.
///
/// Lane l is in group g = l/4 at place t = l%4. A's register q holds row g (+8 for odd q), columns
/// 2t and 2t+1 (+8 for q ≥ 2); B's holds rows 2t, 2t+1 (+8 for the second) of column g; C's and D's
/// q holds row g (+8 for q ≥ 2), column 2t + q%2.
///
/// # Safety
/// The slots are within the frame; there are 4 or 2 registers of A, half as many of B, 4 of C and D.
#[inline(always)]
unsafe fn multiply_halves(
    frame: &Frame,
    inputs: &[Register],
    outputs: &[Register],
    widen: impl Fn(u32) -> (f32, f32),
) {
    let a_registers = if inputs.len() == 10 { 4 } else { 2 };
    // SAFETY: the caller's.
    let word = |index: usize| unsafe { &(*frame.words.add(inputs[index].slot as usize)).0 };
    let mut a = [[0f32; 16]; 16];
    let mut b = [[0f32; 8]; 16];
    for register in 0..a_registers {
        let values = word(register);
        let (row, column) = ((register & 1) * 8, (register >> 1) * 8);
        for (lane, &value) in values.iter().enumerate() {
            let (low, high) = widen(value);
            a[row + lane / 4][column + 2 * (lane % 4)] = low;
            a[row + lane / 4][column + 2 * (lane % 4) + 1] = high;
        }
    }
    for register in 0..a_registers / 2 {
        let values = word(a_registers + register);
        for (lane, &value) in values.iter().enumerate() {
            let (low, high) = widen(value);
            b[8 * register + 2 * (lane % 4)][lane / 4] = low;
            b[8 * register + 2 * (lane % 4) + 1][lane / 4] = high;
        }
    }
    let depth = 4 * a_registers;
    // SAFETY: as above.
    unsafe { accumulate(frame, &inputs[inputs.len() - 4..], outputs, &a, &b, depth) };
}

/// D = A·B + C, 16×8×8 in tf32: A's register q holds row g (+8 for odd q), column t (+4 for q ≥ 2);
/// B's holds row t (+4 for the second) of column g. The low 13 bits of an operand are ignored.
///
/// # Safety
/// As [`multiply_halves`], with 4 registers of A and 2 of B.
#[inline(always)]
unsafe fn multiply_tf32(frame: &Frame, inputs: &[Register], outputs: &[Register]) {
    // SAFETY: the caller's.
    let word = |index: usize| unsafe { &(*frame.words.add(inputs[index].slot as usize)).0 };
    let mut a = [[0f32; 16]; 16];
    let mut b = [[0f32; 8]; 16];
    for register in 0..4 {
        for (lane, &value) in word(register).iter().enumerate() {
            let (row, column) = ((register & 1) * 8, (register >> 1) * 4);
            a[row + lane / 4][column + lane % 4] = f32::from_bits(value & !0x1fff);
        }
    }
    for register in 0..2 {
        for (lane, &value) in word(4 + register).iter().enumerate() {
            b[4 * register + lane % 4][lane / 4] = f32::from_bits(value & !0x1fff);
        }
    }
    // SAFETY: as above.
    unsafe { accumulate(frame, &inputs[6..], outputs, &a, &b, 8) };
}

/// # Safety
/// The slots are within the frame; there are 4 of C and of D.
#[inline(always)]
unsafe fn accumulate(
    frame: &Frame,
    sums: &[Register],
    outputs: &[Register],
    a: &[[f32; 16]; 16],
    b: &[[f32; 8]; 16],
    depth: usize,
) {
    let mut c = [[0f32; 8]; 16];
    for (register, sum) in sums.iter().enumerate() {
        // SAFETY: the caller's.
        let values = unsafe { &(*frame.words.add(sum.slot as usize)).0 };
        for (lane, &value) in values.iter().enumerate() {
            c[(register >> 1) * 8 + lane / 4][2 * (lane % 4) + (register & 1)] =
                f32::from_bits(value);
        }
    }
    for (row, a) in c.iter_mut().zip(a) {
        let mut sum = *row;
        for (&x, b) in a.iter().zip(b).take(depth) {
            for (sum, &y) in sum.iter_mut().zip(b) {
                *sum = x.mul_add(y, *sum);
            }
        }
        *row = sum;
    }
    for (register, output) in outputs.iter().enumerate() {
        // SAFETY: the caller's.
        let values = unsafe { &mut (*frame.words.add(output.slot as usize)).0 };
        for (lane, value) in values.iter_mut().enumerate() {
            *value = c[(register >> 1) * 8 + lane / 4][2 * (lane % 4) + (register & 1)].to_bits();
        }
    }
}
