//! The forms in which public data sets keep a pair, and what is refused because a part of it would be lost.

use serde_json::json;

use super::*;

fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

fn one(row: Value) -> Result<Pair, String> {
    let all = read_text("d.jsonl", &row.to_string())?;
    Ok(all.into_iter().next().expect("a pair"))
}

fn said(messages: &[Message]) -> Vec<(&str, &str)> {
    messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect()
}

/// With a column of a row in CSV.
fn csv(chosen: &str, rejected: &str) -> Result<Vec<Pair>, String> {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let row = format!("prompt,chosen,rejected\nhi,{},{}\n", quoted(chosen), quoted(rejected));
    read_text("d.csv", &row)
}

#[test]
fn all_of_the_prompt_is_used_or_the_row_is_refused() {
    let turns = |texts: &[(&str, &str)]| -> Value {
        texts.iter().map(|(role, content)| message(role, content)).collect()
    };
    let (system, hi, yo, go) =
        (("system", "In French."), ("user", "hi"), ("assistant", "yo"), ("user", "go on"));
    let (good, bad) = (("assistant", "Bonjour"), ("assistant", "Hello"));
    let read = |prompt: &[(&str, &str)], shared: &[(&str, &str)]| {
        one(json!({
            "prompt": turns(prompt),
            "chosen": turns(&[shared, &[good]].concat()),
            "rejected": turns(&[shared, &[bad]].concat()),
        }))
    };
    for (prompt, shared, all) in [
        (vec![system, hi], vec![hi], vec![system, hi]),
        (vec![hi, yo, go], vec![go], vec![hi, yo, go]),
        (vec![hi], vec![hi, yo, go], vec![hi, yo, go]),
        (vec![go], vec![hi, yo, go], vec![hi, yo, go]),
        (vec![system, hi], vec![hi, yo, go], vec![system, hi, yo, go]),
        (vec![system], vec![hi], vec![system, hi]),
        (vec![hi, yo], vec![go], vec![hi, yo, go]),
        (vec![system, hi], vec![], vec![system, hi]),
    ] {
        let pair = read(&prompt, &shared).unwrap();
        assert_eq!(said(&pair.prompt), all, "{prompt:?} {shared:?}");
        assert_eq!((pair.chosen.as_str(), pair.rejected.as_str()), ("Bonjour", "Hello"));
    }
    for (prompt, shared) in [
        (vec![go], vec![hi]),
        (vec![system], vec![("system", "In Greek."), hi]),
        (vec![hi, yo, go], vec![hi]),
        (vec![hi, yo], vec![hi]),
    ] {
        let error = read(&prompt, &shared).unwrap_err();
        assert!(error.contains("prompt does not fit the turns"), "{error}");
    }
    let text = |prompt: &str| {
        let replies = [good, bad].map(|reply| turns(&[hi, yo, go, reply]));
        one(json!({"prompt": prompt, "chosen": replies[0], "rejected": replies[1]}))
    };
    assert_eq!(said(&text(" hi\n").unwrap().prompt), [hi, yo, go]);
    assert!(text("In French. hi").unwrap_err().contains("leave prompt unread"));
}

#[test]
fn a_system_column_is_the_first_turn() {
    let row = |system: Value, prompt: Value| {
        one(json!({"system": system, "prompt": prompt, "chosen": "a", "rejected": "b"}))
    };
    let pair = row("Be brief.".into(), "hi".into()).unwrap();
    assert_eq!(said(&pair.prompt), [("system", "Be brief."), ("user", "hi")]);
    for empty in [Value::Null, "".into(), " ".into()] {
        assert_eq!(row(empty, "hi".into()).unwrap().prompt, user("hi"));
    }
    let both = json!([message("system", "Be brief."), message("user", "hi")]);
    assert_eq!(row("Be brief.".into(), both.clone()).unwrap().prompt, pair.prompt);
    assert!(row("Be long.".into(), both).unwrap_err().contains("another text"));
    assert!(row(7.into(), "hi".into()).unwrap_err().contains("system is a number"));
}

#[test]
fn conversations_in_cells_are_never_judged_as_text() {
    let form = |reply: &str| json!([message("user", "hi"), message("assistant", reply)]);
    let forms: [fn(&str) -> String; 5] = [
        |text| json!([message("user", "hi"), message("assistant", text)]).to_string(),
        |text| {
            format!(
                " [{{'role': 'user', 'content': 'hi'}}, {{'role': 'assistant', 'content': '{text}'}}]\n"
            )
        },
        |text| {
            json!([{"from": "human", "value": "hi"}, {"from": "gpt", "value": text}]).to_string()
        },
        |text| {
            format!(
                "[{{'content': 'hi', 'role': 'user'}}\n {{'content': [{{'type': 'text', 'text': '{text}'}}], 'role': 'assistant'}}]"
            )
        },
        |text| {
            json!([message("user", "hi"), {"role": "assistant", "content": null, "tool_calls": []},
                      message("tool", "sun"), message("assistant", text)])
            .to_string()
        },
    ];
    for (number, form) in forms.iter().enumerate() {
        let pairs = csv(&form("yo"), &form("no")).unwrap();
        assert_eq!(
            (pairs[0].chosen.as_str(), pairs[0].rejected.as_str()),
            ("yo", "no"),
            "{number}"
        );
        assert_eq!(said(&pairs[0].prompt)[0], ("user", "hi"), "{number}");
        let row = json!({"prompt": "hi", "chosen": form("yo"), "rejected": form("no")});
        assert_eq!(one(row).unwrap().prompt, pairs[0].prompt, "{number}");
    }
    let columns = [form("yo").to_string(), form("no").to_string()];
    let columns = columns.each_ref().map(|text| [text.as_str()]);
    let bytes = parquet_of(
        &[("chosen", &columns[0]), ("rejected", &columns[1])],
        Compression::UNCOMPRESSED,
        true,
    );
    assert_eq!(read_bytes("d.parquet", &bytes).unwrap()[0].prompt, user("hi"));
    for (chosen, rejected) in [
        ("[\"a\"]", "['c', 'd']"),
        ("{\"role\": \"assistant\", \"content\": \"yo\"}", "no"),
        ("[{'role': 'user', 'content': x()}]", "no"),
    ] {
        assert!(csv(chosen, rejected).is_err(), "{chosen}");
    }
}

#[test]
fn replies_in_json_and_code_are_text() {
    for reply in [
        "[1, 2]",
        "{\"a\": [\"b\"]}",
        "[\"red\", \"blue\"]",
        "[x for x in 'ab']",
        "{\"name\": \"Ann\", \"role\": \"admin\"}",
        "[ref]: http://a.b",
    ] {
        let pairs = csv(reply, "no").unwrap_or_else(|error| panic!("{reply}: {error}"));
        assert_eq!(
            (pairs[0].chosen.as_str(), said(&pairs[0].prompt)),
            (reply, vec![("user", "hi")])
        );
        let row = json!({"prompt": reply, "chosen": "[]", "rejected": "{}"});
        let pair = one(row);
        assert!(pair.is_ok_and(|pair| pair.chosen == "[]") || reply.starts_with("[\""), "{reply}");
    }
}

#[test]
fn replies_without_text_are_no_replies() {
    let list = |last: Value| json!([message("user", "hi"), last]);
    let row = |last: Value| {
        one(json!({"chosen": list(last), "rejected": list(message("assistant", "no"))}))
    };
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"id": 1}]});
    assert!(row(call).unwrap_err().contains("the last turn of chosen has no text"));
    assert!(row(message("user", "x")).unwrap_err().contains("not the assistant's reply"));
    assert!(row(message("tool", "x")).unwrap_err().contains("of \"tool\""));
    assert_eq!(row(message("assistant", "")).unwrap().chosen, "");
}

#[test]
fn public_layouts_are_read() {
    let bench = |label: &str| {
        one(json!({"pair_id": "p7", "source": "mmlu", "question": "q", "response_model": "m",
                   "response_A": "good", "response_B": "bad", "label": label}))
    };
    let pair = bench("A>B").unwrap();
    assert_eq!((pair.id.as_str(), pair.subset.as_deref()), ("p7", Some("mmlu")));
    assert_eq!(
        (pair.prompt, pair.chosen.as_str(), pair.rejected.as_str()),
        (user("q"), "good", "bad")
    );
    assert_eq!(bench("B>A").unwrap().chosen, "bad");
    assert!(bench("A=B").unwrap_err().contains("prefers neither reply"));
    assert!(bench("better").unwrap_err().contains("it must be A, A>B or 0"));
    let arena = |reply: &str| json!([message("user", "q"), message("assistant", reply)]);
    let arena = |winner: &str| {
        one(
            json!({"question_id": "x", "conversation_a": arena("1"), "conversation_b": arena("2"), "winner": winner}),
        )
    };
    assert_eq!(arena("model_b").unwrap().chosen, "2");
    assert!(arena("tie (bothbad)").unwrap_err().contains("neither"));
    let pku =
        one(json!({"prompt": "q", "response_0": "0", "response_1": "1", "better_response_id": 1}));
    assert_eq!(pku.unwrap().chosen, "1");
    let capital = one(json!({"Prompt": "q", "Chosen": "c", "Rejected": "r"})).unwrap();
    assert_eq!((capital.prompt, capital.chosen.as_str()), (user("q"), "c"));
    let orca = json!({"system": "s", "question": "q", "chosen": "c", "rejected": "r"});
    assert_eq!(said(&one(orca).unwrap().prompt), [("system", "s"), ("user", "q")]);
}

#[test]
fn hh_rlhf_is_read() {
    let text = |last: &str| {
        format!("\n\nHuman: hi there\n\nAssistant: Hello!\n\nHuman: Go on.\n\nAssistant: {last}")
    };
    let turns = [("user", "hi there"), ("assistant", "Hello!"), ("user", "Go on.")];
    let pair = one(json!({"chosen": text("Yes."), "rejected": text("No.")})).unwrap();
    assert_eq!((said(&pair.prompt), pair.chosen.as_str()), (turns.to_vec(), "Yes."));
    // As others split it.
    let pair = one(json!({"prompt": text(""), "chosen": " Yes.", "rejected": " No."})).unwrap();
    assert_eq!((said(&pair.prompt), pair.chosen.as_str()), (turns.to_vec(), " Yes."));
    let pair = one(json!({"prompt": text(""), "chosen": text("Yes."), "rejected": text("No.")}));
    assert_eq!(said(&pair.unwrap().prompt), turns);
    let other = json!({"chosen": text("Yes."), "rejected": "\n\nHuman: Who?\n\nAssistant: I."});
    assert!(one(other).unwrap_err().contains("they share 0"));
    let scene = json!({"prompt": "Write a scene.", "chosen": "Human: a\n\nAssistant: b", "rejected": "Human: c\n\nAssistant: d"});
    assert_eq!(one(scene).unwrap().chosen, "Human: a\n\nAssistant: b");
    // A prompt that is said again, and line ends of Windows.
    let again = json!({"prompt": "Go on.", "chosen": text("Yes."), "rejected": text("No.")});
    let pair = one(again).unwrap();
    assert_eq!(
        (pair.prompt.len(), pair.chosen.as_str(), pair.rejected.as_str()),
        (3, "Yes.", "No.")
    );
    let windows = |last: &str| text(last).replace('\n', "\r\n");
    let pair = one(json!({"chosen": windows("Yes."), "rejected": windows("No.")})).unwrap();
    assert_eq!(
        (pair.prompt.len(), pair.chosen.as_str(), pair.rejected.as_str()),
        (3, "Yes.", "No.")
    );
}

#[test]
fn columns_have_the_names_that_are_given() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("d.jsonl");
    let row = json!({"prompt": "title", "q": "q", "good": "1", "bad": "2", "which": "B"});
    std::fs::write(&path, row.to_string()).unwrap();
    let read = |columns: &str| {
        let columns = columns.parse().unwrap();
        let wanted = Wanted { columns, ..Wanted::default() };
        read_with(&Source::open(&path).unwrap(), None, &wanted).map_err(|error| error.to_string())
    };
    let pair = &read("prompt=q,chosen=good,rejected=bad").unwrap()[0];
    assert_eq!((&pair.prompt, pair.chosen.as_str()), (&user("q"), "1"));
    assert_eq!(read("prompt=q,a=good,b=bad,label=which").unwrap()[0].chosen, "2");
    let error = read("prompt=question,chosen=good,rejected=bad").unwrap_err();
    assert!(
        error.contains(
            "there is no column question, which is asked for as prompt; found: bad, good"
        ),
        "{error}"
    );
    let error = read("prompt=,chosen=good,rejected=bad").unwrap_err();
    assert!(error.contains("no column prompt"), "{error}");
}

#[test]
fn odd_values_cost_what_is_read_only() {
    for odd in ["NaN", "-Infinity", "1e400", "\"cut \\ud83d\"", "[[[[[[[[[[[[NaN]]]]]]]]]]]]"] {
        let row = |column: &str| {
            read_text(
                "d.jsonl",
                &format!(
                    "{{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"b\",\"{column}\":{odd}}}"
                ),
            )
        };
        assert_eq!(row("score_chosen").unwrap()[0].prompt, user("q"), "{odd}");
        match odd {
            "NaN" | "-Infinity" => assert_eq!(row("subset").unwrap()[0].subset, None),
            _ => {
                let error = row("subset").unwrap_err();
                assert!(error.contains("line 1: subset"), "{error}");
            }
        }
    }
}

#[test]
fn several_replies_make_a_pair_each() {
    let rows = [
        json!({"id": "7", "prompt": "q?", "chosen": ["good"], "rejected": ["b1", "b2", "b3"], "subset": "Focus"}),
        json!({"id": "tied:0", "prompt": "colors?", "chosen": ["red", "blue"], "rejected": ["brown"], "subset": "Ties"}),
        json!({"id": "7", "prompt": "p", "chosen": "c", "rejected": ["r"]}),
        json!({"id": 1, "prompt": "q", "chosen": ["c0", "c1", "c2"], "rejected": ["r0", "r1", "r2"], "domain": "chat"}),
    ];
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("d.json");
    std::fs::write(&path, Value::from(rows.to_vec()).to_string()).unwrap();
    let wanted = Wanted { several: true, ..Wanted::default() };
    let source = Source::open(&path).unwrap();
    let pairs = read_with(&source, None, &wanted).unwrap();
    let ids: Vec<&str> = pairs[..6].iter().map(|pair| pair.id.as_str()).collect();
    assert_eq!(ids, ["7/c0r0", "7/c0r1", "7/c0r2", "tied:0/c0r0", "tied:0/c1r0", "7#2"]);
    assert_eq!((pairs.len(), pairs[5].candidates, row_count(&pairs)), (15, None, 4));
    let last = pairs.last().unwrap();
    assert_eq!((last.chosen.as_str(), last.rejected.as_str(), last.row), ("c2", "r2", 14));
    assert_eq!(last.candidates, Some(Candidates { row: 3, chosen: 2, rejected: 2 }));
    assert_eq!(last.subset.as_deref(), Some("chat"));
    let sampled = sample(pairs.clone(), 2, 0);
    assert_eq!(row_count(&sampled), 2);
    for pair in pairs.iter().filter(|pair| pair.candidates.is_some()) {
        let row = |other: &&Pair| other.candidates.map(|c| c.row) == pair.candidates.map(|c| c.row);
        let (all, taken) = (pairs.iter().filter(row).count(), sampled.iter().filter(row).count());
        assert!(taken == 0 || taken == all, "{}", pair.id);
    }
    assert_eq!(sample(pairs.clone(), 4, 0), pairs);

    let error = read(&path).unwrap_err().to_string();
    assert!(
        error.contains("1 chosen and 3 rejected replies, which only j1 eval compares"),
        "{error}"
    );
    // Ten thousand times ten thousand of them would not fit.
    let many = vec!["x".repeat(50); 10_000];
    std::fs::write(&path, json!({"prompt": "p", "chosen": many, "rejected": many}).to_string())
        .unwrap();
    let error = read_with(&Source::open(&path).unwrap(), None, &wanted).unwrap_err().to_string();
    assert!(error.contains("bytes of pairs"), "{error}");
}
