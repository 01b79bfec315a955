//! `j1 compare`: two evaluations as `j1 eval` leaves them, and as they should not be.

use std::fs;

use serde_json::{Value, json};

use crate::cli::{eval_args, fails, j1, model, pairs, stdout};

/// A directory of judgements about two pairs in both orders, each of which gives slot A the first score of its own.
fn evaluation(directory: &std::path::Path, name: &str, scores: [(u32, u32); 4]) -> String {
    let out = directory.join(name);
    fs::create_dir(&out).unwrap();
    let line = |(place, (a, b)): (usize, (u32, u32))| {
        let order = ["chosen-first", "rejected-first"][place % 2];
        let text = format!("Of {name}. <scores>\\boxed{{{a}, {b}}}</scores>");
        let subset = ["x", "y"][place / 2];
        let none = json!({"unparsed": "empty"});
        let line = json!({
            "row": place / 2, "id": format!("pair-{}", place / 2), "subset": subset, "order": order,
            "vote": 0, "prompt_tokens": 1, "tokens": 2, "finish": "stop", "log_prob": -1.0, "strict": none,
            "soft": none, "text": text,
        });
        format!("{line}\n")
    };
    let lines: String = scores.into_iter().enumerate().map(line).collect();
    fs::write(out.join("outputs.jsonl"), lines).unwrap();
    out.display().to_string()
}

#[test]
fn differences_are_told_with_intervals_and_rows() {
    let scratch = tempfile::tempdir().unwrap();
    let base = evaluation(scratch.path(), "base", [(6, 4), (6, 4), (3, 7), (2, 8)]);
    let trained = evaluation(scratch.path(), "trained", [(8, 3), (2, 9), (3, 7), (2, 8)]);
    let compared: Value =
        serde_json::from_str(&stdout(&j1(&["compare", &base, &trained, "--json"]))).unwrap();
    let comparison = &compared["comparison"];
    assert_eq!(
        (&compared["schema"], &comparison["judgements"], &comparison["rows"]),
        (&json!(1), &json!(4), &json!(2))
    );
    let accuracy = &comparison["measures"][1];
    let number = |key: &str| accuracy[key].as_f64().unwrap();
    assert_eq!(accuracy["name"], "accuracy");
    assert_eq!((number("base"), number("trained"), number("difference")), (0.5, 0.75, 0.25));
    assert_eq!(accuracy["interval"], json!({"low": 0.0, "high": 0.5}));
    assert_eq!((&comparison["gained"], &comparison["lost"]), (&json!(1), &json!(0)));

    let output = j1(&["compare", &base, &format!("{trained}/outputs.jsonl"), "--show", "1"]);
    let text = stdout(&output);
    for part in [
        "in both: 4 judgements of 2 rows, match strict",
        "right in both orders       0.00 %   50.00 %  +50.00  [+0.00, +100.00]   2",
        "1 judgement became right, 0 are not right any more",
        "=== the 1 pair that got better most, of 1 ===",
        "--- row 0 (pair-0): right 1 -> 2 of 2, the chosen reply's lead changed by +12 ---",
        "[base, rejected-first: chosen 4, rejected 6]\nOf base.",
        "[trained, rejected-first: chosen 9, rejected 2]\nOf trained.",
        "=== 1 pair of 2, drawn by seed 0 ===",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let notes = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        notes.contains("has no rubrics.jsonl beside")
            && notes.contains("results.csv of its judgements"),
        "{notes}"
    );
    assert!(
        text.lines().all(|line| line.starts_with(['b', 't', '-']) || line.chars().count() <= 80),
        "{text}"
    );

    // Judgements that only one has do not count; nothing in common, and other data, are errors.
    let lines = fs::read_to_string(format!("{trained}/outputs.jsonl")).unwrap();
    let part = scratch.path().join("part.jsonl");
    fs::write(&part, lines.split_inclusive('\n').take(1).collect::<String>()).unwrap();
    let part_text = part.display().to_string();
    let text = stdout(&j1(&["compare", &base, &part_text]));
    assert!(
        text.contains(
            "in both: 1 judgement of 1 row, match strict; left out: 3 of base, 0 of trained"
        ) && text.contains("left out: 3 of base, 0 of trained"),
        "{text}"
    );
    fs::write(&part, lines.replace("pair-0", "pair-9")).unwrap();
    fails(
        &["compare", &base, &part_text],
        1,
        &["row 0 is the pair \"pair-0\" in the first and \"pair-9\" in the second"],
    );
    fs::write(&part, lines.replace("\"vote\":0", "\"vote\":3")).unwrap();
    fails(&["compare", &base, &part_text], 1, &["no judgement is in both"]);
    fails(&["compare", &base, "./nothing"], 1, &["nothing"]);
    let empty = scratch.path().display().to_string();
    fails(&["compare", &base, &empty], 1, &["holds no outputs.jsonl"]);

    // Numbers that are wide, and a subset's name that is long, fit 80 columns.
    let long = lines
        .replace("\"x\"", "\"50 % of a subset with a name\"")
        .replace("\"tokens\":2", "\"tokens\":2222");
    fs::write(format!("{trained}/outputs.jsonl"), long).unwrap();
    let text = stdout(&j1(&["compare", &base, &trained]));
    assert!(text.contains("\n50 % of a subset wit…  "), "{text}");
    assert!(text.lines().skip(2).all(|line| line.chars().count() <= 80), "{text}");
    // Other data, by what the runs say.
    for (directory, data) in [(&base, "aa"), (&trained, "bb")] {
        fs::write(format!("{directory}/run.json"), json!({ "data": data }).to_string()).unwrap();
    }
    fails(&["compare", &base, &trained], 1, &["are of different data"]);
    // And by the texts of tables without ids.
    let table = |name: &str, prompt: &str| {
        let path = scratch.path().join(name);
        let judgement = "<scores>\\boxed{8, 2}</scores>";
        let text = format!("prompt,chosen,rejected,judgement\n{prompt},c,r,\"{judgement}\"\n");
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (one, other) = (table("one.csv", "one"), table("other.csv", "other"));
    fails(&["compare", &one, &other], 1, &["are of different data"]);
    let same = j1(&["compare", &one, &one, "--show", "1"]);
    assert!(stdout(&same).contains("prompt: one\n"), "{}", stdout(&same));
    let notes = String::from_utf8_lossy(&same.stderr).into_owned();
    assert!(notes.contains("always stood in slot A"), "{notes}");
}

/// An evaluation of the tiny model against itself: its criteria are measured, its pairs' texts are there, nothing differs. A
/// damaged file of measures is refused.
#[test]
fn an_evaluation_is_like_itself() {
    let scratch = tempfile::tempdir().unwrap();
    let (data, out) = (pairs(scratch.path(), 3), scratch.path().join("out").display().to_string());
    stdout(&j1(&eval_args(&model(), &data, &out, &[])));
    let output = j1(&["compare", &out, &out, "--show", "2"]);
    let text = stdout(&output);
    assert!(
        text.contains("\nbits  ") && text.contains("\nprompt: ") && text.contains("\nrejected: "),
        "{text}"
    );
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let differences: Value =
        serde_json::from_str(&stdout(&j1(&["compare", &out, &out, "--json"]))).unwrap();
    for measure in differences["comparison"]["measures"].as_array().unwrap() {
        assert_eq!(
            (&measure["difference"], &measure["interval"]["high"]),
            (&json!(0.0), &json!(0.0)),
            "{measure}"
        );
    }
    let rubrics = format!("{out}/rubrics.jsonl");
    let lines = fs::read_to_string(&rubrics).unwrap();
    for (damage, says) in [
        (lines.replacen("\"bits\":0.0", "\"bits\":1e300", 1), "no judgement has these measures"),
        (lines.replacen("\"echoed\":0.0", "\"echoed\":-1", 1), "no judgement has these measures"),
        (lines.replacen("\"vote\":0", "\"vote\":\"x\"", 1), "not the measures of a judgement"),
        (format!("{lines}{lines}"), "stands in a line before"),
    ] {
        assert_ne!(damage, lines);
        fs::write(&rubrics, damage).unwrap();
        fails(&["compare", &out, &out], 1, &["rubrics.jsonl", says]);
    }
}
