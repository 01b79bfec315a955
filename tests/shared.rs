//! Tests that cannot run everywhere. Compiled into the tests of every crate. The developer's larger data are not in the
//! tree: they lie in `shared/` beside the checkout, or where J1_SHARED says.

#![allow(dead_code)] // each crate uses its part

use std::{fmt::Display, io::Write, path::PathBuf};

/// Says that the test that calls this, or a part of it, is skipped. The line passes the harness, which shows what tests print
/// only where they fail; `.ci/run` counts these lines.
pub(crate) fn skipped(why: impl Display) {
    let thread = std::thread::current();
    let line = format!("{}: skipped, because {why}\n", thread.name().unwrap_or("a test"));
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// A file or folder in `shared/`; `None`, and [`skipped`], if it is not there.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("J1_SHARED").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
        PathBuf::from,
    );
    let path = folder.join(name);
    if !path.exists() {
        skipped(format!("{} is not there", path.display()));
        return None;
    }
    Some(path)
}
