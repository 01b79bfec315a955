//! Files of other kinds, several of them, and what can be read only once.

use std::io::Write;

use flate2::{Compression as Level, write::GzEncoder};

use super::*;

fn rows(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers
        .map(|n| {
            format!("{{\"prompt\": \"{n}?\", \"chosen\": \"a}}\\\" {n}\", \"rejected\": \"b\"}}")
        })
        .collect()
}

fn prompts(pairs: &[Pair]) -> Vec<&str> {
    pairs.iter().map(|pair| pair.prompt[0].content.as_str()).collect()
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::best());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn json_is_read_in_any_arrangement() {
    let expected = read_text("d.jsonl", &rows(0..3).join("\n")).unwrap();
    assert_eq!(prompts(&expected), ["0?", "1?", "2?"]);
    let list = format!("\u{feff}\n[{}]\n", rows(0..3).join(",\n "));
    let pretty = |list: bool| {
        let values: Vec<Value> =
            rows(0..3).iter().map(|row| serde_json::from_str(row).unwrap()).collect();
        match list {
            true => format!("{:#}", Value::Array(values)),
            false => values.iter().map(|value| format!("{value:#}\n")).collect(),
        }
    };
    for (name, text) in [
        ("list.jsonl", list.clone()),
        ("list.json", list.replace('\n', "")),
        ("pretty.json", pretty(true)),
        ("objects.json", pretty(false)),
        ("objects", pretty(false).replace('\n', "\r\n")),
        ("spaced.jsonl", rows(0..3).join("\r\n\r\n")),
    ] {
        assert_eq!(read_text(name, &text).unwrap(), expected, "{name}");
    }
    assert!(refused("d.json", "[]").contains("no rows"));
    for (text, says) in [
        ("[{\"a\":1}", "line 1: the list of objects does not"),
        ("[{\"prompt\":\"p\"", "the object that begins in line 1 does not end"),
        ("[1]", "an item of the list is something else"),
        ("[{\"a\":1} {\"a\":1}]", "does not go on with ,"),
        ("[\n{\"a\":1}]\n{}", "there is more after the list"),
        ("{\n\"prompt\": \"p\"\n", "the object that begins in line 1 does not end"),
        ("{\"a\":\n1}\n\nx", "the object that begins in line 5 does not end"),
    ] {
        let text = text
            .replace("{\"a\":1}", &rows(0..1)[0])
            .replace("{\"a\":\n1}", &rows(0..1)[0].replace(", ", ",\n"));
        let error = refused("d.json", &text);
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn gzip_is_unfolded_within_bounds() {
    let text = rows(0..300).join("\n");
    let expected = read_text("d.jsonl", &text).unwrap();
    let two = [gzip(&text.as_bytes()[..1000]), gzip(&text.as_bytes()[1000..])].concat();
    for (name, bytes) in [
        ("d.jsonl.gz", gzip(text.as_bytes())),
        ("d.json.gz", gzip(format!("[{}]", rows(0..300).join(",")).as_bytes())),
        ("d.jsonl", gzip(text.as_bytes())),
        ("d.jsonl.gz", two),
    ] {
        assert_eq!(read_bytes(name, &bytes).unwrap(), expected, "{name}");
    }
    let csv = "prompt,chosen,rejected\n0?,a,b\n";
    assert_eq!(prompts(&read_bytes("d.csv.gz", &gzip(csv.as_bytes())).unwrap()), ["0?"]);
    let parquet = std::fs::read(fixture("text-snappy.parquet")).unwrap();
    let error = read_bytes("d.parquet.gz", &gzip(&parquet)).unwrap_err().to_string();
    assert!(error.contains("Parquet in gzip"), "{error}");
    let mut cut = gzip(text.as_bytes());
    cut.truncate(cut.len() - 9);
    let error = read_bytes("d.jsonl.gz", &cut).unwrap_err().to_string();
    assert!(error.contains("its gzip ends too early; was the download cut?"), "{error}");
    let line = format!("{}\n", rows(0..1)[0]);
    for (name, start) in [("d.jsonl.gz", line.as_str()), ("d.csv.gz", csv)] {
        let bomb = [start.as_bytes(), &vec![b'\n'; 5 << 20]].concat();
        let error = read_bytes(name, &gzip(&bomb)).unwrap_err().to_string();
        assert!(error.contains("unfolds to more than 4194304 bytes"), "{error}");
    }
}

#[test]
fn shards_are_one_data_set() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    let write = |name: &str, text: &[u8]| std::fs::write(path(name), text).unwrap();
    write("part-1.jsonl", rows(2..3).join("\n").as_bytes());
    write("part-0.jsonl", rows(0..2).join("\n").as_bytes());
    write("part-2.jsonl.gz", &gzip(rows(3..5).join("\n").as_bytes()));
    write("dataset_info.json", b"{}");
    write("README.md", b"# Rows");
    write(".hidden.jsonl", b"{}");
    let pairs = read(directory.path()).unwrap();
    assert_eq!(prompts(&pairs), ["0?", "1?", "2?", "3?", "4?"]);
    assert_eq!(pairs.iter().map(|pair| pair.row).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert_eq!(read(&path("part-*")).unwrap(), pairs);
    assert_eq!(read(&path("part-[!1].*")).unwrap().len(), 4);
    let whole = read_text("d.jsonl", &rows(0..5).join("\n")).unwrap();
    assert_eq!(fingerprint(&pairs), fingerprint(&whole));
    let print = |path: &Path| Source::open(path).unwrap().fingerprint().unwrap();
    let before = print(directory.path());
    assert_eq!(print(&path("part-*")), before);
    let limited = read_with(&Source::open(directory.path()).unwrap(), Some(3), &Wanted::default());
    assert_eq!(limited.unwrap(), pairs[..3]);

    write("part-1.jsonl", b"{\"prompt\": 7}");
    assert_ne!(print(directory.path()), before);
    let error = read(directory.path()).unwrap_err().to_string();
    assert!(error.contains("part-1.jsonl"), "{error}");
    write("part-1.csv", b"prompt,chosen,rejected\np,c,r\n");
    let error = read(directory.path()).unwrap_err().to_string();
    assert!(error.contains("several formats"), "{error}");
    assert!(read(&path("none-*")).unwrap_err().to_string().contains("no file has a name"));
    let splits = TempDir::new().unwrap();
    for name in ["train.jsonl", "held_out.jsonl"] {
        std::fs::write(splits.path().join(name), rows(0..1).join("")).unwrap();
    }
    let error = read(splits.path()).unwrap_err().to_string();
    assert!(error.contains("the parts held_out, train of a data set"), "{error}");
    let outer = TempDir::new().unwrap();
    std::fs::create_dir(outer.path().join("train")).unwrap();
    let error = read(outer.path()).unwrap_err().to_string();
    assert!(error.contains("but with train; give one of these"), "{error}");
}

#[cfg(unix)]
#[test]
fn pipes_are_read_as_often_as_files() {
    let directory = TempDir::new().unwrap();
    let parquet = std::fs::read(fixture("text-snappy.parquet")).unwrap();
    let text = rows(0..2).join("\n");
    let from_file = read_text("d.jsonl", &text).unwrap();
    for (number, (bytes, expected)) in [
        (text.clone().into_bytes(), from_file.clone()),
        (gzip(text.as_bytes()), from_file),
        (
            b"prompt,chosen,rejected\np,c,r\n".to_vec(),
            read_text("d.csv", "prompt,chosen,rejected\np,c,r\n").unwrap(),
        ),
        (parquet, read(&fixture("text-snappy.parquet")).unwrap()),
    ]
    .into_iter()
    .enumerate()
    {
        let path = directory.path().join(format!("pipe-{number}"));
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let to = path.clone();
        let writer = std::thread::spawn(move || std::fs::write(to, bytes));
        let source = Source::open(&path).unwrap();
        writer.join().unwrap().unwrap();
        for _ in 0..2 {
            assert_eq!(read_with(&source, None, &Wanted::default()).unwrap(), expected, "{number}");
        }
    }
    for (path, says) in [("/dev/zero", "unknown extension and content"), ("/dev/null", "no rows")] {
        let error = read(Path::new(path)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_table_that_is_not_separated_by_commas_says_so() {
    for (text, mark) in [
        ("prompt;chosen;rejected\np;a;b\n", "';'"),
        ("prompt\tchosen\trejected\np\ta\tb\n", "'\\t'"),
        ("prompt|chosen|rejected\np|a|b\n", "'|'"),
    ] {
        let error = read_bytes("a.csv", text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(&format!("separated by commas, not by {mark}")), "{error}");
    }
}
