//! Hostile templates: without limits each would take all memory or time, or end the process.

use std::time::{Duration, Instant};

use super::*;

/// Renders `source` both as a chat template and as a judge template.
fn render(source: &str) -> [Result<String, TemplateError>; 2] {
    render_within(fuel_for(1, 5), source)
}

fn render_within(fuel: u64, source: &str) -> [Result<String, TemplateError>; 2] {
    [false, true].map(|strict| {
        let messages = vec![Value::from_pairs([("role", "user"), ("content", "hello")])];
        let variables = vec![("messages", Value::from(messages)), ("text", Value::from("hello"))];
        Template::compile("test", source, strict)?.render(variables, fuel)
    })
}

/// Neither kind of template gets through, none panics or goes on for long, and this process does not grow by what they ask for.
#[track_caller]
fn refused(sources: &[&str]) {
    refused_within(fuel_for(1, 5), sources);
}

#[track_caller]
fn refused_within(fuel: u64, sources: &[&str]) {
    for source in sources {
        let started = Instant::now();
        for result in render_within(fuel, source) {
            match result {
                Err(TemplateError::OutOfFuel { .. }) => {}
                Err(TemplateError::Render { line, message }) => {
                    assert!(line > 0 && !message.contains("panicked"), "{source}: {message}");
                }
                Err(TemplateError::Syntax { message, .. }) => {
                    assert!(message.contains("repeated too often"), "{source}: {message}");
                }
                other => panic!("{source}: {:?}", other.map(|text| text.len())),
            }
        }
        // Each takes some 0.1 s in a quiet machine; the limit is for one that is not.
        let took = started.elapsed();
        assert!(took < Duration::from_secs(20), "{source}: {took:?}");
    }
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(peak < 1 << 20, "{peak} kB at the most");
    }
}

/// `{% set x = ... %}` so many times, and then `end`.
fn again(first: &str, step: &str, times: usize, end: &str) -> String {
    format!("{{% set x = {first} %}}{}{end}", format!("{{% set x = {step} %}}").repeat(times))
}

/// The same in a loop, by way of a namespace.
fn looped(first: &str, step: &str, times: usize, end: &str) -> String {
    format!(
        "{{% set ns = namespace(x={first}) %}}{{% for i in range({times}) %}}{{% set ns.x = {step} %}}{{% endfor %}}{end}"
    )
}

#[test]
fn lists_that_double_are_refused() {
    refused(&[
        &again("[1, 2]", "x + x", 60, ""),
        &again("(1, 2)", "x + x", 60, ""),
        &again("[text]", "x * 1000", 9, "{{ x | length }}"),
        &again("[text]", "(x + x)[:]", 60, ""),
        &again("[text]", "(x | list) + (x | list)", 60, ""),
        &again("[text]", "[x, x] | sum(start=[])", 60, ""),
        &again("messages", "x + x[::-1]", 60, ""),
        &looped("[1, 2]", "ns.x + ns.x", 60, ""),
        &looped("[1, 2]", "ns.x * 2", 60, ""),
        &looped("'x' | list", "ns.x + ns.x + ns.x", 40, ""),
        "{% macro m(x, n) %}{{ m(x + x, n + 1) if n < 60 }}{% endmacro %}{{ m([1], 0) }}",
        "{{ [0] * 100000000 == [0] * 100000000 }}",
        "{{ 1 in ([0] or 1) * 99999999 }}",
        "{{ [0, 0] * (50000 * 1000) ~ '' }}",
        &format!("{{{{ {}[0] * 999 }}}}", "[0] * 999 + ".repeat(40)),
        "{{ range(99999) | map('string') | zip(range(99999)) | batch(1) | list | zip(range(99999)) | list | string }}{{ range(99999) | list }}{{ range(99999) | list }}{{ range(99999) | list }}",
    ]);
}

#[test]
fn shared_lists_are_read_no_more_often_than_fuel_allows() {
    let ends = [
        "{{ x }}",
        "{{ x == x[:] }}",
        "{{ x < [x[0], x[1]] }}",
        "{{ x | tojson }}",
        "{{ x | string }}",
        "{{ x ~ '' }}",
        "{{ x | join }}",
        "{{ ', '.join(x) }}",
        "{{ [x, [x[0], x[1]]] | sort }}",
        "{{ [x, [x[0], x[1]]] | unique }}",
        "{{ [x, [x[0], x[1]]] | max }}",
        "{{ {x: 1} }}",
        "{% if {1: 2}[x] is defined %}{% endif %}",
        "{{ [x[0], x[1]] in [x] }}",
        "{{ x is eq([x[0], x[1]]) }}",
        "{{ '%s' | format(x) }}",
        "{{ '{}'.format(x) }}",
        "{{ [x] | map('join') | list }}",
        "{{ [x].count([x[0], x[1]]) }}",
        "{{ loop.changed(x) }}",
        "{{ x | e }}",
    ];
    // As large as it may become, with fuel left, and then read again and again. A tenth of the fuel takes a tenth of the time.
    for end in ends {
        let end = format!("{{% for i in range(9999) %}}{end}{{% endfor %}}");
        refused_within(50_000, &[&again("[1]", "[x, x]", 13, &end)]);
    }
    refused(&[
        &again("[1]", "[x, x]", 40, ""),
        &looped("(1, 2)", "(ns.x, ns.x)", 40, ""),
        &again("{'a': 1}", "{'a': x, 'b': x}", 40, "{{ x == dict(x) }}"),
        &again("{'a': 1}", "dict(a=x, b=x)", 40, "{{ x | dictsort }}"),
        &again("[1]", "[x] * 2", 40, "{{ x == x[:] }}"),
        &again("['x' * 1000000]", "x * 1000", 1, "{{ x | join }}"),
        &again("['x' * 1000000]", "x * 1000", 1, "{{ x | map('upper') | list }}"),
        &again("['x' * 1000000]", "x * 1000", 1, "{{ x ~ x }}"),
        &again(
            "'x' * 9999999",
            "x",
            1,
            "{% for i in range(99999) %}{{ x == (x ~ 'y') }}{% endfor %}",
        ),
    ]);
}

#[test]
fn deep_nesting_neither_overflows_the_stack_nor_ends_the_process() {
    refused(&[
        &looped("[]", "[ns.x]", 99_999, ""),
        &looped("[]", "(ns.x,)", 99_999, ""),
        &looped("[]", "{'a': ns.x}", 99_999, ""),
        &looped("[]", "dict(a=ns.x)", 99_999, ""),
        &looped("[]", "[ns.x] | batch(1) | list", 99_999, ""),
        &looped("[]", "[ns.x] + []", 99_999, ""),
        &looped("[]", "namespace(x=ns.x, y=ns)", 99_999, ""),
        "{% set a = namespace() %}{% set b = namespace() %}{% set a.x = b %}{% set b.x = a %}{{ a == b }}",
        "{% set a = namespace() %}{% set a.x = [a] %}{{ a }}",
        "{% for x in [1] %}{{ [loop] }}{% endfor %}",
        &again("[]", "[x]", 1000, ""),
    ]);
    // What is left of depth reads, compares and prints.
    for step in ["[x]", "(x,)", "{'a': x}", "[x][:]", "[x] + []"] {
        let end = "{{ x }}{{ x == [x] }}{{ x | tojson }}{{ [x] | sort | length }}{{ x ~ x }}{{ {1: 2}.get(1) }}";
        for result in render(&again("[]", step, MAX_STEPS, end)) {
            assert!(result.unwrap().contains("]"), "{step}");
        }
    }
}

/// Leaves room for the list around it in what reads it.
const MAX_STEPS: usize = 61;

#[test]
fn texts_that_grow_are_refused() {
    refused(&[
        &again("text", "x ~ x", 60, ""),
        &again("text", "x + x", 60, ""),
        &again("text", "x * 1000000", 2, ""),
        &again("text", "x.replace('l', x)", 60, ""),
        &again("text", "x | replace('l', x)", 60, ""),
        &again("text", "[x, x] | join(x)", 60, ""),
        &again("text", "x.join([x, x, x])", 60, ""),
        &again("text", "'%s%s' | format(x, x)", 60, ""),
        &again("text", "'{}{}'.format(x, x)", 60, ""),
        &looped("text", "ns.x ~ ns.x", 60, ""),
        &looped("text", "ns.x ~ 'y'", 99_999, ""),
        "{% set x %}{{ text * 999999 }}{% endset %}{% set y %}{{ x * 99 }}{% endset %}",
        "{{ '%1000000000s' | format(text) }}",
        "{{ '%.1000000000f' | format(1.5) }}",
        "{{ '%*d' | format(1000000000, 1) }}",
        "{{ '{:>1000000000}'.format(text) }}",
        "{{ text | center(1000000000) }}",
        "{{ text.center(1000000000) }}",
        "{{ text.ljust(1000000000) }}",
        "{{ text.zfill(1000000000) }}",
        "{{ text | indent(1000000000, true) }}",
        "{{ messages | tojson(indent=1000000000) }}",
        "{{ [text, text] | sum(start='') }}",
        "{% set x = 'x' * 9000000 %}{% set y = 'xy' * 4000000 %}{{ x | trim(y) }}{{ x.strip(y) }}",
        "{% set x = 'x' * 9000000 %}{% for i in range(99999) %}{% for c in x %}{% break %}{% endfor %}{% endfor %}",
        "{% set x = 'ä' * 4000000 %}{% for i in range(99999) %}{{ x[-1] }}{% endfor %}",
        "{% set x = 'ä' * 4000000 %}{% for i in range(99999) %}{{ x[-1:] }}{% endfor %}",
        "{% set x = 'x' * 9000000 %}{% for i in range(99999) %}{% if x is lower %}{% endif %}{% endfor %}",
        "{{ (' x' * 9000000) | split }}{{ ('x' * 9000000).split('x') }}",
    ]);
}

#[test]
fn what_templates_do_with_lists_is_as_in_python() {
    let cases = [
        ("{{ ([1] + [2, 3])[1:] }}", "[2, 3]"),
        ("{{ [1, 2] * 2 }}{{ (1, 2)[::-1] }}{{ (1,) + (2,) }}", "[1, 2, 1, 2](2, 1)(1, 2)"),
        ("{{ 'abcäe'[1:-1] }}{{ 'abcde'[::-2] }}{{ 'abc'[5:] }}{{ 'abc'[-9:2] }}", "bcäecaab"),
        ("{{ [1, 2, 3, 4][3:0:-2] }}{{ [1, 2][9:] }}{{ [1, 2][-1:-9:-1] }}", "[4, 2][][2, 1]"),
        ("{{ messages[0:][0].role }}{{ (messages + messages) | length }}", "user2"),
        ("{{ ([1] + [2]) is sequence }}{{ [][1:] }}", "True[]"),
        (
            "{{ [[1], [2, 3]] | sum(start=[]) }}{{ [1, 2.5] | sum }}{{ [1, 2] | sum(start=4) }}",
            "[1, 2, 3]3.57",
        ),
        (
            "{{ messages | map(attribute='role') | join('-') }}{{ ['a'] | map('upper') | list }}",
            "user['A']",
        ),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{% for k, v in {'a': [1]}.items() %}{{ k }}{{ v }}{% endfor %}", "a[1]"),
        (
            "{% for g in messages | groupby('role') %}{{ g.grouper }}{{ g.list | length }}{% endfor %}",
            "user1",
        ),
        (
            "{% macro m(a, b=[2]) %}{{ a + b }}{{ caller() }}{% endmacro %}{% call m(*[[1]], **{'b': [3]}) %}c{% endcall %}",
            "[1, 3]c",
        ),
        (
            "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is sequence else x }}{% endfor %}",
            "123",
        ),
        (
            "{% for x in [1, 2, 3] if x != 2 %}{{ x }}{{ loop.changed(x) }}{% else %}n{% endfor %}",
            "1True3True",
        ),
        ("{{ 1 < 2 < 3 }}{{ 3 > 2 > 2 }}{{ 'a' in 'abc' and 2 not in [1] }}", "TrueFalseTrue"),
        ("{% set ns = namespace(a=[]) %}{% set ns.a = ns.a + [text] %}{{ ns.a }}", "['hello']"),
    ];
    for (source, expected) in cases {
        for result in render(source) {
            assert_eq!(result.unwrap(), expected, "{source}");
        }
    }
}

#[test]
fn unknown_filters_and_tests_are_named() {
    for (source, expected) in [
        ("{{ text | nonsense }}", "unknown filter: filter nonsense is unknown"),
        ("{{ text is nonsense }}", "unknown test: test nonsense is unknown"),
    ] {
        for result in render(source) {
            assert!(result.unwrap_err().to_string().contains(expected), "{source}");
        }
    }
}
