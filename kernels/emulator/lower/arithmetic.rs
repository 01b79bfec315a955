//! Arithmetic of integers and floats.

use super::opcode::Opcode;
use super::{Lowered, Lowering};
use crate::lanes::{Class, Operation, float, half_float, integer, wide};
use crate::program::Category;
use crate::ptx::syntax::{Kind, Operand};

/// Lowers the statement if it is one of these; whether it was.
pub(super) fn lower(
    lowering: &mut Lowering,
    opcode: &mut Opcode,
    operands: &[Operand],
) -> Lowered<bool> {
    match opcode.root {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "min" | "max" | "neg" | "abs" | "rem"
        | "sad" | "dp4a" | "copysign" => arithmetic(lowering, opcode, operands)?,
        "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => {
            special(lowering, opcode, operands)?;
        }
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

/// One of two operations.
pub(super) fn pick(
    first: bool,
    yes: &'static Operation,
    no: &'static Operation,
) -> &'static Operation {
    if first { yes } else { no }
}

/// A 32-bit operation on extended 16-bit operands, whose result is cut to 16 bits.
pub(super) fn narrow_lanes(
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
