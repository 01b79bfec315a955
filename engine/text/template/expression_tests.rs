//! Small templates that Jinja2 rendered (tests/fixtures/chat/expressions.py).

use std::path::Path;

use serde_json::Value as Json;

use super::*;

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(truth) => Value::from(*truth),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => Value::from(whole),
            None => Value::from(number.as_f64().unwrap()),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(value).collect::<Vec<Value>>()),
        Json::Object(pairs) => {
            Value::from_pairs(pairs.iter().map(|(key, item)| (key.as_str(), value(item))))
        }
    }
}

/// Templates that render differently, each with the reason. Whoever mends one takes it off the list.
const DIFFERENT: [(&str, &str); 9] = [
    ("{{ +3 }}", "the crate's grammar has no unary plus"),
    ("{{ +half }}", "the crate's grammar has no unary plus"),
    (
        "{% for x in numbers %}{% continue %}{% else %}all left{% endfor %}",
        "Jinja runs the else of a loop also when every turn ended in continue",
    ),
    (
        "{% for x in numbers %}{% if x > 0 %}{% continue %}{% endif %}x{% else %}all left{% endfor %}",
        "Jinja runs the else of a loop also when every turn ended in continue",
    ),
    (
        "{% macro m(a, b=2) %}{{ a }}-{{ b }}-{{ varargs }}{% endmacro %}{{ m(1, 2, 3) }}",
        "the crate's macros take no arguments beyond their own",
    ),
    (
        "{% macro m(a, b=2) %}{{ a }}-{{ b }}-{{ kwargs }}{% endmacro %}{{ m(1, z=3) }}",
        "the crate's macros take no arguments beyond their own",
    ),
    (
        "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}",
        "the crate's macros compute the last default first",
    ),
    (
        "{% if namespace() %}a{% endif %}",
        "the crate takes a namespace without attributes for an empty dict",
    ),
    ("{{ dict(a=1, **table) }}", "the crate merges named arguments, the last one counts"),
];

#[test]
fn expressions_are_what_jinja2_makes_of_them() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/chat/expressions.json");
    let text = std::fs::read_to_string(Path::new(path)).unwrap();
    let file: Json = serde_json::from_str(&text).unwrap();
    let context: Vec<(&'static str, Value)> = (file["context"].as_object().unwrap().iter())
        .map(|(name, json)| (&*name.clone().leak(), value(json)))
        .collect();
    let cases = file["cases"].as_array().unwrap();
    let mut wrong = Vec::new();
    for case in cases {
        let source = case[0].as_str().unwrap();
        let fuel = fuel_for(10, 10_000);
        let text = Template::compile("test", source, false)
            .and_then(|template| template.render(context.clone(), fuel));
        let same = text.as_deref().ok() == case[1].as_str();
        if same == DIFFERENT.iter().any(|(different, _)| *different == source) {
            wrong.push(format!(
                "{source}\n    Jinja2  {:?}\n    here    {text:?}",
                case[1].as_str()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
