//! Branches, barriers, fences and exits.

use super::opcode::Opcode;
use super::{Lowered, Lowering};
use crate::lanes::{Class, compare};
use crate::program::{Action, Category, Detail, Facts, Instruction, Mode};
use crate::ptx::syntax::Operand;

/// Lowers the statement if it is one of these; whether it was.
pub(super) fn lower(
    lowering: &mut Lowering,
    opcode: &mut Opcode,
    operands: &[Operand],
) -> Lowered<bool> {
    let simple = match opcode.root {
        "ret" | "exit" => Action::Exit,
        "trap" => Action::Trap,
        "nanosleep" | "brkpt" | "pmevent" => Action::Nothing,
        "membar" | "fence" => Action::Fence,
        "bra" | "brx" => {
            opcode.ignore(&["uni", "idx"]);
            if opcode.root == "bra" {
                let [Operand::Symbol(label, 0)] = operands else {
                    return Err("a label expected".to_owned());
                };
                branch(lowering, label)?;
            } else {
                indexed_branch(lowering, operands)?;
            }
            return Ok(true);
        }
        "bar" | "barrier" => {
            barrier(lowering, opcode, operands)?;
            return Ok(true);
        }
        _ => return Ok(false),
    };
    opcode.ignore(&["uni", "u32"]);
    if simple == Action::Fence {
        opcode.ignore(&["cta", "cluster", "gl", "gpu", "sys", "sc", "acq_rel", "acquire"]);
        opcode.ignore(&["release"]);
    }
    let instruction =
        Instruction { action: simple, category: Category::Control, ..Instruction::nothing() };
    lowering.push(instruction, None, &[]);
    Ok(true)
}

fn branch(lowering: &mut Lowering, label: &str) -> Lowered {
    let target = lowering.kernel.labels.get(label);
    let target = *target.ok_or_else(|| format!("no label `{label}`"))? as u32;
    let instruction = Instruction {
        action: Action::Branch,
        category: Category::Control,
        immediate: target,
        ..Instruction::nothing()
    };
    lowering.push(instruction, None, &[]);
    Ok(())
}

/// A branch through a table becomes a chain of comparisons: they are rare and short.
fn indexed_branch(lowering: &mut Lowering, operands: &[Operand]) -> Lowered {
    let [index, Operand::Symbol(list, 0)] = operands else {
        return Err("an index and a list of targets expected".to_owned());
    };
    let kernel = lowering.kernel;
    let targets = kernel.branch_targets.get(list);
    let targets = targets.ok_or_else(|| format!("no list of targets `{list}`"))?;
    let index = lowering.word(index)?;
    for (position, label) in targets.iter().enumerate() {
        if position + 1 < targets.len() {
            let number = lowering.word_immediate(position as u32);
            let taken = lowering.apply_temporary(&compare::EQ, &[index, number]);
            branch(lowering, label)?;
            if let Some(draft) = lowering.drafts.last_mut() {
                draft.instruction.guard = taken;
            }
        } else {
            branch(lowering, label)?;
        }
    }
    Ok(())
}

fn barrier(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    opcode.ignore(&["cta", "aligned"]);
    if opcode.flag("warp") {
        opcode.flag("sync");
        let [members] = operands else { return Err("1 operand expected".to_owned()) };
        let members = lowering.word(members)?;
        let instruction = Instruction {
            action: Action::WarpBarrier,
            category: Category::Control,
            inputs: [members, 0, 0, 0],
            ..Instruction::nothing()
        };
        lowering.push(instruction, None, &[Class::W]);
        return Ok(());
    }
    let mut mode = match opcode.one_of(&["sync", "arrive", "red"]) {
        Some("sync") => Mode::BarrierSync,
        Some("arrive") => Mode::BarrierArrive,
        Some(_) => Mode::BarrierPopc,
        None => return Err("`sync`, `arrive` or `red` missing".to_owned()),
    };
    let mut detail = Detail::default();
    let mut rest = operands;
    if mode == Mode::BarrierPopc {
        mode = match opcode.one_of(&["popc", "and", "or"]) {
            Some("popc") => Mode::BarrierPopc,
            Some("and") => Mode::BarrierAnd,
            Some(_) => Mode::BarrierOr,
            None => return Err("reduction missing".to_owned()),
        };
        opcode.kind()?;
        let [result, middle @ .., source] = operands else {
            return Err("operands are missing".to_owned());
        };
        let slot = lowering.predicate(source)?;
        let class = if mode == Mode::BarrierPopc { Class::W } else { Class::P };
        let input = crate::program::Register { class: Class::P, width: 1, slot };
        detail.inputs.push(input);
        let slot = lowering.output(result, class)?;
        let width = if class == Class::W { 32 } else { 1 };
        detail.outputs.push(crate::program::Register { class, width, slot });
        rest = middle;
    }
    let (number, count) = match rest {
        [number] if mode != Mode::BarrierArrive => (number, None),
        [number, count] => (number, Some(count)),
        _ => return Err("wrong number of operands".to_owned()),
    };
    let number = lowering.word(number)?;
    let count = match count {
        Some(count) => lowering.word(count)?,
        None => lowering.word_immediate(0),
    };
    detail.facts = Facts { mode, ..Facts::default() };
    let instruction = Instruction {
        action: Action::Barrier,
        category: Category::Barrier,
        inputs: [number, count, 0, 0],
        ..Instruction::nothing()
    };
    lowering.push_detailed(instruction, None, &[Class::W, Class::W], detail);
    Ok(())
}
