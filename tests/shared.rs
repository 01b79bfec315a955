//! Where the developer's larger data lie, which are not in the tree: `shared/` beside the checkout, or
//! J1_SHARED. Compiled into the tests of the crates below the root. A test without its data says so and
//! passes.

use std::path::PathBuf;

/// A file or folder in `shared/`; `None`, said on stderr, if it is not there.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("J1_SHARED").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
        PathBuf::from,
    );
    let path = folder.join(name);
    if !path.exists() {
        eprintln!("not checked: {} is not there", path.display());
        return None;
    }
    Some(path)
}
