//! Interrupted runs, torn lines, other settings.

use serde_json::json;

use super::*;
use crate::data::Message;
use crate::judge::verdict::{UnparsedReason, Verdict, VerdictForm};

fn pairs() -> Vec<Pair> {
    (0..3)
        .map(|row| Pair {
            id: format!("p{row}"),
            row,
            prompt: vec![Message::new("user", "What, \"now\"?\n")],
            chosen: format!("good {row}"),
            rejected: "bad".to_owned(),
            subset: (row > 0).then(|| "hep-go".to_owned()),
            candidates: None,
        })
        .collect()
}

fn record(row: u64, order: Order, vote: u32) -> Record {
    let text = match row {
        0 => "<scores>\\boxed{9, 3}</scores>\n\u{1f600}".to_owned(),
        1 => "no \"box\" here\u{0}".to_owned(),
        _ => String::new(),
    };
    let finish = if row == 2 { Finish::PromptTooLong } else { Finish::Stop };
    let subset = pairs()[row as usize].subset.clone();
    let log_prob = -1.0 / (3.0 + row as f64 + f64::from(vote));
    let id = format!("p{row}");
    let (prompt_tokens, tokens) = (10, 20);
    let said = Record::saying(row, order, finish, text);
    Record { id, subset, vote, prompt_tokens, tokens, log_prob, ..said }
}

/// The judgements of a run, in the order in which they end.
fn ending() -> Vec<Record> {
    let keys = [(1, 0), (0, 1), (2, 0), (0, 0)];
    keys.iter()
        .flat_map(|&(row, vote)| {
            [Order::RejectedFirst, Order::ChosenFirst].map(|order| record(row, order, vote))
        })
        .collect()
}

fn settings() -> Value {
    json!({"model": "m", "sampling": {"temperature": 0.9, "top_k": null}, "limit": null})
}

/// Runs to the end what is not done yet.
fn run(directory: &Path) -> Result<(), ResultsError> {
    let mut results = Results::open(directory, &settings())?;
    for record in ending() {
        if !results.done().contains(&record.key()) {
            results.append(record)?;
        }
    }
    results.finish(&pairs(), MatchRule::Strict, &[], &json!({"model": "m"}), None)
}

fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .map(|path| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_run_leaves_its_files_and_running_it_again_changes_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("new/out");
    run(&directory).unwrap();
    let before = files(&directory);
    let names: Vec<_> = before.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, [LOCK, OUTPUTS, CSV, RUBRICS, RUN, SCORES]);
    let modified = || fs::metadata(directory.join(CSV)).unwrap().modified().unwrap();
    let time = modified();
    run(&directory).unwrap();
    assert_eq!(files(&directory), before);
    assert_eq!(modified(), time);

    // Sorted, and each record reads back as the one that was written, to the bit.
    let results = Results::open(&directory, &settings()).unwrap();
    let mut expected = ending();
    expected.sort_by_key(Record::key);
    assert_eq!(results.records(), expected);
    let first = fs::read_to_string(directory.join(OUTPUTS)).unwrap();
    let first: Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    assert_eq!(first["strict"], json!({"scores": [9.0, 3.0]}));
    assert_eq!((&first["order"], &first["finish"]), (&json!("chosen-first"), &json!("stop")));

    let mut csv = csv::Reader::from_path(directory.join(CSV)).unwrap();
    assert_eq!(csv.headers().unwrap(), &CSV_COLUMNS[..]);
    let rows: Vec<_> = csv.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 8);
    assert_eq!((&rows[0][0], &rows[0][1]), ("What, \"now\"?\n", "good 0"));
    // Slot A scored 9: right where chosen stood there (votes 0 and 1), wrong where it did not.
    let scores: Vec<_> = rows.iter().map(|row| (&row[4], &row[5])).collect();
    assert_eq!(scores[..2], [("[9.0, 3.0]", "True"); 2]);
    assert_eq!(scores[2..4], [("[3.0, 9.0]", "False"); 2]);
    assert_eq!(scores[4..], [("", "False"); 4]);
}

#[test]
fn a_run_killed_at_any_byte_ends_with_the_same_bytes() {
    // In memory syncing costs nothing, so every byte can be tried; on a disk it takes minutes.
    let (scratch, step) = match tempfile::tempdir_in("/dev/shm") {
        Ok(scratch) => (scratch, 1),
        Err(_) => (tempfile::tempdir().unwrap(), 89),
    };
    let whole = scratch.path().join("whole");
    run(&whole).unwrap();
    let expected = files(&whole);
    let outputs: Vec<u8> = ending().iter().flat_map(line).collect();
    let directory = scratch.path().join("killed");
    for cut in (0..=outputs.len()).step_by(step) {
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join(RUN), pretty(&settings())).unwrap();
        fs::write(directory.join(OUTPUTS), &outputs[..cut]).unwrap();
        // What a kill in the middle of replacing a file leaves.
        fs::write(directory.join(".results.csv.77.tmp"), "prom").unwrap();
        let lines = outputs[..cut].iter().filter(|&&byte| byte == b'\n').count();
        assert_eq!(Results::open(&directory, &settings()).unwrap().done().len(), lines);
        run(&directory).unwrap();
        assert!(files(&directory) == expected, "cut at byte {cut}");
    }
}

#[test]
fn a_kill_before_the_first_judgement_leaves_a_usable_directory() {
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join(LOCK), "").unwrap();
    fs::write(scratch.path().join(".run.json.4.tmp"), "{").unwrap();
    run(scratch.path()).unwrap();
    assert_eq!(files(scratch.path()).len(), 6);
}

#[test]
fn other_settings_are_refused_by_name_and_value() {
    let scratch = tempfile::tempdir().unwrap();
    run(scratch.path()).unwrap();
    let before = files(scratch.path());
    let cases = [
        ("/model", json!("n"), "model = \"m\", and this run has model = \"n\""),
        ("/sampling/temperature", json!(0.8), "sampling.temperature = 0.9"),
        ("/limit", json!(10), "limit = null, and this run has limit = 10"),
        ("/sampling", json!(1), "and this run has sampling = 1"),
    ];
    for (pointer, value, part) in cases {
        let mut other = settings();
        *other.pointer_mut(pointer).unwrap() = value;
        let error = Results::open(scratch.path(), &other).unwrap_err();
        assert!(matches!(error, ResultsError::Setting { .. }));
        assert!(error.to_string().contains(part), "{error}");
    }
    let mut more = settings();
    more["seed"] = json!(1);
    let message = Results::open(scratch.path(), &more).unwrap_err().to_string();
    assert!(message.contains("seed = not set, and this run has seed = 1"), "{message}");
    assert_eq!(files(scratch.path()), before);

    for (damage, part) in [("{\"model\": ", "damaged"), ("[]", "not an object"), ("", "damaged")] {
        fs::write(scratch.path().join(RUN), damage).unwrap();
        let message = Results::open(scratch.path(), &settings()).unwrap_err().to_string();
        assert!(message.contains(part) && message.contains("run.json"), "{message}");
    }
}

#[test]
fn a_run_of_a_version_without_a_setting_goes_on_with_what_it_had() {
    let scratch = tempfile::tempdir().unwrap();
    run(scratch.path()).unwrap();
    let mut now = settings();
    now["repetition_penalty"] = json!(1.0f32);
    now["stop_strings"] = json!([] as [&str; 0]);
    assert!(Results::open(scratch.path(), &now).is_ok());
    now["repetition_penalty"] = json!(1.5f32);
    let message = Results::open(scratch.path(), &now).unwrap_err().to_string();
    assert!(message.contains("repetition_penalty = 1.0, and this run has"), "{message}");
    now["repetition_penalty"] = json!(1.0f32);
    now["stop_strings"] = json!(["END"]);
    let message = Results::open(scratch.path(), &now).unwrap_err().to_string();
    assert!(
        message.contains("stop_strings = [], and this run has stop_strings = [\"END\"]"),
        "{message}"
    );
}

#[test]
fn damage_other_than_a_torn_last_line_is_an_error_with_its_line() {
    let scratch = tempfile::tempdir().unwrap();
    run(scratch.path()).unwrap();
    let path = scratch.path().join(OUTPUTS);
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let open = |content: &str| {
        fs::write(&path, content).unwrap();
        let error = Results::open(scratch.path(), &settings()).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), content, "an error changes nothing");
        error
    };
    let cases = [
        format!("{}\n{}\n", lines[0], &lines[1][..40]),
        format!("{}\n\n{}\n", lines[0], lines[1]),
        format!("{}\n{}\n{}\n", lines[0], lines[1].replace("-0.", "null"), lines[2]),
        format!("{}\n{}\n", lines[0], lines[1].replace("chosen-first", "sideways")),
        format!("{}\n{}\n", lines[0], lines[1].replace("\"row\":0", "\"row\":-1")),
    ];
    for content in &cases {
        let error = open(content);
        assert!(matches!(error, ResultsError::Corrupt { line: 2, .. }), "{error}");
    }
    let error = open(&format!("{text}{}\n", lines[3]));
    assert!(matches!(error, ResultsError::Duplicate { line: 9, row: 0, vote: 1, .. }), "{error}");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let error = Results::open(scratch.path(), &settings()).unwrap_err();
    assert!(error.to_string().contains(OUTPUTS), "{error}");
}

/// With any bit of any line turned over, whether the run was complete or interrupted: refused, or the same judgements.
#[test]
fn a_flipped_bit_is_seen() {
    let scratch = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    run(scratch.path()).unwrap();
    let path = scratch.path().join(OUTPUTS);
    let bytes = fs::read(&path).unwrap();
    let (records, ..) = load(&path, None).unwrap();
    let (mut refused, mut checksums) = (0, 0);
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at * 5 % 8);
        fs::write(&path, &flipped).unwrap();
        match load(&path, None) {
            Err(error) => {
                refused += 1;
                checksums += usize::from(error.to_string().contains("its checksum tells"));
            }
            // The last line feed: a torn line, which is judged again. Else the name of the checksum itself.
            Ok((same, ..)) => assert_eq!(same, records[..same.len()], "byte {at}"),
        }
        if at + 1 < bytes.len() {
            let (same, lines) =
                (load(&path, None).map(|(records, ..)| records.len()), records.len());
            assert!(same.is_err() || same.is_ok_and(|same| same == lines), "byte {at}");
        }
    }
    assert!(refused > bytes.len() / 2 && checksums > bytes.len() / 4, "{refused} {checksums}");
}

/// Other programs write numbers, escapes and keys in their own way, and old versions no checksum.
#[test]
fn a_line_that_says_the_same_is_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    run(scratch.path()).unwrap();
    let path = scratch.path().join(OUTPUTS);
    let (records, ..) = load(&path, None).unwrap();
    let rewritten = |change: &dyn Fn(&mut Map<String, Value>)| {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().map(|line| {
            let mut values: Map<String, Value> = serde_json::from_str(line).unwrap();
            change(&mut values);
            let keys = values.iter().rev().map(|(key, value)| format!("{key:?} : {value}"));
            format!("{{ {} }}\n", keys.collect::<Vec<_>>().join(" , "))
        });
        fs::write(&path, lines.collect::<String>()).unwrap();
        load(&path, None)
    };
    assert_eq!(rewritten(&|_| ()).unwrap().0, records);
    let whole = |values: &mut Map<String, Value>| {
        if let Some(scores) = values["strict"].get_mut("scores") {
            *scores = json!([9, 3]);
        }
    };
    assert_eq!(rewritten(&whole).unwrap().0, records);
    let other = |values: &mut Map<String, Value>| values["tokens"] = json!(21);
    assert!(matches!(rewritten(&other), Err(ResultsError::Corrupt { line: 1, .. })));
    assert_eq!(
        rewritten(&|values| assert!(values.remove(CHECKSUM).is_some())).unwrap().0[0].tokens,
        21
    );
}

/// Who asks what was judged reads run.json; who goes on does so from another shell, on another day.
#[test]
fn what_a_run_says_about_itself_is_kept_and_not_compared() {
    let scratch = tempfile::tempdir().unwrap();
    let begun = |day: &str| {
        let mut settings = settings();
        settings[ABOUT] = json!({"at": day});
        Results::open(scratch.path(), &settings).unwrap();
        read_json(&scratch.path().join(RUN)).unwrap().unwrap()
    };
    let first = begun("Monday");
    assert_eq!(first[ABOUT], json!({"at": "Monday"}));
    assert_eq!(begun("Tuesday"), first);
    run(scratch.path()).unwrap();
    let mut inside = settings();
    inside["sampling"][ABOUT] = json!("temperature");
    assert!(Results::open(scratch.path(), &inside).is_err(), "only at the top");
}

#[test]
fn a_judgement_of_something_else_is_refused_at_the_end() {
    let scratch = tempfile::tempdir().unwrap();
    let mut results = Results::open(scratch.path(), &settings()).unwrap();
    results.append(record(2, Order::ChosenFirst, 0)).unwrap();
    let finish = |results: &mut Results, pairs: &[Pair]| {
        results.finish(pairs, MatchRule::Strict, &[], &json!({}), None)
    };
    let error = finish(&mut results, &pairs()[..2]).unwrap_err();
    assert!(matches!(error, ResultsError::UnknownRow { row: 2, .. }), "{error}");
    let mut renamed = pairs();
    renamed[2].id = "other".to_owned();
    assert!(finish(&mut results, &renamed).is_err());
    assert!(!scratch.path().join(SCORES).exists());
    finish(&mut results, &pairs()).unwrap();
    // The run can go on after it was finished, in the file that took the old one's place.
    results.append(record(0, Order::ChosenFirst, 0)).unwrap();
    drop(results);
    assert_eq!(Results::open(scratch.path(), &settings()).unwrap().done().len(), 2);
}

#[test]
fn a_directory_is_used_by_one_run_and_only_if_it_is_one() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("out");
    let first = Results::open(&directory, &settings()).unwrap();
    let error = Results::open(&directory, &settings()).unwrap_err();
    assert!(matches!(error, ResultsError::Locked { .. }) && error.to_string().contains("in use"));
    drop(first);
    Results::open(&directory, &settings()).unwrap();

    // The parent holds only `out`, which is not ours.
    let error = Results::open(scratch.path(), &settings()).unwrap_err();
    assert!(matches!(&error, ResultsError::Foreign { found, .. } if found == "out"), "{error}");
    assert!(!scratch.path().join(LOCK).exists());
    let file = scratch.path().join("file");
    fs::write(&file, "mine").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = Results::open(&path, &settings()).unwrap_err();
        assert!(matches!(&error, ResultsError::NotADirectory { path: p } if *p == path), "{error}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

#[test]
fn what_cannot_be_read_back_is_not_written() {
    let scratch = tempfile::tempdir().unwrap();
    let mut results = Results::open(scratch.path(), &settings()).unwrap();
    let mut broken = record(0, Order::ChosenFirst, 0);
    broken.log_prob = f64::NAN;
    let error = results.append(broken).unwrap_err();
    assert!(matches!(error, ResultsError::NotFinite { row: 0, .. }), "{error}");
    let mut long = record(0, Order::ChosenFirst, 0);
    long.text = "x".repeat(MAX_LINE as usize);
    assert!(matches!(results.append(long), Err(ResultsError::TooLong { line: 1, .. })));
    assert!(results.done().is_empty());
    assert_eq!(fs::metadata(scratch.path().join(OUTPUTS)).unwrap().len(), 0);
    results.append(record(0, Order::ChosenFirst, 0)).unwrap();
    assert_eq!(results.records().len(), 1);
}

#[test]
fn a_run_of_an_earlier_version_goes_on_with_its_texts_read_by_todays_rules() {
    let scratch = tempfile::tempdir().unwrap();
    // As it stood before verdicts had a form, penalties a key and lines a checksum: scores off the scale counted.
    let old = json!({"model": "m", "min_p": null, "order": "both"});
    fs::write(scratch.path().join(RUN), pretty(&old)).unwrap();
    let mut record = record(0, Order::ChosenFirst, 0);
    record.text = "<scores>\\boxed{90, 30}</scores>".to_owned();
    (record.strict, record.soft) = (Verdict::Scores(90.0, 30.0), Verdict::Scores(90.0, 30.0));
    let text = serde_json::to_string(&record).unwrap() + "\n";
    fs::write(scratch.path().join(OUTPUTS), &text).unwrap();

    let with = |form: &str| {
        json!({
            "model": "m", "min_p": null, "order": "both", "verdict": form, "thinking": null,
            "template_date": null, "repetition_penalty": 1.0, "stop_strings": [],
        })
    };
    let form = VerdictForm::default().to_string();
    let results = Results::open(scratch.path(), &with(&form)).unwrap();
    assert_eq!(results.records()[0].text, record.text);
    assert_eq!(results.records()[0].strict, Verdict::Unparsed(UnparsedReason::OutOfScale));
    assert_eq!(results.records()[0].soft, Verdict::Unparsed(UnparsedReason::OutOfScale));
    drop(results);
    // What it was not asked for is another run.
    let error = Results::open(scratch.path(), &with("[[A]], [[B]] or [[C]]")).unwrap_err();
    assert!(error.to_string().contains("was made with verdict ="), "{error}");
}

#[test]
fn judgements_that_were_not_asked_for_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let mut results = Results::open(scratch.path(), &settings()).unwrap();
    for (order, vote) in [(Order::ChosenFirst, 0), (Order::RejectedFirst, 7)] {
        results.append(record(0, order, vote)).unwrap();
    }
    let mut asked = BTreeSet::from([(0, Order::ChosenFirst, 0), (1, Order::ChosenFirst, 0)]);
    let error = results.only(&asked).unwrap_err().to_string();
    assert!(error.contains("row 0, rejected-first, vote 7 is no judgement of this run"), "{error}");
    asked.insert((0, Order::RejectedFirst, 7));
    results.only(&asked).unwrap();
}
