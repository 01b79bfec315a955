//! Loads and stores: addresses are checked, then shadow memory, then the bytes move.
//!
//! A warp's access is handled at once where it can be: all lanes in one allocation, one after the
//! other without gaps, so that bounds are two comparisons and the shadow a run of words.

use super::block::{Warp, Worker};
use super::transfer::transfer;
use super::windows;
use crate::counters;
use crate::fault::{Fault, FaultKind};
use crate::lanes::{ALL_LANES, Isa, LANES, Slot, W};
use crate::memory::Region;
use crate::program::{Action, Detail, Instruction, Space};
use crate::shadow::{Actor, Conflict, Runs, Shadow};

/// Functions over runs of shadow words, for this processor.
pub(super) struct ShadowRuns(Runs);

impl ShadowRuns {
    pub(super) fn detect() -> ShadowRuns {
        ShadowRuns(Runs::new(Isa::detect()))
    }
}

/// Where each lane's bytes are on the host.
pub(super) type Pointers = [*mut u8; LANES];

/// Lanes of a mask.
pub(super) fn lanes_of(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        let lane = rest.trailing_zeros() as usize;
        (rest != 0).then(|| {
            rest &= rest - 1;
            lane
        })
    })
}

/// What an access does to shadow memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    /// Ordered by the memory model: only races with what is not.
    StrongRead,
    StrongWrite,
}

impl Worker<'_> {
    /// A 32-bit register of all lanes.
    pub(super) fn word(&self, warp: &mut Warp, slot: u16) -> [u32; LANES] {
        // SAFETY: lowering keeps slots below `Program::words`, which `Warp::new` allocates.
        unsafe { (*warp.frame().words.add(slot as usize)).0 }
    }

    /// A 64-bit register of all lanes.
    pub(super) fn long(&self, warp: &mut Warp, slot: u16) -> [u64; LANES] {
        // SAFETY: lowering keeps slots below `Program::longs`, which `Warp::new` allocates.
        unsafe { (*warp.frame().longs.add(slot as usize)).0 }
    }

    pub(super) fn store_word(&self, warp: &mut Warp, slot: u16, values: &[u32; LANES], mask: u32) {
        // SAFETY: as `word`.
        unsafe { W::store(&warp.frame(), slot, values, mask) };
    }

    pub(super) fn store_long(&self, warp: &mut Warp, slot: u16, values: &[u64; LANES], mask: u32) {
        // SAFETY: as `long`.
        unsafe { crate::lanes::D::store(&warp.frame(), slot, values, mask) };
    }

    pub(super) fn predicate(&self, warp: &mut Warp, slot: u16) -> u32 {
        // SAFETY: lowering keeps slots below `Program::predicates`, which `Warp::new` allocates.
        unsafe { *warp.frame().predicates.add(slot as usize) }
    }

    pub(super) fn store_predicate(&self, warp: &mut Warp, slot: u16, bits: u32, mask: u32) {
        // SAFETY: as `predicate`.
        let out = unsafe { &mut *warp.frame().predicates.add(slot as usize) };
        *out = (*out & !mask) | (bits & mask);
    }

    /// The address of each lane. Lanes that do not take part get the first one's that does.
    pub(super) fn addresses(
        &self,
        warp: &mut Warp,
        slot: u16,
        (short, offset): (bool, i64),
        mask: u32,
    ) -> [u64; LANES] {
        let mut addresses = if short {
            self.word(warp, slot).map(|base| u64::from(base.wrapping_add(offset as u32)))
        } else {
            self.long(warp, slot).map(|base| base.wrapping_add(offset as u64))
        };
        if mask != ALL_LANES {
            let first = addresses[mask.trailing_zeros() as usize & 31];
            for (lane, address) in addresses.iter_mut().enumerate() {
                *address = if mask >> lane & 1 != 0 { *address } else { first };
            }
        }
        addresses
    }

    pub(super) fn access(
        &mut self,
        warp: &mut Warp,
        instruction: &Instruction,
        mask: u32,
    ) -> Result<(), Box<Fault>> {
        let launch = self.launch;
        let detail = &launch.program.details[instruction.detail as usize];
        let facts = &detail.facts;
        let place = (facts.short_address, facts.offset);
        let addresses = self.addresses(warp, instruction.inputs[0], place, mask);
        let store = instruction.action == Action::Store;
        if facts.space != Space::Generic {
            return self.access_space(warp, detail, facts.space, &addresses, mask, store);
        }
        // Generic addresses: each window's lanes by themselves.
        let within = |start: u64| {
            let inside = |lane: &usize| addresses[*lane].wrapping_sub(start) < windows::SIZE;
            lanes_of(mask).filter(inside).fold(0u32, |lanes, lane| lanes | 1 << lane)
        };
        let (shared, local) = (within(windows::SHARED), within(windows::LOCAL));
        for (space, start, lanes) in [
            (Space::Global, 0, mask & !shared & !local),
            (Space::Shared, windows::SHARED, shared),
            (Space::Local, windows::LOCAL, local),
        ] {
            if lanes != 0 {
                let first = addresses[lanes.trailing_zeros() as usize] - start;
                let addresses: [u64; LANES] = std::array::from_fn(|lane| {
                    if lanes >> lane & 1 != 0 { addresses[lane] - start } else { first }
                });
                self.access_space(warp, detail, space, &addresses, lanes, store)?;
            }
        }
        Ok(())
    }

    fn access_space(
        &mut self,
        warp: &mut Warp,
        detail: &Detail,
        space: Space,
        addresses: &[u64; LANES],
        mask: u32,
        store: bool,
    ) -> Result<(), Box<Fault>> {
        let facts = &detail.facts;
        let bytes = facts.element as usize * facts.count as usize;
        let kind = match (store, facts.strong) {
            (false, false) => Kind::Read,
            (true, false) => Kind::Write,
            (false, true) => Kind::StrongRead,
            (true, true) => Kind::StrongWrite,
        };
        match space {
            Space::Global | Space::Generic => {
                self.count_global(addresses, mask, bytes, store);
                let mut rest = mask;
                while rest != 0 {
                    let (region, lanes) = self.region(warp.at, addresses, rest, bytes)?;
                    let contiguous = self.global_shadow(&region, addresses, lanes, bytes, kind)?;
                    // SAFETY: `region` checked that the lanes' bytes are within it.
                    let pointers = std::array::from_fn(|lane| unsafe {
                        let inside = lanes >> lane & 1 != 0;
                        region
                            .data
                            .add(if inside { addresses[lane] - region.start } else { 0 } as usize)
                    });
                    transfer(warp, detail, store, &pointers, lanes, contiguous);
                    rest &= !lanes;
                }
            }
            Space::Shared => {
                if self.launch.checks.counters {
                    let wavefronts = counters::wavefronts(addresses, mask, bytes);
                    self.counts.shared(store, wavefronts);
                }
                let pointers = self.shared_pointers(addresses, mask, bytes)?;
                self.shared_shadow_lanes(warp.number, addresses, mask, bytes, kind)?;
                transfer(warp, detail, store, &pointers, mask, false);
            }
            Space::Local => {
                let (base, stride) = warp.local();
                let limit = self.launch.program.local_bytes as u64;
                for lane in lanes_of(mask) {
                    check(addresses[lane], bytes, limit, lane, "local")?;
                }
                // SAFETY: the addresses are below `local_bytes`, of which each lane has `stride`
                // or fewer; lanes outside the mask have the address of one inside.
                let pointers = std::array::from_fn(|lane| unsafe {
                    base.add(lane * stride + addresses[lane] as usize)
                });
                transfer(warp, detail, store, &pointers, mask, false);
            }
            Space::Parameter => {
                let arguments = self.launch.arguments;
                for lane in lanes_of(mask) {
                    check(addresses[lane], bytes, arguments.len() as u64, lane, "parameter")?;
                }
                // SAFETY: the addresses are within the arguments, as checked; they are only read,
                // as lowering refuses stores to parameters.
                let pointers = std::array::from_fn(|lane| unsafe {
                    arguments.as_ptr().add(addresses[lane] as usize).cast_mut()
                });
                transfer(warp, detail, store, &pointers, mask, false);
            }
        }
        Ok(())
    }

    fn count_global(&mut self, addresses: &[u64; LANES], mask: u32, bytes: usize, store: bool) {
        if self.launch.checks.counters {
            let sectors = counters::sectors(addresses, mask, bytes);
            let requested = u64::from(mask.count_ones()) * bytes as u64;
            self.counts.global(store, sectors, requested);
        }
    }

    /// The allocation that the first lane accesses, and the lanes that access it too.
    pub(super) fn region(
        &mut self,
        at: u32,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
    ) -> Result<(Region, u32), Box<Fault>> {
        let (mut low, mut high, mut misaligned) = (u64::MAX, 0, 0);
        for &address in addresses {
            low = low.min(address);
            high = high.max(address);
            misaligned |= address & (bytes as u64 - 1);
        }
        let regions = self.launch.regions;
        let hint = &mut self.hints[at as usize];
        if let Some(region) = regions.get(*hint as usize)
            && misaligned == 0
            && low >= region.start
            && high < region.end
            && bytes as u64 <= region.end - high
        {
            self.counts.touch(*hint as usize, low, high + bytes as u64);
            return Ok((*region, mask));
        }
        // Lane by lane: a fault, the first access to an allocation, or several allocations.
        let first = mask.trailing_zeros() as usize;
        let address = addresses[first];
        let index = regions.partition_point(|region| region.start <= address);
        let found = index.checked_sub(1).map(|index| (index, regions[index]));
        let Some((index, region)) = found.filter(|(_, region)| address < region.end) else {
            return Err(self.no_region(address, bytes, first));
        };
        *hint = index as u32;
        let mut lanes = 0;
        for lane in lanes_of(mask) {
            let address = addresses[lane];
            if address < region.start || address >= region.end {
                continue;
            }
            if address & (bytes as u64 - 1) != 0 {
                let message = format!("{bytes} bytes at {address:#x}");
                return Err(Fault::at_lane(FaultKind::Misaligned, lane, message));
            }
            if bytes as u64 > region.end - address {
                return Err(self.no_region(address, bytes, lane));
            }
            self.counts.touch(index, address, address + bytes as u64);
            lanes |= 1 << lane;
        }
        Ok((region, lanes))
    }

    #[cold]
    fn no_region(&self, address: u64, bytes: usize, lane: usize) -> Box<Fault> {
        if (self.launch.is_freed)(address) {
            let message = format!("{bytes} bytes at {address:#x}, which was freed");
            return Fault::at_lane(FaultKind::UseAfterFree, lane, message);
        }
        let regions = self.launch.regions;
        let index = regions.partition_point(|region| region.start <= address);
        let near = match index.checked_sub(1).map(|index| regions[index]) {
            Some(region) => format!(
                "{} bytes past the end of the {} bytes at {:#x}",
                (address - region.start + bytes as u64).saturating_sub(region.end - region.start),
                region.end - region.start,
                region.start
            ),
            None => "below every allocation".to_owned(),
        };
        let message = format!("{bytes} bytes at {address:#x}, {near}");
        Fault::at_lane(FaultKind::OutOfBounds, lane, message)
    }

    /// Notes the access in the shadow of global memory. Whether the lanes are all 32, one after the
    /// other.
    pub(super) fn global_shadow(
        &mut self,
        region: &Region,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
        kind: Kind,
    ) -> Result<bool, Box<Fault>> {
        let start = addresses[0];
        let mut gaps = 0;
        for (lane, address) in addresses.iter().enumerate() {
            gaps |= address.wrapping_sub(start) ^ (lane * bytes) as u64;
        }
        let contiguous = mask == ALL_LANES && gaps == 0;
        if region.shadow.writers.is_null() {
            return Ok(contiguous);
        }
        if matches!(kind, Kind::Write | Kind::StrongWrite) {
            self.fenced = false;
        }
        let actor = self.global_actor();
        let strong = matches!(kind, Kind::StrongRead | Kind::StrongWrite);
        // A run of whole words, or each lane by itself.
        if contiguous && start.is_multiple_of(4) && !strong {
            let words = LANES * bytes / 4;
            return self
                .note(region, start, words * 4, actor, kind)
                .map(|()| contiguous)
                .map_err(|conflict| self.global_conflict(region, start, 0, conflict));
        }
        // Lanes side by side are one run, as the rows of a tile are; lanes that read the same address,
        // as all lanes of a broadcast do, are noted once.
        let merge = !strong && bytes >= 4;
        let mut lane = mask.trailing_zeros() as usize;
        while lane < LANES {
            let (first, start) = (lane, addresses[lane]);
            let mut length = bytes;
            lane += 1;
            while lane < LANES {
                let next = addresses[lane];
                let absent = mask >> lane & 1 == 0;
                let same = kind == Kind::Read && next == start && length == bytes;
                if merge && !absent && next == start + length as u64 {
                    length += bytes;
                } else if !absent && !same {
                    break;
                }
                lane += 1;
            }
            self.note(region, start, length, actor, kind).map_err(|conflict| {
                let lane = first + 4 * conflict.word / bytes.max(4);
                self.global_conflict(region, start, lane, conflict)
            })?;
        }
        Ok(contiguous)
    }

    /// Notes an access to bytes of one region. Races that a fence and an atomic order are none.
    fn note(
        &mut self,
        region: &Region,
        address: u64,
        bytes: usize,
        actor: Actor,
        kind: Kind,
    ) -> Result<(), Conflict> {
        let offset = (address - region.start) as usize;
        // SAFETY: the caller found the bytes within the region; its shadow has a word for each 4.
        let shadow = unsafe { region.shadow.from(offset / 4) };
        // SAFETY: as above.
        let result = unsafe { note_words(&self.runs, shadow, offset, bytes, &actor, kind) };
        match result {
            Err(conflict) if conflict.kind == FaultKind::GlobalRace => {
                if !self.is_ordered(conflict.other) {
                    return Err(conflict);
                }
                // Once more without looking at races, word by word, as others may still race.
                let calm = actor.without_races();
                for byte in (0..bytes).step_by(4) {
                    let (offset, bytes) = (offset + byte, bytes.min(4));
                    // SAFETY: as above.
                    let result = unsafe {
                        let shadow = region.shadow.from(offset / 4);
                        match note_words(&self.runs, shadow, offset, bytes, &actor, kind) {
                            Err(other) if self.is_ordered(other.other) => {
                                note_words(&self.runs, shadow, offset, bytes, &calm, kind)
                            }
                            result => result,
                        }
                    };
                    result.map_err(|conflict| Conflict { word: byte / 4, ..conflict })?;
                }
                Ok(())
            }
            result => result,
        }
    }

    /// Whether what the block behind the number wrote is ordered before what this block does now.
    fn is_ordered(&self, number: u32) -> bool {
        let Some(first) = self.launch.first_number else { return false };
        let block = number.wrapping_sub(first) as usize;
        let released = self.between.released.get(block);
        let released = released.map_or(0, |at| at.load(std::sync::atomic::Ordering::Acquire));
        released != 0 && released < self.acquired
    }

    #[cold]
    fn global_conflict(
        &self,
        region: &Region,
        start: u64,
        lane: usize,
        conflict: Conflict,
    ) -> Box<Fault> {
        let address = start + 4 * conflict.word as u64;
        let place = format!(
            "{address:#x} (byte {} of {})",
            address - region.start,
            region.end - region.start
        );
        let kind = conflict.kind;
        let message = if kind == FaultKind::UninitializedGlobal {
            format!("reads {place}, which nothing has written")
        } else {
            let first = self.launch.first_number.unwrap_or(0);
            let block = u64::from(conflict.other.wrapping_sub(first));
            let who = if block < self.launch.blocks() {
                let [x, y, _] = self.launch.grid.map(u64::from);
                format!("block {},{},{}", block % x, block / x % y, block / (x * y))
            } else {
                "other blocks".to_owned()
            };
            format!("touches {place}, as {who} of the same launch did, and nothing orders them")
        };
        Fault::at_lane(kind, lane, message)
    }

    /// Host pointers into shared memory, checked.
    pub(super) fn shared_pointers(
        &mut self,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
    ) -> Result<Pointers, Box<Fault>> {
        let limit = self.shared_bytes as u64;
        let (mut high, mut misaligned) = (0, 0);
        for &address in addresses {
            high = high.max(address);
            misaligned |= address & (bytes as u64 - 1);
        }
        if misaligned != 0 || high >= limit || bytes as u64 > limit - high {
            for lane in lanes_of(mask) {
                check(addresses[lane], bytes, limit, lane, "shared")?;
            }
        }
        let base = self.shared_pointer();
        // SAFETY: lanes outside the mask have the address of one inside, so that all are checked.
        Ok(std::array::from_fn(|lane| unsafe { base.add(addresses[lane] as usize) }))
    }

    /// Notes each lane's access in the shadow of shared memory.
    pub(super) fn shared_shadow_lanes(
        &mut self,
        warp: u32,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
        kind: Kind,
    ) -> Result<(), Box<Fault>> {
        let Some(shadow) = self.shared_shadow() else { return Ok(()) };
        let actor = self.shared_actor(warp);
        for lane in lanes_of(mask) {
            let address = addresses[lane] as usize;
            // SAFETY: the caller checked that the bytes are within shared memory, whose shadow has
            // a word for each 4.
            let result = unsafe {
                note_words(&self.runs, shadow.from(address / 4), address, bytes, &actor, kind)
            };
            if let Err(conflict) = result {
                return Err(self.shared_conflict(addresses[lane], lane, conflict));
            }
        }
        Ok(())
    }

    #[cold]
    pub(super) fn shared_conflict(
        &self,
        address: u64,
        lane: usize,
        conflict: Conflict,
    ) -> Box<Fault> {
        let address = address + 4 * conflict.word as u64;
        let (kind, message) = match conflict.kind {
            FaultKind::UninitializedGlobal => (
                FaultKind::UninitializedShared,
                format!("reads shared byte {address:#x}, which this block has not written"),
            ),
            FaultKind::PendingCopy => (
                FaultKind::PendingCopy,
                format!("uses shared byte {address:#x}, whose cp.async has not been waited for"),
            ),
            _ => {
                let who = self.warp_of(conflict.other);
                let message = format!(
                    "touches shared byte {address:#x}, as {who} did since the last barrier"
                );
                (FaultKind::SharedRace, message)
            }
        };
        Fault::at_lane(kind, lane, message)
    }
}

/// Notes an access of bytes that begin at `offset` in the first word of the shadow.
///
/// # Safety
/// The bytes are within the shadow.
unsafe fn note_words(
    runs: &ShadowRuns,
    shadow: Shadow,
    offset: usize,
    bytes: usize,
    actor: &Actor,
    kind: Kind,
) -> Result<(), Conflict> {
    let words = bytes.div_ceil(4);
    // SAFETY: the caller's.
    unsafe {
        match kind {
            Kind::StrongRead => shadow.atomic(words, false, actor),
            Kind::StrongWrite => {
                // What is written need not have been initialized.
                let calm = actor.without_initialization();
                shadow.atomic(words, true, &calm)
            }
            Kind::Read if bytes >= 4 => shadow.read(&runs.0, words, actor),
            Kind::Write if bytes >= 4 => {
                shadow.may_write(&runs.0, words, actor)?;
                shadow.write(words, actor);
                Ok(())
            }
            Kind::Read => shadow.read_bytes(((1 << bytes) - 1) << (offset % 4), actor),
            Kind::Write => shadow.write_bytes(((1 << bytes) - 1) << (offset % 4), actor),
        }
    }
}

/// Bounds and alignment of one lane.
pub(super) fn check(
    address: u64,
    bytes: usize,
    limit: u64,
    lane: usize,
    space: &str,
) -> Result<(), Box<Fault>> {
    if address & (bytes as u64 - 1) != 0 {
        let message = format!("{bytes} {space} bytes at {address:#x}");
        return Err(Fault::at_lane(FaultKind::Misaligned, lane, message));
    }
    if address.checked_add(bytes as u64).is_none_or(|end| end > limit) {
        let message = format!("{bytes} {space} bytes at {address:#x}, of {limit:#x}");
        return Err(Fault::at_lane(FaultKind::OutOfBounds, lane, message));
    }
    Ok(())
}
