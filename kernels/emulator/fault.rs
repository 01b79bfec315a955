//! What can go wrong: PTX that cannot be loaded, and what the checks find in a running kernel.

use std::fmt;

/// Why a module was refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The text is not PTX, or not the part of it this emulator reads.
    #[error("PTX line {line}: {message}")]
    Syntax {
        /// Line in the PTX text.
        line: u32,
        /// What is wrong there.
        message: String,
    },
    /// An instruction or one of its modifiers is not emulated.
    #[error("PTX line {line} (kernel {kernel}): `{opcode}`: {message}")]
    Instruction {
        /// Line in the PTX text.
        line: u32,
        /// The kernel it belongs to.
        kernel: String,
        /// The opcode with all its modifiers.
        opcode: String,
        /// What is wrong with it.
        message: String,
    },
    /// A kernel declares more than the device has.
    #[error("kernel {kernel}: {message}")]
    Limits {
        /// The kernel.
        kernel: String,
        /// What is too large.
        message: String,
    },
    /// A kernel launch or an allocation that this device refuses.
    #[error("{0}")]
    Device(String),
}

impl LoadError {
    pub(crate) fn syntax(line: u32, message: impl Into<String>) -> LoadError {
        LoadError::Syntax { line, message: message.into() }
    }

    /// The line of the PTX text, where there is one.
    pub fn line(&self) -> Option<u32> {
        match self {
            LoadError::Syntax { line, .. } | LoadError::Instruction { line, .. } => Some(*line),
            LoadError::Limits { .. } | LoadError::Device(_) => None,
        }
    }
}

/// The kind of a [`Report`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// An access outside every allocation, or outside a block's shared or a lane's local memory.
    OutOfBounds,
    /// An address that is not a multiple of the access's size.
    Misaligned,
    /// An access to memory that was freed.
    UseAfterFree,
    /// A read of global memory that nothing has written.
    UninitializedGlobal,
    /// A read of shared memory that this block has not written.
    UninitializedShared,
    /// Two warps touch shared memory between two barriers, one of them writes.
    SharedRace,
    /// Two blocks of a launch touch global memory, one of them writes, and nothing orders them.
    GlobalRace,
    /// A use of shared memory whose `cp.async` has not been waited for.
    PendingCopy,
    /// `bar`, `mma`, `ldmatrix`, `shfl`, `vote` or their kin without all lanes they need.
    Divergence,
    /// A shuffle that reads a lane which does not take part.
    InactiveLane,
    /// Warps that wait at barriers which will never open.
    Deadlock,
    /// A launch beyond the limits of the device or of the kernel.
    LaunchLimits,
    /// More instructions than [`crate::Checks::instruction_budget`] allows: an endless loop.
    Budget,
    /// The kernel executed `trap`.
    Trap,
    /// The host used memory that queued work may still use: a synchronization is missing.
    MissingSynchronization,
    /// Device memory that was never freed.
    Leak,
    /// A module that cannot be loaded.
    InvalidModule,
}

impl FaultKind {
    /// The driver's error code for a kernel that ends so (`CUresult`).
    pub fn driver_code(self) -> u32 {
        match self {
            FaultKind::OutOfBounds | FaultKind::UseAfterFree => 700,
            FaultKind::Budget => 702,
            FaultKind::Trap => 715,
            FaultKind::Misaligned => 716,
            FaultKind::LaunchLimits => 1,
            FaultKind::InvalidModule => 218,
            _ => 719,
        }
    }
}

/// One finding. `Display` gives it in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What was found.
    pub kind: FaultKind,
    /// What exactly, with addresses and sizes.
    pub message: String,
    /// The kernel; empty if the finding is not a kernel's.
    pub kernel: String,
    /// Where in the kernel; `None` if no instruction is at fault.
    pub place: Option<Box<Place>>,
}

/// The instruction at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Block index in the grid.
    pub block: [u32; 3],
    /// Warp in the block.
    pub warp: u32,
    /// Lane in the warp, where one lane is at fault.
    pub lane: Option<u32>,
    /// Source file and line, where the PTX has line information.
    pub source: Option<(String, u32)>,
    /// Line in the PTX text.
    pub ptx_line: u32,
    /// The opcode.
    pub opcode: String,
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{:?}", self.kind)?;
        if !self.kernel.is_empty() {
            write!(out, " in {}", self.kernel)?;
        }
        if let Some(place) = &self.place {
            if let Some((file, line)) = &place.source {
                write!(out, " at {file}:{line}")?;
            }
            let [x, y, z] = place.block;
            write!(out, " (PTX line {}, {}; block {x},{y},{z}", place.ptx_line, place.opcode)?;
            write!(out, ", warp {}", place.warp)?;
            if let Some(lane) = place.lane {
                write!(out, ", lane {lane}")?;
            }
            write!(out, ")")?;
        }
        write!(out, ": {}", self.message)
    }
}

/// A finding on its way up, before kernel and place are known. Boxed: the way is cold.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    pub(crate) message: String,
    pub(crate) lane: Option<u32>,
}

impl Fault {
    #[cold]
    pub(crate) fn new(kind: FaultKind, message: impl Into<String>) -> Box<Fault> {
        Box::new(Fault { kind, message: message.into(), lane: None })
    }

    #[cold]
    pub(crate) fn at_lane(kind: FaultKind, lane: usize, message: impl Into<String>) -> Box<Fault> {
        Box::new(Fault { kind, message: message.into(), lane: Some(lane as u32) })
    }
}
