//! Bits, comparisons, selects and moves.

use super::arithmetic::{narrow_lanes, pick};
use super::opcode::Opcode;
use super::{Lowered, Lowering};
use crate::lanes::{Class, Operation, compare, convert, float, integer, wide};
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
        "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "lop3" | "popc" | "clz"
        | "brev" | "bfind" | "bfe" | "bfi" | "bmsk" | "prmt" => bits(lowering, opcode, operands)?,
        _ => return Ok(false),
    }
    Ok(true)
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
