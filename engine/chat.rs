//! Chat templates: the messages of a conversation to the one text that the model reads.
//!
//! The template is Jinja, from the checkpoint: chat_template.jinja, else `chat_template` of tokenizer_config.json (a string, or a
//! list of which "default" is taken). It is rendered as transformers' `apply_chat_template` does: trim_blocks and lstrip_blocks,
//! the variables messages, tools and documents (none), add_generation_prompt, enable_thinking (only if given) and the special
//! tokens by name, and the functions raise_exception and strftime_now. What Jinja takes from Python (str(), string methods, json.dumps)
//! is in `python`.
//!
//! A template is a stranger's program: its size is bounded, and a budget of steps and bytes (minijinja's fuel) ends one that loops or
//! swells. It sees nothing but these variables.

mod python;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value};
use regex::Regex;

use crate::error::{FileError, excerpt, parse_json, read_text};

/// Large tables of reserved tokens make a megabyte.
const CONFIG_LIMIT_BYTES: u64 = 16 << 20;
/// Ten times the longest template of the field.
const TEMPLATE_LIMIT_BYTES: u64 = 256 << 10;
/// A unit of fuel is one instruction or 64 bytes. Qwen3's template takes about 60 instructions a message and copies
/// its text some ten times; this leaves each more than tenfold, and bounds a hostile template to about 20 MB and 0.1 s beyond it.
const FUEL: u64 = 30_000_000;
const FUEL_PER_MESSAGE: u64 = 2_000;
const FUEL_PER_BYTE: u64 = 2;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// How to render.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChatOptions {
    /// Whether to end with the opening of an assistant's turn.
    pub add_generation_prompt: bool,
    /// Qwen3's switch; `None` does not define the variable.
    pub enable_thinking: Option<bool>,
    /// What `strftime_now` tells, in seconds since 1970 UTC; `None` asks the clock. Some templates (Llama 3's) write the date
    /// into the prompt: fix it where the same input must give the same output.
    pub now_s: Option<i64>,
}

impl Default for ChatOptions {
    /// For generation: with the assistant's opening, thinking as the template has it.
    fn default() -> ChatOptions {
        ChatOptions { add_generation_prompt: true, enable_thinking: None, now_s: None }
    }
}

/// The chat template of a checkpoint directory.
pub struct ChatTemplate {
    path: PathBuf,
    environment: Environment<'static>,
    special_tokens: Vec<(String, Value)>,
}

/// A template that cannot be found, parsed or rendered.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields say what they hold
pub enum ChatError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The checkpoint has none.
    #[error(
        "{}: no chat template (no chat_template.jinja, no \"chat_template\" in tokenizer_config.json); this is a base model, use one that was trained to chat",
        directory.display()
    )]
    NoTemplate { directory: PathBuf },
    /// Several templates, none of them "default".
    #[error("{}: \"chat_template\" has {names:?}, but none named \"default\"", path.display())]
    NoDefault { path: PathBuf, names: Vec<String> },
    /// A value of tokenizer_config.json of the wrong type.
    #[error("{}: {key:?} should be {expected}", path.display())]
    WrongType { path: PathBuf, key: String, expected: &'static str },
    /// The template is larger than any sound one.
    #[error("{}: the chat template has {len_bytes} bytes, more than {TEMPLATE_LIMIT_BYTES}", path.display())]
    TooLarge { path: PathBuf, len_bytes: usize },
    /// Not Jinja, or Jinja that is not known here.
    #[error("{}: the chat template does not parse: {message}", path.display())]
    Syntax { path: PathBuf, message: String },
    /// The template refused the conversation (`raise_exception`).
    #[error("{}: the chat template refuses this conversation: {message}", path.display())]
    Refused { path: PathBuf, message: String },
    /// The budget is spent.
    #[error(
        "{}: the chat template does not end or swells: stopped after its budget of {fuel} steps", path.display()
    )]
    OutOfFuel { path: PathBuf, fuel: u64 },
    /// Any other failure.
    #[error("{}: the chat template fails: {message}", path.display())]
    Render { path: PathBuf, message: String },
}

impl ChatTemplate {
    /// Finds the chat template of a checkpoint.
    pub fn load(directory: &Path) -> Result<ChatTemplate, ChatError> {
        let config_path = directory.join("tokenizer_config.json");
        let config = match read_text(&config_path, CONFIG_LIMIT_BYTES) {
            Ok(text) => parse_json(&config_path, &text)?,
            Err(FileError::NotFound { .. }) => serde_json::json!({}),
            Err(error) => return Err(error.into()),
        };
        let special_tokens = special_tokens(&config_path, &config)?;
        let file_path = directory.join("chat_template.jinja");
        match read_text(&file_path, TEMPLATE_LIMIT_BYTES) {
            Ok(source) => ChatTemplate::parse(&source, &file_path, special_tokens),
            Err(FileError::NotFound { .. }) => match template_source(&config_path, &config)? {
                Some(source) => ChatTemplate::parse(source, &config_path, special_tokens),
                None => Err(ChatError::NoTemplate { directory: directory.to_owned() }),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Parses a template; `special_tokens` are further variables (`eos_token` and so on), `path` is for messages only.
    fn parse(
        source: &str,
        path: &Path,
        special_tokens: Vec<(String, Value)>,
    ) -> Result<ChatTemplate, ChatError> {
        if source.len() as u64 > TEMPLATE_LIMIT_BYTES {
            return Err(ChatError::TooLarge { path: path.to_owned(), len_bytes: source.len() });
        }
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(
                |error| ChatError::Syntax { path: path.to_owned(), message: message(&error) },
            )?,
        );
        environment.set_debug(false);
        python::install(&mut environment);
        environment.add_template_owned("chat_template", as_jinja_reads_it(source)).map_err(
            |error| ChatError::Syntax { path: path.to_owned(), message: message(&error) },
        )?;
        Ok(ChatTemplate { path: path.to_owned(), environment, special_tokens })
    }

    /// The text of a conversation.
    pub fn render(&self, messages: &[Message], options: &ChatOptions) -> Result<String, ChatError> {
        let bytes: usize =
            messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        let fuel = FUEL
            .saturating_add((messages.len() as u64).saturating_mul(FUEL_PER_MESSAGE))
            .saturating_add((bytes as u64).saturating_mul(FUEL_PER_BYTE));
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let now_s = options.now_s;
        environment.add_function("strftime_now", move |format: &str| {
            python::strftime(format, now_s.unwrap_or_else(seconds_since_1970))
        });
        let template =
            environment.get_template("chat_template").map_err(|error| self.failed(&error, fuel))?;
        let text = template.render(self.variables(messages, options));
        text.map_err(|error| self.failed(&error, fuel))
    }

    fn variables(&self, messages: &[Message], options: &ChatOptions) -> Value {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| {
                Value::from_iter([
                    ("role", Value::from(message.role.as_str())),
                    ("content", Value::from(message.content.as_str())),
                ])
            })
            .collect();
        // In transformers' order of precedence, later ones win.
        let mut variables = self.special_tokens.clone();
        let mut set = |name: &str, value: Value| variables.push((name.to_owned(), value));
        set("messages", Value::from(messages));
        set("tools", Value::from(()));
        set("documents", Value::from(()));
        set("add_generation_prompt", Value::from(options.add_generation_prompt));
        if let Some(enable_thinking) = options.enable_thinking {
            set("enable_thinking", Value::from(enable_thinking));
        }
        Value::from_iter(variables)
    }

    fn failed(&self, error: &minijinja::Error, fuel: u64) -> ChatError {
        let path = self.path.clone();
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(refusal) = error.downcast_ref::<python::Raised>() {
                return ChatError::Refused { path, message: excerpt(&refusal.0) };
            }
            if let Some(error) = error.downcast_ref::<minijinja::Error>()
                && error.kind() == ErrorKind::OutOfFuel
            {
                return ChatError::OutOfFuel { path, fuel };
            }
            cause = error.source();
        }
        ChatError::Render { path, message: message(error) }
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ChatTemplate").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What Jinja and transformers do with the source before the grammar: line ends become \n, and the block
/// `{% generation %}` (which marks the assistant's tokens for training) only opens a scope.
fn as_jinja_reads_it(source: &str) -> String {
    static GENERATION: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("sound"));
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    GENERATION.replace_all(&source, "{%${1} ${2}with ${3}%}").into_owned()
}

fn template_source<'a>(
    path: &Path,
    config: &'a serde_json::Value,
) -> Result<Option<&'a str>, ChatError> {
    use serde_json::Value;
    let wrong = || ChatError::WrongType {
        path: path.to_owned(),
        key: "chat_template".to_owned(),
        expected: "a template or a list of {name, template}",
    };
    let named = match config.get("chat_template") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(source)) => return Ok(Some(source)),
        Some(Value::Array(named)) => named,
        Some(_) => return Err(wrong()),
    };
    let mut names = Vec::new();
    for entry in named {
        let text = |key| entry.get(key).and_then(Value::as_str).ok_or_else(wrong);
        let (name, source) = (text("name")?, text("template")?);
        if name == "default" {
            return Ok(Some(source));
        }
        names.push(excerpt(name));
    }
    Err(ChatError::NoDefault { path: path.to_owned(), names })
}

/// The special tokens that transformers hands to a template: those that are set, each a string or an object with `content`.
fn special_tokens(
    path: &Path,
    config: &serde_json::Value,
) -> Result<Vec<(String, Value)>, ChatError> {
    const NAMES: [&str; 8] = [
        "bos_token",
        "eos_token",
        "unk_token",
        "sep_token",
        "pad_token",
        "cls_token",
        "mask_token",
        "additional_special_tokens",
    ];
    fn token(value: &serde_json::Value) -> Option<Value> {
        value.as_str().or_else(|| value.get("content")?.as_str()).map(Value::from)
    }
    let mut tokens = Vec::new();
    for name in NAMES {
        let Some(value) = config.get(name).filter(|value| !value.is_null()) else { continue };
        let token = match value.as_array() {
            Some(list) => list.iter().map(token).collect::<Option<Vec<Value>>>().map(Value::from),
            None => token(value),
        };
        let wrong = || ChatError::WrongType {
            path: path.to_owned(),
            key: name.to_owned(),
            expected: "a token, that is a string or an object with \"content\"",
        };
        tokens.push((name.to_owned(), token.ok_or_else(wrong)?));
    }
    Ok(tokens)
}

/// An error of minijinja in one line, with the template's line.
fn message(error: &minijinja::Error) -> String {
    let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    format!("{}{line}", excerpt(&format!("{}{detail}", error.kind())))
}

fn seconds_since_1970() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0, |elapsed| i64::try_from(elapsed.as_secs()).unwrap_or(0))
}
