//! `cp.async`: the bytes are read when the copy is issued and land in shared memory when its group is
//! waited for. In between, whoever looks at their place finds a pending copy.

use std::collections::VecDeque;

use super::access::{Kind, check, lanes_of};
use super::block::{Warp, Worker};
use crate::counters;
use crate::fault::{Fault, FaultKind};
use crate::lanes::LANES;
use crate::program::Instruction;

/// The copies of a warp that have not landed.
#[derive(Default)]
pub(super) struct Copies {
    open: Vec<Copy>,
    groups: VecDeque<Group>,
}

/// One lane's copy.
#[derive(Clone, Copy)]
struct Copy {
    lane: u8,
    bytes: u8,
    to: u32,
    data: [u8; 16],
}

struct Group {
    /// Lanes that committed it and have not waited for it.
    lanes: u32,
    copies: Vec<Copy>,
}

impl Copies {
    pub(super) fn clear(&mut self) {
        self.open.clear();
        self.groups.clear();
    }

    /// Makes a group of the open copies of the lanes.
    pub(super) fn commit(&mut self, lanes: u32) {
        let all = self.open.iter().all(|copy| lanes >> copy.lane & 1 != 0);
        let copies = if all {
            std::mem::take(&mut self.open)
        } else {
            let of_lanes = |copy: &Copy| lanes >> copy.lane & 1 != 0;
            let (mine, others) = self.open.iter().partition(|copy| of_lanes(copy));
            self.open = others;
            mine
        };
        self.groups.push_back(Group { lanes, copies });
    }

    /// Takes the copies that land when the lanes wait until at most `left` of their groups are
    /// pending; with `u32::MAX`, all of them and the open ones.
    fn take(&mut self, left: u32, lanes: u32) -> Vec<Copy> {
        let mut landed = Vec::new();
        let wait_all = left == u32::MAX;
        if wait_all {
            self.commit(lanes);
        }
        let left = if wait_all { 0 } else { left };
        // Groups are counted for each lane by itself: lanes may have committed different ones.
        let mut newer = [0u32; LANES];
        for group in self.groups.iter_mut().rev() {
            let mut done = 0;
            for lane in lanes_of(group.lanes & lanes) {
                if newer[lane] >= left {
                    done |= 1 << lane;
                }
                newer[lane] += 1;
            }
            if done == 0 {
                continue;
            }
            group.lanes &= !done;
            if group.lanes == 0 {
                landed.append(&mut group.copies);
            } else {
                landed.extend(group.copies.iter().filter(|copy| done >> copy.lane & 1 != 0));
                group.copies.retain(|copy| done >> copy.lane & 1 == 0);
            }
        }
        self.groups.retain(|group| group.lanes != 0);
        landed
    }
}

impl Worker<'_> {
    pub(super) fn copy_async(
        &mut self,
        warp: &mut Warp,
        instruction: &Instruction,
        mask: u32,
    ) -> Result<(), Box<Fault>> {
        let facts = &self.launch.program.details[instruction.detail as usize].facts;
        let bytes = facts.element as usize;
        let place = (facts.short_address, facts.offset);
        let targets = self.addresses(warp, instruction.inputs[0], place, mask);
        let sizes = self.word(warp, instruction.inputs[2]);
        let mut reading = 0;
        for lane in lanes_of(mask) {
            if sizes[lane] as usize > bytes {
                let message = format!("copies {} of {bytes} bytes", sizes[lane]);
                return Err(Fault::at_lane(FaultKind::OutOfBounds, lane, message));
            }
            reading |= u32::from(sizes[lane] > 0) << lane;
        }
        self.shared_pointers(&targets, mask, bytes)?;
        if self.launch.checks.counters {
            self.counts.shared(true, counters::wavefronts(&targets, mask, bytes));
        }

        let mut data = [[0u8; 16]; LANES];
        if reading != 0 {
            let offset = i64::from(instruction.immediate as i32);
            let sources = self.addresses(warp, instruction.inputs[1], (false, offset), reading);
            if self.launch.checks.counters {
                let sectors = counters::sectors(&sources, reading, bytes);
                let requested = lanes_of(reading).map(|lane| u64::from(sizes[lane])).sum::<u64>();
                self.counts.global(false, sectors, requested);
                self.counts.copied_bytes += requested;
            }
            let whole = lanes_of(reading).all(|lane| sizes[lane] as usize == bytes);
            let mut rest = reading;
            while rest != 0 {
                // Where fewer bytes are read, only those must exist: lane by lane.
                let lanes = if whole { rest } else { 1 << rest.trailing_zeros() };
                let first = lanes.trailing_zeros() as usize;
                let length = if whole { bytes } else { sizes[first] as usize };
                if !sources[first].is_multiple_of(bytes as u64) {
                    check(sources[first], bytes, u64::MAX, first, "global")?;
                }
                let places: [u64; LANES] = if whole { sources } else { [sources[first]; LANES] };
                let (region, lanes) = if length.is_power_of_two() {
                    self.region(warp.at, &places, lanes, length)?
                } else {
                    // Odd sizes: the last byte's region is that of the first.
                    let (region, lanes) = self.region(warp.at, &places, lanes, 1)?;
                    let last = [places[0] + length as u64 - 1; LANES];
                    self.region(warp.at, &last, lanes, 1)?;
                    (region, lanes)
                };
                if length.is_power_of_two() {
                    self.global_shadow(&region, &places, lanes, length, Kind::Read)?;
                } else {
                    for byte in 0..length as u64 {
                        let place = [places[0] + byte; LANES];
                        self.global_shadow(&region, &place, lanes, 1, Kind::Read)?;
                    }
                }
                for lane in lanes_of(lanes) {
                    // SAFETY: `region` checked that these bytes are within it.
                    unsafe {
                        let from = region.data.add((sources[lane] - region.start) as usize);
                        std::ptr::copy_nonoverlapping(from, data[lane].as_mut_ptr(), length);
                    }
                }
                rest &= !lanes;
            }
        }

        if let Some(shadow) = self.shared_shadow() {
            // The bytes may change from now on: whoever read them since the last barrier may still
            // be reading.
            self.shared_shadow_lanes(warp.number, &targets, mask, bytes, Kind::Write)?;
            let actor = self.shared_actor(warp.number);
            for lane in lanes_of(mask) {
                // SAFETY: `shared_pointers` checked the bytes; the shadow has a word for each 4.
                unsafe { shadow.from(targets[lane] as usize / 4).begin_copy(bytes / 4, &actor) };
            }
        }
        warp.copies.open.extend(lanes_of(mask).map(|lane| Copy {
            lane: lane as u8,
            bytes: bytes as u8,
            to: targets[lane] as u32,
            data: data[lane],
        }));
        Ok(())
    }

    /// `cp.async.wait_group` and `wait_all`.
    pub(super) fn wait_copies(&mut self, warp: &mut Warp, left: u32, lanes: u32) {
        let landed = warp.copies.take(left, lanes);
        let actor = self.shared_actor(warp.number);
        let (base, shadow) = (self.shared_pointer(), self.shared_shadow());
        for copy in &landed {
            // SAFETY: `copy_async` checked that the bytes are within shared memory, which has not
            // changed its size since; its shadow has a word for each 4.
            unsafe {
                let to = base.add(copy.to as usize);
                std::ptr::copy_nonoverlapping(copy.data.as_ptr(), to, copy.bytes as usize);
                if let Some(shadow) = shadow {
                    shadow.from(copy.to as usize / 4).write(copy.bytes as usize / 4, &actor);
                }
            }
        }
    }
}
