//! The body of a kernel: scopes of registers, labels, statements and their operands.

use std::collections::HashMap;

use super::parse::{Parser, variable};
use super::syntax::{Guard, Kernel, Kind, Operand, Register, RegisterId, Statement};
use super::token::{NumberKind, TokenKind};
use crate::fault::LoadError;

/// Registers a kernel may declare; nvcc's largest here have a few thousand.
const MAX_REGISTERS: usize = 1 << 20;
/// Depth of `{` in an operand: vectors of vectors do not exist.
const MAX_DEPTH: u32 = 2;

/// Parses up to the brace that closes the kernel; the opening one is already read.
pub(super) fn body(parser: &mut Parser, kernel: &mut Kernel) -> Result<(), LoadError> {
    let mut scopes = vec![HashMap::new()];
    let mut source = Source::default();
    while !scopes.is_empty() {
        if parser.accept('}') {
            scopes.pop();
        } else if parser.accept('{') {
            scopes.push(HashMap::new());
        } else if !parser.accept(';') {
            statement(parser, kernel, &mut scopes, &mut source)?;
        }
    }
    Ok(())
}

/// What the last `.loc` said: file and line, and where that was inlined.
#[derive(Clone, Copy, Default)]
struct Source {
    line: Option<(u32, u32)>,
    inlined_at: Option<(u32, u32)>,
}

/// Names of the registers of one `{ }`: inline assembly opens scopes of its own.
type Scope = HashMap<String, RegisterId>;

fn statement(
    parser: &mut Parser,
    kernel: &mut Kernel,
    scopes: &mut [Scope],
    source: &mut Source,
) -> Result<(), LoadError> {
    let line = parser.line();
    let mut guard = None;
    if parser.accept('@') {
        let negated = parser.accept('!');
        let name = parser.word()?;
        let register = find(scopes, name).ok_or_else(|| unknown(line, name))?;
        guard = Some(Guard { register, negated });
    }
    let word = parser.word()?;
    if guard.is_none() && parser.accept(':') {
        if parser.peek_is_word(".branchtargets") {
            parser.word()?;
            let targets = names(parser)?;
            kernel.branch_targets.insert(word.to_owned(), targets);
        } else {
            kernel.labels.insert(word.to_owned(), kernel.statements.len());
        }
        return Ok(());
    }
    match word {
        ".reg" => registers(parser, kernel, scopes)?,
        ".shared" | ".local" => {
            let variable = variable(parser)?;
            parser.expect(';')?;
            let list = if word == ".shared" { &mut kernel.shared } else { &mut kernel.local };
            list.push(variable);
        }
        ".loc" => {
            let (file, number) = (parser.integer()? as u32, parser.integer()? as u32);
            parser.integer()?;
            *source = Source { line: Some((file, number)), inlined_at: None };
            // `, function_name name, inlined_at file line column`.
            while parser.accept(',') {
                if parser.word()? == "inlined_at" {
                    let (file, number) = (parser.integer()? as u32, parser.integer()? as u32);
                    parser.integer()?;
                    source.inlined_at = Some((file, number));
                } else {
                    parser.word()?;
                    // `name + offset` into the names.
                    displacement(parser)?;
                }
            }
        }
        ".pragma" => parser.skip_past(';')?,
        _ if word.starts_with('.') => {
            return Err(LoadError::syntax(line, format!("unexpected `{word}`")));
        }
        opcode => {
            let mut operands = Vec::new();
            if !parser.accept(';') {
                loop {
                    operands.push(operand(parser, scopes, 0)?);
                    if parser.accept(';') {
                        break;
                    }
                    parser.expect(',')?;
                }
            }
            let opcode = opcode.to_owned();
            kernel.statements.push(Statement {
                guard,
                opcode,
                operands,
                line,
                source: source.line,
                inlined_at: source.inlined_at,
            });
        }
    }
    Ok(())
}

fn names(parser: &mut Parser) -> Result<Vec<String>, LoadError> {
    let mut names = Vec::new();
    loop {
        names.push(parser.word()?.to_owned());
        if parser.accept(';') {
            return Ok(names);
        }
        parser.expect(',')?;
    }
}

fn registers(
    parser: &mut Parser,
    kernel: &mut Kernel,
    scopes: &mut [Scope],
) -> Result<(), LoadError> {
    let line = parser.line();
    let kind = parser.word()?;
    let Some(kind) = kind.strip_prefix('.').and_then(Kind::parse) else {
        return Err(LoadError::syntax(line, format!("`{kind}` is not a register's type")));
    };
    if kind.width() > 64 {
        return Err(LoadError::syntax(line, "registers of 128 bits are not supported"));
    }
    loop {
        let name = parser.word()?;
        let mut declare = |name: String| {
            let id = kernel.registers.len() as RegisterId;
            kernel.registers.push(Register { kind });
            if let Some(scope) = scopes.last_mut() {
                scope.insert(name, id);
            }
        };
        if parser.accept('<') {
            let count = parser.integer()? as usize;
            parser.expect('>')?;
            if count > MAX_REGISTERS {
                return Err(LoadError::syntax(line, format!("{count} registers")));
            }
            (0..count).for_each(|index| declare(format!("{name}{index}")));
        } else {
            declare(name.to_owned());
        }
        if kernel.registers.len() > MAX_REGISTERS {
            return Err(LoadError::syntax(line, "too many registers"));
        }
        if parser.accept(';') {
            return Ok(());
        }
        parser.expect(',')?;
    }
}

fn operand(parser: &mut Parser, scopes: &[Scope], depth: u32) -> Result<Operand, LoadError> {
    let line = parser.line();
    if depth > MAX_DEPTH {
        return Err(LoadError::syntax(line, "operands are nested too deep"));
    }
    // Parentheses hold the argument lists of calls, which lowering refuses by their opcode.
    for (open, close) in [('{', '}'), ('(', ')')] {
        if parser.accept(open) {
            let mut parts = Vec::new();
            while !parser.accept(close) {
                parts.push(operand(parser, scopes, depth + 1)?);
                if !parser.peek_is(close) {
                    parser.expect(',')?;
                }
            }
            return Ok(Operand::Vector(parts));
        }
    }
    if parser.accept('[') {
        let mut base = operand(parser, scopes, depth + 1)?;
        let mut offset = displacement(parser)?;
        if let Operand::Symbol(_, inner) = &mut base {
            offset = offset.wrapping_add(std::mem::take(inner));
        }
        parser.expect(']')?;
        return Ok(Operand::Address(Box::new(base), offset));
    }
    if parser.accept('!') {
        let name = parser.word()?;
        return find(scopes, name).map(Operand::Not).ok_or_else(|| unknown(line, name));
    }
    let negative = parser.accept('-');
    let token = parser.advance()?;
    match token.kind {
        TokenKind::Number(bits, kind) => match (negative, kind) {
            (false, _) => Ok(Operand::Immediate(bits, kind)),
            (true, NumberKind::Integer) => Ok(Operand::Immediate(bits.wrapping_neg(), kind)),
            (true, _) => Ok(Operand::Immediate(
                bits ^ if kind == NumberKind::Single { 1 << 31 } else { 1 << 63 },
                kind,
            )),
        },
        TokenKind::Word if !negative => match find(scopes, token.text) {
            Some(register) if parser.accept('|') => {
                let name = parser.word()?;
                // `%r|_` drops the predicate.
                match find(scopes, name) {
                    Some(second) => Ok(Operand::Pair(register, second)),
                    None if name == "_" => Ok(Operand::Register(register)),
                    None => Err(unknown(line, name)),
                }
            }
            Some(register) => Ok(Operand::Register(register)),
            None => {
                let offset = displacement(parser)?;
                Ok(Operand::Symbol(token.text.to_owned(), offset))
            }
        },
        _ => Err(LoadError::syntax(line, format!("an operand expected, found `{}`", token.text))),
    }
}

/// `+8`, `+-8` or `-8`; zero where there is none.
fn displacement(parser: &mut Parser) -> Result<i64, LoadError> {
    let plus = parser.accept('+');
    let minus = parser.accept('-');
    if !plus && !minus {
        return Ok(0);
    }
    let value = parser.integer()? as i64;
    Ok(if minus { value.wrapping_neg() } else { value })
}

fn find(scopes: &[Scope], name: &str) -> Option<RegisterId> {
    scopes.iter().rev().find_map(|scope| scope.get(name).copied())
}

fn unknown(line: u32, name: &str) -> LoadError {
    LoadError::syntax(line, format!("register `{name}` is not declared"))
}
