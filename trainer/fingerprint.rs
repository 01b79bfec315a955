//! Fingerprints: short names for data, templates and prompts, equal only if the bytes are.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
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

/// As [`of_file`], of what is open already.
pub(crate) fn of_reader(mut file: impl Read) -> io::Result<String> {
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
        assert!(of_file(directory.path()).is_err());
    }
}
