//! The checksum that an ETag stands for.
//!
//! Files in LFS or Xet storage: the SHA-256 of the bytes (64 hex digits). Files in git itself: the blob id,
//! `sha1("blob {length}\0" + bytes)` (40 hex digits). Any other ETag says nothing about the bytes.

use sha1::{Digest, Sha1};
use sha2::Sha256;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// A checksum that grows with the download.
pub(super) enum Checksum {
    Sha256(Sha256),
    GitBlob(Sha1),
    Unknown,
}

impl Checksum {
    /// For an ETag and the length of the whole file, which git hashes first.
    pub(super) fn of_etag(etag: &str, length: Option<u64>) -> Checksum {
        if !etag.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Checksum::Unknown;
        }
        match (etag.len(), length) {
            (64, _) => Checksum::Sha256(Sha256::new()),
            (40, Some(length)) => {
                Checksum::GitBlob(Sha1::new_with_prefix(format!("blob {length}\0")))
            }
            _ => Checksum::Unknown,
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Checksum::Sha256(hash) => hash.update(bytes),
            Checksum::GitBlob(hash) => hash.update(bytes),
            Checksum::Unknown => {}
        }
    }

    /// Adds the bytes that are on disk already.
    pub(super) fn update_from(&mut self, path: &Path) -> io::Result<()> {
        if matches!(self, Checksum::Unknown) {
            return Ok(());
        }
        let mut file = File::open(path)?;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                n => self.update(&buffer[..n]),
            }
        }
    }

    /// The checksum in lower-case hex, or `None` if the ETag names none.
    pub(super) fn finish(self) -> Option<String> {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        match self {
            Checksum::Sha256(hash) => Some(hex(&hash.finalize())),
            Checksum::GitBlob(hash) => Some(hex(&hash.finalize())),
            Checksum::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Checksum;

    #[test]
    fn known_digests() {
        let of = |etag: &str, bytes: &[u8]| {
            let mut checksum = Checksum::of_etag(etag, Some(bytes.len() as u64));
            checksum.update(bytes);
            checksum.finish()
        };
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of(abc, b"abc").as_deref(), Some(abc));
        // `printf 'hello\n' | git hash-object --stdin`, and git's well-known empty blob.
        let hello = "ce013625030ba8dba906f756967f9e9ca394464a";
        assert_eq!(of(hello, b"hello\n").as_deref(), Some(hello));
        let empty = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391";
        assert_eq!(of(empty, b"").as_deref(), Some(empty));
        assert_eq!(of("abc-12", b"abc"), None);
    }
}
