//! Shuffles, votes, matches and `redux`, and who must take part in them.

use super::access::lanes_of;
use super::block::{Warp, Worker};
use crate::fault::{Fault, FaultKind};
use crate::lanes::LANES;
use crate::program::{Instruction, Mode};

impl Worker<'_> {
    /// The member mask of each lane, checked: a lane that executes is a member, and every member that
    /// has not exited executes.
    pub(super) fn members(
        &self,
        warp: &mut Warp,
        slot: u16,
        mask: u32,
        what: &str,
    ) -> Result<[u32; LANES], Box<Fault>> {
        let members = self.word(warp, slot);
        if !self.launch.checks.divergence {
            return Ok(members);
        }
        let mut before = None;
        for lane in lanes_of(mask) {
            let named = members[lane];
            if before == Some(named) && named >> lane & 1 != 0 {
                continue;
            }
            before = Some(named);
            if named >> lane & 1 == 0 {
                let message = format!("{what}: the lane is not in its mask {named:#010x}");
                return Err(Fault::at_lane(FaultKind::Divergence, lane, message));
            }
            let absent = named & warp.alive & !mask;
            if absent != 0 {
                let message = format!(
                    "{what}: the mask {named:#010x} names lanes {absent:#010x}, which are not here"
                );
                return Err(Fault::at_lane(FaultKind::Divergence, lane, message));
            }
        }
        Ok(members)
    }

    pub(super) fn shuffle(
        &mut self,
        warp: &mut Warp,
        instruction: &Instruction,
        mask: u32,
    ) -> Result<(), Box<Fault>> {
        let detail = &self.launch.program.details[instruction.detail as usize];
        self.members(warp, instruction.inputs[3], mask, "shfl")?;
        let values = self.word(warp, instruction.inputs[0]);
        let deltas = self.word(warp, instruction.inputs[1]);
        let controls = self.word(warp, instruction.inputs[2]);
        let mode = detail.facts.mode;
        let mut results = values;
        let mut in_range = 0u32;
        // The manual's pseudocode, lane by lane.
        for lane in 0..LANES {
            let delta = deltas[lane] & 31;
            let (clamp, segment) = (controls[lane] & 31, controls[lane] >> 8 & 31);
            let here = lane as u32;
            let most = (here & segment) | (clamp & !segment);
            let least = here & segment;
            let (source, good) = match mode {
                Mode::ShuffleUp => {
                    let source = here.wrapping_sub(delta);
                    (source, source as i32 >= most as i32)
                }
                Mode::ShuffleDown => (here + delta, here + delta <= most),
                Mode::ShuffleXor => (here ^ delta, here ^ delta <= most),
                _ => {
                    let source = least | (delta & !segment);
                    (source, source <= most)
                }
            };
            let source = if good { source & 31 } else { here };
            results[lane] = values[source as usize];
            in_range |= u32::from(good) << lane;
            let absent = mask >> lane & 1 != 0 && mask >> source & 1 == 0;
            if absent && self.launch.checks.divergence {
                let message = format!("reads lane {source}, which does not take part");
                return Err(Fault::at_lane(FaultKind::InactiveLane, lane, message));
            }
        }
        self.store_word(warp, instruction.d, &results, mask);
        if let Some(register) = detail.outputs.first() {
            self.store_predicate(warp, register.slot, in_range, mask);
        }
        Ok(())
    }

    pub(super) fn vote(
        &mut self,
        warp: &mut Warp,
        instruction: &Instruction,
        mask: u32,
    ) -> Result<(), Box<Fault>> {
        let mode = self.launch.program.details[instruction.detail as usize].facts.mode;
        let members = self.members(warp, instruction.inputs[1], mask, "vote")?;
        let values = self.predicate(warp, instruction.inputs[0]);
        let mut words = [0; LANES];
        let mut bits = 0;
        for lane in lanes_of(mask) {
            let group = members[lane] & mask;
            let yes = values & group;
            words[lane] = yes;
            let result = match mode {
                Mode::VoteAll => yes == group,
                Mode::VoteAny => yes != 0,
                _ => yes == 0 || yes == group,
            };
            bits |= u32::from(result) << lane;
        }
        if mode == Mode::VoteBallot {
            self.store_word(warp, instruction.d, &words, mask);
        } else {
            self.store_predicate(warp, instruction.d, bits, mask);
        }
        Ok(())
    }

    pub(super) fn matching(
        &mut self,
        warp: &mut Warp,
        instruction: &Instruction,
        mask: u32,
    ) -> Result<(), Box<Fault>> {
        let detail = &self.launch.program.details[instruction.detail as usize];
        let members = self.members(warp, instruction.inputs[1], mask, "match")?;
        let values = if detail.facts.element == 8 {
            self.long(warp, instruction.inputs[0])
        } else {
            self.word(warp, instruction.inputs[0]).map(u64::from)
        };
        let mut words = [0; LANES];
        let mut same = 0;
        for lane in lanes_of(mask) {
            let group = members[lane] & mask;
            let equal = lanes_of(group)
                .filter(|&other| values[other] == values[lane])
                .fold(0, |all, other| all | 1 << other);
            let all = equal == group;
            same |= u32::from(all) << lane;
            words[lane] = match detail.facts.mode {
                Mode::MatchAny => equal,
                _ if all => group,
                _ => 0,
            };
        }
        self.store_word(warp, instruction.d, &words, mask);
        if let Some(register) = detail.outputs.first() {
            self.store_predicate(warp, register.slot, same, mask);
        }
        Ok(())
    }

    pub(super) fn reduce(
        &mut self,
        warp: &mut Warp,
        instruction: &Instruction,
        mask: u32,
    ) -> Result<(), Box<Fault>> {
        let facts = &self.launch.program.details[instruction.detail as usize].facts;
        let members = self.members(warp, instruction.inputs[1], mask, "redux")?;
        let values = self.word(warp, instruction.inputs[0]);
        let combine = |a: u32, b: u32| match (facts.mode, facts.signed) {
            (Mode::Add, _) => a.wrapping_add(b),
            (Mode::Min, true) => (a as i32).min(b as i32) as u32,
            (Mode::Max, true) => (a as i32).max(b as i32) as u32,
            (Mode::Min, false) => a.min(b),
            (Mode::Max, false) => a.max(b),
            (Mode::And, _) => a & b,
            (Mode::Or, _) => a | b,
            _ => a ^ b,
        };
        let mut words = [0; LANES];
        for lane in lanes_of(mask) {
            let group = lanes_of(members[lane] & mask).map(|other| values[other]);
            words[lane] = group.reduce(combine).unwrap_or(0);
        }
        self.store_word(warp, instruction.d, &words, mask);
        Ok(())
    }
}
