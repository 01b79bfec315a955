//! Module-level declarations: variables, files, entries and their parameters.

use super::body;
use super::syntax::{Kernel, Kind, Module, Parameter, Variable};
use super::token::{NumberKind, Token, TokenKind, tokens};
use crate::fault::LoadError;

/// Largest variable or parameter list that is accepted: text is not trusted, memory is finite.
const MAX_VARIABLE_BYTES: usize = 1 << 30;

/// Parses a whole PTX module.
pub(crate) fn parse(source: &str) -> Result<Module, LoadError> {
    let tokens = tokens(source)?;
    let mut parser = Parser { tokens: &tokens, at: 0 };
    let mut module = Module::default();
    while !parser.at_end() {
        item(&mut parser, &mut module)?;
    }
    Ok(module)
}

fn item(parser: &mut Parser, module: &mut Module) -> Result<(), LoadError> {
    let line = parser.line();
    let word = parser.word()?;
    match word {
        ".version" => module.version = parser.advance()?.text.to_owned(),
        ".target" => {
            module.target = parser.word()?.to_owned();
            while parser.accept(',') {
                parser.word()?;
            }
        }
        ".address_size" => {
            if parser.integer()? != 64 {
                return Err(LoadError::syntax(line, "only 64-bit addresses are supported"));
            }
        }
        ".file" => {
            let number = parser.integer()? as u32;
            let name = parser.advance()?;
            if name.kind != TokenKind::Text {
                return Err(LoadError::syntax(line, "a file name is missing"));
            }
            module.files.insert(number, name.text.to_owned());
            while parser.accept(',') {
                parser.integer()?;
            }
        }
        ".section" => {
            parser.word()?;
            parser.skip_braces()?;
        }
        ".visible" | ".weak" | ".common" | ".extern" => {
            let external = word == ".extern";
            match parser.word()? {
                ".entry" if !external => module.kernels.push(entry(parser)?),
                ".func" if external => parser.skip_past(';')?,
                ".func" => return Err(functions_refused(line)),
                space => variable_item(parser, module, space, external, line)?,
            }
        }
        ".entry" => module.kernels.push(entry(parser)?),
        ".func" => return Err(functions_refused(line)),
        ".pragma" => parser.skip_past(';')?,
        space => variable_item(parser, module, space, false, line)?,
    }
    Ok(())
}

fn functions_refused(line: u32) -> LoadError {
    LoadError::syntax(line, "device functions (.func) are not supported: inline them")
}

fn variable_item(
    parser: &mut Parser,
    module: &mut Module,
    space: &str,
    external: bool,
    line: u32,
) -> Result<(), LoadError> {
    let mut variable = variable(parser)?;
    parser.expect(';')?;
    match space {
        ".shared" if external => module.dynamic_shared.push(variable),
        ".shared" => module.shared.push(variable),
        ".global" | ".const" if !external => {
            variable.constant = space == ".const";
            module.variables.push(variable);
        }
        _ => return Err(LoadError::syntax(line, format!("unexpected `{space}`"))),
    }
    Ok(())
}

fn entry(parser: &mut Parser) -> Result<Kernel, LoadError> {
    let mut kernel = Kernel { name: parser.word()?.to_owned(), ..Kernel::default() };
    if parser.accept('(') && !parser.accept(')') {
        loop {
            let parameter = parameter(parser, &kernel.parameters)?;
            kernel.parameters.push(parameter);
            if parser.accept(')') {
                break;
            }
            parser.expect(',')?;
        }
    }
    while !parser.accept('{') {
        let line = parser.line();
        let directive = parser.word()?;
        let mut numbers = [1u32; 3];
        let takes_numbers = matches!(
            directive,
            ".maxntid" | ".reqntid" | ".minnctapersm" | ".maxnctapersm" | ".maxnreg"
        );
        if takes_numbers {
            for (index, number) in numbers.iter_mut().enumerate() {
                if index == 0 || parser.accept(',') {
                    *number = parser.integer()? as u32;
                }
            }
        }
        let threads = numbers.iter().try_fold(1u32, |all, &number| all.checked_mul(number));
        match directive {
            ".maxntid" => kernel.max_threads = threads,
            ".reqntid" => {
                kernel.max_threads = threads;
                kernel.required_threads = Some(numbers);
            }
            ".minnctapersm" | ".maxnctapersm" | ".maxnreg" => {}
            ".pragma" => parser.skip_past(';')?,
            _ => return Err(LoadError::syntax(line, format!("unexpected `{directive}`"))),
        }
    }
    body::body(parser, &mut kernel)?;
    Ok(kernel)
}

fn parameter(parser: &mut Parser, before: &[Parameter]) -> Result<Parameter, LoadError> {
    let line = parser.line();
    if parser.word()? != ".param" {
        return Err(LoadError::syntax(line, "a parameter must be .param"));
    }
    let variable = variable(parser)?;
    let end = before.last().map_or(0, |last| last.offset + last.size);
    let offset = end.next_multiple_of(variable.align);
    Ok(Parameter { name: variable.name, offset, size: variable.size })
}

/// `[.align n] .type [.ptr ..] name [dimensions] [= initial]`, without what ends it.
pub(super) fn variable(parser: &mut Parser) -> Result<Variable, LoadError> {
    let line = parser.line();
    let mut align = None;
    let mut element = None;
    let name = loop {
        let word = parser.word()?;
        match word {
            ".align" => align = Some(parser.integer()? as usize),
            ".attribute" => parser.skip_past(')')?,
            // What a pointer points to says nothing about the pointer's own size and alignment.
            ".ptr" => {
                while parser.peek_is_word(".align")
                    || parser.peek_is_word(".global")
                    || parser.peek_is_word(".const")
                    || parser.peek_is_word(".shared")
                    || parser.peek_is_word(".local")
                {
                    if parser.word()? == ".align" {
                        parser.integer()?;
                    }
                }
            }
            ".v2" | ".v4" => {
                return Err(LoadError::syntax(line, "vector variables are not supported"));
            }
            _ => match word.strip_prefix('.') {
                Some(kind) => match Kind::parse(kind) {
                    Some(kind) if kind != Kind::Predicate => element = Some(kind.width() / 8),
                    _ => return Err(LoadError::syntax(line, format!("unexpected `{word}`"))),
                },
                None => break word.to_owned(),
            },
        }
    };
    let Some(element) = element.map(|bytes| bytes as usize) else {
        return Err(LoadError::syntax(line, format!("`{name}` has no type")));
    };
    let align = align.unwrap_or(element);
    if !align.is_power_of_two() || align > 4096 {
        return Err(LoadError::syntax(line, format!("`{name}` is aligned to {align}")));
    }
    let mut size = element;
    while parser.accept('[') {
        let count = if parser.peek_is(']') { 0 } else { parser.integer()? as usize };
        parser.expect(']')?;
        size = size.saturating_mul(count);
    }
    if size > MAX_VARIABLE_BYTES {
        return Err(LoadError::syntax(line, format!("`{name}` has {size} bytes")));
    }
    let mut initial = Vec::new();
    if parser.accept('=') {
        initializer(parser, element, &mut initial)?;
        if size == 0 {
            size = initial.len();
        }
        if initial.len() > size {
            return Err(LoadError::syntax(line, format!("`{name}` has too many initial values")));
        }
    }
    Ok(Variable { name, size, align, initial, constant: false })
}

fn initializer(parser: &mut Parser, element: usize, out: &mut Vec<u8>) -> Result<(), LoadError> {
    // Nested braces of arrays of arrays hold the same values in the same order.
    let mut depth = 0;
    loop {
        while parser.accept('{') {
            depth += 1;
        }
        if !parser.peek_is('}') {
            let negative = parser.accept('-');
            let line = parser.line();
            let (bits, kind) = match parser.advance()?.kind {
                TokenKind::Number(bits, kind) => (bits, kind),
                _ => return Err(LoadError::syntax(line, "an initial value must be a number")),
            };
            let bits = match (negative, kind) {
                (false, _) => bits,
                (true, NumberKind::Integer) => bits.wrapping_neg(),
                (true, _) => return Err(LoadError::syntax(line, "a sign before a bit pattern")),
            };
            out.extend_from_slice(&bits.to_le_bytes()[..element.min(8)]);
        }
        while depth > 0 && parser.accept('}') {
            depth -= 1;
        }
        if !parser.accept(',') {
            break;
        }
    }
    if depth == 0 { Ok(()) } else { Err(LoadError::syntax(parser.line(), "`}` expected")) }
}

/// A cursor over the tokens.
pub(super) struct Parser<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
}

impl<'a> Parser<'a> {
    pub(super) fn at_end(&self) -> bool {
        self.at >= self.tokens.len()
    }

    /// Line of the next token, or of the last one at the end.
    pub(super) fn line(&self) -> u32 {
        let last = self.tokens.len().saturating_sub(1);
        self.tokens.get(self.at.min(last)).map_or(1, |token| token.line)
    }

    pub(super) fn peek(&self) -> Option<&Token<'a>> {
        self.tokens.get(self.at)
    }

    pub(super) fn peek_is(&self, wanted: char) -> bool {
        self.peek().is_some_and(|token| token.kind == TokenKind::Punctuation(wanted))
    }

    pub(super) fn peek_is_word(&self, wanted: &str) -> bool {
        self.peek().is_some_and(|token| token.kind == TokenKind::Word && token.text == wanted)
    }

    pub(super) fn advance(&mut self) -> Result<Token<'a>, LoadError> {
        let token = self.peek().copied();
        self.at += 1;
        token.ok_or_else(|| LoadError::syntax(self.line(), "the text ends too early"))
    }

    pub(super) fn accept(&mut self, wanted: char) -> bool {
        let found = self.peek_is(wanted);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, wanted: char) -> Result<(), LoadError> {
        if self.accept(wanted) {
            return Ok(());
        }
        let found = self.peek().map_or("the end", |token| token.text);
        Err(LoadError::syntax(self.line(), format!("`{wanted}` expected, found `{found}`")))
    }

    pub(super) fn word(&mut self) -> Result<&'a str, LoadError> {
        let line = self.line();
        let token = self.advance()?;
        match token.kind {
            TokenKind::Word => Ok(token.text),
            _ => Err(LoadError::syntax(line, format!("a word expected, found `{}`", token.text))),
        }
    }

    pub(super) fn integer(&mut self) -> Result<u64, LoadError> {
        let line = self.line();
        let token = self.advance()?;
        match token.kind {
            TokenKind::Number(bits, NumberKind::Integer) => Ok(bits),
            _ => Err(LoadError::syntax(line, format!("a number expected, found `{}`", token.text))),
        }
    }

    pub(super) fn skip_past(&mut self, wanted: char) -> Result<(), LoadError> {
        while self.advance()?.kind != TokenKind::Punctuation(wanted) {}
        Ok(())
    }

    fn skip_braces(&mut self) -> Result<(), LoadError> {
        self.expect('{')?;
        let mut depth = 1;
        while depth > 0 {
            match self.advance()?.kind {
                TokenKind::Punctuation('{') => depth += 1,
                TokenKind::Punctuation('}') => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptx::syntax::Operand;

    #[test]
    fn declarations_of_every_space() {
        let module = parse(
            ".version 8.0\n.target sm_80, debug\n.address_size 64\n\
             .file 1 \"a.cu\", 12, 34\n\
             .global .align 4 .b8 table[2][4] = {{1, 2, 3, 4}, {5}};\n\
             .visible .const .f32 scale = 0f3F800000;\n\
             .extern .shared .align 16 .b8 dynamic[];\n\
             .shared .align 8 .b8 fixed[24];\n\
             .visible .entry k(.param .u64 .ptr .global .align 16 k_0, .param .u32 k_1,\n\
               .param .align 8 .b8 k_2[12])\n.maxntid 128, 2\n.minnctapersm 2\n{ ret; }\n\
             .section .debug_str { .b8 1, 2 }",
        )
        .expect("legal");
        assert_eq!((module.version.as_str(), module.target.as_str()), ("8.0", "sm_80"));
        assert_eq!(module.files[&1], "a.cu");
        assert_eq!(module.variables[0].size, 8);
        assert_eq!(module.variables[0].initial, [1, 2, 3, 4, 5]);
        assert!(module.variables[1].constant);
        assert_eq!(module.variables[1].initial, 1f32.to_le_bytes());
        assert_eq!((module.dynamic_shared[0].size, module.shared[0].size), (0, 24));
        let kernel = &module.kernels[0];
        let places: Vec<_> = kernel.parameters.iter().map(|p| (p.offset, p.size)).collect();
        assert_eq!(places, [(0, 8), (8, 4), (16, 12)]);
        assert_eq!(kernel.max_threads, Some(256));
    }

    #[test]
    fn scopes_locations_and_operands() {
        let module = parse(
            ".entry k()\n{\n.reg .pred %p<2>; .reg .b32 %r<3>; .reg .b64 %rd<2>;\n\
             .loc 1 7 3, function_name $L_s, inlined_at 1 9 2\n\
             @!%p1 bra $L1;\n{ .reg .b32 t; mov.u32 t, -3; }\n$L1:\n\
             ld.v2.u32 {%r1, _}, [%rd1+-8];\nshfl.sync.bfly.b32 %r1|%p1, %r2, 1, 31, -1;\nret; }",
        )
        .expect("legal");
        let kernel = &module.kernels[0];
        assert_eq!(kernel.labels["$L1"], 2);
        assert_eq!(kernel.statements[0].source, Some((1, 7)));
        assert!(kernel.statements[0].guard.expect("guarded").negated);
        let loaded = &kernel.statements[2].operands;
        assert!(matches!(&loaded[1], Operand::Address(_, -8)));
        assert!(matches!(&kernel.statements[3].operands[0], Operand::Pair(..)));
    }

    #[test]
    fn hostile_text_is_refused_without_a_panic() {
        for source in [
            ".entry",
            ".entry k(",
            ".entry k() {",
            ".entry k() { @",
            ".entry k() { add.s32 ; ret",
            ".entry k() { .reg .b32 %r<99999999999>; }",
            ".entry k() { mov.u32 %nope; [ }",
            ".global .b8 x[9999999999999];",
            ".global .align 3 .b8 x[9];",
            ".global .b8 x[1] = {1, 2, 3};",
            ".func f() { }",
            "{{{{",
            ".entry k() { mov.u32 %r1, {{{{{{; }",
            ".section x {",
        ] {
            parse(source).expect_err(source);
        }
    }
}
