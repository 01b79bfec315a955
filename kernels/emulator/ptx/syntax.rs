//! The syntax tree of a PTX module: registers are resolved, opcodes are still text.

use std::collections::HashMap;

use super::token::NumberKind;

#[derive(Debug, Default)]
pub(crate) struct Module {
    /// As written: `8.0`.
    pub(crate) version: String,
    /// As written: `sm_80`.
    pub(crate) target: String,
    pub(crate) files: HashMap<u32, String>,
    pub(crate) kernels: Vec<Kernel>,
    /// `.global` and `.const` variables.
    pub(crate) variables: Vec<Variable>,
    /// `.shared` variables outside kernels; every kernel has them.
    pub(crate) shared: Vec<Variable>,
    /// `.extern .shared` arrays: they all start where the static shared memory ends.
    pub(crate) dynamic_shared: Vec<Variable>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) size: usize,
    pub(crate) align: usize,
    /// Shorter than `size` where the rest is zero.
    pub(crate) initial: Vec<u8>,
    pub(crate) constant: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) registers: Vec<Register>,
    pub(crate) statements: Vec<Statement>,
    /// Label to the index of the statement that follows it.
    pub(crate) labels: HashMap<String, usize>,
    /// `.branchtargets` lists by their label.
    pub(crate) branch_targets: HashMap<String, Vec<String>>,
    pub(crate) shared: Vec<Variable>,
    pub(crate) local: Vec<Variable>,
    /// `.maxntid` and `.reqntid`: threads that a block may have, and must have.
    pub(crate) max_threads: Option<u32>,
    pub(crate) required_threads: Option<[u32; 3]>,
}

#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) offset: usize,
    pub(crate) size: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Register {
    pub(crate) kind: Kind,
}

/// Index into [`Kernel::registers`].
pub(crate) type RegisterId = u32;

#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub(crate) guard: Option<Guard>,
    pub(crate) opcode: String,
    pub(crate) operands: Vec<Operand>,
    /// Line in the PTX text.
    pub(crate) line: u32,
    /// File number and line of the source, from `.loc`.
    pub(crate) source: Option<(u32, u32)>,
    /// Where that line was inlined, if it was.
    pub(crate) inlined_at: Option<(u32, u32)>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    pub(crate) register: RegisterId,
    pub(crate) negated: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    Register(RegisterId),
    /// `%p|%q`, a result and the predicate beside it.
    Pair(RegisterId, RegisterId),
    /// `!%p`.
    Not(RegisterId),
    Immediate(u64, NumberKind),
    /// A variable, special register, label or `_`, with an offset in bytes.
    Symbol(String, i64),
    Vector(Vec<Operand>),
    /// `[base + offset]`.
    Address(Box<Operand>, i64),
}

/// A fundamental type. Packed pairs of halves are their own types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Predicate,
    Bits(u32),
    Unsigned(u32),
    Signed(u32),
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
}

impl Kind {
    /// The type a modifier names, without its dot.
    pub(crate) fn parse(name: &str) -> Option<Kind> {
        Some(match name {
            "pred" => Kind::Predicate,
            "f16" => Kind::F16,
            "f16x2" => Kind::F16x2,
            "bf16" => Kind::Bf16,
            "bf16x2" => Kind::Bf16x2,
            "tf32" => Kind::Tf32,
            "f32" => Kind::F32,
            "f64" => Kind::F64,
            _ => {
                let width = match name.get(1..)? {
                    "8" => 8,
                    "16" => 16,
                    "32" => 32,
                    "64" => 64,
                    "128" => 128,
                    _ => return None,
                };
                match name.as_bytes()[0] {
                    b'b' => Kind::Bits(width),
                    b'u' => Kind::Unsigned(width),
                    b's' => Kind::Signed(width),
                    _ => return None,
                }
            }
        })
    }

    /// Bits of a value; 1 for a predicate.
    pub(crate) fn width(self) -> u32 {
        match self {
            Kind::Predicate => 1,
            Kind::Bits(width) | Kind::Unsigned(width) | Kind::Signed(width) => width,
            Kind::F16 | Kind::Bf16 => 16,
            Kind::F16x2 | Kind::Bf16x2 | Kind::Tf32 | Kind::F32 => 32,
            Kind::F64 => 64,
        }
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Kind::Signed(_))
    }

    pub(crate) fn is_integer(self) -> bool {
        matches!(self, Kind::Bits(_) | Kind::Unsigned(_) | Kind::Signed(_))
    }
}
