//! Arrow's files and streams, sound, damaged and hostile. The fixtures are pyarrow's.

use super::*;

fn arrow(name: &str) -> PathBuf {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/arrow");
    Path::new(fixtures).join(format!("{name}.arrow"))
}

#[test]
fn arrow_is_read_in_every_form() {
    let pairs = read(&arrow("stream")).unwrap();
    let text =
        |pair: &Pair| (pair.prompt[0].content.clone(), pair.chosen.clone(), pair.rejected.clone());
    let texts: Vec<_> = pairs.iter().map(text).collect();
    let expected =
        [("Hi", "a é", "b"), ("Why?", "a text of more than twelve bytes", ""), ("", "x", "y")];
    assert_eq!(texts, expected.map(|(p, c, r)| (p.to_owned(), c.to_owned(), r.to_owned())));
    let ids: Vec<_> = pairs.iter().map(|pair| (pair.id.as_str(), pair.subset.as_deref())).collect();
    assert_eq!(ids, [("7", Some("s")), ("7#2", None), ("9", Some("t"))]);
    for name in ["file", "zstd", "feather", "types"] {
        assert_eq!(read(&arrow(name)).unwrap(), pairs, "{name}");
    }
    let limited = read_with(&Source::open(&arrow("stream")).unwrap(), Some(1), &Wanted::default());
    assert_eq!(limited.unwrap(), pairs[..1]);

    let pairs = read(&arrow("skywork")).unwrap();
    assert_eq!((pairs[0].prompt.clone(), pairs[0].chosen.as_str()), (user("Hi"), "a"));
    assert_eq!((pairs[1].prompt[1].content.as_str(), pairs[1].rejected.as_str()), ("", "d"));
    assert!(read(&arrow("empty")).unwrap_err().to_string().contains("no rows"));
}

#[test]
fn a_column_of_a_type_that_is_no_text_is_named() {
    let error = read(&arrow("run_ends")).unwrap_err().to_string();
    assert!(error.contains("column chosen is of type run-end encoded"), "{error}");
}

#[test]
fn a_folder_that_datasets_saved_is_read() {
    let directory = TempDir::new().unwrap();
    for (name, bytes) in [
        ("data-00000-of-00002.arrow", std::fs::read(arrow("stream")).unwrap()),
        ("data-00001-of-00002.arrow", std::fs::read(arrow("stream")).unwrap()),
        ("dataset_info.json", b"{}".to_vec()),
        ("state.json", b"{}".to_vec()),
    ] {
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    assert_eq!(read(directory.path()).unwrap().len(), 6);
}

#[test]
fn damaged_arrow_never_panics_and_never_grows() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("d.arrow");
    let mut draws = crate::eval::bootstrap::Draws::new(7);
    let (mut errors, mut runs) = (0, 0);
    for name in ["stream", "file", "zstd", "feather", "types", "skywork"] {
        let sound = std::fs::read(arrow(name)).unwrap();
        for round in 0..400 {
            let mut bytes = sound.clone();
            match round % 4 {
                0 => bytes.truncate(draws.below(bytes.len())),
                1 => {
                    for _ in 0..1 + draws.below(3) {
                        let at = draws.below(bytes.len());
                        bytes[at] = draws.next_bits() as u8;
                    }
                }
                // Lengths, offsets and counts: the largest, and negative ones.
                2 => {
                    let at = draws.below(bytes.len() / 8 - 1) * 8;
                    let claim = [i64::MAX, -1, i64::MIN, 1 << 40, 1 << 61][draws.below(5)];
                    bytes[at..at + 8].copy_from_slice(&claim.to_le_bytes());
                }
                _ => {
                    let at = draws.below(bytes.len() / 4 - 1) * 4;
                    let claim = [u32::MAX, 0x7fff_ffff, 0, 1 << 20][draws.below(4)];
                    bytes[at..at + 4].copy_from_slice(&claim.to_le_bytes());
                }
            }
            std::fs::write(&path, &bytes).unwrap();
            errors += usize::from(read(&path).is_err());
            runs += 1;
        }
    }
    assert!(errors * 3 > runs, "much damage is noticed: {errors} of {runs}");
}

#[test]
fn hostile_arrow_claims_are_refused() {
    let sound = std::fs::read(arrow("stream")).unwrap();
    let mut metadata = sound.clone();
    metadata[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = read_bytes("d.arrow", &metadata).unwrap_err().to_string();
    assert!(error.contains("the metadata of a message are too large"), "{error}");
    let error = read_bytes("d.arrow", &sound[..sound.len() - 20]).unwrap_err().to_string();
    assert!(error.contains("its end is missing"), "{error}");
    assert!(read_bytes("d.arrow", b"ARROW1\0\0").is_err());
    assert!(read_bytes("d.arrow", b"\xff\xff\xff\xff\0\0\0\0").is_err());
    let text = read_bytes("d.arrow", b"prompt").unwrap_err().to_string();
    assert!(text.contains("no Arrow signature"), "{text}");
}
