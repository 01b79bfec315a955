use super::*;
#[test]
fn deep() {
    for (name, src) in [
        (
            "drop",
            "{% set ns = namespace(x=0) %}{% for i in range(N) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x|length }}",
        ),
        (
            "map",
            "{% set ns = namespace(x=0) %}{% for i in range(N) %}{% set ns.x = {'a':ns.x} %}{% endfor %}{{ ns.x|length }}",
        ),
        (
            "slice",
            "{% set ns = namespace(x=[1]) %}{% for i in range(N) %}{% set ns.x = ns.x[::-1] %}{% endfor %}{{ ns.x|length }}",
        ),
        (
            "list add",
            "{% set ns = namespace(x=[1]) %}{% for i in range(N) %}{% set ns.x = ns.x + [1] %}{% endfor %}{{ ns.x|length }}",
        ),
        (
            "map filter",
            "{% set ns = namespace(x=[1]) %}{% for i in range(N) %}{% set ns.x = ns.x|select %}{% endfor %}{{ ns.x|list|length }}",
        ),
        (
            "eq",
            "{% set ns = namespace(x=0,y=0) %}{% for i in range(N) %}{% set ns.x = [ns.x] %}{% set ns.y = [ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
        ),
        (
            "sort",
            "{% set ns = namespace(x=0,y=0) %}{% for i in range(N) %}{% set ns.x = [ns.x] %}{% set ns.y = [ns.y] %}{% endfor %}{{ [ns.x , ns.y]|sort|length }}",
        ),
        (
            "key",
            "{% set ns = namespace(x=0,y=0) %}{% for i in range(N) %}{% set ns.x = [ns.x] %}{% endfor %}{{ {ns.x: 1}|length }}",
        ),
        (
            "unique",
            "{% set ns = namespace(x=0,y=0) %}{% for i in range(N) %}{% set ns.x = [ns.x] %}{% endfor %}{{ [ns.x,1]|unique|list|length }}",
        ),
        (
            "pprint",
            "{% set ns = namespace(x=0,y=0) %}{% for i in range(N) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x|pprint|length }}",
        ),
        (
            "tilde",
            "{% set ns = namespace(x=0,y=0) %}{% for i in range(N) %}{% set ns.x = [ns.x] %}{% endfor %}{{ (ns.x~'')|length }}",
        ),
        (
            "in",
            "{% set ns = namespace(x=0,y=0) %}{% for i in range(N) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x in [ns.x,1] }}",
        ),
    ] {
        let t = ChatTemplate::parse(
            &src.replace("N", &std::env::var("NN").unwrap()),
            Path::new("x"),
            vec![],
        )
        .unwrap();
        eprintln!("{name}");
        let r = t.render(&[], &ChatOptions::default());
        // fuel used
        eprintln!("{name} {r:?}");
    }
}
