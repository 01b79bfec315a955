//! Where the template comes from, and templates that are broken or mean harm.

use std::time::Instant;

use super::*;

const GENERATE: RenderOptions =
    RenderOptions { add_generation_prompt: true, enable_thinking: None, date: None };

fn parse(source: &str) -> Result<ChatTemplate, ChatError> {
    ChatTemplate::parse("dir/chat_template.jinja".into(), source.to_owned(), Vec::new())
}

fn render(source: &str) -> Result<String, ChatError> {
    parse(source)?.render(&[Message::new("user", "hello")], GENERATE)
}

fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    directory
}

#[track_caller]
fn load_error(files: &[(&str, &[u8])]) -> ChatError {
    ChatTemplate::load(directory(files).path()).unwrap_err()
}

#[test]
fn the_jinja_file_goes_before_the_configured_template() {
    let config = br#"{"chat_template": "config", "eos_token": "<e>"}"#;
    let both = directory(&[
        ("chat_template.jinja", b"file {{ eos_token }}"),
        ("tokenizer_config.json", config),
    ]);
    let template = ChatTemplate::load(both.path()).unwrap();
    assert_eq!(template.source(), "file {{ eos_token }}");
    assert_eq!(template.render(&[], GENERATE).unwrap(), "file <e>");
    let one = directory(&[("tokenizer_config.json", config)]);
    assert_eq!(ChatTemplate::load(one.path()).unwrap().source(), "config");
    let alone = directory(&[("chat_template.jinja", b"alone")]);
    assert_eq!(ChatTemplate::load(alone.path()).unwrap().source(), "alone");
}

#[test]
fn the_default_of_several_templates_and_tokens_as_objects_are_read() {
    let config = br#"{"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "{{ bos_token }}|{{ pad_token }}|{{ unk_token }}"}],
        "bos_token": {"content": "<b>", "lstrip": false}, "pad_token": null}"#;
    let directory = directory(&[("tokenizer_config.json", config)]);
    let template = ChatTemplate::load(directory.path()).unwrap();
    assert_eq!(template.render(&[], GENERATE).unwrap(), "<b>||");
}

#[test]
fn templates_are_found_where_transformers_finds_them() {
    let config = |text: &'static str| ("tokenizer_config.json", text.as_bytes());
    let named = r#"{"chat_template": {"rag": "r", "default": "object"}}"#;
    let list = r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "list"}]}"#;
    let processor = ("chat_template.json", &br#"{"chat_template": "processor"}"#[..]);
    let jinja = ("chat_template.jinja", &b"jinja"[..]);
    let tools = ("additional_chat_templates/tool_use.jinja", &b"tools"[..]);
    let default = ("additional_chat_templates/default.jinja", &b"additional"[..]);
    type File<'a> = (&'a str, &'a [u8]);
    let cases: [(&[File], &str); 10] = [
        (&[config(named)], "object"),
        (&[config(list)], "list"),
        (&[config("{}"), processor], "processor"),
        (&[processor], "processor"),
        (&[("chat_template.json", named.as_bytes())], "object"),
        (&[config(named), processor], "object"),
        (&[config(named), processor, jinja, tools], "jinja"),
        (&[config(named), default], "additional"),
        (&[jinja, default], "additional"),
        (&[config(named), tools], "object"),
    ];
    for (files, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        assert_eq!(ChatTemplate::load(directory.path()).unwrap().source(), expected);
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("additional_chat_templates")).unwrap();
    let load = || ChatTemplate::load(directory.path()).unwrap_err().to_string();
    assert!(load().contains("base model"));
    std::fs::write(directory.path().join("additional_chat_templates/rag.jinja"), "r").unwrap();
    assert!(load().contains(r#"named ["rag"], none of them "default""#), "{}", load());
}

#[test]
fn the_date_is_the_one_that_is_given() {
    let unguarded = parse("\n{{ strftime_now('%d %B %Y') }}").unwrap();
    let dated = RenderOptions { date: "2025-01-31".parse().ok(), ..GENERATE };
    assert_eq!(unguarded.render(&[], dated).unwrap(), "\n31 January 2025");
    let error = unguarded.render(&[], GENERATE).unwrap_err();
    assert!(matches!(error, ChatError::NoDate { line: 2, .. }), "{error:?}");
    assert!(error.to_string().contains("such as 2025-01-31"), "{error}");
    let guarded =
        parse("{{ strftime_now('%Y') if strftime_now is defined else 'never' }}").unwrap();
    assert_eq!(guarded.render(&[], GENERATE).unwrap(), "never");
    assert_eq!(guarded.render(&[], dated).unwrap(), "2025");
}

#[test]
fn markers_are_what_the_template_writes_between_bars() {
    let template =
        parse("{{ '<|user|>' ~ m }}<｜end▁of▁turn｜> a <|b c|> <||> <|user|> if a <| b |> c");
    let markers: Vec<_> = template.as_ref().unwrap().markers().into_iter().collect();
    assert_eq!(markers, ["<|user|>", "<｜end▁of▁turn｜>"]);
}

#[test]
fn a_missing_template_says_what_to_do() {
    for files in [&[][..], &[("tokenizer_config.json", &b"{\"chat_template\": null}"[..])]] {
        let error = load_error(files);
        assert!(matches!(error, ChatError::NoTemplate { .. }), "{error:?}");
        assert!(error.to_string().contains("instruction-tuned"), "{error}");
    }
}

#[test]
fn broken_files_give_typed_errors() {
    let config = |text: &'static str| load_error(&[("tokenizer_config.json", text.as_bytes())]);
    let error = config("{\"chat_template\": ");
    assert!(matches!(error, ChatError::File(FileError::Json { .. })), "{error:?}");
    for (text, key) in [
        ("[]", "the file"),
        ("{\"chat_template\": 7}", "chat_template"),
        ("{\"chat_template\": {\"default\": 7}}", "chat_template"),
        ("{\"chat_template\": [\"x\"]}", "chat_template"),
        ("{\"chat_template\": [{\"name\": \"default\", \"template\": 1}]}", "chat_template"),
        ("{\"chat_template\": \"x\", \"eos_token\": 7}", "eos_token"),
        ("{\"chat_template\": \"x\", \"bos_token\": {\"id\": 7}}", "bos_token"),
    ] {
        let error = config(text);
        assert!(matches!(&error, ChatError::WrongType { key: got, .. } if got == key), "{error:?}");
        assert!(error.to_string().contains("tokenizer_config.json"), "{error}");
    }
    let error = config("{\"chat_template\": [{\"name\": \"rag\", \"template\": \"x\"}]}");
    assert!(matches!(&error, ChatError::NoDefault { names, .. } if names == &["rag"]), "{error:?}");
    let error = load_error(&[("chat_template.jinja", b"ab\xff")]);
    assert!(
        matches!(error, ChatError::File(FileError::NotUtf8 { valid_up_to: 2, .. })),
        "{error:?}"
    );
    let deep = "[".repeat(100_000);
    let error = load_error(&[("tokenizer_config.json", deep.as_bytes())]);
    assert!(matches!(error, ChatError::File(FileError::Json { .. })), "{error:?}");
}

#[test]
fn oversized_files_and_templates_are_refused() {
    let sparse = directory(&[("chat_template.jinja", b"")]);
    let file = std::fs::File::create(sparse.path().join("chat_template.jinja")).unwrap();
    file.set_len(1 << 40).unwrap();
    let error = ChatTemplate::load(sparse.path()).unwrap_err();
    assert!(matches!(error, ChatError::File(FileError::TooLarge { .. })), "{error:?}");
    let config = serde_json::json!({"chat_template": "x".repeat((1 << 16) + 1)}).to_string();
    let error = load_error(&[("tokenizer_config.json", config.as_bytes())]);
    assert!(matches!(error, ChatError::TooLarge { len_bytes: 65_537, .. }), "{error:?}");
}

#[test]
fn syntax_errors_name_the_line() {
    for source in
        ["one\ntwo\n{% if %}x", "\n\n{{ 1 +", "\n\n{% nonsense %}", "\n\n{% for x in y %}"]
    {
        let error = parse(source).unwrap_err();
        assert!(matches!(error, ChatError::Syntax { line: 3, .. }), "{error:?}");
        assert!(error.to_string().contains("dir/chat_template.jinja: line 3"), "{error}");
    }
}

#[test]
fn what_fails_while_rendering_names_the_line() {
    for source in [
        "a\n{{ 'x' | nonsense }}",
        "a\n{{ nonsense() }}",
        "a\n{{ 'x'.nonsense() }}",
        "a\n{{ nothing.deeper.still }}",
        "a\n{{ 1 is nonsense }}",
        "a\n{{ 1 // 0 }}",
        "a\n{{ 'x'.join([1]) }}",
        "a\n{{ nothing | tojson }}",
        "a\n{{ range(1000000000) }}",
        "a\n{% include 'other' %}",
    ] {
        match render(source) {
            Err(ChatError::Render { line: 2, .. } | ChatError::Syntax { line: 2, .. }) => {}
            other => panic!("{source}: {other:?}"),
        }
    }
}

#[test]
fn a_refusal_is_told_apart() {
    let error = render("{{ raise_exception('no ' ~ messages[0].role) }}").unwrap_err();
    assert!(
        matches!(&error, ChatError::Refused { message, .. } if message == "no user"),
        "{error:?}"
    );
    let error =
        render("{% macro m() %}{{ raise_exception('in') }}{% endmacro %}{{ m() }}").unwrap_err();
    assert!(matches!(&error, ChatError::Refused { message, .. } if message == "in"), "{error:?}");
}

#[test]
fn work_and_memory_are_bounded() {
    let started = Instant::now();
    for source in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 4000000000 }}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('x', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x.join(ns.x.split('x')) %}{% endfor %}",
        "{% set ns = namespace(x=[1, 2]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1, 2]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% for i in range(99999) %}{{ messages }}{% endfor %}",
        "{% set x = 'x' * 9000000 %}{% for i in range(99999) %}{% set y = x.upper() %}{% endfor %}",
        "{{ 'x' | indent(4000000000) }}",
        "{{ '%4000000000d' | format(1) }}",
        "{{ '{:>4000000000}'.format('x') }}",
        "{{ '%4000000000d' % 1 }}",
    ] {
        match render(source) {
            Err(ChatError::OutOfFuel { .. } | ChatError::Render { .. }) => {}
            other => panic!("{source}: {:?}", other.map(|text| text.len())),
        }
    }
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

#[test]
fn endless_recursion_ends_in_an_error() {
    for source in [
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% include 'chat_template' %}",
    ] {
        let error = render(source).unwrap_err();
        let known = matches!(
            error,
            ChatError::Render { .. } | ChatError::OutOfFuel { .. } | ChatError::Syntax { .. }
        );
        assert!(known, "{source}: {error:?}");
    }
}

#[test]
fn long_chains_do_not_overflow_the_stack() {
    // What the parser reads in a loop, the compiler walks by recursion.
    let chains = [
        "+1",
        "~1",
        "|e",
        ".a",
        "[0]",
        "()",
        " if 1",
        " if 1 else 1",
        " and 1",
        "<1",
        "**1",
        " is odd",
        "(1)",
        "[:]",
        ".a()",
    ];
    let len_bytes = 10_000;
    let fill = |piece: &str| piece.repeat(len_bytes / piece.len());
    let mut sources: Vec<String> =
        chains.iter().map(|chain| format!("{{{{1{}}}}}", fill(chain))).collect();
    for prefix in ["-", "not ", "(", "[", "{1:", "+"] {
        sources.push(format!("{{{{{}1}}}}", fill(prefix)));
    }
    for statement in [
        "{%if 1%}",
        "{%for a in b%}",
        "{%set a%}",
        "{%macro a()%}",
        "{%filter e%}",
        "{%with%}",
        "{%call a()%}",
    ] {
        sources.push(fill(statement));
    }
    sources.push("{%if 1%}".to_owned() + &fill("{%elif 1%}") + "{%endif%}");
    for source in sources {
        if let Err(error) = render(&source) {
            let known = matches!(
                error,
                ChatError::Render { .. } | ChatError::Syntax { .. } | ChatError::OutOfFuel { .. }
            );
            assert!(known, "{error:?}");
            assert!(!error.to_string().contains("panicked"), "{error}");
        }
    }
}

#[test]
fn deeply_nested_values_do_not_overflow_the_stack() {
    let nest = "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}";
    for end in [
        "",
        "{{ ns.x | tojson }}",
        "{{ ns.x }}",
        "{{ ns.x == ns.x }}",
        "{{ ns.x | string | length }}",
    ] {
        match render(&format!("{nest}{end}")) {
            Ok(_) | Err(ChatError::Render { .. } | ChatError::OutOfFuel { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    match render("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}{{ ns | tojson }}") {
        Ok(_) | Err(ChatError::Render { .. } | ChatError::OutOfFuel { .. }) => {}
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn long_conversations_have_the_fuel_that_they_need() {
    let directory =
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/chat/tokenizer"));
    let template = ChatTemplate::load(directory).unwrap();
    let turn = |n: usize| {
        let role = if n.is_multiple_of(2) { "user" } else { "assistant" };
        Message::new(role, format!("<think>\na\n</think>\n\n{n}"))
    };
    let many: Vec<Message> = (0..5_000).map(turn).collect();
    assert!(template.render(&many, GENERATE).unwrap().len() > 100_000);
    let long = Message::new("user", "中<|im_end|>".repeat(1 << 20));
    assert!(template.render(&[long], GENERATE).unwrap().len() > 13 << 20);
}

#[test]
fn mutated_templates_never_panic() {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/chat/templates/control-flow.jinja");
    let (mut sound, mut refused) = (0, 0);
    crate::fuzz::mutations(&std::fs::read(path).unwrap(), |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        match render(text) {
            Ok(_) => sound += 1,
            Err(_) => refused += 1,
        }
    });
    assert!(sound > 0 && refused > 0, "{sound} sound, {refused} refused");
}

#[test]
fn line_ends_and_generation_blocks_are_read_as_by_transformers() {
    let source = "{% for m in messages %}\r\n{%- generation -%}\r\n{{ m.content }}\n{% endgeneration %}!\r{% endfor %}\r\n";
    assert_eq!(render(source).unwrap(), "hello\n!\n");
}

#[test]
fn a_template_that_leaves_a_turn_out_is_known() {
    let reads = |source: &str| parse(source).unwrap().reads(RenderOptions::default());
    assert_eq!(reads("{% for m in messages %}{{ m.content | trim }}{% endfor %}"), [true, true]);
    // Of a model that sees pictures: content is a list of parts.
    let parts = "{% for m in messages %}{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}";
    assert_eq!(reads(parts), [false, false]);
    assert_eq!(reads("{{ messages[-1].content }}"), [true, false]);
    assert_eq!(reads("{{ messages[0].content }}"), [true, true]);
    assert_eq!(reads("{{ raise_exception('no') }}"), [true, true]);
}
