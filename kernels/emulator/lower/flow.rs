//! The control-flow graph of a kernel, and where the paths of a divergent branch meet again: at the
//! branch's immediate post-dominator (Fung et al. 2007), found as Cooper, Harvey and Kennedy (2001)
//! find dominators, on the reversed graph.

use super::Draft;
use crate::program::{Action, NONE, NOWHERE};

/// Instructions without a branch into or out of their middle.
pub(super) struct Block {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) successors: Vec<usize>,
}

pub(super) struct Graph {
    pub(super) blocks: Vec<Block>,
}

impl Graph {
    pub(super) fn new(drafts: &[Draft]) -> Graph {
        let mut leads = vec![false; drafts.len() + 1];
        leads[0] = true;
        for (at, draft) in drafts.iter().enumerate() {
            match draft.instruction.action {
                Action::Branch => {
                    leads[draft.instruction.immediate as usize] = true;
                    leads[at + 1] = true;
                }
                Action::Exit | Action::Trap => leads[at + 1] = true,
                _ => {}
            }
        }
        let starts: Vec<_> = (0..drafts.len()).filter(|&at| leads[at]).collect();
        let mut block_at = vec![0; drafts.len()];
        for (index, &start) in starts.iter().enumerate() {
            block_at[start] = index;
        }
        let mut blocks = Vec::with_capacity(starts.len());
        for (index, &start) in starts.iter().enumerate() {
            let end = starts.get(index + 1).copied().unwrap_or(drafts.len());
            let last = &drafts[end - 1].instruction;
            let falls = end < drafts.len();
            let guarded = last.guard != NONE;
            let mut successors = Vec::new();
            match last.action {
                Action::Branch => {
                    successors.push(block_at[last.immediate as usize]);
                    if guarded && falls {
                        successors.push(index + 1);
                    }
                }
                Action::Exit | Action::Trap if !guarded => {}
                _ if falls => successors.push(index + 1),
                _ => {}
            }
            blocks.push(Block { start, end, successors });
        }
        Graph { blocks }
    }

    /// Puts into each branch the instruction where its paths meet.
    pub(super) fn set_reconvergence(&self, drafts: &mut [Draft]) {
        let post_dominators = self.post_dominators();
        for (block, &meeting) in self.blocks.iter().zip(&post_dominators) {
            let last = &mut drafts[block.end - 1].instruction;
            if last.action == Action::Branch {
                last.detail = self.blocks.get(meeting).map_or(NOWHERE, |block| block.start as u32);
            }
        }
    }

    /// The immediate post-dominator of each block; the number of blocks stands for the exit.
    fn post_dominators(&self) -> Vec<usize> {
        let exit = self.blocks.len();
        let ends = |block: &Block| block.successors.is_empty();
        let mut predecessors = vec![Vec::new(); exit + 1];
        for (index, block) in self.blocks.iter().enumerate() {
            for &successor in &block.successors {
                predecessors[successor].push(index);
            }
            if ends(block) {
                predecessors[exit].push(index);
            }
        }
        // Postorder of the reversed graph from the exit, without recursion.
        let mut order = Vec::with_capacity(exit + 1);
        let mut number = vec![usize::MAX; exit + 1];
        let mut seen = vec![false; exit + 1];
        let mut stack = vec![(exit, 0)];
        seen[exit] = true;
        while let Some((node, next)) = stack.pop() {
            if let Some(&predecessor) = predecessors[node].get(next) {
                stack.push((node, next + 1));
                if !std::mem::replace(&mut seen[predecessor], true) {
                    stack.push((predecessor, 0));
                }
            } else {
                number[node] = order.len();
                order.push(node);
            }
        }
        // Blocks that never reach the exit (endless loops) keep the exit as theirs.
        let mut dominator = vec![usize::MAX; exit + 1];
        dominator[exit] = exit;
        let mut changed = true;
        while changed {
            changed = false;
            for &node in order.iter().rev().filter(|&&node| node != exit) {
                let block = &self.blocks[node];
                let exits = [exit];
                let successors: &[usize] =
                    if ends(block) { &exits } else { block.successors.as_slice() };
                let mut meeting = usize::MAX;
                for &successor in successors {
                    if dominator[successor] == usize::MAX {
                        continue;
                    }
                    meeting = if meeting == usize::MAX {
                        successor
                    } else {
                        intersect(&dominator, &number, meeting, successor)
                    };
                }
                if dominator[node] != meeting {
                    dominator[node] = meeting;
                    changed = true;
                }
            }
        }
        dominator.truncate(exit);
        dominator.iter().map(|&node| if node == usize::MAX { exit } else { node }).collect()
    }
}

fn intersect(dominator: &[usize], number: &[usize], mut a: usize, mut b: usize) -> usize {
    while a != b {
        while number[a] < number[b] {
            a = dominator[a];
        }
        while number[b] < number[a] {
            b = dominator[b];
        }
    }
    a
}
