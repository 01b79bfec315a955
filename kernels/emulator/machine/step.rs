//! The loop that executes a warp until it waits at a barrier or is done.

use std::time::Instant;

use super::block::{Path, Pause, Warp, Worker};
use crate::checks::limits;
use crate::fault::{Fault, FaultKind};
use crate::program::{Action, Instruction, Mode, NONE, NOWHERE};

impl Worker<'_> {
    pub(super) fn run_warp(
        &mut self,
        warp: &mut Warp,
        arrived: &mut [u32; limits::BARRIERS as usize],
    ) -> Result<Pause, Box<Fault>> {
        let program = self.launch.program;
        let frame = warp.frame();
        loop {
            if warp.at == warp.meeting && !warp.next_path() {
                return Ok(Pause::Done);
            }
            if warp.at == warp.meeting {
                continue;
            }
            let at = warp.at as usize;
            let instruction = &program.code[at];
            let mut mask = warp.mask;
            if instruction.guard != NONE {
                // SAFETY: lowering keeps guard slots below `Program::predicates`, which
                // `Warp::new` allocates.
                let guard = unsafe { *frame.predicates.add(instruction.guard as usize) };
                mask &= if instruction.guard_negated { !guard } else { guard };
            }
            self.counts.executed[at] += 1;
            self.counts.lanes[at] += u64::from(mask.count_ones());
            if instruction.action == Action::Lanes {
                // SAFETY: lowering keeps slots below the program's sizes, which `Warp::new`
                // allocates; `Operation::function` picked the function for this processor.
                unsafe { (instruction.function)(&frame, instruction, mask) };
                warp.at += 1;
                continue;
            }
            warp.executed += 1;
            if warp.executed > self.launch.checks.instruction_budget {
                return Err(Fault::new(
                    FaultKind::Budget,
                    "the warp does not end within its instruction budget",
                ));
            }
            match instruction.action {
                Action::Branch => {
                    branch(warp, instruction, mask);
                    continue;
                }
                Action::Exit => {
                    warp.alive &= !mask;
                    warp.mask &= !mask;
                    if warp.mask == 0 {
                        if !warp.next_path() {
                            return Ok(Pause::Done);
                        }
                        continue;
                    }
                }
                Action::Barrier if mask != 0 => {
                    if let Some(pause) = self.barrier(warp, instruction, mask, arrived)? {
                        return Ok(pause);
                    }
                }
                // What synchronizes lanes must be reached by all it names, even if a guard leaves
                // out some; with no lane at all it is not reached.
                _ if mask == 0 => {}
                Action::Trap => return Err(Fault::new(FaultKind::Trap, "trap")),
                Action::Load | Action::Store => self.access(warp, instruction, mask)?,
                Action::Mma => self.mma(warp, instruction, mask)?,
                Action::LoadMatrix => self.load_matrix(warp, instruction, mask)?,
                Action::CopyAsync => self.copy_async(warp, instruction, mask)?,
                Action::CopyCommit => warp.copies.commit(mask),
                Action::CopyWait => self.wait_copies(warp, instruction.immediate, mask),
                Action::Atomic => self.atomic(warp, instruction, mask)?,
                Action::Shuffle => self.shuffle(warp, instruction, mask)?,
                Action::Vote => self.vote(warp, instruction, mask)?,
                Action::Match => self.matching(warp, instruction, mask)?,
                Action::Reduce => self.reduce(warp, instruction, mask)?,
                Action::WarpBarrier => {
                    self.members(warp, instruction.inputs[0], mask, "bar.warp.sync")?;
                }
                Action::Fence => self.fenced = true,
                Action::ActiveMask => self.store_word(warp, instruction.d, &[mask; 32], mask),
                Action::Clock => self.clock(warp, instruction, mask),
                Action::Barrier | Action::Lanes | Action::Nothing => {}
            }
            warp.at += 1;
        }
    }

    fn barrier(
        &mut self,
        warp: &mut Warp,
        instruction: &Instruction,
        mask: u32,
        arrived: &mut [u32; limits::BARRIERS as usize],
    ) -> Result<Option<Pause>, Box<Fault>> {
        if mask != warp.alive && self.launch.checks.divergence {
            let message = format!("lanes {mask:#010x} reach the barrier, of {:#010x}", warp.alive);
            return Err(Fault::new(FaultKind::Divergence, message));
        }
        let lane = mask.trailing_zeros() as usize;
        let number = self.word(warp, instruction.inputs[0])[lane];
        let threads = self.word(warp, instruction.inputs[1])[lane];
        if number >= limits::BARRIERS || !threads.is_multiple_of(32) {
            let message = format!("barrier {number} for {threads} threads does not exist");
            return Err(Fault::new(FaultKind::Divergence, message));
        }
        let mode = self.launch.program.details[instruction.detail as usize].facts.mode;
        if mode == Mode::BarrierArrive {
            arrived[number as usize] += 1;
            return Ok(None);
        }
        let pause = Pause::Barrier { number, threads, instruction: warp.at };
        warp.at += 1;
        Ok(Some(pause))
    }

    fn clock(&mut self, warp: &mut Warp, instruction: &Instruction, mask: u32) {
        // A clock that moves on, and nothing more: it counts this worker's instructions.
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        let ticks = START.get_or_init(Instant::now).elapsed().as_nanos() as u64;
        if instruction.immediate == 0 {
            self.store_word(warp, instruction.d, &[ticks as u32; 32], mask);
        } else {
            self.store_long(warp, instruction.d, &[ticks; 32], mask);
        }
    }
}

/// Lanes in the mask jump, the others go on; if both exist, one side waits.
fn branch(warp: &mut Warp, instruction: &Instruction, mask: u32) {
    let (target, next) = (instruction.immediate, warp.at + 1);
    if mask == warp.mask {
        warp.at = target;
        return;
    }
    if mask == 0 {
        warp.at = next;
        return;
    }
    let meeting = instruction.detail;
    let others = warp.mask & !mask;
    if meeting == NOWHERE {
        // The side that is nearer to an exit runs first: if it exits, nobody misses its lanes.
        let (first, second) = if instruction.inputs[0] == 1 {
            ((next, others), (target, mask))
        } else {
            ((target, mask), (next, others))
        };
        warp.paths.push(Path { at: second.0, mask: second.1, meeting: warp.meeting });
        (warp.at, warp.mask) = first;
        return;
    }
    // Where an enclosing branch already meets there, its path serves for this one too: so a loop
    // with many exits does not pile up paths.
    if meeting != warp.meeting {
        warp.paths.push(Path { at: meeting, mask: warp.mask, meeting: warp.meeting });
    }
    warp.meeting = meeting;
    if target == meeting {
        (warp.at, warp.mask) = (next, others);
    } else if next == meeting {
        (warp.at, warp.mask) = (target, mask);
    } else {
        warp.paths.push(Path { at: next, mask: others, meeting });
        (warp.at, warp.mask) = (target, mask);
    }
}
