//! What a cell of a conversation holds: text, texts, or turns; and conversations that were kept as text.
//!
//! A message is `{role, content}` or ShareGPT's `{from, value}`. Content may be text, a list of parts
//! `{type: "text", text}`, or nothing in an assistant's turn that only calls a tool. Text that is as a whole such a
//! list or object, in JSON or as Python prints it, is read as what it is: judged as text, it would be the source of a
//! conversation instead of its last reply. Anything else that begins with a bracket (code, an answer in JSON) is text.

use serde_json::{Map, Value};

use super::{json, python};

/// One turn, with no content where the file has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) role: String,
    pub(super) content: Option<String>,
}

/// The contents of a cell.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turns {
    Text(String),
    /// Several replies, as benchmarks with more than one wrong answer have them.
    Texts(Vec<String>),
    List(Vec<Turn>),
}

/// The contents of a cell; the error names the type of any other value.
pub(super) fn turns(value: Value) -> Result<Turns, String> {
    match value {
        Value::String(text) => match kept_as_text(&text)? {
            None => Ok(Turns::Text(text)),
            Some(Kept::Conversation(value)) => turns(value),
            Some(Kept::Texts(texts)) => Err(format!(
                "is a list of {} texts that is kept as text; write it as a list, in .jsonl or .parquet",
                texts.len()
            )),
        },
        Value::Array(items) if items.is_empty() => Err("is an empty list".to_owned()),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            let mut messages = Vec::new();
            for item in &items {
                match kept_as_text(item.as_str().unwrap_or_default())? {
                    Some(Kept::Conversation(value)) => messages.push(value),
                    Some(Kept::Texts(_)) | None => {}
                }
            }
            let is_message = |value: &Value| value.as_object().is_some_and(is_message);
            if messages.len() == items.len() && messages.iter().all(is_message) {
                return turns(Value::Array(messages));
            }
            if !messages.is_empty() {
                return Err(format!(
                    "is a list of {} texts of which {} are conversations that are kept as text; write these as lists",
                    items.len(),
                    messages.len()
                ));
            }
            let text = |item| match item {
                Value::String(text) => text,
                _ => unreachable!("all are texts"),
            };
            Ok(Turns::Texts(items.into_iter().map(text).collect()))
        }
        Value::Array(items) if items.iter().all(is_part) => content(Value::Array(items))
            .map(|text| Turns::Text(text.unwrap_or_default()))
            .map_err(|problem| format!("is a list of parts: {problem}")),
        Value::Array(items) => {
            items.into_iter().enumerate().map(turn).collect::<Result<_, _>>().map(Turns::List)
        }
        Value::Object(mut fields) => match wrapped(&fields) {
            Some(name) => turns(fields.remove(name).unwrap_or_default()),
            None if is_message(&fields) => Ok(Turns::List(vec![turn((0, Value::Object(fields)))?])),
            None => Err("is an object, not text or a list of messages".to_owned()),
        },
        Value::Null => Err("has no value".to_owned()),
        other => Err(format!("is {}, not text or a list of messages", kind(&other))),
    }
}

/// The type of a value, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Whether text is as a whole a list of texts, in JSON or Python.
pub(super) fn is_list_of_texts(text: &str) -> bool {
    matches!(kept_as_text(text), Ok(Some(Kept::Texts(_))))
}

enum Kept {
    Conversation(Value),
    Texts(Vec<Value>),
}

/// The conversation or list of texts that a text holds, if it is one as a whole.
fn kept_as_text(text: &str) -> Result<Option<Kept>, String> {
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    if let Some(inner) = quoted(text) {
        // Written as JSON twice. A quoted text of another kind is a quoted text.
        let kept = kept_as_text(&inner)?;
        return Ok(kept.filter(|kept| matches!(kept, Kept::Conversation(_))));
    }
    let ends = [("[", "]"), ("{", "}"), ("(", ")"), ("array(", ")")];
    if !ends.iter().any(|(start, end)| text.starts_with(start) && text.ends_with(end)) {
        return Ok(None);
    }
    let value = match json::value(text) {
        Ok(value) => Some(value),
        Err(_) => python::parse(text),
    };
    Ok(match value {
        Some(value) if is_conversation(&value) => Some(Kept::Conversation(value)),
        Some(Value::Array(items)) if !items.is_empty() && items.iter().all(Value::is_string) => {
            let holds_one = |item: &Value| {
                let kept = kept_as_text(item.as_str().unwrap_or_default());
                matches!(kept, Ok(Some(Kept::Conversation(_))) | Err(_))
            };
            match items.iter().any(holds_one) {
                // Of its messages, each kept as text.
                true => Some(Kept::Conversation(Value::Array(items))),
                false => Some(Kept::Texts(items)),
            }
        }
        Some(_) => None,
        None if begins_like_a_message(text) => {
            return Err("is a conversation that is kept as text and cannot be read; write it as a list, in \
                        .jsonl or .parquet, or as JSON (json.dumps)"
                .to_owned());
        }
        None => None,
    })
}

/// The quoted text, if that is the whole text and begins with a bracket or another quote.
fn quoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|first| matches!(first, '"' | '\''))?;
    if text.len() < 2 || !text.ends_with(quote) {
        return None;
    }
    let inside = text[1..].trim_start_matches(|c: char| c.is_whitespace() || c == '\\');
    if !inside.starts_with(['[', '{', '(', '"', '\'']) {
        return None;
    }
    match json::value(text).ok().or_else(|| python::parse(text)) {
        Some(Value::String(inner)) if inner.len() < text.len() => Some(inner),
        _ => None,
    }
}

/// Whether a parsed text is a conversation: one message or one of its parts is enough, so that a damaged one is refused.
fn is_conversation(value: &Value) -> bool {
    match value {
        Value::Array(items) => {
            let message = |item: &Value| item.as_object().is_some_and(is_message);
            let lists = |item: &Value| {
                item.as_array().is_some_and(|turns| !turns.is_empty() && turns.iter().all(message))
            };
            !items.is_empty()
                && (items.iter().any(message)
                    || items.iter().all(is_part)
                    || items.iter().all(lists))
        }
        Value::Object(fields) => {
            is_message(fields)
                || wrapped(fields).is_some_and(|name| is_conversation(&fields[name]))
                || is_part(value)
        }
        _ => false,
    }
}

/// `{"messages": [...]}` and the like.
fn wrapped(fields: &Map<String, Value>) -> Option<&'static str> {
    let names = ["messages", "conversations", "conversation"];
    names.into_iter().find(|&name| fields.get(name).is_some_and(Value::is_array))
}

fn is_message(fields: &Map<String, Value>) -> bool {
    let text = |name: &str| fields.get(name).is_some_and(Value::is_string);
    let calls = ["tool_calls", "function_call"].iter().any(|name| fields.contains_key(*name));
    (text("role") && (fields.contains_key("content") || calls))
        || (text("from") && fields.contains_key("value"))
}

fn is_part(value: &Value) -> bool {
    value.get("type").is_some_and(Value::is_string)
        && value.get("text").is_some_and(Value::is_string)
        && value.get("role").is_none()
}

/// Whether a text that is neither sound JSON nor Python begins as a dictionary does and has a message's keys.
fn begins_like_a_message(text: &str) -> bool {
    let inner = text.strip_prefix("array(").unwrap_or(text);
    let inner = inner.trim_start_matches(|c: char| c.is_whitespace() || "[(".contains(c));
    let Some(inner) = inner.strip_prefix('{').map(str::trim_start) else { return false };
    if !inner.starts_with(['"', '\'']) {
        return false;
    }
    let is_key = |key: &str| {
        ['"', '\''].into_iter().any(|quote| {
            let key = format!("{quote}{key}{quote}");
            let mut places = inner.match_indices(&key);
            places.any(|(at, _)| inner[at + key.len()..].trim_start().starts_with(':'))
        })
    };
    [("role", "content"), ("from", "value")]
        .iter()
        .any(|(first, second)| is_key(first) && is_key(second))
}

fn turn((turn, value): (usize, Value)) -> Result<Turn, String> {
    let Value::Object(mut fields) = value else {
        return Err(format!(
            "turn {turn} is {}, not a message with role and content",
            kind(&value)
        ));
    };
    let sharegpt = !fields.contains_key("role") && fields.contains_key("from");
    let (role, said) = if sharegpt { ("from", "value") } else { ("role", "content") };
    let role = match fields.remove(role) {
        Some(Value::String(role)) => known_role(&role),
        Some(other) => return Err(format!("turn {turn}: {role} is {}, not text", kind(&other))),
        None => return Err(format!("turn {turn} has no role")),
    };
    let may_be_absent = matches!(role.as_str(), "assistant" | "tool");
    let content = match fields.remove(said) {
        None | Some(Value::Null) if may_be_absent => None,
        None => return Err(format!("turn {turn} has no {said}")),
        Some(value) => content(value).map_err(|what| format!("turn {turn}: {said} {what}"))?,
    };
    match content {
        None if !may_be_absent => Err(format!("turn {turn} has no {said}")),
        content => Ok(Turn { role, content }),
    }
}

/// A message's text; of parts, all of them one after the other, as chat templates write them.
fn content(value: Value) -> Result<Option<String>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        Value::Array(parts) => {
            let mut all = String::new();
            for part in &parts {
                match part {
                    Value::String(text) => all.push_str(text),
                    Value::Object(fields) => match (fields.get("type"), fields.get("text")) {
                        (Some(Value::String(kind)), _) if !kind.ends_with("text") => {
                            let kind: String = kind.chars().take(40).collect();
                            return Err(format!(
                                "has a part of type {kind:?}, and only text is read"
                            ));
                        }
                        (_, Some(Value::String(text))) => all.push_str(text),
                        _ => return Err("has a part that is not text".to_owned()),
                    },
                    other => return Err(format!("has a part that is {}", kind(other))),
                }
            }
            Ok((!parts.is_empty()).then_some(all))
        }
        other => Err(format!("is {}, not text", kind(&other))),
    }
}

/// The role under the name that chat templates have for it.
fn known_role(role: &str) -> String {
    let lower = role.trim().to_lowercase();
    match lower.as_str() {
        "human" => "user",
        "gpt" | "chatgpt" | "bing" | "bard" | "model" | "bot" | "ai" | "function_call" => {
            "assistant"
        }
        "developer" => "system",
        "function" | "observation" | "ipython" => "tool",
        "system" | "user" | "assistant" | "tool" => &lower,
        _ => role,
    }
    .to_owned()
}

/// The turns of text in the form of hh-rlhf, `\n\nHuman: ...\n\nAssistant: ...`; an assistant's turn that is open at
/// the end has no content.
pub(super) fn human_assistant(text: &str) -> Option<Vec<Turn>> {
    const HUMAN: &str = "\n\nHuman:";
    const ASSISTANT: &str = "\n\nAssistant:";
    let start = text.trim_start();
    if !start.starts_with(&HUMAN[2..]) {
        return None;
    }
    let text = format!("\n\n{}", start.replace("\r\n", "\n"));
    let mut turns = Vec::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (role, said) = match (rest.strip_prefix(HUMAN), rest.strip_prefix(ASSISTANT)) {
            (Some(said), _) => ("user", said),
            (_, Some(said)) => ("assistant", said),
            _ => return None,
        };
        let end = [said.find(HUMAN), said.find(ASSISTANT)].into_iter().flatten().min();
        let (said, next) = said.split_at(end.unwrap_or(said.len()));
        let said = said.trim();
        let open = role == "assistant" && said.is_empty() && next.is_empty();
        turns.push(Turn { role: role.to_owned(), content: (!open).then(|| said.to_owned()) });
        rest = next;
    }
    turns.iter().any(|turn| turn.role == "assistant").then_some(turns)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(role: &str, content: &str) -> Turn {
        Turn { role: role.to_owned(), content: Some(content.to_owned()) }
    }

    #[test]
    fn a_conversation_is_read_in_every_form_and_as_text() {
        let expected = Turns::List(vec![said("user", "hi"), said("assistant", "yo")]);
        for form in [
            json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]),
            json!([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]),
            json!([{"role": "User", "content": [{"type": "text", "text": "hi"}], "name": null},
                   {"role": "model", "content": ["y", {"type": "text", "text": "o"}]}]),
            json!({"messages": [{"role": "human", "content": "hi"}, {"role": "bot", "content": "yo"}]}),
        ] {
            assert_eq!(turns(form.clone()).as_ref(), Ok(&expected), "{form}");
            for text in [form.to_string(), format!(" \n{form:#}\n"), python(&form)] {
                assert_eq!(turns(text.clone().into()).as_ref(), Ok(&expected), "{text}");
            }
        }
        let twice =
            json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]);
        let twice = Value::String(twice.to_string()).to_string();
        for text in [twice.clone(), Value::String(twice).to_string()] {
            assert_eq!(turns(text.clone().into()).as_ref(), Ok(&expected), "{text}");
        }
        let each = ["{'role': 'user', 'content': 'hi'}", "{\"from\": \"gpt\", \"value\": \"yo\"}"];
        assert_eq!(turns(json!(each)).as_ref(), Ok(&expected));
        assert_eq!(turns(json!(each).to_string().into()).as_ref(), Ok(&expected));
        for others in [json!(["hi", each[1]]), json!([format!("[{}]", each[0]), "a"])] {
            let error = turns(others).unwrap_err();
            assert!(error.contains("a list of 2 texts of which 1 are conversations"), "{error}");
        }
        let marked = "\u{feff}[{'role': 'user', 'content': 'hi'}, {'from': 'gpt', 'value': 'yo'}]";
        assert_eq!(turns(marked.into()).as_ref(), Ok(&expected));
        let numpy = "[{'content': 'hi', 'role': 'user'}\n {'content': 'yo', 'role': 'assistant'}]";
        assert_eq!(turns(numpy.into()), Ok(expected));
        let one = Turns::List(vec![said("assistant", "yo")]);
        assert_eq!(turns("{\"role\": \"assistant\", \"content\": \"yo\"}".into()), Ok(one));
        let parts =
            "[{\"type\": \"text\", \"text\": \"a\"}, {\"type\": \"text\", \"text\": \"b\"}]";
        assert_eq!(turns(parts.into()), Ok(Turns::Text("ab".to_owned())));
    }

    /// As Python's repr has it, for texts without quotes.
    fn python(value: &Value) -> String {
        value.to_string().replace('"', "'").replace("null", "None")
    }

    #[test]
    fn turns_that_call_tools_need_no_content() {
        let form = json!([
            {"role": "user", "content": "w?"},
            {"role": "assistant", "content": null, "tool_calls": [{"type": "function"}]},
            {"role": "tool", "content": "sun"},
            {"role": "assistant", "tool_calls": []},
        ]);
        let Turns::List(read) = turns(form.to_string().into()).unwrap() else { panic!("a list") };
        let contents: Vec<_> = read.iter().map(|turn| turn.content.as_deref()).collect();
        assert_eq!(contents, [Some("w?"), None, Some("sun"), None]);
        assert_eq!(turns(form), Ok(Turns::List(read)));
        let nothing_asked = json!([{"role": "user", "content": null}]);
        assert_eq!(turns(nothing_asked), Err("turn 0 has no content".to_owned()));
    }

    #[test]
    fn what_looks_like_a_conversation_and_is_none_is_refused() {
        for text in [
            "[{'role': 'user', 'content': 'a' 'b' + c}]",
            "[{\"role\": \"user\", \"content\": \"a\nb\"}, ... ]",
            "[{\"from\": \"human\", \"value\": \"a\"}, 5]",
            "[{\"role\": \"user\", \"content\": 7}]",
            "[[{\"role\": \"user\", \"content\": \"a\"}], [{\"role\": \"user\", \"content\": \"a\"}]]",
            "[{\"role\": \"user\", \"content\": [{\"type\": \"image\", \"url\": \"a\"}]}]",
            "{\"role\": \"user\", \"content\": \"a\"}\n{\"role\": \"assistant\", \"content\": \"b\"}",
            "[{'at': datetime.datetime(2026, 1, 1), 'role': 'user', 'content': 'a'}]",
            "[{'id': UUID('1'), 'value': 'a', 'from': 'human'}]",
            "\"[{\\\"role\\\": \\\"user\\\", \\\"content\\\": 7}]\"",
            "[\"a\", \"b\"]",
            " ['a' 'b']",
        ] {
            let read = turns(text.into());
            assert!(read.is_err(), "{text}: {read:?}");
        }
    }

    #[test]
    fn text_that_begins_with_a_bracket_is_text() {
        for text in [
            "[1, 2, 3]",
            "[]",
            "{}",
            "[x for x in y]",
            "[1] says so, and {'role': 'x'} too",
            "{\"name\": \"Ann\", \"role\": \"admin\"}",
            "\"[1, 2]\"",
            "\"{'a': 1}\" is what it says, and so \"\"",
            "'['",
            "\"\\\"\"",
            "{'name': f(x), 'role': 'admin', 'content-type': 'html'}",
            "{\"answer\": [\"a\", \"b\"], \"from\": \"here\"}",
            "[{\"name\": \"a\"}, {\"name\": \"b\"}]",
            "{\"role\": \"user\", \"content\": \"hi\"} is a message.",
            "[link](http://a.b)",
            "(see above)",
            "{% for x in y %}{% endfor %}",
        ] {
            assert_eq!(turns(text.into()), Ok(Turns::Text(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn humans_and_assistants_take_turns() {
        let text = "\n\nHuman: hi\n\nthere\n\nAssistant: Hello!\n\nHuman: Say \"Human:\".\n\nAssistant: Human:";
        let turns = human_assistant(text).unwrap();
        assert_eq!(
            turns,
            [
                said("user", "hi\n\nthere"),
                said("assistant", "Hello!"),
                said("user", "Say \"Human:\"."),
                said("assistant", "Human:")
            ]
        );
        let open = human_assistant("Human: hi\n\nAssistant:").unwrap();
        assert_eq!(open[1].content, None);
        for text in ["Human: hi", "Assistant: a\n\nHuman: b", "A\n\nHuman: b\n\nAssistant: c", ""] {
            assert_eq!(human_assistant(text), None, "{text}");
        }
    }
}
