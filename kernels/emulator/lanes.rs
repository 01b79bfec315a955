//! Instructions that do the same to each of a warp's 32 lanes, and nothing else.
//!
//! They are tables: each line names the operation, its operands with their register class, and the value
//! of one lane. [`lane_operations`] turns each line into a function over 32 lanes, compiled for each
//! instruction set so that the loop becomes vector instructions; a lowered instruction holds a
//! pointer to the one for this processor.
//!
//! Registers lie in slots: 32 lanes of 32 bits (classes `W` and, read as f32, `F`), 32 lanes of 64
//! bits (`D` and, read as f64, `G`), or one bit per lane (`P`). A 16-bit or 8-bit value lies in a `W`
//! slot with zeros above it.

use std::sync::OnceLock;

use crate::program::Instruction;

pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod float;
pub(crate) mod half_float;
pub(crate) mod integer;
pub(crate) mod wide;

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;
/// A mask with every lane in it.
pub(crate) const ALL_LANES: u32 = u32::MAX;

/// A 32-bit register of all lanes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Words(pub(crate) [u32; LANES]);

/// A 64-bit register of all lanes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Longs(pub(crate) [u64; LANES]);

/// The registers of one warp. The slots of every instruction of a program are below the sizes the
/// program states, and the warp allocates those sizes (`Warp::new`).
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    pub(crate) words: *mut Words,
    pub(crate) longs: *mut Longs,
    pub(crate) predicates: *mut u32,
}

/// Executes an instruction for the lanes in the mask.
///
/// # Safety
/// The slots of the instruction are within the frame, and the processor has the instruction set the
/// function was compiled for.
pub(crate) type LaneFunction = unsafe fn(&Frame, &Instruction, u32);

/// Register classes; `F` and `G` are views of `W` and `D`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    P,
    W,
    D,
}

/// A line of a table.
#[derive(Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    pub(crate) output: Class,
    pub(crate) inputs: &'static [Class],
    /// Compiled for AVX-512, AVX2 and nothing in particular; see [`Isa`].
    pub(crate) functions: [LaneFunction; 3],
}

impl Operation {
    /// The function for this processor.
    pub(crate) fn function(&self) -> LaneFunction {
        self.functions[Isa::detect() as usize]
    }
}

/// Instruction sets the functions are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    Avx512,
    Avx2,
    Portable,
}

impl Isa {
    /// The best that this processor has.
    pub(crate) fn detect() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Isa::available()[0])
    }

    /// All that this processor has, the best first.
    pub(crate) fn available() -> Vec<Isa> {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
                && is_x86_feature_detected!("lzcnt")
                && is_x86_feature_detected!("popcnt")
                && is_x86_feature_detected!("bmi2");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let all = [(avx512, Isa::Avx512), (avx2, Isa::Avx2), (true, Isa::Portable)];
            all.iter().filter(|(has, _)| *has).map(|&(_, isa)| isa).collect()
        }
        #[cfg(not(target_arch = "x86_64"))]
        vec![Isa::Portable]
    }
}

/// How a class is read and written a lane at a time.
pub(crate) trait Slot {
    /// What one lane holds.
    type Lane: Copy + Default;
    /// Where the lanes are read from.
    type Source: Copy;
    const CLASS: Class;

    /// # Safety
    /// The slot is within the frame.
    unsafe fn source(frame: &Frame, slot: u16) -> Self::Source;
    /// # Safety
    /// The source is of a frame that still lives; `lane` < 32.
    unsafe fn lane(source: Self::Source, lane: usize) -> Self::Lane;
    /// Writes the lanes in the mask.
    ///
    /// # Safety
    /// The slot is within the frame.
    unsafe fn store(frame: &Frame, slot: u16, values: &[Self::Lane; LANES], mask: u32);
}

/// 32 bits.
pub(crate) struct W;
/// 32 bits as a float.
pub(crate) struct F;
/// 64 bits.
pub(crate) struct D;
/// 64 bits as a float.
pub(crate) struct G;
/// A predicate.
pub(crate) struct P;

macro_rules! slot {
    ($name:ident, $lane:ty, $area:ident, $class:ident) => {
        impl Slot for $name {
            type Lane = $lane;
            type Source = *const $lane;
            const CLASS: Class = Class::$class;

            #[inline(always)]
            unsafe fn source(frame: &Frame, slot: u16) -> *const $lane {
                // SAFETY: the caller says that the slot is within the frame.
                unsafe { frame.$area.add(slot as usize).cast() }
            }

            #[inline(always)]
            unsafe fn lane(source: *const $lane, lane: usize) -> $lane {
                // SAFETY: the caller says that the slot lives and the lane is one of 32.
                unsafe { *source.add(lane) }
            }

            #[inline(always)]
            unsafe fn store(frame: &Frame, slot: u16, values: &[$lane; LANES], mask: u32) {
                // SAFETY: the caller says that the slot is within the frame; it is 32 lanes of
                // this size, aligned to 64 bytes.
                let out = unsafe { &mut *frame.$area.add(slot as usize).cast::<[$lane; LANES]>() };
                if mask == ALL_LANES {
                    *out = *values;
                } else {
                    for lane in 0..LANES {
                        let old = out[lane];
                        out[lane] = if mask >> lane & 1 != 0 { values[lane] } else { old };
                    }
                }
            }
        }
    };
}
slot!(W, u32, words, W);
slot!(F, f32, words, W);
slot!(D, u64, longs, D);
slot!(G, f64, longs, D);

impl Slot for P {
    type Lane = bool;
    type Source = u32;
    const CLASS: Class = Class::P;

    #[inline(always)]
    unsafe fn source(frame: &Frame, slot: u16) -> u32 {
        // SAFETY: the caller says that the slot is within the frame.
        unsafe { *frame.predicates.add(slot as usize) }
    }

    #[inline(always)]
    unsafe fn lane(source: u32, lane: usize) -> bool {
        source >> lane & 1 != 0
    }

    #[inline(always)]
    unsafe fn store(frame: &Frame, slot: u16, values: &[bool; LANES], mask: u32) {
        let mut bits = 0;
        for (lane, &value) in values.iter().enumerate() {
            bits |= u32::from(value) << lane;
        }
        // SAFETY: the caller says that the slot is within the frame.
        let out = unsafe { &mut *frame.predicates.add(slot as usize) };
        *out = (*out & !mask) | (bits & mask);
    }
}

/// Makes constants of type [`Operation`] from lines `NAME(operand: Class, ..) -> Class = value;`.
macro_rules! lane_operations {
    ($($name:ident($($operand:ident: $slot:ident),+) -> $out:ident = $body:expr;)+) => {
        $(
            pub(crate) const $name: $crate::lanes::Operation = {
                use $crate::lanes::{Frame, LANES, Slot};
                use $crate::program::Instruction;

                #[inline(always)]
                fn semantics(
                    $($operand: <$crate::lanes::$slot as Slot>::Lane),+
                ) -> <$crate::lanes::$out as Slot>::Lane {
                    $body
                }

                /// # Safety
                /// The slots of the instruction are within the frame.
                #[inline(always)]
                unsafe fn apply(frame: &Frame, instruction: &Instruction, mask: u32) {
                    let mut slots = instruction.inputs.iter();
                    let mut out = [Default::default(); LANES];
                    // SAFETY: the caller says that the slots are within the frame; every input is
                    // read before the output is written.
                    unsafe {
                        $(let $operand = <$crate::lanes::$slot as Slot>::source(
                            frame,
                            slots.next().copied().unwrap_or(0),
                        );)+
                        for lane in 0..LANES {
                            $(let $operand = <$crate::lanes::$slot as Slot>::lane($operand, lane);)+
                            out[lane] = semantics($($operand),+);
                        }
                        <$crate::lanes::$out as Slot>::store(frame, instruction.d, &out, mask);
                    }
                }

                $crate::lanes::Operation {
                    name: stringify!($name),
                    output: <$crate::lanes::$out as Slot>::CLASS,
                    inputs: &[$(<$crate::lanes::$slot as Slot>::CLASS),+],
                    functions: $crate::lanes::for_each_isa!(
                        apply(frame: &Frame, instruction: &Instruction, mask: u32) -> ()
                    ),
                }
            };
        )+
        /// Every operation of this table.
        #[cfg(test)]
        pub(crate) const ALL: &[$crate::lanes::Operation] = &[$($name),+];
    };
}
pub(crate) use lane_operations;

/// The same function compiled for AVX-512, AVX2 and nothing in particular, as an array in the order
/// of [`Isa`].
macro_rules! for_each_isa {
    ($generic:ident($($argument:ident: $kind:ty),*) -> $result:ty) => {{
        /// # Safety
        /// As the generic function, and the processor has the instruction set.
        #[cfg_attr(
            target_arch = "x86_64",
            target_feature(
                enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,lzcnt,popcnt,bmi1,bmi2"
            )
        )]
        unsafe fn avx512($($argument: $kind),*) -> $result {
            // SAFETY: the caller's.
            unsafe { $generic($($argument),*) }
        }
        /// # Safety
        /// As the generic function, and the processor has the instruction set.
        #[cfg_attr(
            target_arch = "x86_64",
            target_feature(enable = "avx2,fma,f16c,lzcnt,popcnt,bmi1,bmi2")
        )]
        unsafe fn avx2($($argument: $kind),*) -> $result {
            // SAFETY: the caller's.
            unsafe { $generic($($argument),*) }
        }
        /// # Safety
        /// As the generic function.
        unsafe fn portable($($argument: $kind),*) -> $result {
            // SAFETY: the caller's.
            unsafe { $generic($($argument),*) }
        }
        [avx512, avx2, portable]
    }};
}
pub(crate) use for_each_isa;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Instruction;

    /// Values that sit at the edges of every type.
    const EDGES: [u64; 12] = [
        0,
        1,
        0x7fff_ffff,
        0xffff_ffff_8000_0000,
        u64::MAX,
        0x3f80_0000_3f80_0000,
        0x7f80_0000_ff80_0000,
        0x7fc0_0001_7fc0_0001,
        0x0000_8000_0000_7fff,
        0x4004_0000_c049_0fdb,
        0x8000_0000_0000_0000,
        0x0000_0021_0010_0004,
    ];

    #[test]
    fn every_instruction_set_computes_the_same_bits() {
        let tables =
            [integer::ALL, wide::ALL, float::ALL, half_float::ALL, convert::ALL, compare::ALL];
        for operation in tables.into_iter().flatten() {
            let expected = results(operation, Isa::Portable);
            for isa in Isa::available() {
                assert_eq!(results(operation, isa), expected, "{} on {isa:?}", operation.name);
            }
        }
    }

    fn results(operation: &Operation, isa: Isa) -> Vec<u64> {
        let mut all = Vec::new();
        for round in 0..12usize {
            let value = |operand: usize, lane: usize| {
                EDGES[(round * operand + lane * (operand + 1) + lane / 12) % EDGES.len()]
            };
            let mut words = vec![Words([7; LANES]); 8];
            let mut longs = vec![Longs([7; LANES]); 8];
            let mut predicates = vec![0x5a5a_5a5a; 8];
            for operand in 0..4 {
                for lane in 0..LANES {
                    words[operand].0[lane] = value(operand, lane) as u32;
                    longs[operand].0[lane] = value(operand, lane);
                }
                predicates[operand] = value(operand, round) as u32;
            }
            let frame = Frame {
                words: words.as_mut_ptr(),
                longs: longs.as_mut_ptr(),
                predicates: predicates.as_mut_ptr(),
            };
            let instruction = Instruction { d: 4, inputs: [0, 1, 2, 3], ..Instruction::nothing() };
            // SAFETY: slots 0 to 4 of 8; `isa` is one of `Isa::available`.
            unsafe { operation.functions[isa as usize](&frame, &instruction, 0xfff0_ffff) };
            match operation.output {
                Class::W => all.extend(words[4].0.map(|word| canonical(u64::from(word)))),
                Class::D => all.extend(longs[4].0.map(canonical)),
                Class::P => all.push(u64::from(predicates[4])),
            }
        }
        all
    }

    /// The payload and sign of a NaN are not the same in every instruction set.
    fn canonical(bits: u64) -> u64 {
        let single = bits <= u64::from(u32::MAX) && bits & 0x7fff_ffff > 0x7f80_0000;
        let double = f64::from_bits(bits).is_nan();
        if single || double { u64::MAX } else { bits }
    }
}
