//! The control-flow graph of a kernel, and where the paths of a divergent branch meet again: at the
//! branch's immediate post-dominator (Fung et al. 2007), found as Cooper, Harvey and Kennedy (2001)
//! find dominators, on the reversed graph.
//!
//! Lanes that exit wait for nobody and nobody waits for them, so a branch to a bare exit does not count
//! as a path, and a common exit is no place to meet: lanes that only exit do so first, and the rest
//! goes on together. ptxas makes predicated exits of these.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Draft;
use crate::program::{Action, NONE, NOWHERE};

/// Instructions without a branch into or out of their middle.
pub(super) struct Block {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) successors: Vec<usize>,
    /// Nothing but an exit.
    bare_exit: bool,
    cost: u64,
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
            let bare_exit = matches!(last.action, Action::Exit)
                && !guarded
                && drafts[start..end].iter().all(|draft| {
                    matches!(draft.instruction.action, Action::Exit | Action::Nothing)
                });
            let cost = drafts[start..end].iter().map(cost).sum();
            blocks.push(Block { start, end, successors, bare_exit, cost });
        }
        Graph { blocks }
    }

    /// Puts into each branch the instruction where its paths meet; where they never do, which side is
    /// nearer to an exit, to run first (in `inputs[0]`: 1 if it is the one that does not jump).
    pub(super) fn set_reconvergence(&self, drafts: &mut [Draft]) {
        let (post_dominators, distances) = (self.post_dominators(), self.distances());
        for (index, (block, &meeting)) in self.blocks.iter().zip(&post_dominators).enumerate() {
            let last = &mut drafts[block.end - 1].instruction;
            if last.action != Action::Branch {
                continue;
            }
            let meeting = self.blocks.get(meeting).filter(|block| !block.bare_exit);
            last.detail = meeting.map_or(NOWHERE, |block| block.start as u32);
            if let [target, next] = block.successors[..] {
                debug_assert_eq!(next, index + 1, "the second successor follows");
                last.inputs[0] = u16::from(distances[next] < distances[target]);
            }
        }
    }

    /// What each block has to execute until an exit, at least: instructions, and before all those that
    /// other lanes take part in (Dijkstra 1959).
    fn distances(&self) -> Vec<u64> {
        let mut distances = vec![u64::MAX; self.blocks.len()];
        let mut predecessors = vec![Vec::new(); self.blocks.len()];
        let mut queue = BinaryHeap::new();
        for (index, block) in self.blocks.iter().enumerate() {
            block.successors.iter().for_each(|&successor| predecessors[successor].push(index));
            if block.successors.is_empty() {
                queue.push(Reverse((block.cost, index)));
            }
        }
        while let Some(Reverse((distance, block))) = queue.pop() {
            if distance < distances[block] {
                distances[block] = distance;
                for &before in &predecessors[block] {
                    queue.push(Reverse((distance + self.blocks[before].cost, before)));
                }
            }
        }
        distances
    }

    /// Successors without bare exits, unless only they lead out of here.
    fn paths(&self) -> Vec<Vec<usize>> {
        let is_path = |&&successor: &&usize| !self.blocks[successor].bare_exit;
        let mut paths: Vec<Vec<usize>> = self
            .blocks
            .iter()
            .map(|block| block.successors.iter().filter(is_path).copied().collect())
            .collect();
        loop {
            // Blocks that reach an end by these paths; loops whose only way out is an exit do not.
            let mut reaches: Vec<bool> =
                self.blocks.iter().map(|b| b.successors.is_empty()).collect();
            let mut changed = true;
            while changed {
                changed = false;
                for (index, paths) in paths.iter().enumerate().rev() {
                    if !reaches[index] && paths.iter().any(|&successor| reaches[successor]) {
                        reaches[index] = true;
                        changed = true;
                    }
                }
            }
            let mut restored = false;
            for (index, block) in self.blocks.iter().enumerate() {
                if !reaches[index] && paths[index].len() != block.successors.len() {
                    paths[index] = block.successors.clone();
                    restored = true;
                }
            }
            if !restored {
                return paths;
            }
        }
    }

    /// The immediate post-dominator of each block; the number of blocks stands for the exit.
    fn post_dominators(&self) -> Vec<usize> {
        let exit = self.blocks.len();
        let mut paths = self.paths();
        paths.iter_mut().filter(|paths| paths.is_empty()).for_each(|paths| paths.push(exit));
        let mut predecessors = vec![Vec::new(); exit + 1];
        for (index, paths) in paths.iter().enumerate() {
            paths.iter().for_each(|&successor| predecessors[successor].push(index));
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
                let mut meeting = usize::MAX;
                for &successor in &paths[node] {
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

/// One for an instruction, more than any kernel has for one that other lanes take part in.
fn cost(draft: &Draft) -> u64 {
    match draft.instruction.action {
        Action::Barrier
        | Action::WarpBarrier
        | Action::Shuffle
        | Action::Vote
        | Action::Match
        | Action::Reduce
        | Action::Mma
        | Action::LoadMatrix => 1 << 32,
        _ => 1,
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
