//! Fingerprints: short names for data, templates and prompts, equal only if the bytes are.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use engine::error::{FileError, is_there, look_up};
use engine::text::chat::ADDITIONAL_TEMPLATES;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The first 16 bytes of a SHA-256, in hexadecimal, over texts that are framed by their lengths.
#[derive(Debug, Clone, Default)]
pub struct Fingerprint(Sha256);

impl Fingerprint {
    /// The fingerprint of no bytes.
    pub fn new() -> Self {
        Fingerprint::default()
    }

    /// Adds one text; `ab`, `c` differs from `a`, `bc`.
    pub fn text(&mut self, text: &str) {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
    }

    /// Adds a JSON value: what it says, whatever spaces, escapes and order of keys it was written with.
    fn json(&mut self, value: &Value) {
        match value {
            Value::Null | Value::Bool(_) => self.text(&value.to_string()),
            Value::Number(number) => {
                self.0.update(b"#");
                self.0.update(number.as_f64().unwrap_or(f64::NAN).to_bits().to_le_bytes());
            }
            Value::String(text) => {
                self.0.update(b"s");
                self.text(text);
            }
            Value::Array(values) => {
                self.0.update(b"[");
                self.0.update((values.len() as u64).to_le_bytes());
                values.iter().for_each(|value| self.json(value));
            }
            Value::Object(values) => {
                let mut keys: Vec<&String> = values.keys().collect();
                keys.sort();
                self.0.update(b"{");
                self.0.update((keys.len() as u64).to_le_bytes());
                for key in keys {
                    self.text(key);
                    self.json(&values[key]);
                }
            }
        }
    }

    /// The fingerprint: 32 hexadecimal digits.
    pub fn finish(self) -> String {
        hexadecimal(&self.0.finalize()[..16])
    }
}

/// The fingerprint of what a JSON value says.
pub fn of_json(value: &Value) -> String {
    let mut all = Fingerprint::new();
    all.json(value);
    all.finish()
}

/// A fingerprint of a large file that reads little of it: its length, its first 64 KiB (a safetensors
/// header begins there) and 256 samples of 4 KiB spread over the rest. Tells checkpoints apart in
/// milliseconds; a change between the samples escapes it.
pub fn of_large_file(path: &Path) -> io::Result<String> {
    const HEAD: u64 = 64 << 10;
    const SAMPLE: u64 = 4 << 10;
    const SAMPLES: u64 = 256;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    if length <= HEAD + SAMPLES * SAMPLE {
        return of_file(path);
    }
    let mut digest = Sha256::new();
    digest.update(length.to_le_bytes());
    let mut piece = vec![0; HEAD as usize];
    file.read_exact(&mut piece)?;
    digest.update(&piece);
    piece.truncate(SAMPLE as usize);
    for sample in 0..SAMPLES {
        let room = (length - HEAD - SAMPLE) as u128;
        let offset = HEAD + (room * u128::from(sample) / u128::from(SAMPLES - 1)) as u64;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(&mut piece)?;
        digest.update(&piece);
    }
    Ok(hexadecimal(&digest.finalize()[..16]))
}

/// The fingerprint of a file's bytes (its whole SHA-256, cut to 32 digits), read in pieces.
pub fn of_file(path: &Path) -> io::Result<String> {
    of_reader(File::open(path)?)
}

/// Fingerprint of the files that decide what a checkpoint or adapter computes: its weights, JSON files and chat templates. Not of where
/// it lies.
pub fn of_directory(directory: &Path) -> Result<String, FileError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| FileError::Io { path, source }
    };
    let mut all = Fingerprint::new();
    for folder in ["", ADDITIONAL_TEMPLATES] {
        let at = directory.join(folder);
        if !folder.is_empty() && !is_there(&at)? {
            continue;
        }
        let entries = std::fs::read_dir(&at).map_err(io(&at))?;
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        let mut paths: Vec<PathBuf> = paths.collect::<io::Result<_>>().map_err(io(&at))?;
        paths.sort();
        for path in paths {
            let extension = path.extension().and_then(|extension| extension.to_str());
            let of = match extension {
                Some("safetensors") => of_large_file,
                Some("json" | "jinja") => of_file,
                _ => continue,
            };
            if look_up(&path)?.is_file() {
                let name = path.strip_prefix(directory).unwrap_or(&path);
                all.text(&name.to_string_lossy());
                all.text(&of(&path).map_err(io(&path))?);
            }
        }
    }
    Ok(all.finish())
}

/// As [`of_file`], for a file that is open already.
pub(crate) fn of_reader(file: impl Read) -> io::Result<String> {
    let mut digits = sha256(file)?;
    digits.truncate(32);
    Ok(digits)
}

/// The SHA-256 of a file's bytes, as `sha256sum` prints it, read in pieces.
pub fn sha256_of_file(path: &Path) -> io::Result<String> {
    sha256(File::open(path)?)
}

fn sha256(mut file: impl Read) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hexadecimal(&digest.finalize())),
            length => digest.update(&piece[..length]),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_files_differ_by_length_head_and_samples() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("large");
        let mut bytes = vec![7u8; 3 << 20];
        let fingerprint = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            of_large_file(&path).unwrap()
        };
        let first = fingerprint(&bytes);
        assert_eq!(first, fingerprint(&bytes));
        assert_ne!(first, fingerprint(&bytes[..bytes.len() - 1]));
        for position in [0, (64 << 10) + 1, (3 << 20) - 1] {
            bytes[position] += 1;
            assert_ne!(first, fingerprint(&bytes), "byte {position}");
            bytes[position] -= 1;
        }
    }

    #[test]
    fn a_directory_is_its_weights_json_files_and_templates() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let of = || of_directory(directory.path()).unwrap();
        std::fs::write(path("config.json"), "{}").unwrap();
        let mut seen = vec![of()];
        std::fs::write(path("README.md"), "no part of it").unwrap();
        std::fs::create_dir(path("folder.json")).unwrap();
        assert_eq!(of(), seen[0]);
        std::fs::create_dir(path("additional_chat_templates")).unwrap();
        assert_eq!(of(), seen[0]);
        for (name, text) in [
            ("additional_chat_templates/default.jinja", "a"),
            ("additional_chat_templates/default.jinja", "b"),
            ("default.jinja", "b"),
            ("model.safetensors", "weights"),
        ] {
            std::fs::write(path(name), text).unwrap();
            let now = of();
            assert!(!seen.contains(&now), "{name}");
            seen.push(now);
        }
    }

    #[test]
    #[cfg(unix)]
    fn a_link_to_nothing_in_a_directory_is_named() {
        for name in ["tokenizer.json", "additional_chat_templates/default.jinja", "a.safetensors"] {
            let directory = tempfile::tempdir().unwrap();
            std::fs::create_dir(directory.path().join(ADDITIONAL_TEMPLATES)).unwrap();
            std::os::unix::fs::symlink("../../blobs/4d7a", directory.path().join(name)).unwrap();
            let error = of_directory(directory.path()).unwrap_err().to_string();
            for part in [name, "../../blobs/4d7a", "cp -L"] {
                assert!(error.contains(part), "{error}");
            }
        }
        let error = of_directory(Path::new("/no/such/directory")).unwrap_err().to_string();
        assert!(error.contains("/no/such/directory"), "{error}");
    }

    #[test]
    fn json_is_what_it_says() {
        let of = |text: &str| of_json(&serde_json::from_str(text).unwrap());
        let first = of(r#"{"a": [9.0, 0.1], "b": "é", "c": null}"#);
        assert_eq!(first, of(r#"{"c":null,"b":"\u00e9","a":[9,1e-1]}"#));
        for other in [
            r#"{"a": [9.0, 0.1], "b": "é"}"#,
            r#"{"a": [9.0, 0.1], "b": "é", "c": "null"}"#,
            r#"{"a": [9.0, 0.1], "b": "è", "c": null}"#,
            r#"{"a": [9.0, 0.10000000000000002], "b": "é", "c": null}"#,
            r#"{"a": [[9.0, 0.1]], "b": "é", "c": null}"#,
            r#"{"a": [9.0], "b": "é", "c": 0.1}"#,
            r#"{"d": [9.0, 0.1], "b": "é", "c": null}"#,
        ] {
            assert_ne!(of(other), first, "{other}");
        }
    }

    #[test]
    fn texts_are_framed_and_files_are_plain_sha256() {
        let of_texts = |texts: &[&str]| {
            let mut fingerprint = Fingerprint::new();
            texts.iter().for_each(|text| fingerprint.text(text));
            fingerprint.finish()
        };
        assert_ne!(of_texts(&["ab", "c"]), of_texts(&["a", "bc"]));
        assert_ne!(of_texts(&[]), of_texts(&[""]));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-2's example.
        assert_eq!(of_file(&path).unwrap(), "ba7816bf8f01cfea414140de5dae2223");
        let whole = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_of_file(&path).unwrap(), whole);
        assert!(of_file(directory.path()).is_err());
    }
}
