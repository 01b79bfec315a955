//! A file of pairs with an object a line.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| j1_fuzz::pairs("pairs.jsonl", bytes));
