//! One host thread's blocks: the memory and warps they use, and the barriers between the warps.

use std::sync::atomic::Ordering;

use super::access::ShadowRuns;
use super::asynchronous::Copies;
use super::{Between, Launch};
use crate::checks::limits;
use crate::counters::Counts;
use crate::fault::{Fault, FaultKind, Place, Report};
use crate::lanes::{Frame, LANES, Longs, Words};
use crate::program::{LaneMask, LongConstant, Mode, NOWHERE, WordConstant};
use crate::shadow::{Actor, NUMBERS, Shadow};

/// A path of a warp's lanes that waits for its turn.
#[derive(Clone, Copy)]
pub(super) struct Path {
    pub(super) at: u32,
    pub(super) mask: u32,
    pub(super) meeting: u32,
}

/// Why a warp stopped running.
pub(super) enum Pause {
    Barrier { number: u32, threads: u32, instruction: u32 },
    Done,
}

enum State {
    Ready,
    Waiting { number: u32, threads: u32, instruction: u32 },
    Done,
}

pub(super) struct Warp {
    words: Vec<Words>,
    longs: Vec<Longs>,
    predicates: Vec<u32>,
    /// 32 lanes, `local_units` each.
    local: Vec<u128>,
    state: State,
    pub(super) number: u32,
    /// The next instruction.
    pub(super) at: u32,
    /// Lanes on the current path.
    pub(super) mask: u32,
    /// Where the current path ends.
    pub(super) meeting: u32,
    pub(super) paths: Vec<Path>,
    /// Lanes that exist and have not exited.
    pub(super) alive: u32,
    pub(super) copies: Copies,
    pub(super) executed: u64,
}

impl Warp {
    fn new(launch: &Launch, number: u32) -> Warp {
        let program = launch.program;
        let poison = 0xdead_beef_u32;
        Warp {
            words: vec![Words([poison; LANES]); program.words],
            longs: vec![Longs([0xdead_beef_dead_beef; LANES]); program.longs],
            predicates: vec![0; program.predicates],
            local: vec![0; program.local_bytes.div_ceil(16) * LANES],
            state: State::Ready,
            number,
            at: 0,
            mask: 0,
            meeting: NOWHERE,
            paths: Vec::new(),
            alive: 0,
            copies: Copies::default(),
            executed: 0,
        }
    }

    pub(super) fn frame(&mut self) -> Frame {
        Frame {
            words: self.words.as_mut_ptr(),
            longs: self.longs.as_mut_ptr(),
            predicates: self.predicates.as_mut_ptr(),
        }
    }

    /// Local memory of each lane, and the bytes between two lanes.
    pub(super) fn local(&mut self) -> (*mut u8, usize) {
        (self.local.as_mut_ptr().cast(), self.local.len() / LANES * 16)
    }

    /// Turns to the next path that has lanes; `false` if the warp is done.
    pub(super) fn next_path(&mut self) -> bool {
        while let Some(path) = self.paths.pop() {
            let mask = path.mask & self.alive;
            if mask != 0 {
                (self.at, self.mask, self.meeting) = (path.at, mask, path.meeting);
                return true;
            }
        }
        false
    }
}

pub(super) struct Worker<'a> {
    pub(super) launch: &'a Launch<'a>,
    pub(super) between: &'a Between,
    pub(super) runs: ShadowRuns,
    pub(super) counts: Counts,
    shared: Vec<u128>,
    pub(super) shared_bytes: usize,
    shared_writers: Vec<u32>,
    shared_readers: Vec<u32>,
    warps: Vec<Warp>,
    /// Their number, also while `run_block` has taken them out.
    warp_count: u32,
    /// Block index in the grid, and as a number.
    pub(super) index: [u32; 3],
    pub(super) block: usize,
    /// Actor numbers of the block's interval: the first warp's; all below `interval_floor` are of
    /// blocks before.
    interval_first: u32,
    interval_floor: u32,
    /// The region that each instruction accessed last.
    pub(super) hints: Vec<u32>,
    /// A fence was executed, and no write after it; when others' releases were last acquired.
    pub(super) fenced: bool,
    pub(super) acquired: u32,
    fault: Option<(usize, Report)>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(launch: &'a Launch<'a>, between: &'a Between) -> Worker<'a> {
        let program = launch.program;
        let shared_bytes = if launch.dynamic_shared == 0 {
            program.static_shared
        } else {
            program.dynamic_base + launch.dynamic_shared
        };
        let units = shared_bytes.div_ceil(16);
        let words = if launch.checks.shadow() { units * 4 } else { 0 };
        let warps = launch.threads_per_block().div_ceil(LANES) as u32;
        let mut worker = Worker {
            launch,
            between,
            runs: ShadowRuns::detect(),
            counts: Counts::new(program.code.len(), launch.regions.len()),
            shared: vec![u128::MAX; units],
            shared_bytes,
            shared_writers: vec![0; words],
            shared_readers: vec![0; words],
            warps: (0..warps).map(|number| Warp::new(launch, number)).collect(),
            warp_count: warps,
            index: [0; 3],
            block: 0,
            interval_first: 1,
            interval_floor: 1,
            hints: vec![0; program.code.len()],
            fenced: false,
            acquired: 0,
            fault: None,
        };
        worker.fill_launch_constants();
        worker
    }

    /// Runs blocks until there are none left, or `most` have run. Whether there may be more.
    pub(super) fn run(&mut self, most: usize) -> bool {
        let blocks = self.launch.blocks() as usize;
        for _ in 0..most {
            let Some(block) = self.between.take(blocks) else { return false };
            if let Err(report) = self.run_block(block) {
                self.fault = Some((block, *report));
                self.between.stop.store(true, Ordering::Relaxed);
                return false;
            }
        }
        true
    }

    pub(super) fn finish(self) -> (Counts, Option<(usize, Report)>) {
        (self.counts, self.fault)
    }

    pub(super) fn shared_pointer(&mut self) -> *mut u8 {
        self.shared.as_mut_ptr().cast()
    }

    /// Shadow of shared memory, if there is one.
    pub(super) fn shared_shadow(&mut self) -> Option<Shadow> {
        (!self.shared_writers.is_empty()).then_some(Shadow {
            writers: self.shared_writers.as_mut_ptr(),
            readers: self.shared_readers.as_mut_ptr(),
        })
    }

    /// The warp as an actor in shared memory.
    pub(super) fn shared_actor(&self, warp: u32) -> Actor {
        let checks = &self.launch.checks;
        let interval = (self.interval_first, self.interval_first + self.warp_count);
        let mine = self.interval_first + warp;
        Actor::new(mine, interval, self.interval_floor, checks.uninitialized, checks.races)
    }

    /// The block as an actor in global memory.
    pub(super) fn global_actor(&self) -> Actor {
        let checks = &self.launch.checks;
        let Some(first) = self.launch.first_number else {
            return Actor::new(0, (u32::MAX, 0), 0, checks.uninitialized, false);
        };
        let interval = (first, first + self.launch.blocks() as u32);
        let mine = first + self.block as u32;
        Actor::new(mine, interval, 0, checks.uninitialized, checks.races)
    }

    /// The warp behind an actor number of shared memory.
    pub(super) fn warp_of(&self, number: u32) -> String {
        let warp = number.wrapping_sub(self.interval_first);
        if warp < self.warp_count { format!("warp {warp}") } else { "other warps".to_owned() }
    }

    /// A new interval: what warps did before it does not race with what they do in it.
    fn next_interval(&mut self) {
        let actors = self.warp_count + 1;
        self.interval_first += actors;
        if self.interval_first + actors >= NUMBERS {
            crate::shadow::forget(&mut self.shared_writers, &mut self.shared_readers);
            self.interval_first = 1;
            self.interval_floor = 0;
        }
    }

    fn run_block(&mut self, block: usize) -> Result<(), Box<Report>> {
        let [x, y, _] = self.launch.grid.map(|size| size as usize);
        self.block = block;
        self.index = [(block % x) as u32, (block / x % y) as u32, (block / (x * y)) as u32];
        (self.fenced, self.acquired) = (false, 0);
        if self.interval_floor == 0 {
            self.shared_writers.fill(0);
        }
        self.next_interval();
        self.interval_floor = self.interval_first;
        self.counts.blocks += 1;
        let threads = self.launch.threads_per_block();
        let mut warps = std::mem::take(&mut self.warps);
        for (number, warp) in warps.iter_mut().enumerate() {
            let lanes = (threads - number * LANES).min(LANES);
            warp.alive = if lanes == LANES { u32::MAX } else { (1 << lanes) - 1 };
            (warp.at, warp.mask, warp.meeting) = (0, warp.alive, NOWHERE);
            (warp.state, warp.executed) = (State::Ready, 0);
            warp.paths.clear();
            warp.copies.clear();
            self.fill_block_constants(warp);
        }
        let result = self.run_warps(&mut warps);
        self.warps = warps;
        result
    }

    fn run_warps(&mut self, warps: &mut [Warp]) -> Result<(), Box<Report>> {
        let mut arrived = [0u32; limits::BARRIERS as usize];
        loop {
            let mut running = false;
            for warp in warps.iter_mut() {
                if !matches!(warp.state, State::Ready) {
                    continue;
                }
                running = true;
                let pause =
                    self.run_warp(warp, &mut arrived).map_err(|fault| self.report(warp, *fault))?;
                warp.state = match pause {
                    Pause::Done => State::Done,
                    Pause::Barrier { number, threads, instruction } => {
                        State::Waiting { number, threads, instruction }
                    }
                };
            }
            if warps.iter().all(|warp| matches!(warp.state, State::Done)) {
                return Ok(());
            }
            let opened = self.open_barriers(warps, &mut arrived)?;
            if !opened && !running {
                let waiting = warps.iter().find(|warp| matches!(warp.state, State::Waiting { .. }));
                let fault = Fault::new(
                    FaultKind::Deadlock,
                    "warps wait at barriers that the others never reach",
                );
                return match waiting {
                    Some(warp) => Err(self.report(warp, *fault)),
                    None => Ok(()),
                };
            }
        }
    }

    /// Opens every barrier that all its warps have reached. Whether one was opened.
    fn open_barriers(
        &mut self,
        warps: &mut [Warp],
        arrived: &mut [u32; limits::BARRIERS as usize],
    ) -> Result<bool, Box<Report>> {
        let mut opened = false;
        for barrier in 0..limits::BARRIERS {
            let waits = |warp: &Warp| match warp.state {
                State::Waiting { number, threads, instruction } if number == barrier => {
                    Some((threads, instruction))
                }
                _ => None,
            };
            let waiting: Vec<usize> =
                (0..warps.len()).filter(|&index| waits(&warps[index]).is_some()).collect();
            let Some(&first) = waiting.first() else { continue };
            let (threads, instruction) = waits(&warps[first]).unwrap_or((0, 0));
            let gone = warps.iter().filter(|warp| matches!(warp.state, State::Done)).count();
            let present = waiting.len() + arrived[barrier as usize] as usize;
            let complete = if threads == 0 {
                present + gone >= warps.len()
            } else {
                present * LANES >= threads as usize
            };
            if !complete {
                continue;
            }
            if self.launch.checks.divergence {
                let other = waiting
                    .iter()
                    .copied()
                    .find(|&index| waits(&warps[index]).is_some_and(|(_, at)| at != instruction));
                if let (Some(other), 0) = (other, threads) {
                    let at = waits(&warps[other]).map_or(0, |(_, at)| at) as usize;
                    let line = self.launch.program.origins[at].line;
                    let message = format!("another warp waits at another barrier, PTX line {line}");
                    let fault = Fault::new(FaultKind::Divergence, message);
                    return Err(self.report(&warps[first], *fault));
                }
                if threads == 0 && gone > 0 {
                    let message = format!("{gone} warps have exited and never reach the barrier");
                    let fault = Fault::new(FaultKind::Divergence, message);
                    return Err(self.report(&warps[first], *fault));
                }
            }
            self.reduce_barrier(warps, &waiting, instruction);
            for index in waiting {
                warps[index].state = State::Ready;
            }
            arrived[barrier as usize] = 0;
            opened = true;
        }
        if opened {
            self.counts.barriers += 1;
            self.next_interval();
        }
        Ok(opened)
    }

    /// `bar.red`: gives the reduction over all waiting warps to each of them.
    fn reduce_barrier(&mut self, warps: &mut [Warp], waiting: &[usize], instruction: u32) {
        let program = self.launch.program;
        let code = &program.code[instruction as usize];
        let detail = &program.details[code.detail as usize];
        let ([input], [output]) = (detail.inputs.as_slice(), detail.outputs.as_slice()) else {
            return;
        };
        let (mut count, mut all, mut any) = (0, true, false);
        for &index in waiting {
            let alive = warps[index].alive;
            let value = warps[index].predicates[input.slot as usize] & alive;
            count += value.count_ones();
            all &= value == alive;
            any |= value != 0;
        }
        for &index in waiting {
            let warp = &mut warps[index];
            let alive = warp.alive;
            let set = |predicate: &mut u32, value: bool| {
                *predicate = (*predicate & !alive) | if value { alive } else { 0 };
            };
            match detail.facts.mode {
                Mode::BarrierPopc => warp.words[output.slot as usize].0 = [count; LANES],
                Mode::BarrierAnd => set(&mut warp.predicates[output.slot as usize], all),
                _ => set(&mut warp.predicates[output.slot as usize], any),
            }
        }
    }

    fn report(&self, warp: &Warp, fault: Fault) -> Box<Report> {
        // A warp that waits has already stepped past its barrier.
        let at = match warp.state {
            State::Waiting { instruction, .. } => instruction,
            _ => warp.at,
        };
        let origin = &self.launch.program.origins[at as usize];
        let source = origin.source.map(|(file, line)| {
            let unknown = || format!("file {file}");
            (self.launch.files.get(&file).cloned().unwrap_or_else(unknown), line)
        });
        Box::new(Report {
            kind: fault.kind,
            message: fault.message,
            kernel: self.launch.program.name.clone(),
            place: Some(Box::new(Place {
                block: self.index,
                warp: warp.number,
                lane: fault.lane,
                source,
                ptx_line: origin.line,
                opcode: origin.opcode.clone(),
            })),
        })
    }

    /// What stays the same for all blocks.
    fn fill_launch_constants(&mut self) {
        let launch = self.launch;
        let [x, y, _] = launch.block;
        for warp in &mut self.warps {
            for &(slot, constant) in &launch.program.word_constants {
                let value = |lane: usize| -> u32 {
                    let thread = warp.number * LANES as u32 + lane as u32;
                    match constant {
                        WordConstant::Immediate(value) => value,
                        WordConstant::ThreadIndex(0) => thread % x,
                        WordConstant::ThreadIndex(1) => thread / x % y,
                        WordConstant::ThreadIndex(_) => thread / (x * y),
                        WordConstant::BlockSize(axis) => launch.block[axis as usize],
                        WordConstant::GridSize(axis) => launch.grid[axis as usize],
                        WordConstant::BlockIndex(_) => 0,
                        WordConstant::Lane => lane as u32,
                        WordConstant::Warp => warp.number,
                        WordConstant::WarpsPerBlock => {
                            launch.threads_per_block().div_ceil(LANES) as u32
                        }
                        WordConstant::LaneMask(mask) => lane_mask(mask, lane),
                        WordConstant::DynamicSharedSize => launch.dynamic_shared as u32,
                        WordConstant::TotalSharedSize => self.shared_bytes as u32,
                        WordConstant::Parameter { offset, bytes, signed } => {
                            parameter(launch.arguments, offset, bytes, signed) as u32
                        }
                    }
                };
                warp.words[slot as usize].0 = std::array::from_fn(value);
            }
            for &(slot, constant) in &launch.program.long_constants {
                let value = match constant {
                    LongConstant::Immediate(value) => value,
                    LongConstant::Parameter { offset, bytes, signed } => {
                        parameter(launch.arguments, offset, bytes, signed)
                    }
                    LongConstant::Variable(index, offset) => {
                        launch.variables[index as usize].wrapping_add(offset as u64)
                    }
                };
                warp.longs[slot as usize].0 = [value; LANES];
            }
        }
    }

    fn fill_block_constants(&self, warp: &mut Warp) {
        for &(slot, constant) in &self.launch.program.word_constants {
            if let WordConstant::BlockIndex(axis) = constant {
                warp.words[slot as usize].0 = [self.index[axis as usize]; LANES];
            }
        }
    }
}

fn lane_mask(mask: LaneMask, lane: usize) -> u32 {
    let equal = 1u32 << lane;
    let less = equal - 1;
    match mask {
        LaneMask::Equal => equal,
        LaneMask::Less => less,
        LaneMask::LessEqual => less | equal,
        LaneMask::Greater => !(less | equal),
        LaneMask::GreaterEqual => !less,
    }
}

/// Bytes of the arguments, extended to 64 bits.
fn parameter(arguments: &[u8], offset: u32, bytes: u8, signed: bool) -> u64 {
    let mut raw = [0; 8];
    let (offset, bytes) = (offset as usize, bytes as usize);
    raw[..bytes].copy_from_slice(&arguments[offset..offset + bytes]);
    let value = u64::from_le_bytes(raw);
    let unused = 64 - 8 * bytes as u32;
    if signed { (((value << unused) as i64) >> unused) as u64 } else { value }
}
