//! A kernel as it is executed: compact instructions over register slots.

use crate::lanes::{Class, Frame, LaneFunction};

/// No slot, no guard.
pub(crate) const NONE: u16 = u16::MAX;
/// No instruction: a branch whose paths never meet again.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// One instruction. What does not fit lies in [`Program::details`].
#[derive(Clone, Copy)]
pub(crate) struct Instruction {
    /// For [`Action::Lanes`].
    pub(crate) function: LaneFunction,
    pub(crate) inputs: [u16; 4],
    pub(crate) d: u16,
    /// Predicate slot that decides which lanes take part, or [`NONE`].
    pub(crate) guard: u16,
    pub(crate) guard_negated: bool,
    pub(crate) action: Action,
    pub(crate) category: Category,
    /// Branch target, or the number of groups a wait leaves.
    pub(crate) immediate: u32,
    /// Index into the details; where a branch's paths meet again.
    pub(crate) detail: u32,
}

impl Instruction {
    /// Does nothing; the start of every other instruction.
    pub(crate) fn nothing() -> Instruction {
        unsafe fn nothing(_: &Frame, _: &Instruction, _: u32) {}
        Instruction {
            function: nothing,
            inputs: [0; 4],
            d: 0,
            guard: NONE,
            guard_negated: false,
            action: Action::Nothing,
            category: Category::Free,
            immediate: 0,
            detail: 0,
        }
    }
}

/// What the execution loop does with an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Lanes,
    Branch,
    Exit,
    Trap,
    Nothing,
    Barrier,
    WarpBarrier,
    Fence,
    Load,
    Store,
    Atomic,
    LoadMatrix,
    Mma,
    CopyAsync,
    CopyCommit,
    CopyWait,
    Shuffle,
    Vote,
    Match,
    Reduce,
    ActiveMask,
    Clock,
}

/// Classes that instructions are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Category {
    /// Made by lowering, as a processor would not execute it: not counted.
    Free,
    /// Integer arithmetic, shifts and bit fields.
    Integer,
    /// f32 addition, multiplication, fused multiply-add, minimum and maximum.
    Float,
    /// bf16 and f16 arithmetic.
    Half,
    /// f64 arithmetic.
    Double,
    /// Reciprocals, roots, exponentials and the like; a division counts once.
    Special,
    /// Conversions that involve a float, or 64 bits.
    Convert,
    /// Moves, selects and packing: many of them vanish in ptxas.
    Move,
    /// Comparisons and predicate logic.
    Predicate,
    /// Matrix multiply-accumulate.
    Mma,
    /// `ldmatrix`.
    LoadMatrix,
    /// Loads from shared memory.
    SharedLoad,
    /// Stores to shared memory.
    SharedStore,
    /// Loads from global memory.
    GlobalLoad,
    /// Stores to global memory.
    GlobalStore,
    /// Loads and stores of local memory: spills and indexed arrays.
    Local,
    /// Loads of parameters and constants.
    Constant,
    /// Atomics and reductions.
    Atomic,
    /// `cp.async`.
    CopyAsync,
    /// Commits of and waits for `cp.async`.
    CopyWait,
    /// Shuffles, votes, matches and `redux`.
    Exchange,
    /// Barriers of a block.
    Barrier,
    /// Branches, exits, fences and warp barriers.
    Control,
}

impl Category {
    /// How many there are.
    pub const COUNT: usize = Category::Control as usize + 1;

    /// All of them, in the order of their numbers.
    pub const ALL: [Category; Category::COUNT] = [
        Category::Free,
        Category::Integer,
        Category::Float,
        Category::Half,
        Category::Double,
        Category::Special,
        Category::Convert,
        Category::Move,
        Category::Predicate,
        Category::Mma,
        Category::LoadMatrix,
        Category::SharedLoad,
        Category::SharedStore,
        Category::GlobalLoad,
        Category::GlobalStore,
        Category::Local,
        Category::Constant,
        Category::Atomic,
        Category::CopyAsync,
        Category::CopyWait,
        Category::Exchange,
        Category::Barrier,
        Category::Control,
    ];
}

/// A register: its class, its declared bits and its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register {
    pub(crate) class: Class,
    pub(crate) width: u8,
    pub(crate) slot: u16,
}

/// Registers and facts that do not fit into an [`Instruction`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Detail {
    pub(crate) outputs: Vec<Register>,
    pub(crate) inputs: Vec<Register>,
    pub(crate) facts: Facts,
}

/// The facts; which of them mean something depends on the action.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) space: Space,
    /// The address is a 32-bit register.
    pub(crate) short_address: bool,
    pub(crate) offset: i64,
    /// Bytes of an element, and how many follow each other.
    pub(crate) element: u8,
    pub(crate) count: u8,
    /// Sign-extends what is loaded; compares signed.
    pub(crate) signed: bool,
    /// volatile, relaxed, acquire, release: ordered by the memory model, so not a race.
    pub(crate) strong: bool,
    /// `ldmatrix.trans`.
    pub(crate) transposed: bool,
    pub(crate) mode: Mode,
}

/// Variants of atomics, shuffles, votes, barriers and matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    #[default]
    None,
    Add,
    AddF32,
    AddF64,
    AddBf16x2,
    AddF16x2,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
    Increment,
    Decrement,
    ShuffleUp,
    ShuffleDown,
    ShuffleXor,
    ShuffleIndex,
    VoteAll,
    VoteAny,
    VoteUniform,
    VoteBallot,
    MatchAny,
    MatchAll,
    BarrierSync,
    BarrierArrive,
    BarrierPopc,
    BarrierAnd,
    BarrierOr,
    MmaBf16,
    MmaF16,
    MmaTf32,
}

/// State spaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Space {
    #[default]
    Generic,
    Global,
    Shared,
    Local,
    Parameter,
}

/// What a constant 32-bit slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum WordConstant {
    Immediate(u32),
    ThreadIndex(u8),
    BlockSize(u8),
    BlockIndex(u8),
    GridSize(u8),
    Lane,
    Warp,
    WarpsPerBlock,
    LaneMask(LaneMask),
    DynamicSharedSize,
    TotalSharedSize,
    Parameter { offset: u32, bytes: u8, signed: bool },
}

/// `%lanemask_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LaneMask {
    Equal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

/// What a constant 64-bit slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LongConstant {
    Immediate(u64),
    Parameter {
        offset: u32,
        bytes: u8,
        signed: bool,
    },
    /// A module's variable by its index, and an offset.
    Variable(u32, i64),
}

/// Where an instruction came from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) line: u32,
    pub(crate) source: Option<(u32, u32)>,
    pub(crate) opcode: String,
}

/// A kernel, ready to run.
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) code: Vec<Instruction>,
    pub(crate) details: Vec<Detail>,
    /// One per instruction.
    pub(crate) origins: Vec<Origin>,
    pub(crate) words: usize,
    pub(crate) longs: usize,
    pub(crate) predicates: usize,
    pub(crate) word_constants: Vec<(u16, WordConstant)>,
    pub(crate) long_constants: Vec<(u16, LongConstant)>,
    /// Offset and size of each parameter.
    pub(crate) parameters: Vec<(usize, usize)>,
    pub(crate) parameter_bytes: usize,
    pub(crate) static_shared: usize,
    /// Where dynamic shared memory starts.
    pub(crate) dynamic_base: usize,
    pub(crate) local_bytes: usize,
    pub(crate) max_threads: Option<u32>,
    pub(crate) required_threads: Option<[u32; 3]>,
}
