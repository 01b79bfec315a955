//! A file of pairs as comma-separated values.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| j1_fuzz::pairs("pairs.csv", bytes));
