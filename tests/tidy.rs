//! Holds the layout to its word: what the README and the design say about the tree is true.

#[path = "../benches/readme.rs"]
mod readme;
#[path = "../benches/record.rs"]
mod record;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const LINE_BUDGET: usize = 600;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files of the product below `directory`, as paths from the root.
fn files(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root().join(directory)];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                if !["target", ".git", ".venv"].contains(&name) {
                    pending.push(path);
                }
            } else {
                found.push(path.strip_prefix(root()).unwrap().to_path_buf());
            }
        }
    }
    found.sort();
    found
}

fn rust_files() -> Vec<(PathBuf, String)> {
    let rust = files("").into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs"));
    rust.map(|path| (path.clone(), fs::read_to_string(root().join(&path)).unwrap())).collect()
}

/// Code without comments and without what stands in quotes, so that a test's own words do not count.
fn code(line: &str) -> String {
    let line = line.split("//").next().unwrap();
    line.split('"').step_by(2).collect()
}

#[test]
fn no_file_is_over_its_line_budget() {
    let long: Vec<_> = rust_files()
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LINE_BUDGET)
        .collect();
    assert!(long.is_empty(), "split these by topic: {long:?}");
}

#[test]
fn unsafe_lives_in_kernels_and_in_one_map() {
    for (path, text) in rust_files() {
        let places = text.lines().filter(|line| code(line).contains("unsafe ")).count();
        let allowed = if path.starts_with("kernels") {
            usize::MAX
        } else if path == Path::new("engine/weights.rs") {
            // The map, and giving its pages back.
            2
        } else {
            0
        };
        assert!(places <= allowed, "{}: {places} unsafe blocks", path.display());
    }
}

#[test]
fn nothing_is_left_for_later() {
    for (path, text) in rust_files() {
        if path == Path::new("tests/tidy.rs") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            for word in ["todo!", "unimplemented!", "#[ignore", "dbg!", "FIXME", "TODO", "XXX"] {
                let place = format!("{}:{}", path.display(), number + 1);
                assert!(!line.contains(word), "{place}: {word}");
            }
        }
    }
}

#[test]
fn every_file_opens_with_what_it_is() {
    for (path, text) in rust_files() {
        let doc = text.lines().next().is_some_and(|line| line.starts_with("//!"));
        assert!(doc, "{}: no module doc on its first line", path.display());
    }
}

/// An op and its kernel have one stem: engine/ops/X.rs (and what lies in engine/ops/X/) stands on
/// kernels/cpu/X.rs.
#[test]
fn ops_and_kernels_share_their_stems() {
    let exists = |path: String| {
        root().join(&path).with_extension("rs").is_file() || root().join(path).is_dir()
    };
    for (path, _) in rust_files().iter().filter(|(path, _)| path.starts_with("engine/ops")) {
        let below = path.strip_prefix("engine/ops").unwrap();
        let stem = below.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let kernel = match stem {
            // A matmul with a bias and an adapter; and three of them around swiglu.
            "linear" => "matmul",
            "mlp" => "swiglu",
            stem => stem,
        };
        if stem != "mod" {
            assert!(exists(format!("kernels/cpu/{kernel}")), "{} has no kernel", path.display());
        }
    }
}

/// README's tree names every source file (or the folder it lies in) and nothing else.
#[test]
fn the_readme_tree_is_the_tree() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let tree = readme
        .split("## The tree")
        .nth(1)
        .and_then(|rest| rest.split("```").nth(1))
        .expect("README.md has a section 'The tree' with a code block");
    let mut named = BTreeSet::new();
    let mut folders: Vec<String> = Vec::new();
    for line in tree.lines().skip(1).filter(|line| !line.trim().is_empty()) {
        let depth = (line.len() - line.trim_start().len()) / 2;
        let name = line.split_whitespace().next().unwrap();
        folders.truncate(depth);
        let path = format!("{}{name}", folders.concat());
        assert!(root().join(&path).exists(), "README's tree names {path}, which does not exist");
        if name.ends_with('/') {
            folders.push(name.to_string());
        }
        named.insert(path);
    }
    for (path, _) in rust_files() {
        let text = path.to_str().unwrap();
        // A folder that is named without its files stands for them.
        let covered = named.contains(text)
            || path.ancestors().skip(1).any(|folder| {
                let folder = format!("{}/", folder.display());
                named.contains(&folder)
                    && !named.iter().any(|n| n.len() > folder.len() && n.starts_with(&folder))
            });
        assert!(covered, "README's tree does not name {text}");
    }
}

/// No number of the README's tables is written by hand.
#[test]
fn the_readme_tables_are_those_of_their_records() {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let load = |file: &str| {
        fs::read_to_string(root().join(file)).map_err(|error| format!("{file}: {error}"))
    };
    let made = readme::tables(&text, None, &load).unwrap();
    assert!(text.contains("<!-- bench:"), "README.md has no table of a record");
    assert!(
        text == made,
        "make README's tables again: cargo bench --bench table -- benches/record/FILE.csv"
    );
}

#[test]
fn no_path_of_one_machine_is_in_the_product() {
    for path in files("") {
        let folder = path.components().next().unwrap().as_os_str();
        if [".git", "Cargo.lock"].iter().any(|skip| folder == *skip) {
            continue;
        }
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for needle in [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/home", "/")] {
            assert!(!text.contains(needle), "{} names {needle}", path.display());
        }
    }
}
