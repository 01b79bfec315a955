//! Makes the tables of benches/README.md of a record.
//!
//! ```sh
//! cargo bench --bench table -- benches/record/FILE.csv
//! ```
//!
//! tests/tidy.rs compares the tables with the records that they name, so none is written by hand.

use std::{fs, path::Path};

mod readme;
mod record;

fn main() {
    // Without a record nothing is to be done: plain `cargo bench` runs this, with the filters of others.
    let Some(file) = std::env::args().find(|argument| argument.ends_with(".csv")) else {
        println!("table: no record is named, the page stays (see the top of benches/table.rs)");
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let load = |file: &str| {
        fs::read_to_string(root.join(file)).map_err(|error| format!("cannot read {file}: {error}"))
    };
    let path = root.join(readme::PAGE);
    let text = fs::read_to_string(&path).expect(readme::PAGE);
    match readme::tables(&text, Some(&file), &load) {
        Ok(text) => fs::write(&path, text).expect("the page is written"),
        Err(error) => {
            eprintln!("table: {error}");
            std::process::exit(1);
        }
    }
}
