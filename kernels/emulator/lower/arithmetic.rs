//! Arithmetic, logic, comparisons, selects and moves.

use super::opcode::Opcode;
use super::{Lowered, Lowering};
use crate::lanes::{Class, Operation, compare, convert, float, half_float, integer, wide};
use crate::program::{Action, Category, Instruction};
use crate::ptx::syntax::{Kind, Operand};

/// Lowers the statement if it is one of these; whether it was.
pub(super) fn lower(
    lowering: &mut Lowering,
    opcode: &mut Opcode,
    operands: &[Operand],
) -> Lowered<bool> {
    match opcode.root {
        "mov" => mov(lowering, opcode, operands)?,
        "setp" => setp(lowering, opcode, operands)?,
        "set" => set(lowering, opcode, operands)?,
        "selp" => selp(lowering, opcode, operands)?,
        "slct" => slct(lowering, opcode, operands)?,
        "testp" => testp(lowering, opcode, operands)?,
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "min" | "max" | "neg" | "abs" | "rem"
        | "sad" | "mul24" | "mad24" | "dp4a" | "copysign" => {
            arithmetic(lowering, opcode, operands)?;
        }
        "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => {
            special(lowering, opcode, operands)?;
        }
        "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "lop3" | "popc" | "clz"
        | "brev" | "bfind" | "bfe" | "bfi" | "bmsk" | "prmt" => bits(lowering, opcode, operands)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn arithmetic(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    let root = opcode.root;
    let part = opcode.one_of(&["lo", "hi", "wide"]);
    let rounding = opcode.one_of(&["rn", "rz", "rm", "rp", "approx", "full"]);
    let (ftz, saturate) = (opcode.flag("ftz"), opcode.flag("sat"));
    let nan = opcode.flag("NaN");
    let kind = opcode.kind()?;
    match kind {
        Kind::F32 => {
            let (operation, category) = single(root, rounding, nan)?;
            float_lanes(lowering, operation, category, ftz, saturate, operands)
        }
        Kind::F64 if !ftz && !saturate && matches!(rounding, None | Some("rn")) => {
            use float::*;
            let operation = match root {
                "add" => &ADD_F64,
                "sub" => &SUB_F64,
                "mul" => &MUL_F64,
                "fma" | "mad" => &FMA_F64,
                "div" => &DIV_F64,
                "min" => &MIN_F64,
                "max" => &MAX_F64,
                "neg" => &NEG_F64,
                "abs" => &ABS_F64,
                "copysign" => &COPYSIGN_F64,
                _ => return Err("not for f64".to_owned()),
            };
            lowering.lanes(operation, Category::Double, operands)
        }
        Kind::Bf16 | Kind::Bf16x2 | Kind::F16 | Kind::F16x2
            if !ftz && !saturate && !nan && matches!(rounding, None | Some("rn")) =>
        {
            lowering.lanes(half(root, kind)?, Category::Half, operands)
        }
        _ if kind.is_integer() && rounding.is_none() && !ftz && !nan => {
            if root == "dp4a" {
                let second = opcode.kind()?;
                if second.is_signed() != kind.is_signed() {
                    return Err("operands of different signs".to_owned());
                }
                let operation = if kind.is_signed() { &integer::DP4A_S } else { &integer::DP4A_U };
                return lowering.lanes(operation, Category::Integer, operands);
            }
            integer_arithmetic(lowering, root, part, saturate, kind, operands)
        }
        _ => Err("type or rounding not supported".to_owned()),
    }
}

fn single(
    root: &str,
    rounding: Option<&str>,
    nan: bool,
) -> Lowered<(&'static Operation, Category)> {
    use float::*;
    let operation = match (root, rounding.unwrap_or("rn")) {
        ("add", "rn") => &ADD,
        ("add", "rz") => &ADD_RZ,
        ("add", "rm") => &ADD_RM,
        ("add", "rp") => &ADD_RP,
        ("sub", "rn") => &SUB,
        ("sub", "rz") => &SUB_RZ,
        ("sub", "rm") => &SUB_RM,
        ("sub", "rp") => &SUB_RP,
        ("mul", "rn") => &MUL,
        ("mul", "rz") => &MUL_RZ,
        ("mul", "rm") => &MUL_RM,
        ("mul", "rp") => &MUL_RP,
        ("fma" | "mad", "rn") => &FMA,
        ("fma" | "mad", "rz") => &FMA_RZ,
        ("fma" | "mad", "rm") => &FMA_RM,
        ("fma" | "mad", "rp") => &FMA_RP,
        ("div", "rn" | "approx" | "full") => return Ok((&DIV, Category::Special)),
        ("min", "rn") if nan => &MIN_NAN,
        ("max", "rn") if nan => &MAX_NAN,
        ("min", "rn") => &MIN,
        ("max", "rn") => &MAX,
        ("neg", "rn") => &NEG,
        ("abs", "rn") => &ABS,
        ("copysign", "rn") => &COPYSIGN,
        _ => return Err("rounding or operation not supported for f32".to_owned()),
    };
    Ok((operation, Category::Float))
}

fn half(root: &str, kind: Kind) -> Lowered<&'static Operation> {
    use half_float::*;
    Ok(match (root, kind) {
        ("add", Kind::Bf16) => &ADD_BF16,
        ("sub", Kind::Bf16) => &SUB_BF16,
        ("mul", Kind::Bf16) => &MUL_BF16,
        ("fma", Kind::Bf16) => &FMA_BF16,
        ("min", Kind::Bf16) => &MIN_BF16,
        ("max", Kind::Bf16) => &MAX_BF16,
        ("add", Kind::Bf16x2) => &ADD_BF16X2,
        ("sub", Kind::Bf16x2) => &SUB_BF16X2,
        ("mul", Kind::Bf16x2) => &MUL_BF16X2,
        ("fma", Kind::Bf16x2) => &FMA_BF16X2,
        ("min", Kind::Bf16x2) => &MIN_BF16X2,
        ("max", Kind::Bf16x2) => &MAX_BF16X2,
        ("add", Kind::F16) => &ADD_F16,
        ("sub", Kind::F16) => &SUB_F16,
        ("mul", Kind::F16) => &MUL_F16,
        ("fma", Kind::F16) => &FMA_F16,
        ("min", Kind::F16) => &MIN_F16,
        ("max", Kind::F16) => &MAX_F16,
        ("add", Kind::F16x2) => &ADD_F16X2,
        ("sub", Kind::F16x2) => &SUB_F16X2,
        ("mul", Kind::F16x2) => &MUL_F16X2,
        ("fma", Kind::F16x2) => &FMA_F16X2,
        ("min", Kind::F16x2) => &MIN_F16X2,
        ("max", Kind::F16x2) => &MAX_F16X2,
        ("neg", Kind::Bf16 | Kind::F16) => &NEG_HALF,
        ("abs", Kind::Bf16 | Kind::F16) => &ABS_HALF,
        ("neg", Kind::Bf16x2 | Kind::F16x2) => &NEG_PAIR,
        ("abs", Kind::Bf16x2 | Kind::F16x2) => &ABS_PAIR,
        _ => return Err("not for 16-bit floats".to_owned()),
    })
}

/// Flushes and saturates around an operation where asked to.
fn float_lanes(
    lowering: &mut Lowering,
    operation: &Operation,
    category: Category,
    ftz: bool,
    saturate: bool,
    operands: &[Operand],
) -> Lowered {
    if !ftz && !saturate {
        return lowering.lanes(operation, category, operands);
    }
    let Some((result, sources)) = operands.split_first() else {
        return Err("operands are missing".to_owned());
    };
    if sources.len() != operation.inputs.len() {
        return Err("wrong number of operands".to_owned());
    }
    let mut slots = Vec::with_capacity(sources.len());
    for (source, &class) in sources.iter().zip(operation.inputs) {
        let slot = lowering.input(source, class)?;
        slots.push(if ftz { lowering.apply_temporary(&float::FLUSH, &[slot]) } else { slot });
    }
    let d = lowering.output(result, Class::W)?;
    let mut value = lowering.temporary(Class::W);
    lowering.apply(operation, category, value, &slots);
    if ftz && saturate {
        value = lowering.apply_temporary(&float::FLUSH, &[value]);
    }
    let last = if saturate { &float::SATURATE } else { &float::FLUSH };
    lowering.apply(last, Category::Free, d, &[value]);
    Ok(())
}

fn integer_arithmetic(
    lowering: &mut Lowering,
    root: &str,
    part: Option<&str>,
    saturate: bool,
    kind: Kind,
    operands: &[Operand],
) -> Lowered {
    use integer as n;
    use wide as l;
    let signed = kind.is_signed();
    let category = match root {
        "div" | "rem" => Category::Special,
        _ => Category::Integer,
    };
    if part == Some("wide") {
        let operation = match (root, kind.width(), signed) {
            ("mul", 32, true) => &l::MUL_WIDE_S,
            ("mul", 32, false) => &l::MUL_WIDE_U,
            ("mad", 32, true) => &l::MAD_WIDE_S,
            ("mad", 32, false) => &l::MAD_WIDE_U,
            ("mul", 16, _) => &n::MUL_LO,
            ("mad", 16, _) => &n::MAD_LO,
            _ => return Err("not supported at this width".to_owned()),
        };
        if kind.width() == 32 {
            return lowering.lanes(operation, category, operands);
        }
        // 16·16 -> 32 bits: the product of the extended operands; c is 32 bits already.
        let [result, sources @ ..] = operands else { return Err("operands are missing".into()) };
        let mut slots = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            slots.push(if index < 2 {
                lowering.narrow(source, kind)?
            } else {
                lowering.word(source)?
            });
        }
        if slots.len() != operation.inputs.len() {
            return Err("wrong number of operands".to_owned());
        }
        let d = lowering.output(result, Class::W)?;
        lowering.apply(operation, category, d, &slots);
        return Ok(());
    }
    let operation = match (root, kind.width() == 64) {
        ("add", false) if saturate && signed => &n::ADD_SAT,
        ("sub", false) if saturate && signed => &n::SUB_SAT,
        _ if saturate => return Err("saturation not supported here".to_owned()),
        ("add", false) => &n::ADD,
        ("sub", false) => &n::SUB,
        ("mul", false) => match (part, signed) {
            (Some("hi"), true) => &n::MUL_HI_S,
            (Some("hi"), false) => &n::MUL_HI_U,
            _ => &n::MUL_LO,
        },
        ("mad", false) => match (part, signed) {
            (Some("hi"), true) => &n::MAD_HI_S,
            (Some("hi"), false) => &n::MAD_HI_U,
            _ => &n::MAD_LO,
        },
        ("div", false) => pick(signed, &n::DIV_S, &n::DIV_U),
        ("rem", false) => pick(signed, &n::REM_S, &n::REM_U),
        ("min", false) => pick(signed, &n::MIN_S, &n::MIN_U),
        ("max", false) => pick(signed, &n::MAX_S, &n::MAX_U),
        ("sad", false) => pick(signed, &n::SAD_S, &n::SAD_U),
        ("neg", false) => &n::NEG,
        ("abs", false) => &n::ABS,
        ("add", true) => &l::ADD,
        ("sub", true) => &l::SUB,
        ("mul", true) => match (part, signed) {
            (Some("hi"), true) => &l::MUL_HI_S,
            (Some("hi"), false) => &l::MUL_HI_U,
            _ => &l::MUL_LO,
        },
        ("mad", true) => match (part, signed) {
            (Some("hi"), true) => &l::MAD_HI_S,
            (Some("hi"), false) => &l::MAD_HI_U,
            _ => &l::MAD_LO,
        },
        ("div", true) => pick(signed, &l::DIV_S, &l::DIV_U),
        ("rem", true) => pick(signed, &l::REM_S, &l::REM_U),
        ("min", true) => pick(signed, &l::MIN_S, &l::MIN_U),
        ("max", true) => pick(signed, &l::MAX_S, &l::MAX_U),
        ("neg", true) => &l::NEG,
        ("abs", true) => &l::ABS,
        _ => return Err("not for integers".to_owned()),
    };
    if kind.width() < 32 {
        if part == Some("hi") {
            return Err("mul.hi of 16 bits is not supported".to_owned());
        }
        return narrow_lanes(lowering, operation, category, kind, operands);
    }
    lowering.lanes(operation, category, operands)
}

fn pick(first: bool, yes: &'static Operation, no: &'static Operation) -> &'static Operation {
    if first { yes } else { no }
}

/// A 32-bit operation on extended 16-bit operands, whose result is cut to 16 bits.
fn narrow_lanes(
    lowering: &mut Lowering,
    operation: &Operation,
    category: Category,
    kind: Kind,
    operands: &[Operand],
) -> Lowered {
    let [result, sources @ ..] = operands else { return Err("operands are missing".to_owned()) };
    if sources.len() != operation.inputs.len() {
        return Err("wrong number of operands".to_owned());
    }
    let mut slots = Vec::with_capacity(sources.len());
    for source in sources {
        slots.push(lowering.narrow(source, kind)?);
    }
    let d = lowering.output(result, Class::W)?;
    let whole = lowering.temporary(Class::W);
    lowering.apply(operation, category, whole, &slots);
    let cut = if kind.width() == 8 { &integer::LOW_BYTE } else { &integer::LOW_HALF };
    lowering.apply(cut, Category::Free, d, &[whole]);
    Ok(())
}

fn special(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    use float::*;
    let approximate = opcode.flag("approx");
    let nearest = opcode.flag("rn");
    let ftz = opcode.flag("ftz");
    let kind = opcode.kind()?;
    if !approximate && !nearest {
        return Err("rounding not supported".to_owned());
    }
    let operation = match (opcode.root, kind) {
        ("rcp", Kind::F32) => &RECIPROCAL,
        ("sqrt", Kind::F32) => &SQRT,
        ("rsqrt", Kind::F32) => &RSQRT,
        ("ex2", Kind::F32) => &EXP2,
        ("lg2", Kind::F32) => &LOG2,
        ("sin", Kind::F32) => &SIN,
        ("cos", Kind::F32) => &COS,
        ("tanh", Kind::F32) => &TANH,
        ("rcp", Kind::F64) => &RECIPROCAL_F64,
        ("sqrt", Kind::F64) => &SQRT_F64,
        ("rsqrt", Kind::F64) => &RSQRT_F64,
        ("ex2", Kind::Bf16) => &half_float::EXP2_BF16,
        ("tanh", Kind::Bf16) => &half_float::TANH_BF16,
        _ => return Err("not for this type".to_owned()),
    };
    let ftz = ftz && kind == Kind::F32;
    float_lanes(lowering, operation, Category::Special, ftz, false, operands)
}

fn bits(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    use integer as n;
    use wide as l;
    let root = opcode.root;
    let direction = if root == "shf" { opcode.one_of(&["l", "r"]) } else { None };
    let bound = opcode.one_of(&["wrap", "clamp"]);
    let shift_amount = opcode.flag("shiftamt");
    let kind = opcode.kind()?;
    let permute_mode = match root {
        "prmt" => opcode.one_of(&["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]),
        _ => None,
    };
    if let Some(mode) = permute_mode {
        let modes = ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"];
        let index = modes.iter().position(|&name| name == mode).unwrap_or(0) as u64;
        let mut all = operands.to_vec();
        all.push(immediate(index));
        return lowering.lanes(&n::PRMT_MODE, Category::Integer, &all);
    }
    let signed = kind.is_signed();
    let long = kind.width() == 64;
    if kind == Kind::Predicate {
        let operation = match root {
            "and" => &compare::AND,
            "or" => &compare::OR,
            "xor" => &compare::XOR,
            "not" => &compare::NOT,
            _ => return Err("not for predicates".to_owned()),
        };
        return lowering.lanes(operation, Category::Predicate, operands);
    }
    let operation = match (root, long) {
        ("and", false) => &n::AND,
        ("or", false) => &n::OR,
        ("xor", false) => &n::XOR,
        ("not", false) => &n::NOT,
        ("cnot", false) => &n::CNOT,
        ("shl", false) => &n::SHL,
        ("shr", false) => pick(signed, &n::SHR_S, &n::SHR_U),
        ("shf", false) => match (direction, bound) {
            (Some("l"), Some("wrap")) => &n::SHF_L_WRAP,
            (Some("l"), Some("clamp")) => &n::SHF_L_CLAMP,
            (Some("r"), Some("wrap")) => &n::SHF_R_WRAP,
            (Some("r"), Some("clamp")) => &n::SHF_R_CLAMP,
            _ => return Err("shf needs a direction and a mode".to_owned()),
        },
        ("lop3", false) => &n::LOP3,
        ("popc", false) => &n::POPC,
        ("clz", false) => &n::CLZ,
        ("brev", false) => &n::BREV,
        ("bfind", false) => match (shift_amount, signed) {
            (false, false) => &n::BFIND_U,
            (false, true) => &n::BFIND_S,
            (true, false) => &n::BFIND_SHIFT_U,
            (true, true) => &n::BFIND_SHIFT_S,
        },
        ("bfe", false) => pick(signed, &n::BFE_S, &n::BFE_U),
        ("bfi", false) => &n::BFI,
        ("bmsk", false) => &n::BMSK_CLAMP,
        ("prmt", false) => &n::PRMT,
        ("and", true) => &l::AND,
        ("or", true) => &l::OR,
        ("xor", true) => &l::XOR,
        ("not", true) => &l::NOT,
        ("cnot", true) => &l::CNOT,
        ("shl", true) => &l::SHL,
        ("shr", true) => pick(signed, &l::SHR_S, &l::SHR_U),
        ("popc", true) => &l::POPC,
        ("clz", true) => &l::CLZ,
        ("brev", true) => &l::BREV,
        ("bfind", true) => match (shift_amount, signed) {
            (false, false) => &l::BFIND_U,
            (false, true) => &l::BFIND_S,
            (true, false) => &l::BFIND_SHIFT_U,
            (true, true) => &l::BFIND_SHIFT_S,
        },
        ("bfe", true) => pick(signed, &l::BFE_S, &l::BFE_U),
        ("bfi", true) => &l::BFI,
        _ => return Err("not at this width".to_owned()),
    };
    let category = match root {
        "popc" | "brev" | "bfind" | "clz" => Category::Special,
        _ => Category::Integer,
    };
    if kind.width() == 16 {
        // The shift amount is 32 bits wide, and must not be cut.
        if matches!(root, "shl" | "shr") {
            let [result, value, amount] = operands else { return Err("3 operands".to_owned()) };
            let slots = [lowering.narrow(value, kind)?, lowering.word(amount)?];
            let d = lowering.output(result, Class::W)?;
            let whole = lowering.temporary(Class::W);
            lowering.apply(operation, category, whole, &slots);
            lowering.apply(&integer::LOW_HALF, Category::Free, d, &[whole]);
            return Ok(());
        }
        return narrow_lanes(lowering, operation, category, kind, operands);
    }
    lowering.lanes(operation, category, operands)
}

fn immediate(value: u64) -> Operand {
    Operand::Immediate(value, crate::ptx::token::NumberKind::Integer)
}

const COMPARISONS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu",
    "geu", "num", "nan",
];

/// The operation that compares two values of the type.
fn comparison(name: &str, kind: Kind) -> Lowered<&'static Operation> {
    use compare::*;
    let signed = kind.is_signed();
    let refused = || Err(format!("comparison `{name}` is not for this type"));
    Ok(match kind {
        Kind::F32 | Kind::Bf16 | Kind::F16 => match name {
            "eq" => &EQ_F,
            "ne" => &NE_F,
            "lt" => &LT_F,
            "le" => &LE_F,
            "gt" => &GT_F,
            "ge" => &GE_F,
            "equ" => &EQU_F,
            "neu" => &NEU_F,
            "ltu" => &LTU_F,
            "leu" => &LEU_F,
            "gtu" => &GTU_F,
            "geu" => &GEU_F,
            "num" => &NUM_F,
            "nan" => &NAN_F,
            _ => return refused(),
        },
        Kind::F64 => match name {
            "eq" => &EQ_G,
            "ne" => &NE_G,
            "lt" => &LT_G,
            "le" => &LE_G,
            "gt" => &GT_G,
            "ge" => &GE_G,
            "equ" => &EQU_G,
            "neu" => &NEU_G,
            "ltu" => &LTU_G,
            "leu" => &LEU_G,
            "gtu" => &GTU_G,
            "geu" => &GEU_G,
            "num" => &NUM_G,
            "nan" => &NAN_G,
            _ => return refused(),
        },
        _ if kind.is_integer() && kind.width() == 64 => match (name, signed) {
            ("eq", _) => &EQ_LONG,
            ("ne", _) => &NE_LONG,
            ("lt", true) => &LT_LONG_S,
            ("le", true) => &LE_LONG_S,
            ("gt", true) => &GT_LONG_S,
            ("ge", true) => &GE_LONG_S,
            ("lt" | "lo", false) => &LT_LONG_U,
            ("le" | "ls", false) => &LE_LONG_U,
            ("gt" | "hi", false) => &GT_LONG_U,
            ("ge" | "hs", false) => &GE_LONG_U,
            _ => return refused(),
        },
        _ if kind.is_integer() => match (name, signed) {
            ("eq", _) => &EQ,
            ("ne", _) => &NE,
            ("lt", true) => &LT_S,
            ("le", true) => &LE_S,
            ("gt", true) => &GT_S,
            ("ge", true) => &GE_S,
            ("lt" | "lo", false) => &LT_U,
            ("le" | "ls", false) => &LE_U,
            ("gt" | "hi", false) => &GT_U,
            ("ge" | "hs", false) => &GE_U,
            _ => return refused(),
        },
        _ => return refused(),
    })
}

/// Compares `a` with `b` into predicate slot `d`.
fn compare_into(
    lowering: &mut Lowering,
    name: &str,
    kind: Kind,
    ftz: bool,
    d: u16,
    (a, b): (&Operand, &Operand),
) -> Lowered {
    let operation = comparison(name, kind)?;
    let mut slot = |operand: &Operand| -> Lowered<u16> {
        Ok(match kind {
            Kind::Bf16 | Kind::F16 => {
                let slot = lowering.word(operand)?;
                let widen = if kind == Kind::Bf16 {
                    &convert::F32_FROM_BF16
                } else {
                    &convert::F32_FROM_F16
                };
                lowering.apply_temporary(widen, &[slot])
            }
            _ if kind.width() < 32 => lowering.narrow(operand, kind)?,
            _ => {
                let slot = lowering.input(operand, operation.inputs[0])?;
                if ftz { lowering.apply_temporary(&float::FLUSH, &[slot]) } else { slot }
            }
        })
    };
    let slots = [slot(a)?, slot(b)?];
    lowering.apply(operation, Category::Predicate, d, &slots);
    Ok(())
}

fn setp(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    let name = opcode.one_of(&COMPARISONS).ok_or("comparison missing")?;
    let combine = opcode.one_of(&["and", "or", "xor"]);
    let ftz = opcode.flag("ftz");
    let kind = opcode.kind()?;
    let ([result, a, b], third) = match operands {
        [result, a, b] if combine.is_none() => ([result, a, b], None),
        [result, a, b, c] if combine.is_some() => ([result, a, b], Some(c)),
        _ => return Err("wrong number of operands".to_owned()),
    };
    let (first, second) = match result {
        Operand::Pair(first, second) => {
            (lowering.register(*first, Class::P)?, Some(lowering.register(*second, Class::P)?))
        }
        other => (lowering.output(other, Class::P)?, None),
    };
    if combine.is_none() && second.is_none() {
        return compare_into(lowering, name, kind, ftz, first, (a, b));
    }
    let third = third.map(|operand| lowering.predicate(operand)).transpose()?;
    let compared = lowering.temporary(Class::P);
    compare_into(lowering, name, kind, ftz, compared, (a, b))?;
    let finish = |lowering: &mut Lowering, value: u16, d: u16| match (combine, third) {
        (Some(combine), Some(third)) => {
            let operation = match combine {
                "and" => &compare::AND,
                "or" => &compare::OR,
                _ => &compare::XOR,
            };
            lowering.apply(operation, Category::Free, d, &[value, third]);
        }
        _ => lowering.apply(&compare::MOV, Category::Free, d, &[value]),
    };
    // The inverse is taken before `first` is written, which may be the third operand's register.
    let inverse = second.map(|_| lowering.apply_temporary(&compare::NOT, &[compared]));
    let held = third.filter(|&slot| slot == first && second.is_some());
    if held.is_some() {
        return Err("the result is an operand too".to_owned());
    }
    finish(lowering, compared, first);
    if let (Some(inverse), Some(second)) = (inverse, second) {
        finish(lowering, inverse, second);
    }
    Ok(())
}

fn set(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    let name = opcode.one_of(&COMPARISONS).ok_or("comparison missing")?;
    let ftz = opcode.flag("ftz");
    let (to, kind) = (opcode.kind()?, opcode.kind()?);
    let [result, a, b] = operands else { return Err("3 operands expected".to_owned()) };
    let compared = lowering.temporary(Class::P);
    compare_into(lowering, name, kind, ftz, compared, (a, b))?;
    let yes = match to {
        Kind::F32 => 1f32.to_bits(),
        _ if to.width() == 32 => u32::MAX,
        _ => return Err("result type not supported".to_owned()),
    };
    let (yes, no) = (lowering.word_immediate(yes), lowering.word_immediate(0));
    let d = lowering.output(result, Class::W)?;
    lowering.apply(&integer::SELECT, Category::Free, d, &[yes, no, compared]);
    Ok(())
}

fn selp(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    let operation = if opcode.kind()?.width() == 64 { &wide::SELECT } else { &integer::SELECT };
    lowering.lanes(operation, Category::Move, operands)
}

fn slct(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    let ftz = opcode.flag("ftz");
    let (kind, selector) = (opcode.kind()?, opcode.kind()?);
    let [result, a, b, c] = operands else { return Err("4 operands expected".to_owned()) };
    let compared = lowering.temporary(Class::P);
    let zero = immediate(0);
    compare_into(lowering, "ge", selector, ftz, compared, (c, &zero))?;
    let operation = if kind.width() == 64 { &wide::SELECT } else { &integer::SELECT };
    let slots =
        [lowering.input(a, operation.output)?, lowering.input(b, operation.output)?, compared];
    let d = lowering.output(result, operation.output)?;
    lowering.apply(operation, Category::Free, d, &slots);
    Ok(())
}

fn testp(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    use compare::*;
    let operation =
        match opcode.one_of(&["finite", "infinite", "number", "notanumber", "normal", "subnormal"])
        {
            Some("finite") => &IS_FINITE,
            Some("infinite") => &IS_INFINITE,
            Some("number") => &IS_NUMBER,
            Some("notanumber") => &IS_NAN,
            Some("normal") => &IS_NORMAL,
            Some("subnormal") => &IS_SUBNORMAL,
            _ => return Err("property missing".to_owned()),
        };
    if opcode.kind()? != Kind::F32 {
        return Err("only f32 is supported".to_owned());
    }
    lowering.lanes(operation, Category::Predicate, operands)
}

fn mov(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    let kind = opcode.kind()?;
    let [result, source] = operands else { return Err("2 operands expected".to_owned()) };
    if let Operand::Symbol(name, 0) = source
        && matches!(name.as_str(), "%clock" | "%clock64" | "%globaltimer" | "%clock_hi")
    {
        let class = if kind.width() == 64 { Class::D } else { Class::W };
        let d = lowering.output(result, class)?;
        let instruction = Instruction {
            action: Action::Clock,
            category: Category::Move,
            d,
            immediate: u32::from(class == Class::D),
            ..Instruction::nothing()
        };
        lowering.push(instruction, Some(class), &[]);
        return Ok(());
    }
    match (result, source, kind.width()) {
        (Operand::Vector(parts), source, 32 | 64) => unpack(lowering, parts, source, kind.width()),
        (result, Operand::Vector(parts), 32 | 64) => pack(lowering, result, parts, kind.width()),
        (_, _, 1) => lowering.lanes(&compare::MOV, Category::Predicate, operands),
        (_, _, 64) => lowering.lanes(&wide::MOV, Category::Move, operands),
        (_, _, 32) => lowering.lanes(&integer::MOV, Category::Move, operands),
        (_, _, 16) => {
            let slot = lowering.narrow(source, Kind::Bits(16))?;
            let d = lowering.output(result, Class::W)?;
            lowering.apply(&integer::MOV, Category::Move, d, &[slot]);
            Ok(())
        }
        _ => Err("width not supported".to_owned()),
    }
}

fn unpack(lowering: &mut Lowering, parts: &[Operand], source: &Operand, width: u32) -> Lowered {
    let words = if width == 64 {
        let long = lowering.long(source)?;
        if let [low, high] = parts {
            let (low, high) = (lowering.output(low, Class::W)?, lowering.output(high, Class::W)?);
            lowering.apply(&wide::LOW, Category::Move, low, &[long]);
            lowering.apply(&wide::HIGH, Category::Free, high, &[long]);
            return Ok(());
        }
        vec![
            lowering.apply_temporary(&wide::LOW, &[long]),
            lowering.apply_temporary(&wide::HIGH, &[long]),
        ]
    } else {
        // A copy: the first result may be the register that is taken apart.
        let word = lowering.word(source)?;
        vec![lowering.apply_temporary(&integer::MOV, &[word])]
    };
    if parts.len() != 2 * words.len() {
        return Err("vector of unsupported length".to_owned());
    }
    for (index, part) in parts.iter().enumerate() {
        let operation = if index % 2 == 0 { &integer::LOW_HALF } else { &integer::HIGH_HALF };
        let category = if index == 0 { Category::Move } else { Category::Free };
        let d = lowering.output(part, Class::W)?;
        lowering.apply(operation, category, d, &[words[index / 2]]);
    }
    Ok(())
}

fn pack(lowering: &mut Lowering, result: &Operand, parts: &[Operand], width: u32) -> Lowered {
    let mut slots = Vec::with_capacity(parts.len());
    for part in parts {
        slots.push(lowering.word(part)?);
    }
    match (width, slots.as_slice()) {
        (32, [low, high]) => {
            let d = lowering.output(result, Class::W)?;
            lowering.apply(&integer::PACK_HALVES, Category::Move, d, &[*low, *high]);
        }
        (64, [low, high]) => {
            let d = lowering.output(result, Class::D)?;
            lowering.apply(&wide::PACK, Category::Move, d, &[*low, *high]);
        }
        (64, [a, b, c, e]) => {
            let low = lowering.apply_temporary(&integer::PACK_HALVES, &[*a, *b]);
            let high = lowering.apply_temporary(&integer::PACK_HALVES, &[*c, *e]);
            let d = lowering.output(result, Class::D)?;
            lowering.apply(&wide::PACK, Category::Move, d, &[low, high]);
        }
        _ => return Err("vector of unsupported length".to_owned()),
    }
    Ok(())
}
