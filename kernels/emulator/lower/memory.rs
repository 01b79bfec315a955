//! Loads, stores, atomics, `cp.async`, `ldmatrix` and `mma`.

use super::opcode::Opcode;
use super::operands::class_of;
use super::{Lowered, Lowering};
use crate::lanes::{Class, integer, wide};
use crate::program::{
    Action, Category, Detail, Facts, Instruction, LongConstant, Mode, Register, Space, WordConstant,
};
use crate::ptx::syntax::{Kind, Operand};

/// Lowers the statement if it is one of these; whether it was.
pub(super) fn lower(
    lowering: &mut Lowering,
    opcode: &mut Opcode,
    operands: &[Operand],
) -> Lowered<bool> {
    match opcode.root {
        "ld" | "ldu" | "st" => access(lowering, opcode, operands)?,
        "atom" | "red" => atomic(lowering, opcode, operands)?,
        "cp" => copy_async(lowering, opcode, operands)?,
        "ldmatrix" => load_matrix(lowering, opcode, operands)?,
        "mma" => mma(lowering, opcode, operands)?,
        "createpolicy" => {
            // A cache policy changes no result; its value is never looked at.
            opcode.ignore_prefix("fractional");
            opcode.ignore_prefix("L2::");
            opcode.kind()?;
            let zero = lowering.long_constant(LongConstant::Immediate(0));
            let result = operands.first().ok_or("operands are missing")?;
            let d = lowering.output(result, Class::D)?;
            lowering.apply(&wide::MOV, Category::Move, d, &[zero]);
        }
        "prefetch" | "prefetchu" | "discard" | "applypriority" => {
            opcode.ignore(&["global", "local", "L1", "L2"]);
            opcode.ignore_prefix("L1::");
            opcode.ignore_prefix("L2::");
            lowering.push(Instruction::nothing(), None, &[]);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// An address operand: slot, whether it is of 32 bits, and the offset to add.
struct Address {
    slot: u16,
    short: bool,
    offset: i64,
}

fn address(lowering: &mut Lowering, operand: &Operand) -> Lowered<Address> {
    let Operand::Address(base, offset) = operand else {
        return Err("an address expected".to_owned());
    };
    match &**base {
        Operand::Register(register) if class_of(lowering.kind_of(*register)) == Class::W => {
            let slot = lowering.register(*register, Class::W)?;
            Ok(Address { slot, short: true, offset: *offset })
        }
        Operand::Register(_) | Operand::Immediate(..) => {
            Ok(Address { slot: lowering.long(base)?, short: false, offset: *offset })
        }
        Operand::Symbol(name, _) => {
            let constant = lowering
                .address_of(name, *offset)
                .ok_or_else(|| format!("unknown name `{name}`"))?;
            Ok(Address { slot: lowering.long_constant(constant), short: false, offset: 0 })
        }
        _ => Err("an address expected".to_owned()),
    }
}

/// Hints about caches and the memory model; whether the access is ordered (strong).
fn hints(opcode: &mut Opcode) -> bool {
    let strong =
        opcode.one_of(&["volatile", "relaxed", "acquire", "release", "acq_rel", "mmio"]).is_some();
    opcode.ignore(&[
        "weak", "cta", "cluster", "gpu", "sys", "gl", "ca", "cg", "cs", "lu", "cv", "wb", "wt",
        "nc", "unified",
    ]);
    opcode.ignore_prefix("L1::");
    opcode.ignore_prefix("L2::");
    strong
}

fn space(opcode: &mut Opcode) -> Space {
    match opcode.one_of(&[
        "global",
        "shared::cta",
        "shared",
        "local",
        "param::entry",
        "param",
        "const",
    ]) {
        Some("global" | "const") => Space::Global,
        Some("shared" | "shared::cta") => Space::Shared,
        Some("local") => Space::Local,
        Some(_) => Space::Parameter,
        None => Space::Generic,
    }
}

fn access(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    let store = opcode.root == "st";
    let is_constant = opcode.flag("const");
    let space = if is_constant { Space::Global } else { space(opcode) };
    let strong = hints(opcode);
    let count = match opcode.one_of(&["v2", "v4"]) {
        Some("v2") => 2,
        Some(_) => 4,
        None => 1,
    };
    let kind = opcode.kind()?;
    let element = kind.width() / 8;
    if element == 0 || element > 8 || element * count > 16 {
        return Err("width not supported".to_owned());
    }
    let (place, values) = match operands {
        [place, values] if store => (place, values),
        // A trailing operand is a cache policy.
        [place, values, _] if store => (place, values),
        [values, place] | [values, place, _] => (place, values),
        _ => return Err("wrong number of operands".to_owned()),
    };
    let values = match values {
        Operand::Vector(parts) => parts.as_slice(),
        one => std::slice::from_ref(one),
    };
    if values.len() != count as usize {
        return Err(format!("{} values for {count}", values.len()));
    }
    if !store && space == Space::Parameter && parameters(lowering, kind, place, values)? {
        return Ok(());
    }
    let address = address(lowering, place)?;
    let facts = Facts {
        space,
        short_address: address.short,
        offset: address.offset,
        element: element as u8,
        count: count as u8,
        signed: kind.is_signed(),
        strong,
        ..Facts::default()
    };
    let mut detail = Detail { facts, ..Detail::default() };
    for value in values {
        if store {
            detail.inputs.push(store_source(lowering, value, kind)?);
        } else {
            let register = lowering.output_register(value, kind.width())?;
            if register.class == Class::P || u32::from(register.width) < kind.width() {
                return Err("the register is narrower than the value".to_owned());
            }
            detail.outputs.push(register);
        }
    }
    let category = match (space, store) {
        _ if is_constant => Category::Constant,
        (Space::Parameter, _) => Category::Constant,
        (Space::Local, _) => Category::Local,
        (Space::Shared, false) => Category::SharedLoad,
        (Space::Shared, true) => Category::SharedStore,
        (_, false) => Category::GlobalLoad,
        (_, true) => Category::GlobalStore,
    };
    let instruction = Instruction {
        inputs: [address.slot, 0, 0, 0],
        action: if store { Action::Store } else { Action::Load },
        category,
        ..Instruction::nothing()
    };
    if store && (space == Space::Parameter || is_constant) {
        return Err("this space cannot be written".to_owned());
    }
    let inputs: &[Class] = if address.short { &[Class::W] } else { &[Class::D] };
    lowering.push_detailed(instruction, None, inputs, detail);
    Ok(())
}

fn store_source(lowering: &mut Lowering, value: &Operand, kind: Kind) -> Lowered<Register> {
    let class = if kind.width() == 64 { Class::D } else { Class::W };
    let slot = lowering.input(value, class)?;
    Ok(Register { class, width: kind.width() as u8, slot })
}

/// Parameters at constant offsets are slots, filled once per launch. Whether they were.
fn parameters(
    lowering: &mut Lowering,
    kind: Kind,
    place: &Operand,
    values: &[Operand],
) -> Lowered<bool> {
    let Operand::Address(base, offset) = place else { return Ok(false) };
    let Operand::Symbol(name, _) = &**base else { return Ok(false) };
    let Some(LongConstant::Immediate(start)) = lowering.address_of(name, *offset) else {
        return Err(format!("unknown parameter `{name}`"));
    };
    let bytes = kind.width() / 8;
    let end = lowering.kernel.parameters.last().map_or(0, |p| p.offset + p.size) as u64;
    for (index, value) in values.iter().enumerate() {
        let offset = start.wrapping_add(index as u64 * u64::from(bytes));
        if offset.checked_add(u64::from(bytes)).is_none_or(|last| last > end) {
            return Err("beyond the parameters".to_owned());
        }
        let (offset, signed) = (offset as u32, kind.is_signed());
        let register = lowering.output_register(value, kind.width())?;
        let category = if index == 0 { Category::Constant } else { Category::Free };
        match register.class {
            Class::D => {
                let constant = LongConstant::Parameter { offset, bytes: bytes as u8, signed };
                let slot = lowering.long_constant(constant);
                lowering.apply(&wide::MOV, category, register.slot, &[slot]);
            }
            Class::W if bytes <= 4 => {
                let constant = WordConstant::Parameter { offset, bytes: bytes as u8, signed };
                let slot = lowering.word_constant(constant);
                let cut = if register.width == 16 { &integer::LOW_HALF } else { &integer::MOV };
                lowering.apply(cut, category, register.slot, &[slot]);
            }
            _ => return Err("the register is narrower than the value".to_owned()),
        }
    }
    Ok(true)
}

fn atomic(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    let reduces = opcode.root == "red";
    let space = space(opcode);
    hints(opcode);
    opcode.ignore(&["noftz"]);
    let name = opcode
        .one_of(&["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"])
        .ok_or("operation missing")?;
    let kind = opcode.kind()?;
    let mode = match (name, kind) {
        ("add", Kind::F32) => Mode::AddF32,
        ("add", Kind::F64) => Mode::AddF64,
        ("add", Kind::Bf16x2) => Mode::AddBf16x2,
        ("add", Kind::F16x2) => Mode::AddF16x2,
        (_, Kind::F32 | Kind::F64 | Kind::Bf16x2 | Kind::F16x2 | Kind::Bf16 | Kind::F16) => {
            return Err("not for floats".to_owned());
        }
        ("add", _) => Mode::Add,
        ("min", _) => Mode::Min,
        ("max", _) => Mode::Max,
        ("and", _) => Mode::And,
        ("or", _) => Mode::Or,
        ("xor", _) => Mode::Xor,
        ("exch", _) => Mode::Exchange,
        ("cas", _) => Mode::CompareAndSwap,
        ("inc", _) => Mode::Increment,
        _ => Mode::Decrement,
    };
    if !matches!(kind.width(), 32 | 64)
        || !matches!(space, Space::Global | Space::Shared | Space::Generic)
    {
        return Err("width or space not supported".to_owned());
    }
    let (result, rest) = match operands {
        [result, rest @ ..] if !reduces => (Some(result), rest),
        rest => (None, rest),
    };
    let [place, values @ ..] = rest else { return Err("operands are missing".to_owned()) };
    let wanted = if mode == Mode::CompareAndSwap { 2 } else { 1 };
    if values.len() < wanted {
        return Err("operands are missing".to_owned());
    }
    let address = address(lowering, place)?;
    let facts = Facts {
        space,
        short_address: address.short,
        offset: address.offset,
        element: (kind.width() / 8) as u8,
        count: 1,
        signed: kind.is_signed(),
        mode,
        ..Facts::default()
    };
    let mut detail = Detail { facts, ..Detail::default() };
    for value in &values[..wanted] {
        detail.inputs.push(store_source(lowering, value, kind)?);
    }
    if let Some(result) = result {
        let register = lowering.output_register(result, kind.width())?;
        if u32::from(register.width) != kind.width() {
            return Err("the result's register is of another width".to_owned());
        }
        detail.outputs.push(register);
    }
    let instruction = Instruction {
        inputs: [address.slot, 0, 0, 0],
        action: Action::Atomic,
        category: Category::Atomic,
        ..Instruction::nothing()
    };
    let inputs: &[Class] = if address.short { &[Class::W] } else { &[Class::D] };
    lowering.push_detailed(instruction, None, inputs, detail);
    Ok(())
}

fn copy_async(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    if !opcode.flag("async") {
        return Err("only cp.async is supported".to_owned());
    }
    let category = Category::CopyWait;
    if opcode.flag("commit_group") {
        let instruction =
            Instruction { action: Action::CopyCommit, category, ..Instruction::nothing() };
        lowering.push(instruction, None, &[]);
        return Ok(());
    }
    let all = opcode.flag("wait_all");
    if all || opcode.flag("wait_group") {
        let immediate = match operands {
            [] if all => u32::MAX,
            [Operand::Immediate(groups, _)] => (*groups).min(u64::from(u32::MAX - 1)) as u32,
            _ => return Err("the number of groups must be a constant".to_owned()),
        };
        let instruction =
            Instruction { action: Action::CopyWait, category, immediate, ..Instruction::nothing() };
        lowering.push(instruction, None, &[]);
        return Ok(());
    }
    let level = opcode.one_of(&["ca", "cg"]).ok_or("`ca` or `cg` missing")?;
    let shared = opcode.flag("shared") || opcode.flag("shared::cta");
    if !shared || !opcode.flag("global") {
        return Err("only copies from global to shared memory are supported".to_owned());
    }
    opcode.ignore_prefix("L2::");
    let [to, from, Operand::Immediate(bytes, _), rest @ ..] = operands else {
        return Err("3 operands expected".to_owned());
    };
    if !matches!((level, bytes), ("cg", 16) | ("ca", 4 | 8 | 16)) {
        return Err(format!("{bytes} bytes cannot be copied"));
    }
    let size = match rest {
        [] => lowering.word_immediate(*bytes as u32),
        [Operand::Register(register), ..] if class_of(lowering.kind_of(*register)) == Class::P => {
            return Err("ignore-src is not supported".to_owned());
        }
        // A lone 64-bit operand is a cache policy.
        [Operand::Register(register)] if class_of(lowering.kind_of(*register)) == Class::D => {
            lowering.word_immediate(*bytes as u32)
        }
        [size, ..] => lowering.word(size)?,
    };
    let (to, from) = (address(lowering, to)?, address(lowering, from)?);
    let Ok(source_offset) = i32::try_from(from.offset) else {
        return Err("the offset is too large".to_owned());
    };
    if from.short {
        return Err("global addresses have 64 bits".to_owned());
    }
    let facts = Facts {
        space: Space::Shared,
        short_address: to.short,
        offset: to.offset,
        element: *bytes as u8,
        count: 1,
        ..Facts::default()
    };
    let instruction = Instruction {
        inputs: [to.slot, from.slot, size, 0],
        action: Action::CopyAsync,
        category: Category::CopyAsync,
        immediate: source_offset as u32,
        ..Instruction::nothing()
    };
    let inputs: &[Class] =
        if to.short { &[Class::W, Class::D, Class::W] } else { &[Class::D, Class::D, Class::W] };
    lowering.push_detailed(instruction, None, inputs, Detail { facts, ..Detail::default() });
    Ok(())
}

fn vector(operand: &Operand) -> &[Operand] {
    match operand {
        Operand::Vector(parts) => parts,
        one => std::slice::from_ref(one),
    }
}

fn load_matrix(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    let synchronous = opcode.flag("sync") && opcode.flag("aligned") && opcode.flag("m8n8");
    let count = match opcode.one_of(&["x1", "x2", "x4"]) {
        Some("x1") => 1,
        Some("x2") => 2,
        Some(_) => 4,
        None => 0,
    };
    let transposed = opcode.flag("trans");
    let shared = space(opcode);
    let kind = opcode.kind()?;
    if !synchronous || count == 0 || kind.width() != 16 || shared != Space::Shared {
        return Err("this shape is not supported".to_owned());
    }
    let [results, place] = operands else { return Err("2 operands expected".to_owned()) };
    let results = vector(results);
    if results.len() != count {
        return Err(format!("{} registers for {count} matrices", results.len()));
    }
    let address = address(lowering, place)?;
    let facts = Facts {
        space: Space::Shared,
        short_address: address.short,
        offset: address.offset,
        element: 16,
        count: count as u8,
        transposed,
        ..Facts::default()
    };
    let mut detail = Detail { facts, ..Detail::default() };
    for result in results {
        detail.outputs.push(word_output(lowering, result)?);
    }
    let instruction = Instruction {
        inputs: [address.slot, 0, 0, 0],
        action: Action::LoadMatrix,
        category: Category::LoadMatrix,
        ..Instruction::nothing()
    };
    let inputs: &[Class] = if address.short { &[Class::W] } else { &[Class::D] };
    lowering.push_detailed(instruction, None, inputs, detail);
    Ok(())
}

fn word_output(lowering: &mut Lowering, operand: &Operand) -> Lowered<Register> {
    let slot = lowering.output(operand, Class::W)?;
    Ok(Register { class: Class::W, width: 32, slot })
}

fn mma(lowering: &mut Lowering, opcode: &mut Opcode, operands: &[Operand]) -> Lowered {
    let synchronous = opcode.flag("sync") && opcode.flag("aligned");
    let shape = opcode.one_of(&["m16n8k16", "m16n8k8"]).ok_or("this shape is not supported")?;
    let layout = opcode.flag("row") && opcode.flag("col");
    let kinds = [opcode.kind()?, opcode.kind()?, opcode.kind()?, opcode.kind()?];
    let (mode, depth, sizes) = match (kinds, shape) {
        ([Kind::F32, Kind::Bf16, Kind::Bf16, Kind::F32], "m16n8k16") => {
            (Mode::MmaBf16, 16, [4, 4, 2, 4])
        }
        ([Kind::F32, Kind::Bf16, Kind::Bf16, Kind::F32], _) => (Mode::MmaBf16, 8, [4, 2, 1, 4]),
        ([Kind::F32, Kind::F16, Kind::F16, Kind::F32], "m16n8k16") => {
            (Mode::MmaF16, 16, [4, 4, 2, 4])
        }
        ([Kind::F32, Kind::F16, Kind::F16, Kind::F32], _) => (Mode::MmaF16, 8, [4, 2, 1, 4]),
        ([Kind::F32, Kind::Tf32, Kind::Tf32, Kind::F32], "m16n8k8") => {
            (Mode::MmaTf32, 8, [4, 4, 2, 4])
        }
        _ => return Err("these types are not supported".to_owned()),
    };
    let [d, a, b, c] = operands else { return Err("4 operands expected".to_owned()) };
    if !synchronous || !layout {
        return Err("only .sync.aligned with .row.col is supported".to_owned());
    }
    for (operand, size) in operands.iter().zip(sizes) {
        if vector(operand).len() != size {
            return Err(format!("{} registers, not {size}", vector(operand).len()));
        }
    }
    let facts = Facts { mode, count: depth, ..Facts::default() };
    let mut detail = Detail { facts, ..Detail::default() };
    for part in vector(a).iter().chain(vector(b)).chain(vector(c)) {
        let slot = lowering.word(part)?;
        detail.inputs.push(Register { class: Class::W, width: 32, slot });
    }
    for part in vector(d) {
        detail.outputs.push(word_output(lowering, part)?);
    }
    let instruction =
        Instruction { action: Action::Mma, category: Category::Mma, ..Instruction::nothing() };
    lowering.push_detailed(instruction, None, &[], detail);
    Ok(())
}
