//! Fingerprints: short names for data, templates and prompts, equal only if the bytes are.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

/// The first 16 bytes of a SHA-256, in hexadecimal, over texts that are framed by their lengths.
#[derive(Debug, Clone, Default)]
pub struct Fingerprint(Sha256);

impl Fingerprint {
    /// Of nothing yet.
    pub fn new() -> Self {
        Fingerprint::default()
    }

    /// Adds one text; `ab`, `c` differs from `a`, `bc`.
    pub fn text(&mut self, text: &str) {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
    }

    /// The fingerprint: 32 hexadecimal digits.
    pub fn finish(self) -> String {
        hexadecimal(&self.0.finalize()[..16])
    }
}

/// The fingerprint of a list of texts.
pub fn of_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut fingerprint = Fingerprint::new();
    texts.into_iter().for_each(|text| fingerprint.text(text));
    fingerprint.finish()
}

/// The fingerprint of a file's bytes (its whole SHA-256, cut to 32 digits), read in pieces.
pub fn of_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hexadecimal(&digest.finalize()[..16])),
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
    fn texts_are_framed_and_files_are_plain_sha256() {
        assert_ne!(of_texts(["ab", "c"]), of_texts(["a", "bc"]));
        assert_ne!(of_texts([]), of_texts([""]));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-2's example.
        assert_eq!(of_file(&path).unwrap(), "ba7816bf8f01cfea414140de5dae2223");
        assert!(of_file(directory.path()).is_err());
    }
}
