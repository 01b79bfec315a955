//! Holds the layout to its word: what the pages say about files, tables and style is true.

#[path = "../benches/readme.rs"]
mod readme;
#[path = "../benches/record.rs"]
mod record;

use std::{
    collections::{BTreeMap, BTreeSet},
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

/// Code without comments and string literals, so that a test's own words do not count.
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

/// The string literals of Rust code, with the lines that they begin on. Comments hold none.
fn strings(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut rest = code.char_indices().peekable();
    let line = |at: usize| code[..at].matches('\n').count() + 1;
    while let Some((at, c)) = rest.next() {
        match c {
            '/' if code[at..].starts_with("//") => {
                while rest.next_if(|(_, c)| *c != '\n').is_some() {}
            }
            '\'' if code[at..].starts_with("'\"'") => {
                rest.nth(1);
            }
            '"' => {
                let hashes = code[..at].bytes().rev().take_while(|c| *c == b'#').count();
                let is_raw = code[..at - hashes].ends_with('r');
                let end = format!("\"{}", "#".repeat(if is_raw { hashes } else { 0 }));
                let mut text = String::new();
                while let Some((at, c)) = rest.next() {
                    match c {
                        '\\' if !is_raw => text.extend(rest.next().map(|(_, c)| c)),
                        '"' if code[at..].starts_with(&end) => break,
                        c => text.push(c),
                    }
                }
                found.push((line(at), text));
            }
            _ => {}
        }
    }
    found
}

/// Flags are the program's: what a library says holds for whoever calls it. cli/advice.rs adds the flag.
#[test]
fn libraries_name_no_flags() {
    assert_eq!(
        strings("f('\"'); // \"a\"\n\"b\\\"c\" r#\"d\"e\"#"),
        [(2, "b\"c".into()), (2, "d\"e".into())]
    );
    let is_flag = |text: &str| {
        let mut places = text
            .match_indices("--")
            .filter(|(at, _)| !text[..*at].ends_with(char::is_alphanumeric));
        places.any(|(at, _)| {
            !text[..at].ends_with('-')
                && text[at + 2..].starts_with(|c: char| c.is_ascii_lowercase())
        })
    };
    let libraries = ["engine", "trainer", "kernels"];
    for (path, text) in rust_files() {
        let is_library = libraries.iter().any(|library| path.starts_with(library));
        let is_test =
            path.components().any(|part| part.as_os_str().to_string_lossy().contains("tests"));
        if is_library && !is_test {
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            for (line, string) in strings(code) {
                assert!(!is_flag(&string), "{}:{line} names a flag: {string}", path.display());
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

/// Where a kernel's stem stands.
const PLACES: [&str; 6] = [
    "kernels/cpu/*.rs",
    "kernels/cuda/*.cu",
    "kernels/cuda/*.rs",
    "kernels/cuda/self_test/*.rs",
    "benches/kernels",
    "engine/ops/*.rs",
];

/// Stems that are not in every place: in which they are, by index, and why.
const INCOMPLETE: &[(&str, &[usize], &str)] = &[
    ("adamw", &[0, 1, 2, 3, 4], "the optimizer calls it, after the tape"),
    ("add", &[0, 1, 2, 3, 4], "the tape adds gradients with it"),
    ("attention_backward", &[1, 2, 3], "elsewhere it is part of attention"),
    ("dropout", &[0, 1, 2, 3, 4], "linear drops out LoRA's input with it"),
    ("linear", &[5], "a matmul with a bias and an adapter"),
    ("mlp", &[5], "three matmuls around swiglu, which a GPU fuses"),
    ("norm", &[0, 1, 2, 3, 4], "the optimizer calls it, after the tape"),
    ("matmul", &[0, 1, 2, 3, 4], "the op is linear"),
    ("philox", &[0, 4], "random words; on a GPU a function in common.cuh"),
    ("product", &[0, 4], "LoRA's gradients; on a GPU kernels of matmul.cu"),
    ("repetition_penalty", &[0, 1, 2, 3, 4], "generation has no gradients"),
    ("round", &[0, 4], "on a GPU a kernel of matmul.cu"),
    ("sample", &[0, 1, 2, 3, 4], "generation has no gradients"),
];

/// Files beside the kernels that are none.
const NO_KERNELS: [&str; 14] = [
    "mod",
    "peak",
    "reference",
    "values",
    "args",
    "buffer",
    "comparison",
    "data_sheet",
    "driver",
    "entries",
    "error",
    "graph",
    "launch",
    "tests",
];

/// Everything of a kernel has one stem in all places.
#[test]
fn kernels_share_their_stems() {
    let mut found: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, place) in PLACES.iter().enumerate() {
        let mut stems = BTreeSet::new();
        if let Some((folder, extension)) = place.split_once("/*.") {
            for path in files(folder) {
                let own = path.parent() == Some(Path::new(folder));
                if own && path.extension().is_some_and(|e| e == extension) {
                    stems.insert(path.file_stem().unwrap().to_str().unwrap().to_owned());
                }
            }
        } else {
            // The first part of a bench's id.
            for (_, text) in rust_files().iter().filter(|(path, _)| path.starts_with(place)) {
                let calls = text.split(".bench(\"").chain(text.split(".bench_cuda(\"")).skip(1);
                let ids = calls.filter_map(|call| Some(call.split_once('"')?.0));
                let is_id = |id: &&str| id.chars().all(|c| c.is_ascii_lowercase() || c == '_');
                stems.extend(ids.filter(is_id).map(str::to_owned));
            }
        }
        for stem in stems.into_iter().filter(|stem| !NO_KERNELS.contains(&stem.as_str())) {
            found.entry(stem).or_default().push(index);
        }
    }
    for (stem, places) in &found {
        let exception = INCOMPLETE.iter().find(|(name, ..)| name == stem);
        let want = exception.map_or(&[0, 1, 2, 3, 4, 5][..], |(_, places, _)| places);
        let names = |places: &[usize]| places.iter().map(|i| PLACES[*i]).collect::<Vec<_>>();
        assert_eq!(names(places), names(want), "where {stem} is, and where it should be");
    }
    for (stem, _, why) in INCOMPLETE {
        assert!(found.contains_key(*stem), "{stem} ({why}) is no more");
    }
}

/// Every kernel file of the GPU is in the table of entry points, and so compiled and launched by the self-test.
#[test]
fn every_cuda_file_is_in_the_table_of_entry_points() {
    let table = fs::read_to_string(root().join("kernels/cuda/entries.rs")).unwrap();
    for path in files("kernels/cuda") {
        if path.extension().is_some_and(|e| e == "cu") {
            let stem = path.file_stem().unwrap().to_str().unwrap();
            assert!(
                table.contains(&format!("    \"{stem}\" {{")),
                "{stem}.cu is not in entries.rs"
            );
        }
    }
}

/// Every kernel file of the GPU has an id of `cuda/` among the benches: an id of `cpu/` alone is not enough.
#[test]
fn every_cuda_file_has_a_bench() {
    let is_bench = |path: &Path| path.starts_with("benches/kernels");
    let benches: String =
        rust_files().into_iter().filter(|(path, _)| is_bench(path)).map(|(_, text)| text).collect();
    for path in files("kernels/cuda") {
        // The backward pass of attention has attention's ids.
        if path.extension().is_some_and(|e| e == "cu") && !path.ends_with("attention_backward.cu") {
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let has_id = benches.contains(&format!(".bench_cuda(\"{stem}\""));
            assert!(has_id, "{stem} has no id of cuda/ in benches/kernels");
        }
    }
}

/// Every file of kernels/ is a module of a file above it, or what a Cargo.toml or Cargo's rules name.
#[test]
fn no_file_of_kernels_is_dead() {
    let all = rust_files();
    let manifests: String = files("")
        .iter()
        .filter(|path| path.ends_with("Cargo.toml"))
        .map(|path| fs::read_to_string(root().join(path)).unwrap())
        .collect();
    for (path, _) in all.iter().filter(|(path, _)| path.starts_with("kernels")) {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let mut folder = path.parent().unwrap();
        let name = if stem == "mod" {
            let name = folder.file_name().unwrap().to_str().unwrap();
            folder = folder.parent().unwrap();
            name
        } else {
            stem
        };
        let above = ["mod.rs", "lib.rs", "main.rs"].map(|file| folder.join(file));
        let beside = folder.with_extension("rs");
        let declares = |text: &str| {
            let mut lines = text.lines().map(code);
            lines.any(|line| line.trim_end().ends_with(&format!("mod {name};")))
        };
        let is_module = all.iter().any(|(file, text)| {
            (above.contains(file) || *file == beside) && file != path && declares(text)
        });
        let is_target = folder.ends_with("examples")
            || stem == "lib"
            || manifests.contains(&format!("{stem}.rs\""));
        assert!(is_module || is_target, "{} is in no module", path.display());
    }
}

/// A public type is the only one of its name in its crate.
#[test]
fn public_types_have_names_of_their_own() {
    let crates = ["kernels/emulator", "kernels", "engine", "trainer"];
    let mut seen = BTreeMap::new();
    for (path, text) in rust_files() {
        let Some(own) = crates.iter().find(|name| path.starts_with(name)) else { continue };
        for line in text.lines() {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            let is_type = words.next() == Some("pub")
                && words.next().is_some_and(|w| ["struct", "enum", "trait", "type"].contains(&w));
            if let (true, Some(name)) = (is_type, words.next()) {
                let first = seen.insert((*own, name.to_owned()), path.clone());
                assert!(first.is_none(), "{name} is in {} and {first:?}", path.display());
            }
        }
    }
}

/// Whether a file is source: a page that lists files lists all of these.
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

/// CONTRIBUTING.md's tables name files that exist, X being a kernel that is in every place. They and the kernels' pages
/// name tests that exist.
#[test]
fn the_lists_of_contributing_name_what_exists() {
    let code: String = rust_files().into_iter().map(|(_, text)| text).collect();
    for page in ["CONTRIBUTING.md", "kernels/README.md", "kernels/cuda/README.md"] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        for line in text.lines() {
            for name in line.split('`').skip(1).step_by(2) {
                let function = name.strip_prefix("tidy::").unwrap_or(name);
                let is_test =
                    name != function || function.trim_matches('_').matches('_').count() >= 3;
                if is_test && function.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                    let exists = code.contains(&format!("fn {function}()"));
                    assert!(exists, "{page} names test {name}, which does not exist");
                } else if line.starts_with("| `") && name.contains('/') && !name.contains(' ') {
                    let path = root().join(name.replace('X', "rms_norm"));
                    assert!(path.exists(), "{page} names {name}, which does not exist");
                }
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
