//! Shadow memory: for every 4 bytes, which of them are written and who touched them last.
//!
//! The actors are the warps of a block in one barrier interval (shared memory) or the blocks of one
//! launch (global memory). Each actor of each interval has a number of its own, and they grow: a
//! number below the interval's first is of the past, so that nothing is cleared between intervals.
//!
//! A writer word is `number:23 | pending:1 | initialized:4 | bytes:4`, a reader word
//! `number:23 | 0:5 | bytes:4`, where `bytes` are those of the four that the actor touched. A writer
//! without bytes is atomic. [`Actor::many`] stands for several actors of an interval.

use crate::fault::FaultKind;
use crate::lanes::for_each_isa;

/// Numbers stay below this.
pub(crate) const NUMBERS: u32 = 1 << 23;

const NUMBER_SHIFT: u32 = 9;
const PENDING: u32 = 0x100;
const INITIALIZED: u32 = 0xf0;
const BYTES: u32 = 0xf;

/// Who accesses, and what counts as a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Actor {
    /// This actor's number.
    pub(crate) mine: u32,
    /// First number of the interval; larger than all if races are not checked.
    pub(crate) first: u32,
    /// The number that stands for several.
    pub(crate) many: u32,
    /// Writes by numbers below this do not count as initialization.
    pub(crate) floor: u32,
    /// `INITIALIZED` if uninitialized reads are faults, 0 if not.
    need: u32,
}

impl Actor {
    pub(crate) fn new(
        mine: u32,
        (first, many): (u32, u32),
        floor: u32,
        uninitialized: bool,
        races: bool,
    ) -> Actor {
        let first = if races { first } else { u32::MAX };
        let need = if uninitialized { INITIALIZED } else { 0 };
        Actor { mine, first, many, floor, need }
    }

    /// The same actor, who does not look at races.
    pub(crate) fn without_races(self) -> Actor {
        Actor { first: u32::MAX, ..self }
    }

    /// The same actor, who does not look at what is initialized.
    pub(crate) fn without_initialization(self) -> Actor {
        Actor { need: 0, ..self }
    }

    fn is_other(&self, number: u32) -> bool {
        number >= self.first && number != self.mine
    }
}

/// The shadow of consecutive words.
#[derive(Clone, Copy)]
pub(crate) struct Shadow {
    pub(crate) writers: *mut u32,
    pub(crate) readers: *mut u32,
}

/// What is wrong with an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// `UninitializedGlobal`, `GlobalRace` or `PendingCopy`; the caller knows which memory it is.
    pub(crate) kind: FaultKind,
    /// The other actor's number, or `many`.
    pub(crate) other: u32,
    /// Index of the word.
    pub(crate) word: usize,
}

/// Functions over runs of words, for this processor.
#[derive(Clone, Copy)]
pub(crate) struct Runs {
    read: unsafe fn(Shadow, usize, &Actor) -> bool,
    may_write: unsafe fn(Shadow, usize, &Actor) -> bool,
}

impl Runs {
    pub(crate) fn new(isa: crate::lanes::Isa) -> Runs {
        const READ: [unsafe fn(Shadow, usize, &Actor) -> bool; 3] =
            for_each_isa!(read_run(shadow: Shadow, words: usize, actor: &Actor) -> bool);
        const MAY_WRITE: [unsafe fn(Shadow, usize, &Actor) -> bool; 3] =
            for_each_isa!(may_write_run(shadow: Shadow, words: usize, actor: &Actor) -> bool);
        Runs { read: READ[isa as usize], may_write: MAY_WRITE[isa as usize] }
    }
}

impl Shadow {
    /// The shadow from a word on.
    ///
    /// # Safety
    /// The word is within the shadow.
    pub(crate) unsafe fn from(self, word: usize) -> Shadow {
        // SAFETY: the caller's.
        unsafe { Shadow { writers: self.writers.add(word), readers: self.readers.add(word) } }
    }

    /// Notes a read of whole words.
    ///
    /// # Safety
    /// The words are within the shadow; the functions are of this processor.
    #[inline(always)]
    pub(crate) unsafe fn read(
        self,
        runs: &Runs,
        words: usize,
        actor: &Actor,
    ) -> Result<(), Conflict> {
        // SAFETY: the caller's.
        let good = unsafe {
            if words <= 4 { read_run(self, words, actor) } else { (runs.read)(self, words, actor) }
        };
        if good {
            return Ok(());
        }
        for word in 0..words {
            // SAFETY: as above.
            unsafe { self.from(word).explain_read(BYTES, actor, word)? };
        }
        Ok(())
    }

    /// Whether whole words may be written; [`Shadow::write`] notes it.
    ///
    /// # Safety
    /// As [`Shadow::read`].
    #[inline(always)]
    pub(crate) unsafe fn may_write(
        self,
        runs: &Runs,
        words: usize,
        actor: &Actor,
    ) -> Result<(), Conflict> {
        // SAFETY: the caller's.
        let good = unsafe {
            if words <= 4 {
                may_write_run(self, words, actor)
            } else {
                (runs.may_write)(self, words, actor)
            }
        };
        if good {
            return Ok(());
        }
        for word in 0..words {
            // SAFETY: as above.
            unsafe { self.from(word).explain_write(BYTES, actor, word)? };
        }
        Ok(())
    }

    /// Notes that whole words were written.
    ///
    /// # Safety
    /// The words are within the shadow.
    #[inline(always)]
    pub(crate) unsafe fn write(self, words: usize, actor: &Actor) {
        let new = actor.mine << NUMBER_SHIFT | INITIALIZED | BYTES;
        for word in 0..words {
            // SAFETY: the caller's.
            unsafe { *self.writers.add(word) = new };
        }
    }

    /// Notes a read of some bytes of the first word.
    ///
    /// # Safety
    /// The shadow has a word.
    pub(crate) unsafe fn read_bytes(self, bytes: u32, actor: &Actor) -> Result<(), Conflict> {
        // SAFETY: the caller's.
        unsafe {
            self.explain_read(bytes, actor, 0)?;
            let reader = *self.readers;
            let number = reader >> NUMBER_SHIFT;
            *self.readers = if number < actor.first || actor.first == u32::MAX {
                actor.mine << NUMBER_SHIFT | bytes
            } else if number == actor.mine {
                reader | bytes
            } else {
                actor.many << NUMBER_SHIFT | (reader & BYTES) | bytes
            };
        }
        Ok(())
    }

    /// Notes a write of some bytes of the first word.
    ///
    /// # Safety
    /// The shadow has a word.
    pub(crate) unsafe fn write_bytes(self, bytes: u32, actor: &Actor) -> Result<(), Conflict> {
        // SAFETY: the caller's.
        unsafe {
            self.explain_write(bytes, actor, 0)?;
            let writer = *self.writers;
            let number = writer >> NUMBER_SHIFT;
            let old = if number >= actor.floor { writer & INITIALIZED } else { 0 };
            let touched = if number == actor.mine { writer & BYTES } else { 0 };
            *self.writers = actor.mine << NUMBER_SHIFT | old | bytes << 4 | touched | bytes;
        }
        Ok(())
    }

    /// Notes an atomic access of whole words, which may also only read.
    ///
    /// # Safety
    /// The words are within the shadow.
    pub(crate) unsafe fn atomic(
        self,
        words: usize,
        write: bool,
        actor: &Actor,
    ) -> Result<(), Conflict> {
        for word in 0..words {
            // SAFETY: the caller's.
            unsafe {
                let writer = *self.writers.add(word);
                let number = writer >> NUMBER_SHIFT;
                let fault = |kind, other| Err(Conflict { kind, other, word });
                if actor.need != 0 && (writer & INITIALIZED != INITIALIZED || number < actor.floor)
                {
                    return fault(FaultKind::UninitializedGlobal, 0);
                }
                if writer & PENDING != 0 {
                    return fault(FaultKind::PendingCopy, number);
                }
                if actor.is_other(number) && writer & BYTES != 0 {
                    return fault(FaultKind::GlobalRace, number);
                }
                let reader = *self.readers.add(word) >> NUMBER_SHIFT;
                if write && actor.is_other(reader) {
                    return fault(FaultKind::GlobalRace, reader);
                }
                if write {
                    let new = if actor.is_other(number) { actor.many } else { actor.mine };
                    *self.writers.add(word) = new << NUMBER_SHIFT | INITIALIZED;
                }
            }
        }
        Ok(())
    }

    /// Notes that a `cp.async` to these words has begun.
    ///
    /// # Safety
    /// The words are within the shadow.
    pub(crate) unsafe fn begin_copy(self, words: usize, actor: &Actor) {
        for word in 0..words {
            // SAFETY: the caller's.
            unsafe { *self.writers.add(word) = actor.mine << NUMBER_SHIFT | PENDING | BYTES };
        }
    }

    /// # Safety
    /// The shadow has a word.
    unsafe fn explain_read(self, bytes: u32, actor: &Actor, word: usize) -> Result<(), Conflict> {
        // SAFETY: the caller's.
        let writer = unsafe { *self.writers };
        let number = writer >> NUMBER_SHIFT;
        let fault = |kind| Err(Conflict { kind, other: number, word });
        if writer & PENDING != 0 && number >= actor.floor {
            return fault(FaultKind::PendingCopy);
        }
        let missing = bytes << 4 & !writer;
        if actor.need != 0 && (missing != 0 || number < actor.floor) {
            return fault(FaultKind::UninitializedGlobal);
        }
        if actor.is_other(number) && (writer & bytes != 0 || writer & BYTES == 0) {
            return fault(FaultKind::GlobalRace);
        }
        Ok(())
    }

    /// # Safety
    /// The shadow has a word.
    unsafe fn explain_write(self, bytes: u32, actor: &Actor, word: usize) -> Result<(), Conflict> {
        // SAFETY: the caller's.
        let (writer, reader) = unsafe { (*self.writers, *self.readers) };
        let number = writer >> NUMBER_SHIFT;
        if writer & PENDING != 0 && number >= actor.floor {
            return Err(Conflict { kind: FaultKind::PendingCopy, other: number, word });
        }
        if actor.is_other(number) && (writer & bytes != 0 || writer & BYTES == 0) {
            return Err(Conflict { kind: FaultKind::GlobalRace, other: number, word });
        }
        let number = reader >> NUMBER_SHIFT;
        if actor.is_other(number) && reader & bytes != 0 {
            return Err(Conflict { kind: FaultKind::GlobalRace, other: number, word });
        }
        Ok(())
    }
}

/// Notes reads; false if one of them may be a fault.
///
/// # Safety
/// The words are within the shadow.
#[inline(always)]
unsafe fn read_run(shadow: Shadow, words: usize, actor: &Actor) -> bool {
    let Actor { mine, first, many, floor, need } = *actor;
    let (mine_read, many_read) = (mine << NUMBER_SHIFT | BYTES, many << NUMBER_SHIFT | BYTES);
    let mut bad = 0u32;
    for word in 0..words {
        // SAFETY: the caller's.
        let (writer, reader) = unsafe { (*shadow.writers.add(word), *shadow.readers.add(word)) };
        let number = writer >> NUMBER_SHIFT;
        bad |= writer & need ^ need;
        bad |= writer & PENDING;
        bad |= u32::from(number < floor);
        bad |= u32::from((number >= first) & (number != mine));
        let reader_number = reader >> NUMBER_SHIFT;
        let old = (reader_number < first) | (reader_number == mine);
        // SAFETY: as above.
        unsafe { *shadow.readers.add(word) = if old { mine_read } else { many_read } };
    }
    bad == 0
}

/// False if writing may be a fault.
///
/// # Safety
/// The words are within the shadow.
#[inline(always)]
unsafe fn may_write_run(shadow: Shadow, words: usize, actor: &Actor) -> bool {
    let Actor { mine, first, .. } = *actor;
    let mut bad = 0u32;
    for word in 0..words {
        // SAFETY: the caller's.
        let (writer, reader) = unsafe { (*shadow.writers.add(word), *shadow.readers.add(word)) };
        let (number, reader_number) = (writer >> NUMBER_SHIFT, reader >> NUMBER_SHIFT);
        bad |= writer & PENDING;
        bad |= u32::from((number >= first) & (number != mine));
        bad |= u32::from((reader_number >= first) & (reader_number != mine));
    }
    bad == 0
}

/// The number in a shadow word.
pub(crate) fn number_of(word: u32) -> u32 {
    word >> NUMBER_SHIFT
}

/// Marks bytes as written by the host.
pub(crate) fn initialize(writers: &mut [u32], start: usize, length: usize) {
    for (byte, end) in [(start, start + length)] {
        let mut at = byte;
        while at < end {
            let (word, from) = (at / 4, at % 4);
            let to = (end - word * 4).min(4);
            writers[word] |= (((1 << to) - 1) & !((1 << from) - 1)) << 4;
            at = word * 4 + to;
        }
    }
}

/// Forgets all actors, keeps what is initialized: numbers start again at 1.
pub(crate) fn forget(writers: &mut [u32], readers: &mut [u32]) {
    writers.iter_mut().for_each(|word| *word &= INITIALIZED);
    readers.fill(0);
}
