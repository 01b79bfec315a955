//! What the fuzz targets share: a place for files, and what every error must be.

use std::{
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    sync::{LazyLock, atomic::AtomicBool},
};

use trainer::data::{self, Columns, Replies, Source, Wanted, prepare::inspect};

/// This process's directory; run.sh removes those of all.
static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = std::env::temp_dir().join(format!("j1-fuzz-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory for files");
    directory
});

/// Writes a file of this name, in place of the one before, and gives its path.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = DIRECTORY.join(name);
    // Removed, not cut: the one before may still be mapped.
    let _ = fs::remove_file(&path);
    fs::write(&path, bytes).expect("a file");
    path
}

/// The directory in which [`file`] writes.
pub fn directory() -> &'static Path {
    &DIRECTORY
}

/// Asserts of an error what holds for all of them.
pub fn refused(error: impl Display) {
    let message = error.to_string();
    assert!(!message.trim().is_empty(), "an error without words");
    assert!(message.len() < 64 << 10, "an error of {} bytes", message.len());
}

/// A small sound model for adapters and weights to belong to.
pub fn model() -> engine::checkpoint::config::Config {
    const TEXT: &str = include_str!("../tests/golden/qwen2/model/config.json");
    engine::checkpoint::config::Config::parse(TEXT, Path::new("config.json"))
        .expect("a sound config.json")
}

/// Reads a file of pairs as judging, training and data preparation do.
pub fn pairs(name: &str, bytes: &[u8]) {
    let source = match Source::open(&file(name, bytes)) {
        Ok(source) => source,
        Err(error) => return refused(error),
    };
    for (replies, several) in [(Replies::Labeled, false), (Replies::Any, true)] {
        let wanted = Wanted { replies, several, ..Wanted::default() };
        match data::read_with(&source, None, &wanted) {
            Ok(pairs) => {
                assert!(!pairs.is_empty());
                drop(data::fingerprint(&pairs));
                let read = data::read_with(&source, Some(1), &wanted);
                let read = read.expect("fewer rows of a sound file");
                assert!(!read.is_empty() && read[..] == pairs[..read.len()]);
            }
            Err(error) => refused(error),
        }
    }
    match inspect(&source, &Columns::default(), 2, &AtomicBool::new(false), &mut |_| ()) {
        Ok(inspection) => drop(inspection.to_json()),
        Err(error) => refused(error),
    }
}
