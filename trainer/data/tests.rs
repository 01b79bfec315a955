//! Every format, every column form, and files that are broken or hostile.

use std::path::PathBuf;
use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::file::properties::{EnabledStatistics, WriterProperties};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use tempfile::TempDir;

use super::*;
use crate::shared::shared;

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/parquet")).join(name)
}

/// Writes a file and reads it as data.
fn read_bytes(name: &str, bytes: &[u8]) -> Result<Vec<Pair>, DataError> {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    read(&path)
}

/// Reads two replies without labels.
fn read_any(path: &Path) -> Result<Vec<Pair>, DataError> {
    let wanted = Wanted { replies: Replies::Any, ..Wanted::default() };
    read_with(&Source::open(path)?, None, &wanted)
}

fn read_text(name: &str, text: &str) -> Result<Vec<Pair>, String> {
    read_bytes(name, text.as_bytes()).map_err(|error| error.to_string())
}

fn refused(name: &str, text: &str) -> String {
    read_text(name, text).expect_err(text)
}

fn user(text: &str) -> Vec<Message> {
    vec![Message::new("user", text)]
}

#[test]
fn jsonl_rows_become_pairs() {
    let text = "\u{feff}{\"prompt\":\"Hi\",\"chosen\":\"a\",\"rejected\":\"\",\"subset\":\"s\",\"id\":7,\"more\":[1]}\r\n\
                \n\
                {\"prompt\":[{\"role\":\"user\",\"content\":\"1\"},{\"role\":\"assistant\",\"content\":\"2\"},{\"role\":\"user\",\"content\":\"3\"}],\"chosen\":\"a\",\"rejected\":\"b\",\"subset\":null}";
    let pairs = read_text("d.jsonl", text).unwrap();
    assert_eq!(
        pairs[0],
        Pair {
            id: "7".into(),
            row: 0,
            prompt: user("Hi"),
            chosen: "a".into(),
            rejected: String::new(),
            subset: Some("s".into()),
            candidates: None
        }
    );
    assert_eq!((pairs[1].id.as_str(), pairs[1].row, pairs[1].prompt.len()), ("1", 1, 3));
    assert_eq!(pairs[1].subset, None);
    assert_eq!(read_text("rows", text).unwrap(), pairs, "known by its first byte");
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("d.jsonl");
    std::fs::write(&path, text).unwrap();
    assert_eq!(
        read_with(&Source::open(&path).unwrap(), Some(1), &Wanted::default()).unwrap(),
        pairs[..1]
    );
}

#[test]
fn conversations_with_a_reply_at_their_end_are_split() {
    let row = |chosen: &str, rejected: &str| {
        format!("{{\"chosen\":{chosen},\"rejected\":{rejected},\"prompt\":\"3\"}}")
    };
    let turns = |texts: &[&str]| {
        let turn = |(i, text): (usize, &&str)| {
            let role = if i % 2 == 0 { "user" } else { "assistant" };
            serde_json::json!({"role": role, "content": text})
        };
        serde_json::Value::from(texts.iter().enumerate().map(turn).collect::<Vec<_>>()).to_string()
    };
    let read_one = |chosen: &[&str], rejected: &[&str]| {
        read_text("d.jsonl", &row(&turns(chosen), &turns(rejected)))
    };
    let pair = &read_one(&["1", "2", "3", "a"], &["1", "2", "3", "b"]).unwrap()[0];
    assert_eq!((pair.prompt.len(), pair.chosen.as_str(), pair.rejected.as_str()), (3, "a", "b"));
    // Equal replies are still replies.
    assert_eq!(read_one(&["3", "a"], &["3", "a"]).unwrap()[0].prompt, user("3"));
    let error = read_one(&["1", "2", "3", "a"], &["1", "x", "3", "b"]).unwrap_err();
    assert!(error.contains("line 1") && error.contains("they share 1"), "{error}");
    assert!(
        read_one(&["3", "a"], &["3", "a", "2"])
            .unwrap_err()
            .contains("the last turn of rejected is of \"user\"")
    );
    assert!(
        read_one(&["1", "a"], &["1", "b"]).unwrap_err().contains("prompt is none of the turns")
    );
    let alone = row(
        "[{\"role\":\"assistant\",\"content\":\"a\"}]",
        "[{\"role\":\"assistant\",\"content\":\"b\"}]",
    );
    assert_eq!(read_text("d.jsonl", &alone).unwrap()[0].prompt, user("3"), "replies alone");
}

#[test]
fn csv_rows_become_pairs() {
    let text = "\u{feff}prompt,chosen,rejected,extra,subset,id\n\
                \"Hi, \"\"you\"\"\nthere\",a,,x,s,\n\
                \"[{\"\"role\"\":\"\"user\"\",\"\"content\"\":\"\"1\"\"},{\"\"role\"\":\"\"assistant\"\",\"\"content\"\":\"\"2\"\"}]\",[1],b,x,,k\n";
    let pairs = read_text("d.csv", text).unwrap();
    assert_eq!(
        (pairs[0].prompt.clone(), pairs[0].rejected.as_str()),
        (user("Hi, \"you\"\nthere"), "")
    );
    assert_eq!((pairs[0].id.as_str(), pairs[0].subset.as_deref()), ("0", Some("s")));
    assert_eq!((pairs[1].prompt.len(), pairs[1].chosen.as_str()), (2, "[1]"));
    assert_eq!((pairs[1].id.as_str(), pairs[1].subset.as_deref()), ("k", None));
}

#[test]
fn parquet_rows_become_pairs_under_every_codec() {
    for codec in ["snappy", "gzip", "zstd", "lz4", "none"] {
        let pairs = read(&fixture(&format!("text-{codec}.parquet"))).unwrap();
        assert_eq!(pairs.len(), 3, "{codec}");
        assert_eq!((pairs[0].chosen.as_str(), pairs[0].prompt.clone()), ("a é", user("Hi")));
        assert_eq!((pairs[1].chosen.as_str(), pairs[1].subset.as_deref()), ("", None));
        let ids: Vec<&str> = pairs.iter().map(|pair| pair.id.as_str()).collect();
        assert_eq!(ids, ["7", "7#2", "9"]);
        assert_eq!(read(&fixture("text-v2.parquet")).unwrap(), pairs);
        assert_eq!(read(&fixture("text-zstd-v2.parquet")).unwrap(), pairs);
        assert_eq!(
            read_with(
                &Source::open(&fixture("text-v2.parquet")).unwrap(),
                Some(2),
                &Wanted::default()
            )
            .unwrap(),
            pairs[..2]
        );
    }
    let pairs = read(&fixture("skywork.parquet")).unwrap();
    assert_eq!((pairs[0].prompt.clone(), pairs[0].chosen.as_str()), (user("Hi"), "a"));
    assert_eq!((pairs[1].prompt.len(), pairs[1].chosen == pairs[1].rejected), (3, true));
    let pairs = read(&fixture("raw.parquet")).unwrap();
    assert_eq!((pairs[0].prompt.len(), pairs[0].subset.as_deref()), (3, Some("s")));
}

#[test]
fn equal_rows_have_equal_fingerprints_in_any_format() {
    let from_parquet = read(&fixture("text-snappy.parquet")).unwrap();
    let jsonl: String = [("Hi", "a é", "b", "\"s\"", 7), ("Why?", "", "c", "null", 7), ("", "x", "y", "\"t\"", 9)]
        .iter()
        .map(|(p, c, r, s, id)| {
            format!("{{\"prompt\":\"{p}\",\"chosen\":\"{c}\",\"rejected\":\"{r}\",\"subset\":{s},\"id\":{id}}}\n")
        })
        .collect();
    let from_jsonl = read_text("d.jsonl", &jsonl).unwrap();
    assert_eq!(from_jsonl, from_parquet);
    assert_eq!(fingerprint(&from_jsonl), fingerprint(&from_parquet));
    assert_ne!(fingerprint(&from_jsonl[..2]), fingerprint(&from_parquet));
}

#[test]
fn equal_ids_are_told_apart_by_position() {
    let ids = ["a", "a", "a#2", "a", "a#2"];
    let text: String = ids
        .map(|id| {
            format!("{{\"id\":\"{id}\",\"prompt\":\"p\",\"chosen\":\"c\",\"rejected\":\"r\"}}\n")
        })
        .concat();
    let pairs = read_text("d.jsonl", &text).unwrap();
    let ids: Vec<&str> = pairs.iter().map(|pair| pair.id.as_str()).collect();
    assert_eq!(ids, ["a", "a#2", "a#2#2", "a#3", "a#2#3"]);
}

#[test]
fn broken_jsonl_is_refused_with_its_line() {
    let good = "{\"prompt\":\"p\",\"chosen\":\"c\",\"rejected\":\"r\"}\n";
    let second = |line: &str| refused("d.jsonl", &format!("{good}{line}"));
    assert!(second("{\"prompt\":").contains("line 2: not a JSON object"));
    assert!(second("[1]").contains("line 2: not a JSON object"));
    assert!(second(&"[".repeat(10_000)).contains("line 2"));
    assert!(
        second("{\"prompt\":\"p\",\"chosen\":null,\"rejected\":\"r\"}")
            .contains("line 2: chosen has no value")
    );
    assert!(
        second("{\"prompt\":\"p\",\"chosen\":3,\"rejected\":\"r\"}").contains("chosen is a number")
    );
    assert!(
        second("{\"prompt\":\"p\",\"chosen\":[],\"rejected\":\"r\"}").contains("an empty list")
    );
    assert!(
        second("{\"prompt\":\"p\",\"chosen\":\"c\",\"rejected\":[{\"role\":\"user\"}]}")
            .contains("turn 0 has no content")
    );
    assert!(second("{\"prompt\":\"p\",\"chosen\":\"c\",\"rejected\":[{\"role\":\"user\",\"content\":\"x\"}]}").contains("both be text"));
    assert!(
        second("{\"prompt\":[\"p\"],\"chosen\":\"c\",\"rejected\":\"r\"}")
            .contains("prompt is a list of 1 texts")
    );
    assert!(
        second("{\"prompt\":null,\"chosen\":\"c\",\"rejected\":\"r\"}")
            .contains("prompt has no value")
    );
    assert!(
        second("{\"prompt\":\"p\",\"chosen\":\"c\",\"rejected\":\"r\",\"id\":1.5}")
            .contains("id is a number")
    );
    assert!(
        second("{\"prompt\":\"p\",\"chosen\":\"c\",\"rejected\":\"r\",\"subset\":1}")
            .contains("subset is a number")
    );
    let missing = second("{\"question\":\"p\",\"chosen\":\"c\"}");
    assert!(
        missing.contains("line 2: there is no column rejected; found: chosen, question"),
        "{missing}"
    );
    assert!(second("{\"chosen\":\"c\",\"rejected\":\"r\"}").contains("no column prompt"));
    let error = read_bytes("d.jsonl", &[good.as_bytes(), b"{\"prompt\":\"\xff\"}"].concat());
    assert!(matches!(error, Err(DataError::NotUtf8 { line: 2, byte: 11, .. })), "{error:?}");
    let long = format!("{good}{{\"prompt\":\"{}\"}}", "x".repeat(65 << 20));
    assert!(refused("d.jsonl", &long).contains("line 2: longer than"));
}

#[test]
fn broken_csv_is_refused_with_its_line() {
    assert!(
        refused("d.csv", "prompt,chosen\na,b\n")
            .contains("no column rejected; found: chosen, prompt")
    );
    let error = refused("d.csv", "prompt,chosen,rejected\na,b,c\na,b\n");
    assert!(error.contains("line 3: 2 cells where the header has 3"), "{error}");
    assert!(refused("d.csv", "prompt,chosen,rejected\na,\"b,c\nd,e,f\n").contains("cells"));
    let error = read_bytes("d.csv", b"prompt,chosen,rejected\na,b,c\xff\n");
    assert!(matches!(error, Err(DataError::NotUtf8 { line: 2, byte: 1, .. })), "{error:?}");
    assert!(refused("d.csv", "prompt,chosen,rejected\n").contains("no rows"));
    let endless = format!("prompt,chosen,rejected\n\"{}", "x\n".repeat(33 << 20));
    assert!(refused("d.csv", &endless).contains("longer than"));
}

#[test]
fn files_that_are_not_data_are_refused_by_what_they_are() {
    assert!(refused("d.jsonl", "").contains("no rows"));
    assert!(refused("d.jsonl", "\n \n").contains("no rows"));
    assert!(refused("d.parquet", "<html>404</html>").contains("web page"));
    assert!(refused("d.parquet", "version https://git-lfs.github.com/spec/v1").contains("Git LFS"));
    assert!(refused("d.parquet", "prompt,chosen").contains("no Parquet signature"));
    assert!(refused("d.xlsx", "PK\u{3}\u{4}").contains("zip"));
    assert!(refused("d.json", "7").contains("neither a JSON object nor a list"));
    assert!(refused("d.txt", "hello").contains(".jsonl, .json, .csv, .parquet and .arrow"));
    let zstd = read_bytes("d.jsonl.zst", b"\x28\xb5\x2f\xfd").unwrap_err().to_string();
    assert!(zstd.contains("decompress"), "{zstd}");
    let wide = read_bytes("d.csv", b"\xff\xfep\0,\0").unwrap_err().to_string();
    assert!(wide.contains("UTF-16"), "{wide}");
    let directory = TempDir::new().unwrap();
    let error = read(directory.path()).unwrap_err().to_string();
    assert!(error.contains("a directory without data files"), "{error}");
    assert!(matches!(read(Path::new("/nowhere/d.jsonl")), Err(DataError::Io { .. })));
}

#[test]
fn parquet_that_cannot_be_read_is_refused_by_what_it_is() {
    let refused = |name: &str| read(&fixture(name)).unwrap_err().to_string();
    assert!(refused("text-brotli.parquet").contains("the codec brotli"));
    assert!(refused("text-brotli.parquet").contains("compression='snappy'"));
    assert!(refused("delta.parquet").contains("DELTA_"));
    assert!(refused("binary.parquet").contains("has a text that is not valid UTF-8 at its byte 0"));
    assert!(
        refused("no-prompt.parquet").contains("no column prompt; found: chosen, rejected, text")
    );
    assert!(refused("no-columns.parquet").contains("no column chosen; found: text"));
    assert!(refused("empty.parquet").contains("no rows"));
    assert!(refused("float.parquet").contains("chosen"));
}

#[test]
fn damaged_parquet_never_panics_and_never_grows() {
    let names = [
        "text-snappy",
        "text-gzip",
        "text-zstd",
        "text-zstd-v2",
        "text-lz4",
        "text-none",
        "text-v2",
        "skywork",
        "raw",
        "float",
    ];
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("d.parquet");
    let mut draws = crate::eval::bootstrap::Draws::new(5);
    let mut errors = 0;
    for name in names {
        let sound = std::fs::read(fixture(&format!("{name}.parquet"))).unwrap();
        for round in 0..150 {
            let mut bytes = sound.clone();
            match round % 3 {
                0 => bytes.truncate(draws.below(bytes.len())),
                1 => {
                    for _ in 0..1 + draws.below(3) {
                        let at = draws.below(bytes.len());
                        bytes[at] = draws.next_bits() as u8;
                    }
                }
                // The varints of headers and footer: make a claim enormous.
                _ => {
                    let at = draws.below(bytes.len() - 8);
                    bytes[at..at + 5].copy_from_slice(&[0xfe, 0xff, 0xff, 0xff, 0x0f]);
                }
            }
            std::fs::write(&path, &bytes).unwrap();
            errors += usize::from(read(&path).is_err());
        }
    }
    assert!(errors > 750, "most damage is noticed: {errors} of 1500");
}

#[test]
fn hostile_parquet_claims_are_refused() {
    let sound = std::fs::read(fixture("text-none.parquet")).unwrap();
    let end = sound.len();
    let mut footer_too_long = sound.clone();
    footer_too_long[end - 8..end - 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = read_bytes("d.parquet", &footer_too_long).unwrap_err().to_string();
    assert!(error.contains("footer claims 4294967295"), "{error}");
    let cut = read_bytes("d.parquet", &sound[..end - 4]).unwrap_err().to_string();
    assert!(cut.contains("its end is missing"), "{cut}");
    assert!(read_bytes("d.parquet", b"PAR1PAR1").is_err());
    assert!(read_bytes("d.parquet", b"PAR1\0\0\0\0PAR1").is_err());
    // A schema that nests a thousand groups: version, then the list of elements.
    let mut footer = vec![0x15, 0x02, 0x19, 0xfc];
    footer.extend([0xe8, 0x07]); // 1000 elements
    for _ in 0..1000 {
        footer.extend([0x48, 0x01, b'g', 0x15, 0x02, 0x00]); // name (field 4), one child (field 5)
    }
    footer.push(0);
    let mut bytes = b"PAR1".to_vec();
    bytes.extend(&footer);
    bytes.extend((footer.len() as u32).to_le_bytes());
    bytes.extend(b"PAR1");
    let error = read_bytes("d.parquet", &bytes).unwrap_err().to_string();
    assert!(error.contains("nested too deeply"), "{error}");
}

/// A Parquet file of texts, a slice for each of the columns, written by the reader's own crate.
fn parquet_of(columns: &[(&str, &[&str])], codec: Compression, dictionary: bool) -> Vec<u8> {
    let fields: String =
        columns.iter().map(|(name, _)| format!("required binary {name} (utf8);")).collect();
    let schema = Arc::new(parse_message_type(&format!("message m {{ {fields} }}")).unwrap());
    let properties = WriterProperties::builder()
        .set_compression(codec)
        .set_dictionary_enabled(dictionary)
        .set_dictionary_page_size_limit(64 << 20)
        .set_statistics_enabled(EnabledStatistics::None)
        .build();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for (_, texts) in columns {
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = texts.iter().map(|&text| text.into()).collect();
        column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn parquet_that_unfolds_without_bounds_is_refused() {
    let columns = |texts: &'static str| [("prompt", "p"), ("chosen", texts), ("rejected", "r")];
    // One text of a dictionary, three hundred times.
    let text: &str = &"x".repeat(1 << 20);
    let texts = vec![text; 300];
    let short = vec!["p"; 300];
    let bytes = parquet_of(
        &[("prompt", &short), ("chosen", &texts), ("rejected", &short)],
        Compression::SNAPPY,
        true,
    );
    assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
    let error = read_bytes("d.parquet", &bytes).unwrap_err().to_string();
    assert!(error.contains("unfolds to more than 268435456 bytes"), "{error}");
    // A gzip page that holds a thousand times what it claims.
    let columns = columns(Box::leak(text.to_owned().into_boxed_str()));
    let columns = columns.each_ref().map(|(name, text)| (*name, std::slice::from_ref(text)));
    let mut bytes = parquet_of(&columns, Compression::GZIP(Default::default()), false);
    assert_eq!(read_bytes("d.parquet", &bytes).unwrap()[0].chosen, text);
    // The page header: type 0, then 4 + 2^20 bytes as a zigzag varint.
    let claim = [0x15, 0x00, 0x15, 0x88, 0x80, 0x80, 0x01];
    let at = bytes.windows(claim.len()).position(|window| window == claim).unwrap();
    bytes[at + 3..at + 7].copy_from_slice(&[0x80, 0x90, 0x80, 0x00]); // 1,024
    let error = read_bytes("d.parquet", &bytes).unwrap_err().to_string();
    assert!(error.contains("column chosen: a page unfolds beyond the 1024 bytes"), "{error}");
}

#[test]
fn zstd_pages_unfold_to_what_they_claim() {
    let sound = std::fs::read(fixture("text-zstd.parquet")).unwrap();
    // A frame begins with its magic number.
    let at = sound.windows(4).position(|window| window == [0x28, 0xb5, 0x2f, 0xfd]).unwrap();
    let mut bytes = sound.clone();
    bytes[at] ^= 1;
    let error = read_bytes("d.parquet", &bytes).unwrap_err().to_string();
    assert!(error.contains("column prompt: a page does not decompress ("), "{error}");
    // The header before it: type 2, then 18 bytes unfolded (three texts and their lengths), as zigzag varints.
    let header = sound[..at].windows(4).rposition(|window| window == [0x15, 4, 0x15, 36]).unwrap();
    for claim in [34, 38, 126] {
        let mut bytes = sound.clone();
        bytes[header + 3] = claim;
        let error = read_bytes("d.parquet", &bytes).unwrap_err().to_string();
        let expected = format!("does not decompress to the {} bytes it claims", claim / 2);
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn numbers_that_pandas_made_fractions_of_are_ids() {
    let pairs = read(&fixture("text-float-id.parquet")).unwrap();
    let ids: Vec<&str> = pairs.iter().map(|pair| pair.id.as_str()).collect();
    assert_eq!(ids, ["7", "7#2", "2"]);
    let row = "{\"prompt\":\"p\",\"chosen\":\"c\",\"rejected\":\"r\",\"id\":";
    assert_eq!(read_text("d.jsonl", &format!("{row}-3.0}}")).unwrap()[0].id, "-3");
    for id in ["1.5", "1e300", "[1]"] {
        let error = read_text("d.jsonl", &format!("{row}{id}}}")).unwrap_err().to_string();
        assert!(error.contains("line 1: id is"), "{error}");
    }
}

#[test]
fn unlabeled_replies_are_read_where_they_may_be() {
    let directory = TempDir::new().unwrap();
    let text = "{\"prompt\":\"p\",\"a\":\"1\",\"b\":\"2\"}\n{\"prompt\":\"p\",\"chosen\":\"3\",\"rejected\":\"4\",\"a\":0}\n";
    let csv = "prompt,b,a\np,2,1\n";
    let columns: [(&str, &[&str]); 3] = [("a", &["1"]), ("prompt", &["p"]), ("b", &["2"])];
    let parquet = parquet_of(&columns, Compression::UNCOMPRESSED, true);
    for (name, bytes) in
        [("d.jsonl", text.as_bytes()), ("d.csv", csv.as_bytes()), ("d.parquet", &parquet)]
    {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let pairs = read_any(&path).unwrap();
        assert_eq!((pairs[0].chosen.as_str(), pairs[0].rejected.as_str()), ("1", "2"), "{name}");
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("no column chosen; found: "), "{error}");
        if name == "d.jsonl" {
            assert_eq!((pairs[1].chosen.as_str(), pairs[1].rejected.as_str()), ("3", "4"));
        }
    }
    let path = directory.path().join("d.jsonl");
    let refused = |text: &str| {
        std::fs::write(&path, text).unwrap();
        read_any(&path).unwrap_err().to_string()
    };
    assert!(refused("{\"prompt\":\"p\",\"a\":\"1\"}").contains("no column b; found: a, prompt"));
    assert!(
        refused("{\"prompt\":\"p\",\"chosen\":\"1\",\"b\":\"2\"}").contains("no column rejected")
    );
    assert!(refused("{\"prompt\":\"p\"}").contains("no column chosen"));
    assert!(
        refused("{\"prompt\":\"p\",\"a\":null,\"b\":\"2\"}").contains("line 1: a has no value")
    );
}

#[test]
fn known_names_are_data_only() {
    assert_eq!(known("rewardbench").unwrap().dataset, "allenai/reward-bench");
    assert_eq!(known("rewardbench2").unwrap().dataset, "allenai/reward-bench-2");
    assert_eq!(known("rewardbench3"), None);
}

#[test]
fn the_shared_rows_are_read() {
    for (name, rows) in [("rewardbench_dev120", 120), ("train_pairs_dev", 1_052)] {
        let Some(path) = shared(&format!("data/{name}.jsonl")) else { continue };
        assert_eq!(read(&path).unwrap().len(), rows);
    }
}

#[test]
fn names_of_any_type_are_ids() {
    let ids = |name: &str| -> Vec<String> {
        let pairs = read(&fixture(&format!("{name}.parquet"))).unwrap();
        pairs.into_iter().map(|pair| pair.id).collect()
    };
    assert_eq!(ids("ids-date")[0], "2020-01-02");
    assert_eq!(ids("ids-date")[2], "2");
    assert_eq!(ids("ids-bool"), ["true", "false", "2"]);
    assert_eq!(ids("ids-fixed"), ["0", "1", "2"]);
    let error = read(&fixture("date-reply.parquet")).unwrap_err().to_string();
    assert!(error.contains("row 0: chosen is a date"), "{error}");
}

mod arrow;
mod forms;
mod sources;

#[test]
fn names_of_columns_in_errors_are_on_one_line_and_few() {
    let mut columns: Vec<String> = (0..60).map(|n| format!("\"c{n:02}\":1")).collect();
    columns.push("\"a\\nj1: all is well\\u001b[2J\\u202e\":1".to_owned());
    let line = format!("{{{}}}\n", columns.join(","));
    let error = read_bytes("a.jsonl", line.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("found: a\\nj1: all is well\\u{1b}[2J\\u{202e}, c00, "), "{error}");
    assert!(error.contains("c38 and 21 more. Needed are"), "{error}");
    assert!(!error.contains(['\n', '\u{1b}', '\u{202e}']), "{error}");
    let wanted = Wanted { columns: "prompt=x\ny".parse().unwrap(), ..Wanted::default() };
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("a.jsonl");
    std::fs::write(&path, line).unwrap();
    let source = Source::open(&path).unwrap();
    let error = read_with(&source, None, &wanted).unwrap_err().to_string();
    assert!(error.contains("no column x\\ny, which") && !error.contains('\n'), "{error}");
}
