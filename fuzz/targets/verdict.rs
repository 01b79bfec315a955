//! A judgement: verdicts by both rules and of every form, format, parts.
#![no_main]

use trainer::{
    eval::results::Finish,
    judge::verdict::{Reading, Verdict, VerdictForm, format_tags, parts, read},
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for finish in [Finish::Stop, Finish::Length] {
        let Reading { strict, soft } = read(text, finish, VerdictForm::default());
        for verdict in [strict, soft] {
            if let Verdict::Scores(a, b) = verdict {
                assert!((1.0..=10.0).contains(&a) && (1.0..=10.0).contains(&b), "{a} {b}");
            }
        }
        if let Verdict::Scores(..) = strict {
            assert_eq!(soft, strict, "where strict reads a verdict soft gives the same");
        }
        read(text, finish, VerdictForm::Markers);
    }
    format_tags(text);
    assert!(parts(text).criteria.is_none_or(|criteria| text.contains(criteria)));
});
