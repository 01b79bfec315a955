//! What crosses lanes: shuffles, votes, matches, `redux`.

use super::opcode::Opcode;
use super::{Lowered, Lowering};
use crate::lanes::Class;
use crate::program::{Action, Category, Detail, Facts, Instruction, Mode, Register};
use crate::ptx::syntax::{Kind, Operand};

/// Lowers the statement if it is one of these; whether it was.
pub(super) fn lower(
    lowering: &mut Lowering,
    opcode: &mut Opcode,
    operands: &[Operand],
) -> Lowered<bool> {
    let root = opcode.root;
    if !matches!(root, "shfl" | "vote" | "match" | "redux" | "activemask") {
        return Ok(false);
    }
    if root == "activemask" {
        opcode.kind()?;
        let [result] = operands else { return Err("1 operand expected".to_owned()) };
        let d = lowering.output(result, Class::W)?;
        let action = Action::ActiveMask;
        let instruction =
            Instruction { action, category: Category::Exchange, d, ..Instruction::nothing() };
        lowering.push(instruction, Some(Class::W), &[]);
        return Ok(true);
    }
    if !opcode.flag("sync") {
        return Err("only the .sync forms exist on this device".to_owned());
    }
    match root {
        "shfl" => shuffle(lowering, opcode, operands)?,
        "vote" => vote(lowering, opcode, operands)?,
        "match" => matching(lowering, opcode, operands)?,
        _ => reduce(lowering, opcode, operands)?,
    }
    Ok(true)
}

/// Result and, where `d|p` is written, the predicate beside it.
fn result_pair(lowering: &mut Lowering, result: &Operand) -> Lowered<(u16, Vec<Register>)> {
    match result {
        Operand::Pair(value, predicate) => {
            let slot = lowering.register(*predicate, Class::P)?;
            let beside = Register { class: Class::P, width: 1, slot };
            Ok((lowering.register(*value, Class::W)?, vec![beside]))
        }
        other => Ok((lowering.output(other, Class::W)?, Vec::new())),
    }
}

fn push(
    lowering: &mut Lowering,
    action: Action,
    (d, output): (u16, Class),
    inputs: [u16; 4],
    classes: &'static [Class],
    detail: Detail,
) {
    let category = Category::Exchange;
    let instruction = Instruction { action, category, d, inputs, ..Instruction::nothing() };
    lowering.push_detailed(instruction, Some(output), classes, detail);
}

fn shuffle(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    let mode = match opcode.one_of(&["up", "down", "bfly", "idx"]) {
        Some("up") => Mode::ShuffleUp,
        Some("down") => Mode::ShuffleDown,
        Some("bfly") => Mode::ShuffleXor,
        Some(_) => Mode::ShuffleIndex,
        None => return Err("mode missing".to_owned()),
    };
    opcode.kind()?;
    let [result, a, b, c, members] = operands else {
        return Err("5 operands expected".to_owned());
    };
    let inputs = [lowering.word(a)?, lowering.word(b)?, lowering.word(c)?, lowering.word(members)?];
    let (d, outputs) = result_pair(lowering, result)?;
    let detail = Detail { outputs, facts: Facts { mode, ..Facts::default() }, ..Detail::default() };
    let classes = &[Class::W, Class::W, Class::W, Class::W];
    push(lowering, Action::Shuffle, (d, Class::W), inputs, classes, detail);
    Ok(())
}

fn vote(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    let mode = match opcode.one_of(&["all", "any", "uni", "ballot"]) {
        Some("all") => Mode::VoteAll,
        Some("any") => Mode::VoteAny,
        Some("uni") => Mode::VoteUniform,
        Some(_) => Mode::VoteBallot,
        None => return Err("mode missing".to_owned()),
    };
    opcode.kind()?;
    let [result, source, members] = operands else {
        return Err("3 operands expected".to_owned());
    };
    let inputs = [lowering.predicate(source)?, lowering.word(members)?, 0, 0];
    let class = if mode == Mode::VoteBallot { Class::W } else { Class::P };
    let d = lowering.output(result, class)?;
    let detail = Detail { facts: Facts { mode, ..Facts::default() }, ..Detail::default() };
    push(lowering, Action::Vote, (d, class), inputs, &[Class::P, Class::W], detail);
    Ok(())
}

fn matching(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    let mode = match opcode.one_of(&["any", "all"]) {
        Some("any") => Mode::MatchAny,
        Some(_) => Mode::MatchAll,
        None => return Err("mode missing".to_owned()),
    };
    let kind = opcode.kind()?;
    let [result, source, members] = operands else {
        return Err("3 operands expected".to_owned());
    };
    let members = lowering.word(members)?;
    let (slot, classes): (u16, &'static [Class]) = if kind.width() == 64 {
        (lowering.long(source)?, &[Class::D, Class::W])
    } else {
        (lowering.word(source)?, &[Class::W, Class::W])
    };
    let (d, outputs) = result_pair(lowering, result)?;
    let element = (kind.width() / 8) as u8;
    let facts = Facts { mode, element, ..Facts::default() };
    let detail = Detail { outputs, facts, ..Detail::default() };
    push(lowering, Action::Match, (d, Class::W), [slot, members, 0, 0], classes, detail);
    Ok(())
}

fn reduce(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    let mode = match opcode.one_of(&["add", "min", "max", "and", "or", "xor"]) {
        Some("add") => Mode::Add,
        Some("min") => Mode::Min,
        Some("max") => Mode::Max,
        Some("and") => Mode::And,
        Some("or") => Mode::Or,
        Some(_) => Mode::Xor,
        None => return Err("operation missing".to_owned()),
    };
    let kind = opcode.kind()?;
    if kind.width() != 32 || kind == Kind::F32 {
        return Err("only 32-bit integers can be reduced".to_owned());
    }
    let [result, source, members] = operands else {
        return Err("3 operands expected".to_owned());
    };
    let inputs = [lowering.word(source)?, lowering.word(members)?, 0, 0];
    let d = lowering.output(result, Class::W)?;
    let facts = Facts { mode, signed: kind.is_signed(), ..Facts::default() };
    let detail = Detail { facts, ..Detail::default() };
    push(lowering, Action::Reduce, (d, Class::W), inputs, &[Class::W, Class::W], detail);
    Ok(())
}
