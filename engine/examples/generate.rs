//! Text from a checkpoint: `cargo run --release --package engine --example generate -- DIRECTORY PROMPT`.

use std::{
    error::Error,
    io::{Write, stdout},
    path::Path,
    process::ExitCode,
};

use engine::{error::printable, prelude::*};

const MAX_NEW_TOKENS: usize = 128;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, prompt] = &arguments[..] else {
        eprintln!("usage: generate DIRECTORY PROMPT");
        return ExitCode::FAILURE;
    };
    match generate(directory.as_ref(), prompt, &mut stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", printable(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

/// Writes what follows `prompt` as it comes.
fn generate(directory: &Path, prompt: &str, to: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let language_model = LanguageModel::open(directory)?;
    for text in language_model.generate(prompt, SamplingParams::GREEDY, MAX_NEW_TOKENS)? {
        // A model may write what would steer a terminal.
        write!(to, "{}", printable(&text?))?;
        to.flush()?;
    }
    Ok(writeln!(to)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_that_of_the_most_probable_tokens() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
        let mut text = Vec::new();
        generate(&golden.join("qwen3-tied/model"), "2+2=", &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        // The model has random weights, and two bells are the likeliest after "i".
        assert!(text.starts_with(r"i\u{7}\u{7}") && text.ends_with('\n'), "{text:?}");
        assert!(!text.contains('\u{7}'), "{text:?}");
        let error = generate(&golden, "2+2=", &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("golden"), "{error}");
    }
}
