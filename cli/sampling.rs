//! How judgements are drawn: flags first, then generation_config.json as transformers reads it, then greedy.

use engine::{
    checkpoint::config::GenerationConfig,
    generate::{SamplingParams, repetition_penalty},
};

use crate::{Failure, args::GenerationArgs};

/// Sampling parameters of judgements, with notes for the user.
#[derive(Debug, PartialEq)]
pub(crate) struct Sampling {
    pub(crate) params: SamplingParams,
    pub(crate) repetition_penalty: f32,
    pub(crate) stop_strings: Vec<String>,
    /// Whether any of it is generation_config.json's.
    from_file: bool,
    /// Sentences on what came from the checkpoint and what did not.
    pub(crate) notes: Vec<String>,
}

/// transformers' default where generation_config.json has `do_sample` and no `top_k`.
const TOP_K: u32 = 50;

impl Sampling {
    /// The file's `do_sample` decides between drawing and greedy; `--temperature` decides before it.
    pub(crate) fn of(flags: &GenerationArgs, file: &GenerationConfig) -> Sampling {
        let mut from_file = Vec::new();
        let mut notes = Vec::new();
        let mut file_says = |name: &str, value: &dyn std::fmt::Display| {
            from_file.push(format!("{name} {value}"));
        };
        let temperature = match (flags.temperature, file.do_sample) {
            (Some(temperature), _) => temperature,
            (None, true) => {
                let temperature = file.temperature.unwrap_or(1.0);
                file_says("temperature", &temperature);
                temperature as f32
            }
            (None, false) => {
                if let Some(temperature) = file.temperature.filter(|&t| t != 0.0 && t != 1.0) {
                    notes.push(format!(
                        "greedy: generation_config.json has temperature {temperature} but not \
                         do_sample true; --temperature {temperature} would sample"
                    ));
                }
                0.0
            }
        };
        let greedy = temperature == 0.0;
        let mut or = |name: &str, flag: Option<f32>, file: Option<f64>, neutral: f32| {
            flag.unwrap_or_else(|| match file {
                Some(value) if !greedy && value as f32 != neutral => {
                    file_says(name, &value);
                    value as f32
                }
                _ => neutral,
            })
        };
        let top_p = or("top_p", flags.top_p, file.top_p, 1.0);
        let min_p = or("min_p", flags.min_p, file.min_p, 0.0);
        let default = file.do_sample.then_some(TOP_K);
        let top_k = flags.top_k.unwrap_or_else(|| match file.top_k.or(default) {
            Some(top_k) if !greedy && top_k != 0 => {
                file_says("top_k", &top_k);
                top_k
            }
            _ => 0,
        });
        let repetition_penalty = flags.repetition_penalty.unwrap_or_else(|| {
            let penalty = file.repetition_penalty.unwrap_or(1.0);
            if penalty != 1.0 {
                file_says("repetition penalty", &penalty);
            }
            penalty as f32
        });
        let stop_strings = match flags.stop.as_slice() {
            [] => {
                for text in &file.stop_strings {
                    file_says("stop string", &format_args!("{text:?}"));
                }
                file.stop_strings.clone()
            }
            given => given.iter().filter(|text| !text.is_empty()).cloned().collect(),
        };
        if !from_file.is_empty() {
            let how = if greedy { "greedy" } else { "sampling" };
            let what = from_file.join(", ");
            notes.push(format!("{how}, from generation_config.json: {what}"));
        }
        if !file.not_computed.is_empty() {
            notes.push(format!(
                "generation_config.json also asks for {}: j1 does not compute that, and goes on without",
                file.not_computed.join(", ")
            ));
        }
        let params = SamplingParams { temperature, top_k, top_p, min_p };
        let from_file = !from_file.is_empty();
        Sampling { from_file, params, repetition_penalty, stop_strings, notes }
    }

    /// Checks that every value is in its range.
    pub(crate) fn validate(&self) -> Result<(), Failure> {
        let penalty = || Ok(repetition_penalty::validate(self.repetition_penalty)?);
        let valid = self.params.validate().map_err(Failure::from).and_then(|()| penalty());
        valid.map_err(|error| match self.from_file {
            true => format!(
                "{error} ({}; flags such as --temperature come before it)",
                self.notes.first().map_or("generation_config.json", String::as_str)
            )
            .into(),
            false => error,
        })
    }
}

/// A note about the sampling parameters that training ignores, if there are any. Temperature and truncation are settings of a run.
pub(crate) fn left_out_of_training(file: &GenerationConfig) -> Option<String> {
    let penalty = file.repetition_penalty.filter(|&penalty| penalty != 1.0);
    let left_out: Vec<String> = penalty
        .map(|penalty| format!("repetition penalty {penalty}"))
        .into_iter()
        .chain(file.stop_strings.iter().map(|text| format!("stop string {text:?}")))
        .collect();
    (!left_out.is_empty()).then(|| {
        format!(
            "sampled without generation_config.json's {}: the policy that samples is the one that is trained",
            left_out.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn flags(flags: &[&str]) -> GenerationArgs {
        let all = ["j1", "judge", "--model", "m", "--prompt", "p", "--a", "a", "--b", "b"];
        let Command::Judge(judge) = Cli::parse_from([&all, flags].concat()).command else {
            panic!("judge was asked for")
        };
        judge.generation
    }

    /// Temperature, top_k, top_p, min_p.
    fn params(file: &GenerationConfig, given: &[&str]) -> (f32, u32, f32, f32) {
        let SamplingParams { temperature, top_k, top_p, min_p } =
            Sampling::of(&flags(given), file).params;
        (temperature, top_k, top_p, min_p)
    }

    /// What transformers' generate does with each file, and what a flag changes.
    #[test]
    fn do_sample_decides_as_in_transformers_and_flags_before_it() {
        let absent = GenerationConfig::default();
        let all = GenerationConfig {
            temperature: Some(1.5),
            top_p: Some(0.9),
            top_k: Some(7),
            min_p: Some(0.05),
            ..absent.clone()
        };
        let drawn = GenerationConfig { do_sample: true, ..all.clone() };
        let bare = GenerationConfig { do_sample: true, ..absent.clone() };
        let keeps_all = GenerationConfig { top_k: Some(0), ..bare.clone() };
        let greedy = (0.0, 0, 1.0, 0.0);
        assert_eq!(params(&absent, &[]), greedy);
        assert_eq!(params(&all, &[]), greedy);
        assert_eq!(params(&drawn, &[]), (1.5, 7, 0.9, 0.05));
        assert_eq!(params(&bare, &[]), (1.0, 50, 1.0, 0.0));
        assert_eq!(params(&keeps_all, &[]), (1.0, 0, 1.0, 0.0));

        assert_eq!(params(&absent, &["--temperature", "0.5"]), (0.5, 0, 1.0, 0.0));
        assert_eq!(params(&all, &["--temperature", "0.5"]), (0.5, 7, 0.9, 0.05));
        assert_eq!(params(&bare, &["--temperature", "0.5"]), (0.5, 50, 1.0, 0.0));
        assert_eq!(params(&drawn, &["--temperature", "0"]), greedy);
        let given = ["--top-k", "0", "--top-p", "1", "--min-p", "0"];
        assert_eq!(params(&drawn, &given), (1.5, 0, 1.0, 0.0));
        assert_eq!(params(&drawn, &["--min-p", "0.2", "--top-k", "3"]), (1.5, 3, 0.9, 0.2));
    }

    #[test]
    fn penalty_and_stop_strings_are_the_flags_or_the_files_in_greedy_decoding_too() {
        let file = GenerationConfig {
            repetition_penalty: Some(1.1),
            stop_strings: vec!["END".into()],
            ..GenerationConfig::default()
        };
        let of = |given: &[&str], file: &GenerationConfig| {
            let sampling = Sampling::of(&flags(given), file);
            (sampling.repetition_penalty, sampling.stop_strings)
        };
        let absent = GenerationConfig::default();
        assert_eq!(of(&[], &absent), (1.0, vec![]));
        assert_eq!(of(&[], &file), (1.1, vec!["END".to_owned()]));
        assert_eq!(of(&["--repetition-penalty", "1", "--stop", ""], &file), (1.0, vec![]));
        let given = ["--repetition-penalty", "1.3", "--stop", "a", "--stop", "b\n"];
        assert_eq!(of(&given, &file), (1.3, vec!["a".to_owned(), "b\n".to_owned()]));
        let left_out = left_out_of_training(&file).unwrap();
        assert!(left_out.contains("repetition penalty 1.1, stop string \"END\""), "{left_out}");
        assert_eq!(left_out_of_training(&absent), None);
        let notes = Sampling::of(&flags(&[]), &file).notes;
        let said =
            "greedy, from generation_config.json: repetition penalty 1.1, stop string \"END\"";
        assert_eq!(notes, [said]);
        for (value, fits) in [("1.1", true), ("0", false), ("nan", false), ("1000", false)] {
            let sampling = Sampling::of(&flags(&["--repetition-penalty", value]), &absent);
            assert_eq!(sampling.validate().is_ok(), fits, "{value}");
        }
        let odd = GenerationConfig { do_sample: true, temperature: Some(1e-7), ..absent };
        let error = Sampling::of(&flags(&[]), &odd).validate().unwrap_err().to_string();
        for part in ["temperature is 0.0000001", "generation_config.json", "--temperature"] {
            assert!(error.contains(part), "{error}");
        }
        let error = Sampling::of(&flags(&["--temperature", "1e-7"]), &odd).validate().unwrap_err();
        assert!(error.to_string().contains("temperature is 0.0000001"), "{error}");
    }

    #[test]
    fn what_the_file_decided_is_said() {
        let notes = |file: &GenerationConfig, given: &[&str]| {
            Sampling::of(&flags(given), file).notes.join("; ")
        };
        let absent = GenerationConfig::default();
        let qwen = GenerationConfig {
            do_sample: true,
            temperature: Some(0.7),
            top_p: Some(0.8),
            top_k: Some(20),
            ..absent.clone()
        };
        let said = "sampling, from generation_config.json: temperature 0.7, top_p 0.8, top_k 20";
        assert_eq!(notes(&qwen, &[]), said);
        assert_eq!(notes(&qwen, &["--temperature", "0"]), "");
        let said = "sampling, from generation_config.json: top_p 0.8, top_k 20";
        assert_eq!(notes(&qwen, &["--temperature", "1"]), said);
        let undrawn = GenerationConfig { do_sample: false, ..qwen };
        assert!(notes(&undrawn, &[]).contains("temperature 0.7 but not do_sample"));
        assert_eq!(notes(&absent, &[]), "");
        let beams = GenerationConfig { not_computed: vec!["num_beams 4".into()], ..absent };
        assert!(notes(&beams, &[]).contains("num_beams 4"));
    }
}
