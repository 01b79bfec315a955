//! Lets registers that do not live at the same time share a slot: liveness by blocks, then a linear
//! scan over intervals (Poletto and Sarkar 1999), each class by itself.
//!
//! Liveness is that of one lane. Lanes on another path may see a slot reused, but a write touches only
//! the lanes that execute it, so each lane's values stay its own. A guarded write does not end the
//! life of the value before it: lanes that the guard leaves out keep it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::flow::Graph;
use super::{Draft, Lowering};
use crate::lanes::Class;
use crate::program::{Detail, NONE};

const CLASSES: [Class; 3] = [Class::P, Class::W, Class::D];

/// Gives every register its final slot; returns the slots of each class.
pub(super) fn assign(lowering: &mut Lowering, graph: &Graph) -> [usize; 3] {
    let mut sizes = [1; 3];
    for class in CLASSES {
        let constants = constants(lowering, class);
        let (map, used) = map(lowering, graph, class, &constants);
        sizes[class as usize] = used.max(1);
        rename(lowering, class, &map);
    }
    sizes
}

/// Which virtual slots hold constants: these are filled before the kernel starts and live throughout.
fn constants(lowering: &Lowering, class: Class) -> Vec<bool> {
    let mut constants = vec![false; lowering.counts[class as usize]];
    let slots: Vec<u16> = match class {
        Class::P => Vec::new(),
        Class::W => lowering.word_constants.values().copied().collect(),
        Class::D => lowering.long_constants.values().copied().collect(),
    };
    slots.iter().for_each(|&slot| constants[slot as usize] = true);
    constants
}

fn map(lowering: &Lowering, graph: &Graph, class: Class, constants: &[bool]) -> (Vec<u16>, usize) {
    let count = constants.len();
    let words = count.div_ceil(64);
    let mut live_in = vec![vec![0u64; words]; graph.blocks.len()];
    let mut live_out = live_in.clone();
    let (mut uses, mut kills) = (live_in.clone(), live_in.clone());
    let set = |bits: &mut [u64], slot: u16| bits[slot as usize / 64] |= 1 << (slot % 64);
    let has = |bits: &[u64], slot: u16| bits[slot as usize / 64] >> (slot % 64) & 1 != 0;
    for (index, block) in graph.blocks.iter().enumerate() {
        for draft in &lowering.drafts[block.start..block.end] {
            visit(draft, &lowering.details, class, &mut |slot, write| {
                if !write && !has(&kills[index], slot) {
                    set(&mut uses[index], slot);
                }
            });
            if draft.instruction.guard == NONE {
                visit(draft, &lowering.details, class, &mut |slot, write| {
                    if write {
                        set(&mut kills[index], slot);
                    }
                });
            }
        }
    }
    let mut changed = true;
    while changed {
        changed = false;
        for index in (0..graph.blocks.len()).rev() {
            for word in 0..words {
                let mut out = 0;
                for &successor in &graph.blocks[index].successors {
                    out |= live_in[successor][word];
                }
                let into = uses[index][word] | (out & !kills[index][word]);
                changed |= into != live_in[index][word];
                live_out[index][word] = out;
                live_in[index][word] = into;
            }
        }
    }

    // First and last position of each slot; a life across a block covers it whole.
    let mut first = vec![usize::MAX; count];
    let mut last = vec![0; count];
    let mut touch = |slot: usize, at: usize| {
        first[slot] = first[slot].min(at);
        last[slot] = last[slot].max(at);
    };
    for (index, block) in graph.blocks.iter().enumerate() {
        for (bits, at) in [(&live_in[index], block.start), (&live_out[index], block.end)] {
            for (word, &set) in bits.iter().enumerate() {
                let mut rest = set;
                while rest != 0 {
                    touch(word * 64 + rest.trailing_zeros() as usize, at);
                    rest &= rest - 1;
                }
            }
        }
        for at in block.start..block.end {
            visit(&lowering.drafts[at], &lowering.details, class, &mut |slot, _| {
                touch(slot as usize, at);
            });
        }
    }

    let mut order: Vec<usize> =
        (0..count).filter(|&slot| !constants[slot] && first[slot] != usize::MAX).collect();
    order.sort_by_key(|&slot| first[slot]);
    let mut map = vec![0u16; count];
    let mut free = Vec::new();
    let mut active = BinaryHeap::new();
    let mut used = 0usize;
    for slot in order {
        // A slot whose last use is where this one begins stays taken: an instruction with several
        // results may write one before it has read all its operands.
        while let Some(&Reverse((end, place))) = active.peek()
            && end < first[slot]
        {
            active.pop();
            free.push(place);
        }
        let place = free.pop().unwrap_or_else(|| {
            used += 1;
            used - 1
        });
        map[slot] = place as u16;
        active.push(Reverse((last[slot], place)));
    }
    for slot in (0..count).filter(|&slot| constants[slot]) {
        map[slot] = used as u16;
        used += 1;
    }
    (map, used)
}

/// Calls `f` with every slot of the class that the instruction touches, and whether it writes it.
fn visit(draft: &Draft, details: &[Detail], class: Class, f: &mut dyn FnMut(u16, bool)) {
    let instruction = &draft.instruction;
    if class == Class::P && instruction.guard != NONE {
        f(instruction.guard, false);
    }
    for (&slot, &input) in instruction.inputs.iter().zip(draft.inputs) {
        if input == class {
            f(slot, false);
        }
    }
    if draft.output == Some(class) {
        f(instruction.d, true);
    }
    if draft.has_detail {
        let detail = &details[instruction.detail as usize];
        for register in detail.inputs.iter().filter(|register| register.class == class) {
            f(register.slot, false);
        }
        for register in detail.outputs.iter().filter(|register| register.class == class) {
            f(register.slot, true);
        }
    }
}

fn rename(lowering: &mut Lowering, class: Class, map: &[u16]) {
    for draft in &mut lowering.drafts {
        let instruction = &mut draft.instruction;
        if class == Class::P && instruction.guard != NONE {
            instruction.guard = map[instruction.guard as usize];
        }
        for (slot, &input) in instruction.inputs.iter_mut().zip(draft.inputs) {
            if input == class {
                *slot = map[*slot as usize];
            }
        }
        if draft.output == Some(class) {
            instruction.d = map[instruction.d as usize];
        }
        if draft.has_detail {
            let detail = &mut lowering.details[instruction.detail as usize];
            for register in detail.inputs.iter_mut().chain(&mut detail.outputs) {
                if register.class == class {
                    register.slot = map[register.slot as usize];
                }
            }
        }
    }
    match class {
        Class::P => {}
        Class::W => {
            lowering.word_constants.values_mut().for_each(|slot| *slot = map[*slot as usize]);
        }
        Class::D => {
            lowering.long_constants.values_mut().for_each(|slot| *slot = map[*slot as usize]);
        }
    }
}
