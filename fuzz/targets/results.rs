//! An outputs.jsonl: as a run that is continued, and rescored. As a table of another program's, too.
#![no_main]

use j1_fuzz::{directory, file, refused};
use serde_json::json;
use trainer::eval::{rescore::rescore, results::Results};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let settings = json!({ "seed": 0 });
    file("run.json", settings.to_string().as_bytes());
    for name in ["judgements.csv", "outputs.jsonl"] {
        match rescore(&file(name, bytes), None) {
            Ok(records) => assert!(!records.is_empty()),
            Err(error) => refused(error),
        }
    }
    match Results::open(directory(), &settings) {
        Ok(results) => assert_eq!(results.done().len(), results.records().len()),
        Err(error) => refused(error),
    }
});
