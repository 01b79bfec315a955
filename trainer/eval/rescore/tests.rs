//! Written judgements, ours and the original evaluation's.

use std::fs;

use super::*;
use crate::eval::scores::{Protocol, Scores};
use crate::judge::prompt::OrderPlan;
use crate::judge::verdict::{MatchRule, UnparsedReason, Verdict};
use crate::shared::shared;

fn rescored(name: &str, content: &str) -> Result<Vec<Record>, RescoreError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    rescore(&path, None)
}

fn judgement(a: &str, b: &str) -> String {
    format!("<scores>\\boxed{{{a}, {b}}}</scores>")
}

#[test]
fn the_published_judgements_are_scored_as_published() {
    let Some(path) = shared("data/j1_micro_judgements_10.jsonl") else { return };
    let records = rescore(&path, None).unwrap();
    assert_eq!(records.len(), 10);
    let text = fs::read_to_string(&path).unwrap();
    for (record, line) in records.iter().zip(text.lines()) {
        let row: Value = serde_json::from_str(line).unwrap();
        let scores = written_scores(&row["scores"]).unwrap();
        assert_eq!(record.scores_by_label(MatchRule::Strict), Some(scores), "row {}", record.row);
        assert_eq!(row["correct"], Value::Bool(scores.0 > scores.1));
    }
    let protocol = Protocol::of(&records, MatchRule::Strict, 0);
    assert_eq!((protocol.order, protocol.votes), (OrderPlan::ChosenFirst, 1));
    let scores = Scores::compute(&records, protocol);
    assert_eq!((scores.plain_accuracy, scores.rows), (Some(1.0), 10));
    assert_eq!(scores.mean_tokens, None);
}

#[test]
fn the_published_files_own_column_names_are_known() {
    let text = "prompt,chosen,rejected,Pipeline_root.block.unit[DirectScoreJudge]_score,pairwise_score,correct\n\
                p,c,r,\"<scores>\\boxed{9, 3}</scores>\",\"[9.0, 3.0]\",True\n\
                p,c,r,nothing,Output does not match j1 format,False\n\
                p,c,r,,Output does not match j1 format,False\n";
    let records = rescored("j1_micro_rewardbench.csv", text).unwrap();
    let scores = |record: &Record| record.scores_by_label(MatchRule::Strict);
    assert_eq!(records.iter().map(scores).collect::<Vec<_>>(), [Some((9.0, 3.0)), None, None]);
    assert!(records.iter().all(|record| record.order == Order::ChosenFirst));
    let line = serde_json::json!({
        "prompt": "p", "chosen": "c", "rejected": "r", "pairwise_score": [3.0, 9.0],
        "Pipeline_root.block.unit[DirectScoreJudge]_score": judgement("9", "3"),
    });
    let records = rescored("o.jsonl", &line.to_string()).unwrap();
    assert_eq!(scores(&records[0]), Some((3.0, 9.0)));
    let without =
        rescored("o.csv", "prompt,chosen,rejected,pairwise_score\np,c,r,x\n").unwrap_err();
    assert!(without.to_string().contains("no column judgement"), "{without}");
}

#[test]
fn our_own_outputs_are_read_again_from_their_texts() {
    let line = |row: u64, order: &str, finish: &str, text: &str| {
        serde_json::json!({
            "row": row, "id": row.to_string(), "subset": null, "order": order, "vote": 0,
            "prompt_tokens": 5, "tokens": 7, "finish": finish, "log_prob": -1.5,
            "strict": {"scores": [1.0, 1.0]}, "soft": {"unparsed": "no_box"}, "text": text,
        })
        .to_string()
    };
    let lines = [
        line(1, "chosen-first", "length", "cut off"),
        line(0, "rejected-first", "stop", &judgement("3", "8")),
        line(2, "chosen-first", "prompt-too-long", ""),
    ];
    let content = lines.join("\n") + "\n";
    let records = rescored("outputs.jsonl", &content).unwrap();
    assert_eq!(records.iter().map(|r| r.row).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(records[0].scores_by_label(MatchRule::Soft), Some((8.0, 3.0)));
    assert_eq!(records[1].strict, Verdict::Unparsed(UnparsedReason::Truncated));
    assert_eq!(records[2].soft, Verdict::Unparsed(UnparsedReason::PromptTooLong));
    // A torn last line is left out; a whole one without a line feed counts.
    assert_eq!(rescored("o.jsonl", &content[..content.len() - 9]).unwrap().len(), 2);
    assert_eq!(rescored("o.jsonl", content.trim_end()).unwrap().len(), 3);

    // As it is written: with a checksum over what the line says.
    let value: serde_json::Value = serde_json::from_str(&lines[1]).unwrap();
    let sum = format!(",\"checksum\":\"{}\"}}\n", crate::data::fingerprint::of_json(&value));
    let sealed = format!("{}{sum}", lines[1].strip_suffix('}').unwrap());
    assert_eq!(rescored("o.jsonl", &sealed).unwrap(), records[..1]);
    let flipped = sealed.replace(r"\boxed{3, 8}", r"\boxed{7, 8}");
    assert_ne!(flipped, sealed);
    let message = rescored("o.jsonl", &flipped).unwrap_err().to_string();
    assert!(message.contains("line 1: it was changed after it was written"), "{message}");

    let twice = format!("{content}{}\n", lines[1]);
    let message = rescored("o.jsonl", &twice).unwrap_err().to_string();
    assert!(
        message.contains("line 4: row 0, rejected-first, vote 0 stands in line 2"),
        "{message}"
    );
    let mixed = format!("{content}{{\"prompt\": \"\"}}\n");
    assert!(rescored("o.jsonl", &mixed).unwrap_err().to_string().contains("line 4: other columns"));
    let wrong = content.replace("\"finish\":\"stop\"", "\"finish\":\"bored\"");
    assert!(
        rescored("o.jsonl", &wrong).unwrap_err().to_string().contains("line 2: not a judgement")
    );
}

#[test]
fn a_table_is_read_with_the_chosen_reply_in_slot_a() {
    let csv = format!(
        "prompt,chosen,rejected,judgement,scores,correct,subset\n\
         p,c,r,\"{}\",\"(7.0, 2.5)\",True,hep-go\n\
         p,c,r,\"two\nlines\",,False,\n\
         p,c,r,,,,\n",
        judgement("7", "2.5")
    );
    let records = rescored("results.csv", &csv).unwrap();
    let strict: Vec<_> = records.iter().map(|r| r.strict).collect();
    let unparsed = Verdict::Unparsed;
    assert_eq!(
        strict,
        [
            Verdict::Scores(7.0, 2.5),
            unparsed(UnparsedReason::NoScoresTag),
            unparsed(UnparsedReason::Empty)
        ]
    );
    assert!(records.iter().all(|r| r.order == Order::ChosenFirst && r.finish == Finish::Unknown));
    assert_eq!(records[0].subset.as_deref(), Some("hep-go"));
    assert_eq!((records[1].subset.as_deref(), records[1].id.as_str()), (None, "1"));
}

#[test]
fn a_table_of_both_orders_tells_them_or_is_refused() {
    let row = |scores: &str, text: String| {
        let scores: Value = serde_json::from_str(scores).unwrap();
        serde_json::json!({"prompt": "p", "chosen": "c", "rejected": "r", "judgement": text, "scores": scores})
            .to_string()
    };
    let told = [row("[9, 3]", judgement("9", "3")), row("[9, 3]", judgement("3", "9"))].join("\n");
    let records = rescored("a.jsonl", &told).unwrap();
    assert_eq!(
        records.iter().map(|r| r.order).collect::<Vec<_>>(),
        [Order::ChosenFirst, Order::RejectedFirst]
    );
    assert!(records.iter().all(|r| r.scores_by_label(MatchRule::Strict) == Some((9.0, 3.0))));
    let tie = row("[4, 4]", judgement("4", "4"));
    let error = rescored("a.jsonl", &format!("{told}\n{tie}")).unwrap_err();
    assert!(matches!(error, RescoreError::UnknownOrder { line: 3, .. }), "{error}");
    assert_eq!(rescored("a.jsonl", &tie).unwrap()[0].order, Order::ChosenFirst);

    // Beside an outputs.jsonl both orders are possible, even if no line shows it.
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("outputs.jsonl"), "").unwrap();
    let path = directory.path().join("results.jsonl");
    fs::write(&path, tie).unwrap();
    assert!(matches!(rescore(&path, None), Err(RescoreError::UnknownOrder { line: 1, .. })));
}

#[test]
fn bad_files_are_named_with_their_line() {
    let cases = [
        ("a.csv", "prompt,chosen,judgement\np,c,j\n", "no column rejected"),
        ("a.csv", "prompt,chosen,rejected,judgement\na,b\n", "line 2: 2 cells"),
        ("a.csv", "prompt,chosen,rejected,judgement\n", "no rows"),
        ("a.jsonl", "", "no rows"),
        ("a.jsonl", "\n\n", "no rows"),
        ("a.jsonl", "{\"prompt\": 1}\n", "line 1: there is no column chosen"),
        ("a.jsonl", "[1]\n", "line 1: not a JSON object"),
        (
            "a.jsonl",
            "{\"prompt\":1,\"chosen\":1,\"rejected\":1,\"judgement\":[2]}",
            "judgement is not text",
        ),
        ("a.parquet", "PAR1", "not from Parquet"),
        ("a.bin", "hello", "unknown extension"),
    ];
    for (name, content, part) in cases {
        let message = rescored(name, content).unwrap_err().to_string();
        assert!(message.contains(part), "{content:?}: {message}");
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.csv");
    fs::write(&path, b"prompt,chosen,rejected,judgement\na,b,c,\xff\n").unwrap();
    assert!(matches!(
        rescore(&path, None),
        Err(RescoreError::Data(DataError::NotUtf8 { line: 2, .. }))
    ));
    assert!(rescore(&directory.path().join("none.csv"), None).is_err());
}

#[test]
fn a_run_says_how_many_judgements_it_was_to_make() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("outputs.jsonl");
    let line = |row: u64, order: &str, candidates: Option<(u64, u32)>| {
        let mut line = serde_json::json!({
            "row": row, "id": row.to_string(), "subset": null, "order": order, "vote": 0, "prompt_tokens": 1,
            "tokens": 1, "finish": "stop", "log_prob": 0.0, "strict": {"unparsed": "empty"},
            "soft": {"unparsed": "empty"}, "text": "",
        });
        if let Some((row, rejected)) = candidates {
            line["candidates"] = serde_json::json!({"row": row, "chosen": 0, "rejected": rejected});
        }
        line.to_string()
    };
    let asked = |lines: &[String]| {
        fs::write(&path, lines.join("\n") + "\n").unwrap();
        asked_for(&path, &rescore(&path, None).unwrap())
    };
    let pairs: Vec<String> = (0..3)
        .flat_map(|row| ["chosen-first", "rejected-first"].map(|order| line(row, order, None)))
        .collect();
    assert_eq!(asked(&pairs), None, "nothing is beside it");
    let run = |settings: Value| {
        fs::write(directory.path().join("run.json"), settings.to_string()).unwrap();
    };
    run(serde_json::json!({"rows": 3, "order": "both", "votes": 1}));
    assert_eq!(asked(&pairs), Some(6));
    for taken in 0..6 {
        let mut fewer = pairs.clone();
        fewer.remove(taken);
        assert_eq!(asked(&fewer), Some(6), "without line {taken}");
    }
    assert_eq!(asked(&pairs[2..]), Some(6), "a whole row is gone");
    run(serde_json::json!({"rows": 900, "limit": 4, "order": "random", "votes": 2}));
    assert_eq!(asked(&pairs[..1]), Some(8));
    // Rows of several replies: what a row had is told by the scores alone.
    let several = [line(0, "chosen-first", Some((0, 0))), line(1, "chosen-first", Some((0, 1)))];
    run(serde_json::json!({"rows": 2, "order": "chosen-first", "votes": 1}));
    assert_eq!(asked(&several), Some(3));
    fs::write(directory.path().join("scores.json"), r#"{"j1": {"judgements": 6}}"#).unwrap();
    assert_eq!(asked(&several), Some(6));
    // Numbers of a stranger.
    run(serde_json::json!({"rows": u64::MAX, "order": "both", "votes": u64::MAX}));
    fs::write(directory.path().join("scores.json"), "[").unwrap();
    assert_eq!(asked(&several), None);
}
