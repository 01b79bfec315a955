//! Conversations to prompts: a checkpoint's chat template, rendered as transformers' `apply_chat_template` does.
//!
//! The template is Jinja: chat_template.jinja, or "chat_template" in tokenizer_config.json. It sees `messages`,
//! `add_generation_prompt`, `enable_thinking` where given, and the special tokens of tokenizer_config.json by name. Python's string
//! methods, `tojson` as `json.dumps(ensure_ascii=False)`, loop controls and `raise_exception` are there as in transformers;
//! `strftime_now` is not, because a prompt that depends on the day cannot be reproduced.
//!
//! A template comes from a stranger: its size, its work and the memory that it may ask for are bounded, and what exceeds them is
//! an error. One hole is known: minijinja 3.1 joins lists lazily and, after 32 joins of joins, copies the result without counting it, so
//! that a template which doubles a list 33 times takes all memory. Contents of messages are put in as they are, special tokens in them included.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value};
use regex::Regex;

use crate::error::{FileError, excerpt, parse_json, read_text};

mod python;

/// The longest templates of the field have 30 KB. The crate folds constants in time quadratic in the length of an expression, before
/// any fuel is counted: at this length seconds, not hours.
const TEMPLATE_LIMIT_BYTES: u64 = 64 << 10;
/// Llama 3's has 50 KB, others list thousands of added tokens.
const CONFIG_LIMIT_BYTES: u64 = 16 << 20;
const NAME: &str = "chat_template";
/// Variables that a template may print, from tokenizer_config.json.
const TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Work that any template may do: a unit is an instruction or 64 bytes of data. Qwen3's takes about 100 a message.
const FUEL: u64 = 500_000;
const FUEL_PER_MESSAGE: u64 = 5_000;
/// Every template reads a text some ten times; this is 32 times.
const BYTES_PER_FUEL: u64 = 2;
/// The nesting of blocks and calls; a macro counts several. The crate's own limit of 500 is made for larger stacks than a thread's.
const RECURSION_LIMIT: usize = 200;

/// The crate parses, compiles and drops long chains such as 1+1+1 by recursion, and drops lists in lists so: as deep as there are
/// source bytes, or units of fuel. A thread with a stack for the worst keeps that from ending the process; what a sound template
/// does not touch of it costs nothing.
const STACK_BYTES: u64 = 16 << 20;
const STACK_BYTES_PER_SOURCE_BYTE: u64 = 2048;
const STACK_BYTES_PER_FUEL: u64 = 128;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: system, user, assistant or tool, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// What a template is told besides the messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenderOptions {
    /// Whether the prompt ends with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Qwen3's switch; `None` leaves the variable undefined, which it reads as on.
    pub enable_thinking: Option<bool>,
}

/// The chat template of a checkpoint directory.
#[derive(Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    source: String,
    environment: Environment<'static>,
    tokens: Vec<(&'static str, String)>,
}

/// A template that cannot be loaded, refuses the conversation, or exceeds its bounds.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields say what they hold
pub enum ChatError {
    /// A file itself.
    #[error(transparent)]
    File(#[from] FileError),
    /// Nowhere a template.
    #[error(
        "{}: no chat template, neither chat_template.jinja nor \"chat_template\" in tokenizer_config.json; this may be a base model: \
         take the chat_template.jinja of its instruction-tuned variant",
        directory.display()
    )]
    NoTemplate { directory: PathBuf },
    /// A value in tokenizer_config.json of a wrong type.
    #[error("{}: {key:?} should be {expected}, got {got}", path.display())]
    WrongType { path: PathBuf, key: String, expected: &'static str, got: String },
    /// Several templates, none of them the default.
    #[error("{}: \"chat_template\" lists {names:?}, none of which is \"default\"", path.display())]
    NoDefault { path: PathBuf, names: Vec<String> },
    /// A template longer than any sound one.
    #[error("{}: a chat template of {len_bytes} bytes, more than the {limit_bytes} that one may have", path.display())]
    TooLarge { path: PathBuf, len_bytes: usize, limit_bytes: u64 },
    /// Not Jinja.
    #[error("{}: line {line} of the chat template: {message}", path.display())]
    Syntax { path: PathBuf, line: usize, message: String },
    /// The template called `raise_exception`.
    #[error("{}: the chat template refuses this conversation: {message}", path.display())]
    Refused { path: PathBuf, message: String },
    /// An unknown filter, an undefined value used, a recursion too deep.
    #[error("{}: line {line} of the chat template: {message}", path.display())]
    Render { path: PathBuf, line: usize, message: String },
    /// More work than any sound template does for such a conversation.
    #[error("{}: line {line} of the chat template: stopped after {fuel} steps; the template may never end", path.display())]
    OutOfFuel { path: PathBuf, line: usize, fuel: u64 },
    /// The operating system gives no thread to render in.
    #[error("{}: no thread with a stack of {stack_bytes} bytes for the chat template: {source}", path.display())]
    NoThread { path: PathBuf, stack_bytes: u64, source: std::io::Error },
}

impl ChatTemplate {
    /// Reads the template of `directory`, and its special tokens. chat_template.jinja goes before tokenizer_config.json.
    pub fn load(directory: &Path) -> Result<ChatTemplate, ChatError> {
        let config_path = directory.join("tokenizer_config.json");
        let config = match read_text(&config_path, CONFIG_LIMIT_BYTES) {
            Ok(text) => parse_json(&config_path, &text)?,
            Err(FileError::NotFound { .. }) => serde_json::json!({}),
            Err(error) => return Err(error.into()),
        };
        if !config.is_object() {
            return Err(wrong_type(&config_path, "the file", "a JSON object", &config));
        }
        let tokens = special_tokens(&config_path, &config)?;
        let path = directory.join("chat_template.jinja");
        match read_text(&path, TEMPLATE_LIMIT_BYTES) {
            Ok(source) => ChatTemplate::parse(path, source, tokens),
            Err(FileError::NotFound { .. }) => match configured_template(&config_path, &config)? {
                Some(source) => ChatTemplate::parse(config_path, source, tokens),
                None => Err(ChatError::NoTemplate { directory: directory.to_owned() }),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// The prompt of a conversation.
    pub fn render(
        &self,
        messages: &[Message],
        options: RenderOptions,
    ) -> Result<String, ChatError> {
        let len_bytes = messages.iter().map(|turn| turn.role.len() + turn.content.len()).sum();
        let values = messages.iter().map(|turn| {
            Value::from_pairs([("role", turn.role.as_str()), ("content", turn.content.as_str())])
        });
        self.render_values(values.collect(), len_bytes, options)
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    fn parse(
        path: PathBuf,
        source: String,
        tokens: Vec<(&'static str, String)>,
    ) -> Result<ChatTemplate, ChatError> {
        if source.len() as u64 > TEMPLATE_LIMIT_BYTES {
            let (len_bytes, limit_bytes) = (source.len(), TEMPLATE_LIMIT_BYTES);
            return Err(ChatError::TooLarge { path, len_bytes, limit_bytes });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the default delimiters are sound"));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_recursion_limit(RECURSION_LIMIT);
        environment.set_debug(false); // messages quote what they need; conversations stay out of them
        // Not Jinja's, and they print or build more than fuel counts.
        environment.remove_filter("pprint");
        environment.remove_filter("chain");
        environment.remove_global("debug");
        python::install(&mut environment);
        let stack_bytes = STACK_BYTES + STACK_BYTES_PER_SOURCE_BYTE * source.len() as u64;
        on_a_stack_of(stack_bytes, &path, || {
            let added = environment.add_template_owned(NAME, as_jinja_reads_it(&source));
            added.map_err(|error| {
                let (line, message) = (error.line().unwrap_or(0), describe(&error));
                ChatError::Syntax { path: path.clone(), line, message }
            })
        })?;
        Ok(ChatTemplate { path, source, environment, tokens })
    }

    fn render_values(
        &self,
        messages: Vec<Value>,
        len_bytes: usize,
        options: RenderOptions,
    ) -> Result<String, ChatError> {
        let fuel = FUEL
            + FUEL_PER_MESSAGE.saturating_mul(messages.len() as u64)
            + len_bytes as u64 / BYTES_PER_FUEL;
        let mut variables = vec![
            ("messages", Value::from(messages)),
            ("add_generation_prompt", Value::from(options.add_generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        variables.extend(options.enable_thinking.map(|on| ("enable_thinking", Value::from(on))));
        variables.extend(self.tokens.iter().map(|(name, token)| (*name, Value::from(token))));
        let stack_bytes = STACK_BYTES.saturating_add(STACK_BYTES_PER_FUEL.saturating_mul(fuel));
        on_a_stack_of(stack_bytes, &self.path, || {
            // Shares everything, but fuel is a setting of its own.
            let mut environment = self.environment.clone();
            environment.set_fuel(Some(fuel));
            let template = environment.get_template(NAME).expect("added on loading");
            let rendered = template.render(Value::from_pairs(variables));
            rendered.map_err(|error| self.failure(&error, fuel))
        })
    }

    fn failure(&self, error: &minijinja::Error, fuel: u64) -> ChatError {
        let path = self.path.clone();
        let line = error.line().unwrap_or(0);
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(this) = cause {
            if let Some(refusal) = this.downcast_ref::<python::Raised>() {
                return ChatError::Refused { path, message: excerpt(&refusal.0) };
            }
            let inner = this.downcast_ref::<minijinja::Error>();
            if inner.is_some_and(|inner| inner.kind() == ErrorKind::OutOfFuel) {
                return ChatError::OutOfFuel { path, line, fuel };
            }
            cause = this.source();
        }
        ChatError::Render { path, line, message: describe(error) }
    }
}

/// Runs `call` in a thread of its own and waits. A panic of the template crate becomes an error.
fn on_a_stack_of<T: Send>(
    stack_bytes: u64,
    path: &Path,
    call: impl FnOnce() -> Result<T, ChatError> + Send,
) -> Result<T, ChatError> {
    let size = usize::try_from(stack_bytes).unwrap_or(usize::MAX);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(size).spawn_scoped(scope, call);
        let thread = thread.map_err(|source| ChatError::NoThread {
            path: path.to_owned(),
            stack_bytes,
            source,
        })?;
        thread.join().unwrap_or_else(|_| {
            let message = "crate minijinja panicked".to_owned();
            Err(ChatError::Render { path: path.to_owned(), line: 0, message })
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

/// "chat_template": a text, or a list of named ones of which "default" counts.
fn configured_template(
    path: &Path,
    config: &serde_json::Value,
) -> Result<Option<String>, ChatError> {
    const KEY: &str = "chat_template";
    let expected = "a template or a list of {\"name\", \"template\"}";
    let list = match config.get(KEY) {
        None | Some(serde_json::Value::Null) => return Ok(None),
        Some(serde_json::Value::String(source)) => return Ok(Some(source.clone())),
        Some(serde_json::Value::Array(list)) => list,
        Some(other) => return Err(wrong_type(path, KEY, expected, other)),
    };
    let mut names = Vec::new();
    for entry in list {
        let text = |key: &str| entry.get(key).and_then(serde_json::Value::as_str);
        let (Some(name), Some(source)) = (text("name"), text("template")) else {
            return Err(wrong_type(path, KEY, expected, entry));
        };
        if name == "default" {
            return Ok(Some(source.to_owned()));
        }
        names.push(excerpt(name));
    }
    names.truncate(8); // enough for a message
    Err(ChatError::NoDefault { path: path.to_owned(), names })
}

/// The special tokens that are given, as text or as an AddedToken's JSON.
fn special_tokens(
    path: &Path,
    config: &serde_json::Value,
) -> Result<Vec<(&'static str, String)>, ChatError> {
    let mut tokens = Vec::new();
    for key in TOKENS {
        let Some(value) = config.get(key).filter(|value| !value.is_null()) else { continue };
        let content = value.as_str().or_else(|| value.get("content")?.as_str());
        match content {
            Some(content) => tokens.push((key, content.to_owned())),
            None => return Err(wrong_type(path, key, "a token or {\"content\": token}", value)),
        }
    }
    Ok(tokens)
}

fn wrong_type(
    path: &Path,
    key: &str,
    expected: &'static str,
    got: &serde_json::Value,
) -> ChatError {
    let got = excerpt(&got.to_string());
    ChatError::WrongType { path: path.to_owned(), key: key.to_owned(), expected, got }
}

/// The crate's message without its location, which is said apart.
fn describe(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {}", error.kind(), excerpt(detail)),
        None => error.kind().to_string(),
    }
}

#[cfg(test)]
mod fixture_tests;
#[cfg(test)]
mod tests;
