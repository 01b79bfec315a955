//! Templates that strangers wrote, rendered in bounded time and memory: chat templates of checkpoints and judge templates.
//!
//! The language is minijinja's with Python's semantics (`python`). Fuel, which the crate counts, bounds the work of a template:
//! an instruction, or 64 bytes of data, is one unit. The crate does not count everything, so three things come on top:
//!
//! - `guard` puts checks between the compiled instructions. No value nests deeper than 64, so that nothing that walks, compares or
//!   drops values overflows a stack; lists are made at once, not lazily; and what reads values as a whole (a comparison, a filter,
//!   a method) first pays for all that is in them, shared parts as often as they are met.
//! - `constants` looks at the source before the crate folds its constants, which no fuel bounds.
//! - A template is compiled and rendered in a thread whose stack is made for the longest source.
//!
//! All of it is counted, nothing is timed: a template is refused on every machine or on none.

use std::collections::HashSet;
use std::sync::LazyLock;

use minijinja::machinery;
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use regex::Regex;

pub use minijinja::Value;

use crate::error::excerpt;

mod constants;
mod guard;
mod python;

/// The longest templates of the field have 30 KB. The crate folds constants in time quadratic in the length of an expression, before
/// any fuel is counted: at this length seconds, not hours.
pub const SOURCE_LIMIT_BYTES: u64 = 64 << 10;

/// Work that any template may do. Qwen3's takes about 200 per message.
const FUEL: u64 = 500_000;
const FUEL_PER_MESSAGE: u64 = 5_000;
/// Every template reads a text some ten times; this is 32 times.
const BYTES_PER_FUEL: u64 = 2;
/// The nesting of blocks and calls; a macro counts several. The crate's own limit of 500 is made for larger stacks than a thread's.
const RECURSION_LIMIT: usize = 200;

/// The crate parses, compiles and drops long chains such as 1+1+1 by recursion, as deep as there are source bytes. A thread with a
/// stack for the worst keeps that from ending the process; what a sound template does not touch of it costs nothing.
const STACK_BYTES: u64 = 16 << 20;
const STACK_BYTES_PER_SOURCE_BYTE: u64 = 2048;

/// A compiled template.
#[derive(Debug)]
pub struct Template {
    name: &'static str,
    source: String,
    environment: Environment<'static>,
}

/// Why a template cannot be compiled or rendered. Lines count from 1; 0 is a line that is not known.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields say what they hold
pub enum TemplateError {
    /// Not Jinja, or constants that would take all memory.
    #[error("line {line}: {message}")]
    Syntax { line: usize, message: String },
    /// A strict template uses a variable that does not exist.
    #[error("line {line}: '{expression}' is undefined")]
    Undefined { line: usize, expression: String },
    /// The template called `raise_exception`.
    #[error("the template refuses: {message}")]
    Refused { message: String },
    /// An unknown filter, a recursion or a value too deep.
    #[error("line {line}: {message}")]
    Render { line: usize, message: String },
    /// More work than any sound template does for such a conversation.
    #[error("line {line}: stopped after {fuel} steps")]
    OutOfFuel { line: usize, fuel: u64 },
    /// The operating system gives no thread to render in.
    #[error("no thread with a stack of {stack_bytes} bytes: {source}")]
    NoThread { stack_bytes: u64, source: std::io::Error },
}

/// The work that a template may do for `messages` messages which hold `len_bytes` bytes.
pub fn fuel_for(messages: usize, len_bytes: usize) -> u64 {
    let per_message = FUEL_PER_MESSAGE.saturating_mul(messages as u64);
    FUEL.saturating_add(per_message).saturating_add(len_bytes as u64 / BYTES_PER_FUEL)
}

impl Template {
    /// Compiles `source`, of at most [`SOURCE_LIMIT_BYTES`] (the caller says so in the words of its file). In a strict template an
    /// undefined variable is an error; otherwise it is empty, as in transformers.
    pub fn compile(
        name: &'static str,
        source: &str,
        strict: bool,
    ) -> Result<Template, TemplateError> {
        assert!(source.len() as u64 <= SOURCE_LIMIT_BYTES, "{name}: {} bytes", source.len());
        let source = as_jinja_reads_it(source);
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.expect("the default delimiters are sound");
        environment.set_syntax(syntax.clone());
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        let behavior = if strict { UndefinedBehavior::Strict } else { UndefinedBehavior::Lenient };
        environment.set_undefined_behavior(behavior);
        environment.set_recursion_limit(RECURSION_LIMIT);
        // Errors then know which expression failed. Otherwise conversations stay out of them.
        environment.set_debug(strict);
        // Not Jinja's, and they print or build more than fuel counts.
        environment.remove_filter("pprint");
        environment.remove_filter("chain");
        environment.remove_global("debug");
        python::install(&mut environment);
        let stack_bytes = stack_bytes(&source);
        on_a_stack_of(stack_bytes, || {
            let broken = |error: &Error| {
                let (line, message) = (error.line().unwrap_or(0), describe(error));
                TemplateError::Syntax { line, message }
            };
            let tree = machinery::parse(&source, name, syntax).map_err(|error| broken(&error))?;
            if let Some(line) = constants::too_long(&tree) {
                let message = "a constant list is repeated too often".to_owned();
                return Err(TemplateError::Syntax { line, message });
            }
            drop(tree);
            let added = environment.add_template_owned(name, source.clone());
            added.map_err(|error| broken(&error))?;
            guard::install(&mut environment, name);
            Ok(())
        })?;
        Ok(Template { name, source, environment })
    }

    /// Renders with `variables`, within `fuel` (see [`fuel_for`]).
    pub fn render(
        &self,
        variables: Vec<(&'static str, Value)>,
        fuel: u64,
    ) -> Result<String, TemplateError> {
        on_a_stack_of(stack_bytes(&self.source), || {
            // Shares everything, but fuel is a setting of its own.
            let mut environment = self.environment.clone();
            environment.set_fuel(Some(fuel));
            guard::render(&environment, self.name, Value::from_pairs(variables))
                .map_err(|error| failure(&error, fuel))
        })
    }

    /// The text as it was compiled: line ends are \n.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The variables that the template reads and does not set itself, sorted. Functions such as `range` are not among them.
    pub fn undeclared_variables(&self) -> Result<Vec<String>, TemplateError> {
        on_a_stack_of(stack_bytes(&self.source), || {
            let template = self.environment.get_template(self.name).expect("added on compiling");
            let globals: HashSet<&str> = self.environment.globals().map(|(name, _)| name).collect();
            let mut names: Vec<String> = template.undeclared_variables(false).into_iter().collect();
            names.retain(|name| !globals.contains(name.as_str()));
            names.sort();
            Ok(names)
        })
    }
}

fn stack_bytes(source: &str) -> u64 {
    STACK_BYTES + STACK_BYTES_PER_SOURCE_BYTE * source.len() as u64
}

fn failure(error: &Error, fuel: u64) -> TemplateError {
    let line = error.line().unwrap_or(0);
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = cause {
        if let Some(refusal) = this.downcast_ref::<python::Raised>() {
            return TemplateError::Refused { message: excerpt(&refusal.0) };
        }
        let inner = this.downcast_ref::<Error>();
        if inner.is_some_and(|inner| inner.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::OutOfFuel { line, fuel };
        }
        cause = this.source();
    }
    // The crate knows the expression only where debug is on, that is, in strict templates.
    let expression = || error.template_source()?.get(error.range()?);
    match (error.kind(), expression()) {
        (ErrorKind::UndefinedError, Some(text)) => {
            TemplateError::Undefined { line, expression: excerpt(text) }
        }
        _ => TemplateError::Render { line, message: describe(error) },
    }
}

/// Runs `call` in a thread of its own and waits. A panic of the template crate becomes an error.
fn on_a_stack_of<T: Send>(
    stack_bytes: u64,
    call: impl FnOnce() -> Result<T, TemplateError> + Send,
) -> Result<T, TemplateError> {
    let size = usize::try_from(stack_bytes).unwrap_or(usize::MAX);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(size).spawn_scoped(scope, call);
        let thread = thread.map_err(|source| TemplateError::NoThread { stack_bytes, source })?;
        thread.join().unwrap_or_else(|_| {
            let message = "crate minijinja panicked".to_owned();
            Err(TemplateError::Render { line: 0, message })
        })
    })
}

/// What Jinja and transformers do with the source before the grammar: line ends become \n, and the block
/// `{% generation %}` (which marks the assistant's tokens for training) only opens a scope.
fn as_jinja_reads_it(source: &str) -> String {
    static GENERATION: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("sound"));
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    GENERATION.replace_all(&source, "{%${1} ${2}with ${3}%}").into_owned()
}

/// The crate's message without its location, which has a field of its own.
fn describe(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {}", error.kind(), excerpt(detail)),
        None => error.kind().to_string(),
    }
}

#[cfg(test)]
mod expression_tests;
#[cfg(test)]
mod tests;
