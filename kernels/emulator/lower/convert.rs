//! `cvt` and `cvta`.

use super::opcode::Opcode;
use super::operands::class_of;
use super::{Lowered, Lowering};
use crate::lanes::{Class, Operation, convert, float, integer, wide};
use crate::machine::windows;
use crate::program::{Category, LongConstant};
use crate::ptx::syntax::{Kind, Operand};

/// Lowers the statement if it is one of these; whether it was.
pub(super) fn lower(
    lowering: &mut Lowering,
    opcode: &mut Opcode,
    operands: &[Operand],
) -> Lowered<bool> {
    match opcode.root {
        "cvt" => {
            let how = How {
                rounding: opcode
                    .one_of(&["rni", "rzi", "rmi", "rpi", "rna", "rn", "rz", "rm", "rp"]),
                ftz: opcode.flag("ftz"),
                saturate: opcode.flag("sat"),
                relu: opcode.flag("relu"),
            };
            let (to, from) = (opcode.kind()?, opcode.kind()?);
            cvt(lowering, how, to, from, operands)?;
        }
        "cvta" => cvta(lowering, opcode, operands)?,
        _ => return Ok(false),
    }
    Ok(true)
}

#[derive(Clone, Copy)]
struct How {
    rounding: Option<&'static str>,
    ftz: bool,
    saturate: bool,
    relu: bool,
}

fn cvt(lowering: &mut Lowering, how: How, to: Kind, from: Kind, operands: &[Operand]) -> Lowered {
    if matches!(to, Kind::Bf16x2 | Kind::F16x2) {
        return pair(lowering, how, to, from, operands);
    }
    let [result, source] = operands else { return Err("2 operands expected".to_owned()) };
    if how.relu && !matches!(to, Kind::Bf16 | Kind::F16) {
        return Err("relu is not supported here".to_owned());
    }
    match (to.is_integer(), from.is_integer()) {
        (true, true) => integers(lowering, how.saturate, to, from, result, source),
        (false, true) => from_integer(lowering, how, to, from, result, source),
        (true, false) => to_integer(lowering, how, to, from, result, source),
        (false, false) => floats(lowering, how, to, from, result, source),
    }
}

/// Writes a 32-bit value that may be wider than the result's register.
fn write_word(lowering: &mut Lowering, result: &Operand, to: Kind, value: u16) -> Lowered {
    let Operand::Register(register) = result else {
        return Err("the result must be a register".to_owned());
    };
    let declared = lowering.kind_of(*register);
    if class_of(declared) == Class::D {
        // A narrow result in a 64-bit register is extended as its type says.
        let d = lowering.register(*register, Class::D)?;
        let extend = if to.is_signed() { &wide::EXTEND_S } else { &wide::EXTEND_U };
        lowering.apply(extend, Category::Free, d, &[value]);
        return Ok(());
    }
    let d = lowering.register(*register, Class::W)?;
    let cut = if declared.width() == 16 { &integer::LOW_HALF } else { &integer::MOV };
    lowering.apply(cut, Category::Free, d, &[value]);
    Ok(())
}

fn integers(
    lowering: &mut Lowering,
    saturate: bool,
    to: Kind,
    from: Kind,
    result: &Operand,
    source: &Operand,
) -> Lowered {
    let category =
        if to.width() == 64 || from.width() == 64 { Category::Convert } else { Category::Integer };
    // The common ones are one instruction.
    let direct: Option<(&Operation, Class)> = match (to.width(), from) {
        _ if saturate => None,
        (64, Kind::Signed(32)) => Some((&wide::EXTEND_S, Class::D)),
        (64, Kind::Unsigned(32) | Kind::Bits(32)) => Some((&wide::EXTEND_U, Class::D)),
        (64, Kind::Signed(64) | Kind::Unsigned(64) | Kind::Bits(64)) => {
            Some((&wide::MOV, Class::D))
        }
        _ => None,
    };
    if let Some((operation, class)) = direct {
        let slot = lowering.input(source, operation.inputs[0])?;
        let d = lowering.output(result, class)?;
        lowering.apply(operation, category, d, &[slot]);
        return Ok(());
    }
    // In general: extend to 64 bits, clamp, cut, extend again.
    let mut value = match from.width() {
        64 => lowering.long(source)?,
        width => {
            let word =
                if width == 32 { lowering.word(source)? } else { lowering.narrow(source, from)? };
            if !saturate && to.width() <= 32 {
                return narrow_result(lowering, category, to, result, word);
            }
            let extend = if from.is_signed() { &wide::EXTEND_S } else { &wide::EXTEND_U };
            lowering.apply_temporary(extend, &[word])
        }
    };
    if saturate {
        let width = to.width();
        let (low, high): (i128, i128) = if to.is_signed() {
            (-(1 << (width - 1)), (1 << (width - 1)) - 1)
        } else {
            (0, (1 << width) - 1)
        };
        if from.is_signed() {
            let low = lowering.long_constant(LongConstant::Immediate(low as i64 as u64));
            value = lowering.apply_temporary(&wide::MAX_S, &[value, low]);
        }
        if high < i64::MAX as i128 {
            let high = lowering.long_constant(LongConstant::Immediate(high as u64));
            let least = if from.is_signed() { &wide::MIN_S } else { &wide::MIN_U };
            value = lowering.apply_temporary(least, &[value, high]);
        } else if to.is_signed() && !from.is_signed() {
            let high = lowering.long_constant(LongConstant::Immediate(i64::MAX as u64));
            value = lowering.apply_temporary(&wide::MIN_U, &[value, high]);
        }
    }
    if to.width() == 64 {
        let d = lowering.output(result, Class::D)?;
        lowering.apply(&wide::MOV, category, d, &[value]);
        return Ok(());
    }
    let word = lowering.apply_temporary(&wide::LOW, &[value]);
    narrow_result(lowering, category, to, result, word)
}

/// Cuts a 32-bit value to the type and writes it, extended to its register's width.
fn narrow_result(
    lowering: &mut Lowering,
    category: Category,
    to: Kind,
    result: &Operand,
    word: u16,
) -> Lowered {
    let cut = match to {
        Kind::Signed(8) => &integer::EXTEND_BYTE,
        Kind::Signed(16) => &integer::EXTEND_HALF,
        _ if to.width() == 8 => &integer::LOW_BYTE,
        _ if to.width() == 16 => &integer::LOW_HALF,
        _ => &integer::MOV,
    };
    let value = lowering.temporary(Class::W);
    lowering.apply(cut, category, value, &[word]);
    write_word(lowering, result, to, value)
}

fn from_integer(
    lowering: &mut Lowering,
    how: How,
    to: Kind,
    from: Kind,
    result: &Operand,
    source: &Operand,
) -> Lowered {
    use convert::*;
    let signed = from.is_signed();
    let slot = match from.width() {
        64 => lowering.long(source)?,
        32 => lowering.word(source)?,
        _ => lowering.narrow(source, from)?,
    };
    let long = from.width() == 64;
    let exact = match (long, signed) {
        (false, true) => &F64_FROM_I32,
        (false, false) => &F64_FROM_U32,
        (true, true) => &F64_FROM_I64,
        (true, false) => &F64_FROM_U64,
    };
    let rounding = how.rounding.unwrap_or("rn");
    match (to, rounding) {
        (Kind::F64, "rn") => {
            let d = lowering.output(result, Class::D)?;
            lowering.apply(exact, Category::Convert, d, &[slot]);
        }
        (Kind::F32, "rn") => {
            let operation = match (long, signed) {
                (false, true) => &F32_FROM_I32,
                (false, false) => &F32_FROM_U32,
                (true, true) => &F32_FROM_I64,
                (true, false) => &F32_FROM_U64,
            };
            let d = lowering.output(result, Class::W)?;
            lowering.apply(operation, Category::Convert, d, &[slot]);
        }
        (Kind::F32, "rz" | "rm" | "rp") if !long => {
            let double = lowering.apply_temporary(exact, &[slot]);
            let d = lowering.output(result, Class::W)?;
            let operation = directed_f32(rounding);
            lowering.apply(operation, Category::Convert, d, &[double]);
        }
        // 16 bits fit into f32 exactly; wider ones would round twice.
        (Kind::Bf16 | Kind::F16, "rn") if from.width() <= 16 => {
            let operation = if signed { &F32_FROM_I32 } else { &F32_FROM_U32 };
            let single = lowering.apply_temporary(operation, &[slot]);
            let d = lowering.output(result, Class::W)?;
            let operation = if to == Kind::Bf16 { &BF16_FROM_F32 } else { &F16_FROM_F32 };
            lowering.apply(operation, Category::Convert, d, &[single]);
        }
        _ => return Err("this conversion is not supported".to_owned()),
    }
    Ok(())
}

fn directed_f32(rounding: &str) -> &'static Operation {
    match rounding {
        "rz" => &convert::F32_FROM_F64_RZ,
        "rm" => &convert::F32_FROM_F64_RM,
        _ => &convert::F32_FROM_F64_RP,
    }
}

/// The value of a float operand as f32, flushed if asked; f64 stays f64.
fn float_source(lowering: &mut Lowering, how: How, from: Kind, source: &Operand) -> Lowered<u16> {
    Ok(match from {
        Kind::F64 => lowering.long(source)?,
        Kind::F32 => {
            let slot = lowering.word(source)?;
            if how.ftz { lowering.apply_temporary(&float::FLUSH, &[slot]) } else { slot }
        }
        Kind::Bf16 => {
            let slot = lowering.word(source)?;
            lowering.apply_temporary(&convert::F32_FROM_BF16, &[slot])
        }
        Kind::F16 => {
            let slot = lowering.word(source)?;
            lowering.apply_temporary(&convert::F32_FROM_F16, &[slot])
        }
        _ => return Err("source type not supported".to_owned()),
    })
}

fn rounding_operation(rounding: &str, double: bool) -> Lowered<&'static Operation> {
    use convert::*;
    Ok(match (rounding, double) {
        ("rni", false) => &ROUND_NEAREST,
        ("rzi", false) => &ROUND_ZERO,
        ("rmi", false) => &ROUND_DOWN,
        ("rpi", false) => &ROUND_UP,
        ("rni", true) => &ROUND_NEAREST_F64,
        ("rzi", true) => &ROUND_ZERO_F64,
        ("rmi", true) => &ROUND_DOWN_F64,
        ("rpi", true) => &ROUND_UP_F64,
        _ => return Err("an integer rounding is needed".to_owned()),
    })
}

fn to_integer(
    lowering: &mut Lowering,
    how: How,
    to: Kind,
    from: Kind,
    result: &Operand,
    source: &Operand,
) -> Lowered {
    use convert::*;
    let double = from == Kind::F64;
    let rounding = how.rounding.ok_or("a rounding is needed")?;
    let value = float_source(lowering, how, from, source)?;
    let rounded = lowering.apply_temporary(rounding_operation(rounding, double)?, &[value]);
    let operation = match (to.width(), to.is_signed(), double) {
        (64, true, false) => &I64_FROM_F32,
        (64, false, false) => &U64_FROM_F32,
        (64, true, true) => &I64_FROM_F64,
        (64, false, true) => &U64_FROM_F64,
        (32, true, false) => &I32_FROM_F32,
        (32, false, false) => &U32_FROM_F32,
        (32, true, true) => &I32_FROM_F64,
        (32, false, true) => &U32_FROM_F64,
        (16, true, false) => &I16_FROM_F32,
        (16, false, false) => &U16_FROM_F32,
        (8, true, false) => &I8_FROM_F32,
        (8, false, false) => &U8_FROM_F32,
        _ => return Err("this conversion is not supported".to_owned()),
    };
    if to.width() == 64 {
        let d = lowering.output(result, Class::D)?;
        lowering.apply(operation, Category::Convert, d, &[rounded]);
        return Ok(());
    }
    if to.width() == 32 {
        let d = lowering.output(result, Class::W)?;
        lowering.apply(operation, Category::Convert, d, &[rounded]);
        return Ok(());
    }
    let word = lowering.temporary(Class::W);
    lowering.apply(operation, Category::Convert, word, &[rounded]);
    narrow_result(lowering, Category::Free, to, result, word)
}

fn floats(
    lowering: &mut Lowering,
    how: How,
    to: Kind,
    from: Kind,
    result: &Operand,
    source: &Operand,
) -> Lowered {
    use convert::*;
    if from == Kind::F64 && !matches!(to, Kind::F32 | Kind::F64) {
        return Err("this conversion is not supported".to_owned());
    }
    let double = from == Kind::F64;
    let mut value = float_source(lowering, how, from, source)?;
    let to_integral = matches!(how.rounding, Some("rni" | "rzi" | "rmi" | "rpi"));
    if to_integral {
        let rounding = rounding_operation(how.rounding.unwrap_or_default(), double)?;
        value = lowering.apply_temporary(rounding, &[value]);
    }
    if how.relu {
        value = lowering.apply_temporary(&RELU, &[value]);
    }
    let rounding = if to_integral { "rn" } else { how.rounding.unwrap_or("rn") };
    let operation = match (to, double, rounding) {
        (Kind::F64, true, _) => &wide::MOV,
        (Kind::F64, false, _) => &F64_FROM_F32,
        (Kind::F32, true, "rn") => &F32_FROM_F64,
        (Kind::F32, true, "rz" | "rm" | "rp") => directed_f32(rounding),
        (Kind::F32, false, _) => &integer::MOV,
        (Kind::Bf16, false, "rn") => &BF16_FROM_F32,
        (Kind::Bf16, false, "rz") => &BF16_FROM_F32_RZ,
        (Kind::F16, false, "rn") => &F16_FROM_F32,
        (Kind::F16, false, "rz") => &F16_FROM_F32_RZ,
        (Kind::Tf32, false, "rna" | "rn") => &TF32_FROM_F32,
        _ => return Err("this conversion is not supported".to_owned()),
    };
    let d = lowering.output(result, operation.output)?;
    if how.saturate || (how.ftz && to == Kind::F32) {
        if to != Kind::F32 {
            return Err("saturation not supported here".to_owned());
        }
        let word = lowering.temporary(Class::W);
        lowering.apply(operation, Category::Convert, word, &[value]);
        let last = if how.saturate { &float::SATURATE } else { &float::FLUSH };
        lowering.apply(last, Category::Free, d, &[word]);
    } else {
        lowering.apply(operation, Category::Convert, d, &[value]);
    }
    Ok(())
}

/// `cvt.rn.bf16x2.f32 d, a, b`: a goes to the high half.
fn pair(lowering: &mut Lowering, how: How, to: Kind, from: Kind, operands: &[Operand]) -> Lowered {
    use convert::*;
    let [result, high, low] = operands else { return Err("3 operands expected".to_owned()) };
    if from != Kind::F32 || how.saturate || how.ftz {
        return Err("this conversion is not supported".to_owned());
    }
    let mut slots = [lowering.word(high)?, lowering.word(low)?];
    if how.relu {
        slots = slots.map(|slot| lowering.apply_temporary(&RELU, &[slot]));
    }
    let operation = match (to, how.rounding) {
        (Kind::Bf16x2, Some("rn")) => &BF16X2_FROM_F32,
        (Kind::Bf16x2, Some("rz")) => &BF16X2_FROM_F32_RZ,
        (Kind::F16x2, Some("rn")) => &F16X2_FROM_F32,
        (Kind::F16x2, Some("rz")) => &F16X2_FROM_F32_RZ,
        _ => return Err("rounding not supported".to_owned()),
    };
    let d = lowering.output(result, Class::W)?;
    lowering.apply(operation, Category::Convert, d, &slots);
    Ok(())
}

/// Generic addresses of shared and local memory are windows; those of global memory are themselves.
fn cvta(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    let to = opcode.flag("to");
    let space = opcode.one_of(&["global", "shared::cta", "shared", "local", "const", "param"]);
    let kind = opcode.kind()?;
    let [result, source] = operands else { return Err("2 operands expected".to_owned()) };
    if kind.width() != 64 {
        return Err("32-bit generic addresses do not exist".to_owned());
    }
    let window = match space {
        Some("global" | "const") => 0,
        Some("shared" | "shared::cta") => windows::SHARED,
        Some("local") => windows::LOCAL,
        _ => return Err("space not supported".to_owned()),
    };
    let slot = lowering.long(source)?;
    let d = lowering.output(result, Class::D)?;
    if window == 0 {
        lowering.apply(&wide::MOV, Category::Move, d, &[slot]);
    } else {
        let window = lowering.long_constant(LongConstant::Immediate(window));
        let operation = if to { &wide::SUB } else { &wide::ADD };
        lowering.apply(operation, Category::Integer, d, &[slot, window]);
    }
    Ok(())
}
