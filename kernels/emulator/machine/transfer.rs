//! Moves bytes between registers and memory that was checked before.

use super::access::{Pointers, lanes_of};
use super::block::Warp;
use crate::lanes::{ALL_LANES, Class, Frame, LANES};
use crate::program::{Detail, Facts, Register};

/// Moves the bytes of all elements between memory and registers.
pub(super) fn transfer(
    warp: &mut Warp,
    detail: &Detail,
    store: bool,
    pointers: &Pointers,
    mask: u32,
    contiguous: bool,
) {
    let frame = warp.frame();
    let facts = &detail.facts;
    let element = facts.element as usize;
    let registers = if store { &detail.inputs } else { &detail.outputs };
    for (index, register) in registers.iter().enumerate() {
        let offset = index * element;
        // SAFETY: the pointers of the mask's lanes are good for `element * count` bytes, checked by
        // the caller, and aligned to them; slots are within the frame (`Warp::new`).
        unsafe {
            match (element, register.class) {
                (4, Class::W) => {
                    let slot = frame.words.add(register.slot as usize).cast::<u32>();
                    if contiguous && facts.count == 1 {
                        let memory = pointers[0].cast::<u32>();
                        let (from, to) = if store { (slot, memory) } else { (memory, slot) };
                        std::ptr::copy(from.cast_const(), to, LANES);
                    } else {
                        move_lanes::<u32>(slot, store, pointers, offset, mask);
                    }
                }
                (8, Class::D) => {
                    let slot = frame.longs.add(register.slot as usize).cast::<u64>();
                    move_lanes::<u64>(slot, store, pointers, offset, mask);
                }
                _ => move_narrow(&frame, register, facts, store, pointers, offset, mask),
            }
        }
    }
}

/// # Safety
/// The lanes' pointers are good for an element at the offset, and aligned; the slot has 32 lanes.
#[inline(always)]
unsafe fn move_lanes<T: Copy>(
    slot: *mut T,
    store: bool,
    pointers: &Pointers,
    offset: usize,
    mask: u32,
) {
    // SAFETY: the caller's.
    unsafe {
        match (store, mask == ALL_LANES) {
            (false, true) => {
                for (lane, pointer) in pointers.iter().enumerate() {
                    *slot.add(lane) = *pointer.add(offset).cast::<T>();
                }
            }
            (false, false) => {
                for lane in lanes_of(mask) {
                    *slot.add(lane) = *pointers[lane].add(offset).cast::<T>();
                }
            }
            (true, _) => {
                for lane in lanes_of(mask) {
                    *pointers[lane].add(offset).cast::<T>() = *slot.add(lane);
                }
            }
        }
    }
}

/// Elements narrower than their register.
///
/// # Safety
/// As [`move_lanes`], with a register of the frame.
unsafe fn move_narrow(
    frame: &Frame,
    register: &Register,
    facts: &Facts,
    store: bool,
    pointers: &Pointers,
    offset: usize,
    mask: u32,
) {
    let bytes = facts.element as usize;
    let unused = 64 - 8 * bytes as u32;
    for lane in lanes_of(mask) {
        // SAFETY: the caller's; `bytes` is at most 8.
        unsafe {
            let memory = pointers[lane].add(offset);
            let (word, long) = (
                frame.words.add(register.slot as usize).cast::<u32>().add(lane),
                frame.longs.add(register.slot as usize).cast::<u64>().add(lane),
            );
            if store {
                let value = if register.class == Class::D { *long } else { u64::from(*word) };
                let raw = value.to_le_bytes();
                std::ptr::copy_nonoverlapping(raw.as_ptr(), memory, bytes);
                continue;
            }
            let mut raw = [0; 8];
            std::ptr::copy_nonoverlapping(memory.cast_const(), raw.as_mut_ptr(), bytes);
            let value = u64::from_le_bytes(raw) << unused;
            let value =
                if facts.signed { ((value as i64) >> unused) as u64 } else { value >> unused };
            match (register.class, register.width) {
                (Class::D, _) => *long = value,
                (_, 16) => *word = value as u32 & 0xffff,
                _ => *word = value as u32,
            }
        }
    }
}
