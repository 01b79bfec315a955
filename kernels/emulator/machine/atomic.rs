//! `atom` and `red`. Lanes follow each other in their order; blocks on several threads of the host
//! meet in its own atomics, so that sums of floats depend on which block comes first, as on a GPU.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::access::lanes_of;
use super::block::{Warp, Worker};
use super::windows;
use crate::counters;
use crate::fault::{Fault, FaultKind};
use crate::lanes::{Class, LANES};
use crate::numeric::{fma_bf16, fma_f16};
use crate::program::{Facts, Instruction, Mode, Space};
use crate::shadow::Conflict;

impl Worker<'_> {
    pub(super) fn atomic(
        &mut self,
        warp: &mut Warp,
        instruction: &Instruction,
        mask: u32,
    ) -> Result<(), Box<Fault>> {
        let detail = &self.launch.program.details[instruction.detail as usize];
        let facts = &detail.facts;
        let place = (facts.short_address, facts.offset);
        let addresses = self.addresses(warp, instruction.inputs[0], place, mask);
        let bytes = facts.element as usize;
        let operand = |worker: &Self, warp: &mut Warp, index: usize| match detail.inputs.get(index)
        {
            Some(register) if register.class == Class::D => worker.long(warp, register.slot),
            Some(register) => worker.word(warp, register.slot).map(u64::from),
            None => [0; LANES],
        };
        let (first, second) = (operand(self, warp, 0), operand(self, warp, 1));
        let mut old = [0; LANES];
        let is_shared = |address: u64| match facts.space {
            Space::Shared => true,
            Space::Generic => address.wrapping_sub(windows::SHARED) < windows::SIZE,
            _ => false,
        };
        let mut global = false;
        // Before the first update, so that whoever sees it finds the release.
        self.release();
        for lane in lanes_of(mask) {
            let address = addresses[lane];
            let pointer = if is_shared(address) {
                let address =
                    if facts.space == Space::Generic { address - windows::SHARED } else { address };
                let pointer = self.shared_pointers(&[address; LANES], 1 << lane, bytes)?[0];
                if let Some(shadow) = self.shared_shadow() {
                    let actor = self.shared_actor(warp.number);
                    // SAFETY: `shared_pointers` checked the bytes.
                    let noted = unsafe {
                        shadow.from(address as usize / 4).atomic(bytes / 4, true, &actor)
                    };
                    noted.map_err(|conflict| self.shared_conflict(address, lane, conflict))?;
                }
                pointer
            } else {
                global = true;
                let (region, _) = self.region(warp.at, &[address; LANES], 1 << lane, bytes)?;
                let offset = (address - region.start) as usize;
                if !region.shadow.writers.is_null() {
                    let actor = self.global_actor();
                    // SAFETY: `region` checked the bytes; the shadow has a word for each 4.
                    let noted =
                        unsafe { region.shadow.from(offset / 4).atomic(bytes / 4, true, &actor) };
                    noted.map_err(|conflict| atomic_conflict(address, lane, conflict))?;
                }
                // SAFETY: as above.
                unsafe { region.data.add(offset) }
            };
            // SAFETY: the bytes are within an allocation and aligned, as checked; other threads
            // reach them through atomics too, or the kernel races.
            old[lane] = unsafe { update(pointer, facts, first[lane], second[lane]) };
        }
        if global {
            if self.launch.checks.counters {
                let sectors = counters::sectors(&addresses, mask, bytes);
                self.counts.global(true, sectors, u64::from(mask.count_ones()) * bytes as u64);
            }
            self.acquire();
        }
        if let Some(register) = detail.outputs.first() {
            if register.class == Class::D {
                self.store_long(warp, register.slot, &old, mask);
            } else {
                self.store_word(warp, register.slot, &old.map(|value| value as u32), mask);
            }
        }
        Ok(())
    }

    /// An atomic after a fence makes what the block wrote before it known to whoever acquires it.
    fn release(&self) {
        if self.fenced
            && let Some(released) = self.between.released.get(self.block)
        {
            let now = self.between.clock.fetch_add(1, Ordering::AcqRel);
            released.store(now, Ordering::Release);
        }
    }

    /// All that was released until now is ordered before what follows. The memory model wants a fence
    /// here too, but NVIDIA's own samples of "the last block sums up" leave it out.
    fn acquire(&mut self) {
        self.acquired = self.between.clock.fetch_add(1, Ordering::AcqRel);
    }
}

#[cold]
fn atomic_conflict(address: u64, lane: usize, conflict: Conflict) -> Box<Fault> {
    let message = match conflict.kind {
        FaultKind::UninitializedGlobal => {
            format!("an atomic on {address:#x}, which nothing has written")
        }
        _ => format!("an atomic on {address:#x}, which another block accesses without one"),
    };
    Fault::at_lane(conflict.kind, lane, message)
}

/// # Safety
/// The pointer is good for `facts.element` (4 or 8) bytes and aligned to them.
unsafe fn update(pointer: *mut u8, facts: &Facts, a: u64, b: u64) -> u64 {
    const ORDER: Ordering = Ordering::SeqCst;
    let new = |old: u64| combine(facts, old, a, b);
    if facts.element == 4 {
        // SAFETY: the caller's.
        let place = unsafe { &*pointer.cast::<AtomicU32>() };
        let result = place.fetch_update(ORDER, ORDER, |old| Some(new(u64::from(old)) as u32));
        u64::from(result.unwrap_or_else(|old| old))
    } else {
        // SAFETY: the caller's.
        let place = unsafe { &*pointer.cast::<AtomicU64>() };
        place.fetch_update(ORDER, ORDER, |old| Some(new(old))).unwrap_or_else(|old| old)
    }
}

/// What an atomic leaves in memory.
fn combine(facts: &Facts, old: u64, a: u64, b: u64) -> u64 {
    let long = facts.element == 8;
    let signed = |value: u64| if long { value as i64 } else { i64::from(value as u32 as i32) };
    let pair = |fma: fn(u32, u32, u32) -> u32, one: u32| {
        let (old, a) = (old as u32, a as u32);
        let low = fma(old & 0xffff, one, a & 0xffff);
        u64::from(low | fma(old >> 16, one, a >> 16) << 16)
    };
    match facts.mode {
        Mode::Add => old.wrapping_add(a),
        Mode::AddF32 => {
            u64::from((f32::from_bits(old as u32) + f32::from_bits(a as u32)).to_bits())
        }
        Mode::AddF64 => (f64::from_bits(old) + f64::from_bits(a)).to_bits(),
        Mode::AddBf16x2 => pair(fma_bf16, 0x3f80),
        Mode::AddF16x2 => pair(fma_f16, 0x3c00),
        Mode::Min if facts.signed => {
            if signed(a) < signed(old) {
                a
            } else {
                old
            }
        }
        Mode::Max if facts.signed => {
            if signed(a) > signed(old) {
                a
            } else {
                old
            }
        }
        Mode::Min => old.min(a),
        Mode::Max => old.max(a),
        Mode::And => old & a,
        Mode::Or => old | a,
        Mode::Xor => old ^ a,
        Mode::Exchange => a,
        Mode::CompareAndSwap => {
            if old == a {
                b
            } else {
                old
            }
        }
        Mode::Increment => {
            if old >= a {
                0
            } else {
                old + 1
            }
        }
        _ => {
            if old == 0 || old > a {
                a
            } else {
                old - 1
            }
        }
    }
}
