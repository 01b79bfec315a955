//! A Parquet file of pairs: pages, codecs, rows.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| j1_fuzz::pairs("pairs.parquet", bytes));
