//! The judge's prompt: a system prompt and a user message made from a template.
//!
//! There are two bundled templates:
//!
//! * `j1` (`prompt/system.jinja`, `prompt/user.jinja`) has the sections, tags, markers and box of the published j1 prompt
//!   in our own wording, so published adapters see the form they were trained on.
//! * `examples` (`prompt/examples.jinja`) shows the same form in four worked examples. A small model that has never seen the
//!   form keeps it from the first judgement on. All prompts begin alike, so that the examples are computed once.
//!
//! A user's own template file replaces them.
//!
//! # Template files
//!
//! A template is minijinja source (Jinja2's syntax) for the **user message**. These variables exist:
//!
//! | variable | value |
//! |---|---|
//! | `conversation` | the whole conversation as text, see [`conversation_text`] |
//! | `messages` | the same as a list of `{role, content}` |
//! | `question` | the last user turn |
//! | `response_a`, `response_b` | the candidate replies; a template must use both |
//!
//! A file may open with its own **system prompt**: a first line `---system---`, the system prompt's
//! source, a line `---user---`, the user message's source. Without that front part the bundled system
//! prompt is kept; with an empty one there is no system message. A variable that does not exist is an
//! error, not an empty string. As in chat templates, a line of tags only leaves no blank line behind.
//!
//! Before all of that, a line may say in which form the template asks for its verdict ([`VerdictForm`]), as it
//! does not say by itself: `---verdict: \boxed{a, b} from 0 to 100---` or `---verdict: [[A]], [[B]] or [[C]]---`. Without it
//! the form is the bundled prompt's, `\boxed{a, b}` from 1 to 10. The line is no part of the prompt.
//!
//! # Untrusted text
//!
//! Conversations and replies may be written to mislead the judge. They enter as values, never as template
//! source, and [`escape_special_tokens`] splits the strings that could end a chat turn or forge a slot. A template may come from a stranger as
//! well: it is rendered as chat templates are, within the same bounds ([`engine::text::template`]).

mod escape;
mod order;

use std::path::{Path, PathBuf};

use engine::text::{
    template::{self, SOURCE_LIMIT_BYTES, TemplateError, Value, fuel_for},
    tokenizer::ControlTokens,
};
pub use escape::escape_special_tokens;
pub use order::{Order, OrderPlan};

use crate::data::Message;
use crate::judge::verdict::VerdictForm;

const SYSTEM: &str = include_str!("prompt/system.jinja");
const USER: &str = include_str!("prompt/user.jinja");
const EXAMPLES: &str = include_str!("prompt/examples.jinja");
const VARIABLES: [&str; 5] = ["conversation", "messages", "question", "response_a", "response_b"];
/// Why a template could not be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields say what they hold
pub enum PromptError {
    /// The file could not be read.
    #[error("cannot read the template {}: {source}; bundled are j1 and examples", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The file is larger than any sensible template.
    #[error("the template {} is larger than {SOURCE_LIMIT_BYTES} bytes", path.display())]
    TooLarge { path: PathBuf },
    /// The file is not UTF-8.
    #[error("the template {} is not UTF-8: byte {at} is invalid", path.display())]
    NotUtf8 { path: PathBuf, at: usize },
    /// The front part is opened and never closed.
    #[error("{name}: the line ---system--- must be followed by a line ---user---")]
    NoUserPart { name: String },
    /// The first line names no form of a verdict.
    #[error("{name}, line 1: {message}")]
    Verdict { name: String, message: String },
    /// The source is not a template.
    #[error("{name}, line {line}: {message}")]
    Syntax { name: String, line: usize, message: String },
    /// The template asks for something that is not there.
    #[error(
        "{name}, line {line}: '{variable}' is undefined; a template has conversation, messages, \
         question, response_a and response_b"
    )]
    Undefined { name: String, line: usize, variable: String },
    /// The template would hide a reply from the judge.
    #[error("{name}: the template does not use {missing}; the judge must read both replies")]
    ReplyUnused { name: String, missing: &'static str },
    /// The template called `raise_exception`.
    #[error("{name}: the template refuses this pair: {message}")]
    Refused { name: String, message: String },
    /// The operating system gives no thread to render in.
    #[error("{name}: no thread with a stack of {stack_bytes} bytes: {source}")]
    NoThread { name: String, stack_bytes: u64, source: std::io::Error },
    /// The template ran too long.
    #[error("{name}, line {line}: the template does too much work for one prompt")]
    OutOfFuel { name: String, line: usize },
}

/// One prompt of the judge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The system message, if the template has one.
    pub system: Option<String>,
    /// The user message.
    pub user: String,
}

impl Prompt {
    /// The prompt as chat messages.
    pub fn messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        system.chain([Message::new("user", &self.user)]).collect()
    }
}

/// The conversation and replies of a prompt.
#[derive(Debug, Clone, Copy)]
pub struct PromptInput<'a> {
    /// The conversation up to and including the turn that the replies answer.
    pub messages: &'a [Message],
    /// The reply in slot A.
    pub response_a: &'a str,
    /// The reply in slot B.
    pub response_b: &'a str,
}

/// A checked template.
#[derive(Debug)]
pub struct Template {
    name: String,
    /// None: there is no system message.
    system: Option<Part>,
    user: Part,
    control: ControlTokens,
    verdict_form: VerdictForm,
    fingerprint: String,
}

/// The source of one message.
#[derive(Debug)]
struct Part {
    template: template::Template,
    /// Lines of the file before it.
    offset: usize,
}

impl Template {
    /// The bundled j1 template. It is well formed: what can fail is the thread that it is compiled in.
    pub fn bundled() -> Result<Template, PromptError> {
        Template::build("the j1 template", VerdictForm::default(), Some((SYSTEM, 0)), (USER, 0))
    }

    /// The bundled template of this name, and otherwise the file; no name at all is `j1`.
    pub fn open(name: &str) -> Result<Template, PromptError> {
        match name {
            "" | "j1" => Template::bundled(),
            "examples" => Template::from_source("the template of examples", EXAMPLES),
            path => Template::from_file(Path::new(path)),
        }
    }

    /// Whether [`Template::open`] has a template of this name without a file.
    pub fn is_bundled(name: &str) -> bool {
        matches!(name, "" | "j1" | "examples")
    }

    /// Reads and checks a user's template file.
    pub fn from_file(path: &Path) -> Result<Template, PromptError> {
        use std::io::Read;
        let read = |source| PromptError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(read)?;
        file.take(SOURCE_LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
        if bytes.len() as u64 > SOURCE_LIMIT_BYTES {
            return Err(PromptError::TooLarge { path: path.to_owned() });
        }
        let source = String::from_utf8(bytes).map_err(|error| PromptError::NotUtf8 {
            path: path.to_owned(),
            at: error.utf8_error().valid_up_to(),
        })?;
        Template::from_source(&path.display().to_string(), &source)
    }

    /// Checks a template given as text; its errors name `name`.
    pub fn from_source(name: &str, source: &str) -> Result<Template, PromptError> {
        if source.len() as u64 > SOURCE_LIMIT_BYTES {
            return Err(PromptError::TooLarge { path: PathBuf::from(name) });
        }
        let source = source.strip_prefix('\u{feff}').unwrap_or(source);
        let first = source.split_inclusive('\n').next().unwrap_or_default();
        let (form, source, offset) = match first.trim().strip_prefix("---verdict:") {
            Some(form) => {
                let form = form.trim_end_matches('-').parse();
                let wrong = |message| PromptError::Verdict { name: name.to_owned(), message };
                (form.map_err(wrong)?, &source[first.len()..], 1)
            }
            None => (VerdictForm::default(), source, 0),
        };
        let mut lines = source.split_inclusive('\n');
        if lines.next().map(str::trim_end) != Some("---system---") {
            return Template::build(name, form, Some((SYSTEM, 0)), (source, offset));
        }
        let start = source.find('\n').map_or(source.len(), |at| at + 1);
        let mut at = start;
        for (number, line) in lines.enumerate() {
            if line.trim_end() == "---user---" {
                let system = &source[start..at];
                let system = (!system.trim().is_empty()).then_some((system, offset + 1));
                let user = (&source[at + line.len()..], offset + number + 2);
                return Template::build(name, form, system, user);
            }
            at += line.len();
        }
        Err(PromptError::NoUserPart { name: name.to_owned() })
    }

    /// Names what must not reach the tokenizer whole from untrusted text: the control tokens of the
    /// model at hand.
    pub fn with_control_tokens(mut self, control: ControlTokens) -> Template {
        self.control = control;
        self
    }

    /// Whether it has a system prompt.
    pub fn has_system(&self) -> bool {
        self.system.is_some()
    }

    /// In which form it asks for its verdict.
    pub fn verdict_form(&self) -> VerdictForm {
        self.verdict_form
    }

    /// The source in the form of a template file, which gives the same prompts.
    pub fn to_source(&self) -> String {
        let line = |part: &Part| {
            let source = part.template.source();
            // Jinja drops one line end at the end of a source.
            if source.ends_with('\n') { source.to_owned() } else { format!("{source}\n") }
        };
        let system = self.system.as_ref().map(line).unwrap_or_default();
        let form = match self.verdict_form {
            form if form == VerdictForm::default() => String::new(),
            form => format!("---verdict: {form}---\n"),
        };
        format!("{form}---system---\n{system}---user---\n{}", line(&self.user))
    }

    /// A fingerprint of the template's source (not of its name).
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Renders the prompt for two replies. Untrusted text is passed through [`escape_special_tokens`].
    pub fn render(&self, input: &PromptInput<'_>) -> Result<Prompt, PromptError> {
        let clean = |text: &str| escape_special_tokens(text, &self.control).into_owned();
        let messages: Vec<Message> = (input.messages.iter())
            .map(|message| Message::new(&clean(&message.role), &clean(&message.content)))
            .collect();
        let question = messages.iter().rfind(|message| message.role == "user");
        let question = question.or(messages.last()).map_or("", |message| &message.content);
        let turns = messages.iter().map(|message| {
            let turn = [("role", &message.role), ("content", &message.content)];
            Value::from_pairs(turn.map(|(key, text)| (key, text.as_str())))
        });
        let variables = [
            ("conversation", Value::from(conversation_text(&messages))),
            ("messages", Value::from(turns.collect::<Vec<_>>())),
            ("question", Value::from(question)),
            ("response_a", Value::from(clean(input.response_a))),
            ("response_b", Value::from(clean(input.response_b))),
        ];
        // The conversation is there twice: as text and as messages.
        let len_bytes = variables.iter().filter_map(|(_, value)| value.as_str()).map(str::len);
        let fuel = fuel_for(messages.len(), len_bytes.sum());
        let render = |part: &Part| {
            let text = part.template.render(variables.to_vec(), fuel);
            text.map_err(|error| refusal(&self.name, part.offset, error))
        };
        let system = self.system.as_ref().map(render).transpose()?;
        Ok(Prompt { system, user: render(&self.user)? })
    }

    fn build(
        name: &str,
        verdict_form: VerdictForm,
        system: Option<(&str, usize)>,
        user: (&str, usize),
    ) -> Result<Template, PromptError> {
        let mut fingerprint = crate::data::fingerprint::Fingerprint::new();
        if verdict_form != VerdictForm::default() {
            fingerprint.text("verdict");
            fingerprint.text(&verdict_form.to_string());
        }
        let mut part = |part: &'static str, (source, offset): (&str, usize)| {
            fingerprint.text(part);
            fingerprint.text(source);
            let template = template::Template::compile(part, source, true);
            let template = template.map_err(|error| refusal(name, offset, error))?;
            Ok::<Part, PromptError>(Part { template, offset })
        };
        let template = Template {
            name: name.to_owned(),
            system: system.map(|source| part("system", source)).transpose()?,
            user: part("user", user)?,
            control: ControlTokens::default(),
            verdict_form,
            fingerprint: fingerprint.finish(),
        };
        template.check_variables()?;
        // A trial run finds most of what would fail on the first row of a long evaluation.
        let messages =
            ["user", "assistant", "user"].map(|role| Message::new(role, "What is one and one?"));
        template.render(&PromptInput { messages: &messages, response_a: "2", response_b: "3" })?;
        template.render(&PromptInput {
            messages: &messages[..1],
            response_a: "2",
            response_b: "",
        })?;
        Ok(template)
    }

    /// Every variable is one of the documented ones or a global, and both replies are used.
    fn check_variables(&self) -> Result<(), PromptError> {
        let mut used = Vec::new();
        for part in self.system.iter().chain([&self.user]) {
            let names = part.template.undeclared_variables();
            for variable in names.map_err(|error| refusal(&self.name, part.offset, error))? {
                if VARIABLES.contains(&variable.as_str()) {
                    used.push(variable);
                } else {
                    let source = part.template.source();
                    let line = source.find(&variable).map_or(1, |at| line_of(source, at));
                    let (name, line) = (self.name.clone(), line + part.offset);
                    return Err(PromptError::Undefined { name, line, variable });
                }
            }
        }
        let missing = |reply: &&str| !used.iter().any(|name| name == reply);
        match ["response_a", "response_b"].into_iter().find(missing) {
            Some(missing) => Err(PromptError::ReplyUnused { name: self.name.clone(), missing }),
            None => Ok(()),
        }
    }
}

/// A template's error in the words of its file, `offset` lines of which come before the template.
fn refusal(name: &str, offset: usize, error: TemplateError) -> PromptError {
    let name = name.to_owned();
    match error {
        TemplateError::Undefined { line, expression } => {
            PromptError::Undefined { name, line: line + offset, variable: expression }
        }
        TemplateError::OutOfFuel { line, .. } => {
            PromptError::OutOfFuel { name, line: line + offset }
        }
        TemplateError::Syntax { line, message } | TemplateError::Render { line, message } => {
            PromptError::Syntax { name, line: line + offset, message }
        }
        TemplateError::Refused { message } => PromptError::Refused { name, message },
        TemplateError::NoThread { stack_bytes, source } => {
            PromptError::NoThread { name, stack_bytes, source }
        }
    }
}

/// The whole conversation as text. A single user turn is its content and nothing else, which is how the
/// published adapters saw every conversation; with more turns each one is introduced by its role:
/// `User: ...`, a blank line, `Assistant: ...`.
pub fn conversation_text(messages: &[Message]) -> String {
    if let [only] = messages
        && only.role == "user"
    {
        return only.content.clone();
    }
    let mut text = String::new();
    for message in messages {
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        let mut letters = message.role.chars();
        text.extend(letters.next().into_iter().flat_map(char::to_uppercase).chain(letters));
        text.push_str(": ");
        text.push_str(&message.content);
    }
    text
}

fn line_of(source: &str, at: usize) -> usize {
    source[..at].bytes().filter(|&byte| byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests;
