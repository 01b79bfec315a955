//! Conversations that Python's transformers rendered and tokenized (tests/fixtures/chat/make.py).

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::*;
use crate::{shared::shared, text::tokenizer::Tokenizer};

fn fixtures() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/chat")).to_owned()
}

fn cases(name: &str) -> Vec<Json> {
    let text = std::fs::read_to_string(fixtures().join(name)).unwrap();
    let mut file: Json = serde_json::from_str(&text).unwrap();
    let Json::Array(cases) = file["cases"].take() else { panic!("no cases in {name}") };
    cases
}

/// A message with all that it holds (reasoning_content, tool_calls), role and content first as in the file.
fn message(json: &Json) -> Value {
    let object = json.as_object().unwrap();
    let mut keys: Vec<&String> = object.keys().collect();
    keys.sort_by_key(|key| (key.as_str() != "role", key.as_str() != "content"));
    Value::from_pairs(keys.iter().map(|key| (key.as_str(), value(&object[*key]))))
}

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(truth) => Value::from(*truth),
        Json::Number(number) => Value::from(number.as_i64().unwrap()),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(value).collect::<Vec<Value>>()),
        Json::Object(_) => message(json),
    }
}

fn render(template: &ChatTemplate, case: &Json, options: &Json) -> Result<String, ChatError> {
    let options = RenderOptions {
        add_generation_prompt: options["add_generation_prompt"].as_bool().unwrap(),
        enable_thinking: options.get("enable_thinking").and_then(Json::as_bool),
        date: None,
    };
    let json = case["messages"].as_array().unwrap();
    let values = json.iter().map(message).collect();
    let result = template.render_values(values, case["messages"].to_string().len(), options);
    // What says only who speaks and what takes the public way as well.
    let plain: Option<Vec<Message>> = (json.iter())
        .map(|message| {
            let (role, content) = (message["role"].as_str()?, message["content"].as_str()?);
            (message.as_object()?.len() == 2).then(|| Message::new(role, content))
        })
        .collect();
    if let Some(plain) = plain {
        let text = |result: &Result<String, ChatError>| format!("{result:?}");
        let again = template.render(&plain, options);
        if result.is_ok() || again.is_ok() {
            assert_eq!(text(&result), text(&again));
        }
    }
    result
}

#[test]
fn qwen3_prompts_and_their_ids_equal_those_of_transformers() {
    let directory = fixtures().join("tokenizer");
    let template = ChatTemplate::load(&directory).unwrap();
    let reduced = Tokenizer::load(&directory).unwrap();
    // Without the whole tokenizer: ids of the reduced one only.
    let whole = shared("tokenizer/qwen3").map(|whole| Tokenizer::load(&whole).unwrap());
    let cases = cases("qwen3.json");
    assert_eq!(cases.len(), 50);
    for case in cases {
        let rendered = render(&template, &case, &case).unwrap();
        assert_eq!(rendered, case["rendered"].as_str().unwrap(), "{}", case["name"]);
        let same_ids = |tokenizer: &Tokenizer, key: &str| {
            let ids: Vec<u32> = serde_json::from_value(case[key].clone()).unwrap();
            assert_eq!(tokenizer.encode(&rendered).unwrap(), ids, "{key} of {}", case["name"]);
            assert!(!ids.is_empty());
            let mut stream = tokenizer.stream(false);
            let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
            text += &stream.finish().unwrap();
            assert_eq!(text, tokenizer.decode(&ids, false).unwrap(), "{}", case["name"]);
        };
        same_ids(&reduced, "reduced_ids");
        if let Some(whole) = &whole {
            same_ids(whole, "ids");
        }
    }
}

/// Cases that render differently, each with the reason.
const DIFFERENT: [(&str, &str, &str); 1] = [(
    "control-flow.jinja",
    "system only",
    "Jinja runs the else of a for loop also when every turn ended in continue; minijinja only when there was no turn",
)];

#[test]
fn templates_render_and_refuse_as_in_transformers() {
    let cases = cases("templates.json");
    assert_eq!(cases.len(), 258);
    let (mut rendered, mut refused) = (0, 0);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let source = std::fs::read_to_string(fixtures().join("templates").join(name)).unwrap();
        let variables = &case["variables"];
        let tokens = TOKENS
            .iter()
            .filter_map(|token| Some((*token, variables.get(token)?.as_str()?.to_owned())));
        let template = ChatTemplate::parse(name.into(), source, tokens.collect()).unwrap();
        let label = format!("{name}, {}", case["name"]);
        match (render(&template, &case, variables), case.get("error")) {
            (Ok(text), None) => {
                let case_name = case["name"].as_str().unwrap();
                if let Some((.., reason)) =
                    DIFFERENT.iter().find(|(file, case, _)| (*file, *case) == (name, case_name))
                {
                    // Whoever mends it takes it off the list.
                    assert_ne!(text, case["rendered"].as_str().unwrap(), "{label}: {reason}");
                    continue;
                }
                assert_eq!(text, case["rendered"].as_str().unwrap(), "{label}");
                rendered += 1;
            }
            (Err(ChatError::Refused { message, .. }), Some(expected)) => {
                assert_eq!(message, expected.as_str().unwrap(), "{label}");
                refused += 1;
            }
            (result, expected) => panic!("{label}: {result:?}, expected {expected:?}"),
        }
    }
    assert_eq!(rendered + refused + DIFFERENT.len(), 258);
    assert!(refused > 5, "{refused} refused");
}

#[test]
fn templates_of_many_families_render_and_refuse_as_in_jinja2() {
    let cases = cases("families.json");
    assert_eq!(cases.len(), 432);
    let mut refused = 0;
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let source = std::fs::read_to_string(fixtures().join("families").join(name)).unwrap();
        let template = Template::compile(NAME, &source, false).unwrap();
        let messages = case["messages"].as_array().unwrap().iter().map(message);
        let mut variables = vec![("messages", Value::from(messages.collect::<Vec<Value>>()))];
        for (name, json) in case["variables"].as_object().unwrap() {
            let name: &'static str = name.clone().leak();
            variables.push((name, value(json)));
        }
        let result = template.render(variables, fuel_for(10, 1000));
        let rendered = case["rendered"].as_str();
        assert_eq!(result.as_deref().ok(), rendered, "{name}, {}: {result:?}", case["messages"]);
        refused += usize::from(rendered.is_none());
    }
    assert!((20..200).contains(&refused), "{refused} refused");
}
