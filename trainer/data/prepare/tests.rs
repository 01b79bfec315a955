//! Every reason, the split, the files, and what is left behind on errors.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::data::fingerprint;
use crate::data::{Pair, read};
use crate::shared::shared;

const SKYWORK: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/prepare/skywork.parquet");

/// A directory with an input in it.
struct Scratch {
    directory: TempDir,
    input: PathBuf,
}

impl Scratch {
    fn new(name: &str, text: &str) -> Scratch {
        let directory = TempDir::new().unwrap();
        let input = directory.path().join(name);
        fs::write(&input, text).unwrap();
        Scratch { directory, input }
    }

    fn out(&self) -> PathBuf {
        self.directory.path().join("out")
    }

    fn prepare(&self, options: &PrepareOptions) -> Result<PrepareReport, PrepareError> {
        run(&self.input, &self.out(), options)
    }

    /// Names and bytes of the output directory.
    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let Ok(entries) = fs::read_dir(self.out()) else { return Vec::new() };
        let mut files: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())
            })
            .collect();
        files.sort();
        files
    }
}

fn run(input: &Path, out: &Path, options: &PrepareOptions) -> Result<PrepareReport, PrepareError> {
    prepare(&source(input), out, options, &AtomicBool::new(false), &mut |_| {})
}

fn source(path: &Path) -> Source {
    Source::open(path).unwrap()
}

fn counts(report: &PrepareReport) -> Vec<(&'static str, usize)> {
    report.dropped.iter().map(|(reason, dropped)| (reason.name(), dropped.rows)).collect()
}

/// Distinct sound pairs.
fn lines(rows: std::ops::Range<usize>) -> Vec<String> {
    rows.map(|n| {
        format!("{{\"prompt\":\"What is {n}?\",\"chosen\":\"yes {n}\",\"rejected\":\"no\"}}\n")
    })
    .collect()
}

#[test]
fn skywork_rows_are_checked_and_counted_by_reason() {
    let scratch = Scratch::new(
        "bench.csv",
        "prompt,chosen,rejected\n\"which planet is the LARGEST of the solar system\",a,b\n",
    );
    let options = PrepareOptions {
        held_out: 0.0,
        max_chars: Some(200),
        exclude: vec![source(&scratch.input)],
        ..PrepareOptions::default()
    };
    let report = run(Path::new(SKYWORK), &scratch.out(), &options).unwrap();
    assert_eq!(
        counts(&report),
        [
            ("malformed", 2),
            ("no-assistant-reply", 2),
            ("prompts-differ", 1),
            ("no-question", 1),
            ("empty-reply", 1),
            ("equal-replies", 1),
            ("too-long", 1),
            ("overlap", 1),
            ("duplicate", 1),
            ("contradiction", 2),
        ]
    );
    assert_eq!((report.rows, report.overlap, report.written()), (16, 1, [3, 0]));
    let first = |reason| report.dropped[&reason].first.join("; ");
    assert_eq!(first(DropReason::Duplicate), "row 2: as row 0");
    assert_eq!(first(DropReason::Contradiction), "row 3: against row 4; row 4: against row 3");
    assert_eq!(
        first(DropReason::Malformed),
        "row 13: chosen has no value; row 14: chosen turn 0 has no content"
    );
    assert!(first(DropReason::NoReply).contains("row 9: the last turn of chosen is of \"tool\""));

    // What was written is what is read for training, labels and order kept.
    let pairs = crate::data::read(&scratch.out().join(TRAIN)).unwrap();
    let replies: Vec<_> = pairs.iter().map(|p| (p.chosen.as_str(), p.rejected.as_str())).collect();
    assert_eq!(replies, [("Seven.", "Eight."), ("Four.", "Five."), ("Red.", "Seven.")]);
    assert_eq!((pairs[1].prompt.len(), pairs[1].prompt[2].role.as_str()), (3, "user"));
    assert!(pairs.iter().all(|pair| pair.id.len() == 32), "{pairs:?}");
    let text = fs::read_to_string(scratch.out().join(TRAIN)).unwrap();
    assert!(text.starts_with(&format!("{{\"id\":\"{}\",\"source\":\"magpie\",", pairs[0].id)));
    let json: Value =
        serde_json::from_slice(&fs::read(scratch.out().join(SETTINGS)).unwrap()).unwrap();
    assert_eq!(json["dropped"]["contradiction"]["rows"], 2);
    assert_eq!(json["sources"]["magpie"]["train"], 1);
    assert_eq!(json["sources"]["unnamed"]["train"], 1);
    assert_eq!(json["settings"]["exclude"][0]["file"], "bench.csv");
    assert_eq!(
        json["train"]["fingerprint"],
        fingerprint::of_file(&scratch.out().join(TRAIN)).unwrap()
    );

    let kept = PrepareOptions { keep_overlap: true, max_chars: None, ..options };
    let report = run(Path::new(SKYWORK), &scratch.out(), &kept).unwrap();
    assert_eq!((report.overlap, report.written()), (1, [5, 0]));
}

#[test]
fn a_side_depends_on_seed_and_prompt_alone() {
    let options = PrepareOptions { held_out: 0.25, seed: 3, ..PrepareOptions::default() };
    let scratch = Scratch::new("d.jsonl", &lines(0..400).concat());
    let report = scratch.prepare(&options).unwrap();
    let [train, held_out] = report.written();
    assert_eq!(train + held_out, 400);
    // Binomial: mean 100, standard deviation 8.7.
    assert!((65..=135).contains(&held_out), "{held_out} of 400");
    let side = |scratch: &Scratch, name: &str| -> Vec<String> {
        let text = fs::read_to_string(scratch.out().join(name)).unwrap();
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };

    let reversed: String = lines(0..400).into_iter().rev().collect();
    let other = Scratch::new("other.jsonl", &reversed);
    other.prepare(&options).unwrap();
    assert_eq!(side(&scratch, HELD_OUT), side(&other, HELD_OUT), "another order");
    let part = Scratch::new("part.jsonl", &lines(100..200).concat());
    part.prepare(&options).unwrap();
    let all = side(&scratch, HELD_OUT);
    assert!(side(&part, HELD_OUT).iter().all(|line| all.contains(line)), "fewer rows");
    let seed = Scratch::new("seed.jsonl", &lines(0..400).concat());
    seed.prepare(&PrepareOptions { seed: 4, ..options.clone() }).unwrap();
    assert_ne!(side(&seed, HELD_OUT), all, "another seed");
    // A larger share holds all of a smaller one.
    let more = Scratch::new("more.jsonl", &lines(0..400).concat());
    more.prepare(&PrepareOptions { held_out: 0.5, ..options.clone() }).unwrap();
    let larger = side(&more, HELD_OUT);
    assert!(all.iter().all(|line| larger.contains(line)));

    // Pairs about one prompt stand on one side.
    let same: String = (0..50)
        .map(|n| format!("{{\"prompt\":\"p\",\"chosen\":\"yes {n}\",\"rejected\":\"no\"}}\n"))
        .collect();
    let same = Scratch::new("same.jsonl", &same);
    let written = same.prepare(&options).unwrap().written();
    assert!(written == [50, 0] || written == [0, 50], "{written:?}");
}

#[test]
fn equal_pairs_have_equal_ids_in_any_format() {
    let jsonl = Scratch::new("d.jsonl", &lines(0..1).concat());
    let csv = Scratch::new("d.csv", "prompt,chosen,rejected,source\nWhat is 0?,yes 0,no,\n");
    let list = Scratch::new(
        "list.jsonl",
        "{\"chosen\":[{\"role\":\"user\",\"content\":\"What is 0?\"},{\"role\":\"assistant\",\"content\":\"yes 0\"}],\
         \"rejected\":[{\"role\":\"user\",\"content\":\"What is 0?\"},{\"role\":\"assistant\",\"content\":\"no\"}]}",
    );
    let all = [jsonl, csv, list].map(|scratch| {
        scratch.prepare(&PrepareOptions { held_out: 0.0, ..PrepareOptions::default() }).unwrap();
        fs::read(scratch.out().join(TRAIN)).unwrap()
    });
    assert_eq!(all[0], all[1]);
    assert_eq!(all[0], all[2]);
}

#[test]
fn the_outcome_does_not_depend_on_where_a_contradiction_stands() {
    let (a, b) = ("\"x\"", "\"y\"");
    let line = |c: &str, r: &str| format!("{{\"prompt\":\"p\",\"chosen\":{c},\"rejected\":{r}}}\n");
    let good = lines(0..1).concat();
    for text in [
        [line(a, b), line(b, a), line(a, b), good.clone()].concat(),
        [line(b, a), good.clone(), line(a, b), line(a, b)].concat(),
    ] {
        let report = Scratch::new("d.jsonl", &text).prepare(&PrepareOptions::default()).unwrap();
        assert_eq!(counts(&report), [("duplicate", 1), ("contradiction", 2)]);
        assert_eq!(report.written().iter().sum::<usize>(), 1);
    }
}

#[test]
fn running_twice_changes_nothing_and_other_settings_replace_all() {
    let scratch = Scratch::new("d.jsonl", &lines(0..40).concat());
    scratch.prepare(&PrepareOptions::default()).unwrap();
    let first = scratch.files();
    assert_eq!(first.iter().map(|f| f.0.as_str()).collect::<Vec<_>>(), [HELD_OUT, SETTINGS, TRAIN]);
    scratch.prepare(&PrepareOptions::default()).unwrap();
    assert_eq!(scratch.files(), first);
    scratch.prepare(&PrepareOptions { seed: 1, ..PrepareOptions::default() }).unwrap();
    assert_eq!(scratch.files().len(), 3);
    assert_ne!(scratch.files(), first);
}

#[test]
fn nothing_is_left_where_nothing_is_done() {
    let scratch = Scratch::new("d.jsonl", &lines(0..2_000).concat());
    // Interrupted in the first pass, in the second, and before the files are put in place.
    for (pass, rows) in [("checking", 0), ("checking", 1_024), ("writing", 0), ("writing", 1_792)] {
        let stop = AtomicBool::new(false);
        let options = PrepareOptions::default();
        let result =
            prepare(&source(&scratch.input), &scratch.out(), &options, &stop, &mut |progress| {
                if progress.doing == pass && progress.rows == rows {
                    stop.store(true, Ordering::Relaxed);
                }
            });
        assert!(matches!(result, Err(PrepareError::Interrupted)), "{pass} {rows}");
        assert!(!scratch.out().exists(), "{pass} {rows}: {:?}", scratch.files());
    }
    // What was there before stays as it was.
    scratch.prepare(&PrepareOptions::default()).unwrap();
    let before = scratch.files();
    let stop = AtomicBool::new(true);
    let options = PrepareOptions { seed: 9, ..PrepareOptions::default() };
    let input = source(&scratch.input);
    assert!(prepare(&input, &scratch.out(), &options, &stop, &mut |_| {}).is_err());
    fs::write(&scratch.input, lines(0..3).concat() + "{\"prompt\":\n").unwrap();
    let error = scratch.prepare(&PrepareOptions::default()).unwrap_err().to_string();
    assert!(error.contains("line 4"), "{error}");
    assert_eq!(scratch.files(), before);
}

#[test]
fn a_file_that_changes_meanwhile_is_noticed() {
    let scratch = Scratch::new("d.jsonl", &lines(0..3).concat());
    for text in [lines(0..2), lines(1..4), lines(0..4)] {
        fs::write(&scratch.input, lines(0..3).concat()).unwrap();
        let stop = AtomicBool::new(false);
        let mut changed = false;
        let input = source(&scratch.input);
        let result =
            prepare(&input, &scratch.out(), &PrepareOptions::default(), &stop, &mut |progress| {
                if progress.doing == "checking" && !changed {
                    changed = true;
                    // The reader holds the old file; the second pass opens the new one.
                    let other = scratch.directory.path().join("other");
                    fs::write(&other, text.concat()).unwrap();
                    fs::rename(&other, &scratch.input).unwrap();
                }
            });
        assert!(matches!(result, Err(PrepareError::Changed { .. })), "{result:?}");
        assert!(scratch.files().is_empty());
    }
}

#[test]
fn inputs_and_foreign_files_are_not_replaced() {
    let scratch = Scratch::new("train.jsonl", &lines(0..3).concat());
    let directory = scratch.directory.path();
    let error = run(&scratch.input, directory, &PrepareOptions::default()).unwrap_err().to_string();
    assert!(error.contains("train.jsonl is read and would be replaced"), "{error}");
    let other = Scratch::new("d.jsonl", &lines(5..9).concat());
    let error = run(&other.input, directory, &PrepareOptions::default()).unwrap_err().to_string();
    assert!(error.contains("train.jsonl is there already"), "{error}");
    assert_eq!(fs::read_to_string(&scratch.input).unwrap(), lines(0..3).concat());
    assert_eq!(fs::read_dir(directory).unwrap().count(), 1);
}

#[test]
fn files_without_a_usable_row_say_why() {
    let refused = |text: &str| {
        let scratch = Scratch::new("d.jsonl", text);
        let error = scratch.prepare(&PrepareOptions::default()).unwrap_err().to_string();
        assert!(!scratch.out().exists());
        error
    };
    let empty = refused("{\"prompt\":\"p\",\"chosen\":\"\",\"rejected\":\"x\"}\n");
    assert!(empty.contains("none of its 1 rows can be used: 1 empty-reply (line 1)"), "{empty}");
    assert!(refused("\n").contains("no rows"));
    let missing = refused("{\"prompt\":\"p\",\"a\":\"\",\"b\":\"x\"}\n");
    assert!(missing.contains("no column chosen; found: a, b, prompt"), "{missing}");
    let missing = refused("{\"chosen\":\"c\",\"rejected\":\"x\"}\n");
    assert!(missing.contains("no column prompt"), "{missing}");
}

#[test]
fn an_inspection_counts_what_there_is() {
    let stop = AtomicBool::new(false);
    let seen =
        inspect(&source(Path::new(SKYWORK)), &Columns::default(), 2, &stop, &mut |_| {}).unwrap();
    assert_eq!((seen.rows, seen.format), (16, crate::data::Format::Parquet));
    assert_eq!(seen.columns["source"], (16, true));
    assert_eq!(seen.dropped[&DropReason::Duplicate].rows, 1);
    assert_eq!(seen.repeated_prompts, 2);
    let sources: Vec<_> = seen.sources.iter().map(|(name, rows)| (name.as_str(), *rows)).collect();
    assert_eq!(sources, [("magpie", 5), ("math", 2), ("unnamed", 1)]);
    assert_eq!(seen.lengths[0].0, "prompt turns");
    assert_eq!(seen.lengths[0].1.max, 3);
    assert_eq!(seen.lengths[2].1.max, 200);
    // Longer: Jupiter, Once; not: Seven and Eight twice, Often and Never twice, Four and Five, Red.
    assert_eq!(seen.chosen_longer, 2.0 / 8.0);
    assert_eq!(seen.examples.len(), 2);
    assert_eq!(seen.examples[0]["chosen"], "Seven.");
    assert_eq!(seen.to_json()["columns"]["chosen"]["rows"], 16);
}

#[test]
fn the_shared_rows_are_prepared() {
    for (name, rows) in [("train_pairs_dev", 1_052), ("rewardbench_dev120", 120)] {
        let Some(path) = shared(&format!("data/{name}.jsonl")) else { continue };
        let out = TempDir::new().unwrap();
        let report = run(&path, &out.path().join("out"), &PrepareOptions::default()).unwrap();
        let dropped: usize = report.dropped.values().map(|dropped| dropped.rows).sum();
        assert_eq!(report.rows, rows);
        assert_eq!(report.written().iter().sum::<usize>() + dropped, rows);
        assert!(dropped * 20 < rows, "{:?}", report.dropped);
    }
}

#[test]
fn a_killed_run_is_told_from_a_whole_one() {
    let scratch = Scratch::new("d.jsonl", &lines(0..40).concat());
    scratch.prepare(&PrepareOptions::default()).unwrap();
    let out = scratch.out();
    let [train, held_out, settings] = [TRAIN, HELD_OUT, SETTINGS].map(|name| out.join(name));
    let check = || {
        let (of_train, of_held_out) = (read(&train).unwrap(), read(&held_out).unwrap());
        check_together([&train, &held_out], &of_train, &of_held_out)
            .map_err(|error| error.to_string())
    };
    assert_eq!(check(), Ok(true));
    let [old, old_settings] = [&held_out, &settings].map(|path| fs::read(path).unwrap());
    scratch.prepare(&PrepareOptions { seed: 5, ..PrepareOptions::default() }).unwrap();
    assert_eq!(check(), Ok(true));

    // What a kill between two renames left before there was a marker.
    let [new, new_settings] = [&held_out, &settings].map(|path| fs::read(path).unwrap());
    fs::write(&held_out, &old).unwrap();
    for text in [&old_settings, &new_settings] {
        fs::write(&settings, text).unwrap();
        let error = check().unwrap_err();
        assert!(
            error.contains("another") && error.contains("run j1 data prepare again"),
            "{error}"
        );
    }
    fs::remove_file(&settings).unwrap();
    let error = check().unwrap_err();
    assert!(error.contains("it is missing, and "), "{error}");
    fs::write(&settings, "{").unwrap();
    assert!(check().unwrap_err().contains("it is damaged"));
    fs::write(&settings, format!("{{\"{UNFINISHED}\":\"\"}}")).unwrap();
    fs::write(&held_out, &new).unwrap();
    assert!(check().unwrap_err().contains("was killed"));

    // A run that fails between the renames says so.
    fs::remove_file(&held_out).unwrap();
    fs::create_dir(&held_out).unwrap();
    let failed = scratch.prepare(&PrepareOptions { seed: 7, ..PrepareOptions::default() });
    assert!(matches!(failed, Err(PrepareError::Files(_))), "{failed:?}");
    assert!(fs::read_to_string(&settings).unwrap().contains(UNFINISHED));
    fs::remove_dir(&held_out).unwrap();

    // The next run takes the place of what the killed one left.
    fs::write(out.join(".train.jsonl.7.tmp"), "x").unwrap();
    fs::write(out.join(".mine.7.tmp"), "x").unwrap();
    scratch.prepare(&PrepareOptions { seed: 6, ..PrepareOptions::default() }).unwrap();
    assert_eq!(check(), Ok(true));
    assert!(!out.join(".train.jsonl.7.tmp").exists() && out.join(".mine.7.tmp").exists());

    // Own files need no prepare.json, and may come from anywhere.
    let own = TempDir::new().unwrap();
    let [a, b] = [TRAIN, HELD_OUT].map(|name| own.path().join(name));
    fs::write(&a, lines(0..4).concat()).unwrap();
    fs::write(&b, lines(3..5).concat()).unwrap();
    let (of_a, of_b): (Vec<Pair>, Vec<Pair>) = (read(&a).unwrap(), read(&b).unwrap());
    assert!(!check_together([&a, &b], &of_a, &of_b).unwrap());
    assert_eq!(shared_prompts(&of_a, &of_b), 1);
    assert!(!check_together([&train, &b], &of_a, &of_b).unwrap());
}

#[test]
#[cfg(unix)]
fn one_process_at_a_time_writes_to_a_directory() {
    let scratch = Scratch::new("d.jsonl", &lines(0..4).concat());
    fs::create_dir(scratch.out()).unwrap();
    let lock = staged::lock(&scratch.out()).unwrap();
    let refused = scratch.prepare(&PrepareOptions::default());
    assert!(matches!(refused, Err(PrepareError::Locked { .. })), "{refused:?}");
    drop(lock);
    scratch.prepare(&PrepareOptions::default()).unwrap();
    assert_eq!(scratch.files().len(), 3);
}

#[test]
fn benchmarks_are_known_by_their_prompts_alone() {
    let text = "{\"prompt\":\"What is 1?\"}\n{\"prompt\":\"What is 2?\",\"chosen\":[\"a\"],\"rejected\":[\"b\",\"c\"]}\n";
    let benchmark = Scratch::new("bench.jsonl", text);
    let scratch = Scratch::new("d.jsonl", &lines(0..4).concat());
    let options =
        PrepareOptions { exclude: vec![source(&benchmark.input)], ..PrepareOptions::default() };
    let report = scratch.prepare(&options).unwrap();
    assert_eq!(counts(&report), [("overlap", 2)]);
}

#[test]
fn rows_of_one_reader_are_dropped_by_reason() {
    let tool = "[{\"role\":\"user\",\"content\":\"w?\"},{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[]},\
                {\"role\":\"tool\",\"content\":\"sun\"},{\"role\":\"user\",\"content\":\"So?\"}]";
    let row = |prompt: &str, chosen: &str| {
        format!("{{\"prompt\":{prompt},\"chosen\":{chosen},\"rejected\":\"r\"}}\n")
    };
    let text = [
        row(tool, "\"c\""),
        row("\"a\"", "\"[{\\\"role\\\": \\\"user\\\", \\\"content\\\": \\\"x\\\"}]\""),
        row("\"b\"", "[\"x\",\"y\"]"),
        row("\"c\"", "\"cut \\ud83d\""),
        row(
            "[{\"role\":\"narrator\",\"content\":\"x\"},{\"role\":\"user\",\"content\":\"So?\"}]",
            "\"c\"",
        ),
    ];
    let scratch = Scratch::new("d.jsonl", &text.concat());
    let report =
        scratch.prepare(&PrepareOptions { held_out: 0.0, ..PrepareOptions::default() }).unwrap();
    assert_eq!(counts(&report), [("malformed", 3), ("unknown-role", 1)]);
    let first = report.dropped[&DropReason::Malformed].first.join("; ");
    for part in
        ["both be text or both lists", "2 chosen and 1 rejected replies", "half of a surrogate"]
    {
        assert!(first.contains(part), "{first}");
    }
    let pairs = read(&scratch.out().join(TRAIN)).unwrap();
    assert_eq!((pairs[0].prompt.len(), pairs[0].prompt[1].content.as_str()), (4, ""));
    // The reply to what a tool found.
    let found = tool.replace(",{\"role\":\"user\",\"content\":\"So?\"}", "");
    let scratch = Scratch::new("d.jsonl", &row(&found, "\"c\""));
    let report = scratch.prepare(&PrepareOptions::default()).unwrap();
    assert_eq!((counts(&report), report.rows), (vec![], 1));
}
