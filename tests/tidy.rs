//! Holds the layout to its word: what the pages say about files, tables and style is true.

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
                // A Python environment, such as that of the CUDA compiler, is no part of the product.
                let is_foreign = path.join("pyvenv.cfg").exists();
                if !is_foreign && !["target", ".git"].contains(&name) {
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
        } else if path == Path::new("engine/checkpoint/weights.rs") {
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

/// What counts as source: a page that lists files lists all of these.
fn is_source(path: &Path) -> bool {
    let sources = ["rs", "cu", "cuh", "py", "sh"];
    path.extension().is_some_and(|e| sources.iter().any(|source| e == *source))
}

/// The paths that the list of files in `page` names, from the root: the code block under the heading `title`, one path
/// per line, two spaces deeper inside a folder. Each exists and is named once.
fn listed(page: &Path, title: &str) -> BTreeSet<PathBuf> {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let place = page.display();
    let list = text
        .split(&format!("\n{title}\n"))
        .nth(1)
        .and_then(|rest| rest.split("```").nth(1))
        .unwrap_or_else(|| panic!("{place} has no code block under {title:?}"));
    let mut named = BTreeSet::new();
    let mut folders = vec![page.parent().unwrap().to_path_buf()];
    for line in list.lines().skip(1).filter(|line| !line.trim().is_empty()) {
        let depth = (line.len() - line.trim_start().len()) / 2;
        let name = line.split_whitespace().next().unwrap();
        folders.truncate(depth + 1);
        let path = folders.last().unwrap().join(name);
        assert!(root().join(&path).exists(), "{place} names {name}, which does not exist");
        if name.ends_with('/') {
            folders.push(path.clone());
        }
        assert!(named.insert(path), "{place} names {name} twice");
    }
    named
}

/// Panics if a source file below `folder` is neither listed nor in a listed folder that stands for its files.
fn assert_complete(page: &Path, folder: &str, named: &BTreeSet<PathBuf>) {
    let is_opened =
        |folder: &Path| named.iter().any(|other| other != folder && other.starts_with(folder));
    for path in files(folder).into_iter().filter(|path| is_source(path)) {
        let covers = |folder: &Path| named.contains(folder) && !is_opened(folder);
        let covered = path.ancestors().any(covers);
        assert!(covered, "{} does not name {}", page.display(), path.display());
    }
}

/// The README's tree is one level deep. Each of its folders with source has a page, whose list of files is true and
/// complete; so has kernels/cuda.
#[test]
fn the_readme_tree_is_the_tree() {
    let readme = Path::new("README.md");
    let tree = listed(readme, "## The tree");
    assert!(tree.iter().all(|path| path.components().count() == 1), "one level deep: {tree:?}");
    assert_complete(readme, "", &tree);
    let folders = tree.iter().filter(|path| root().join(path).is_dir());
    for folder in folders.map(PathBuf::as_path).chain([Path::new("kernels/cuda")]) {
        let folder = folder.to_str().unwrap().trim_end_matches('/');
        if files(folder).iter().any(|path| path.extension().is_some_and(|e| e == "rs")) {
            let page = Path::new(folder).join("README.md");
            assert_complete(&page, folder, &listed(&page, "## Files"));
        }
    }
}

/// The root's page stays short: what serves one folder is told there.
#[test]
fn the_readme_is_short() {
    let bytes = fs::read(root().join("README.md")).unwrap().len();
    assert!(bytes <= 12 * 1024, "README.md has {bytes} bytes; move details to the folders' pages");
}

/// Links between pages lead to files that exist, and to headings that are there.
#[test]
fn links_of_pages_lead_somewhere() {
    let anchor = |heading: &str| -> String {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    for page in files("").into_iter().filter(|path| path.extension().is_some_and(|e| e == "md")) {
        let text = fs::read_to_string(root().join(&page)).unwrap();
        for rest in text.split("](").skip(1) {
            let target = rest.split(')').next().unwrap();
            if target.contains("://") {
                continue;
            }
            let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            let place = format!("{}: {target}", page.display());
            assert!(root().join(&file).exists(), "{place} does not exist");
            if !fragment.is_empty() {
                let text = fs::read_to_string(root().join(&file)).unwrap();
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                let found =
                    headings.any(|line| anchor(line.trim_start_matches(['#', ' '])) == fragment);
                assert!(found, "{place} is no heading");
            }
        }
    }
}

/// No number of these tables is written by hand.
#[test]
fn the_readme_tables_are_those_of_their_records() {
    let text = fs::read_to_string(root().join(readme::PAGE)).unwrap();
    let load = |file: &str| {
        fs::read_to_string(root().join(file)).map_err(|error| format!("{file}: {error}"))
    };
    let made = readme::tables(&text, None, &load).unwrap();
    assert!(text.contains("<!-- bench:"), "{} has no table of a record", readme::PAGE);
    assert!(
        text == made,
        "make the tables again: cargo bench --bench table -- benches/record/FILE.csv"
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
