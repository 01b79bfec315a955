//! The flags that help with an error. The libraries say what is wrong without naming any.

use std::{error::Error, path::Path};

use engine::{
    generate,
    model::{kv_cache::NoRoom, suitability::Unsuited},
    tensor::device::DeviceError,
    text::chat::ChatError,
};
use trainer::{
    data::{DataError, prepare::PrepareError},
    eval::results::ResultsError,
    judge::JudgeError,
    train::{checkpoint::CheckpointError, directory::DirectoryError, session::SessionError},
};

const OTHER_OUT: &str = "choose another --out";

/// What to type about `error`, or about the first of its sources that a flag helps with.
pub(crate) fn advice(error: &(dyn Error + 'static)) -> Option<String> {
    of(error).or_else(|| advice(error.source()?))
}

fn of(error: &(dyn Error + 'static)) -> Option<String> {
    fn cast<'e, E: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e E> {
        error.downcast_ref().or_else(|| error.downcast_ref::<Box<E>>().map(Box::as_ref))
    }
    None.or_else(|| directory(cast(error)?))
        .or_else(|| results(cast(error)?))
        .or_else(|| prepare(cast(error)?))
        .or_else(|| data(cast(error)?))
        .or_else(|| session(cast(error)?))
        .or_else(|| checkpoint(cast(error)?))
        .or_else(|| judge(cast(error)?))
        .or_else(|| chat(cast(error)?))
        .or_else(|| generation(cast(error)?))
        .or_else(|| device(cast(error)?))
        .or_else(|| cast::<NoRoom>(error).map(|_| "lower --cache-memory".to_owned()))
        .or_else(|| cast::<Unsuited>(error).map(|_| "use --device cpu".to_owned()))
}

fn directory(error: &DirectoryError) -> Option<String> {
    let other = |config: &Path, set: &str| {
        Some(format!("another run: `j1 train --config {}{set} --out OTHER`", typed(config)))
    };
    let from = |directory: &Path, step: u64| {
        Some(format!("`j1 train --out {} --resume --from step-{step}`", typed(directory)))
    };
    match error {
        DirectoryError::Exists { .. } => {
            Some(format!("add --resume to continue it, or {OTHER_OUT}"))
        }
        DirectoryError::NothingToResume { .. } => {
            Some("leave --resume out to start a run".to_owned())
        }
        DirectoryError::NoRun { config, .. }
        | DirectoryError::Edited { config, .. }
        | DirectoryError::NoCheckpoints { config, .. } => other(config, ""),
        DirectoryError::Refused { config, .. } => other(config, " --set ..."),
        DirectoryError::Instructions { stored, given, .. } => {
            let device = match (stored.as_str(), given.as_str()) {
                ("cuda", _) => "use --device cuda; ",
                (_, "cuda") => "use --device cpu; ",
                _ => "",
            };
            Some(format!(
                "{device}--allow-other-instructions goes on all the same, and run.json will say so"
            ))
        }
        DirectoryError::Damaged { directory, before: Some(before), .. } => from(directory, *before),
        DirectoryError::Damaged { directory, before: None, .. } => {
            other(&directory.join("config.toml"), "")
        }
        DirectoryError::Metrics { directory, step, .. } => from(directory, *step),
        DirectoryError::BadMetrics { step, .. } => {
            Some(format!("where it is moved away, add --from step-{step}"))
        }
        _ => None,
    }
}

fn results(error: &ResultsError) -> Option<String> {
    match error {
        ResultsError::DiskFull { .. } => Some("j1 train continues with --resume".to_owned()),
        ResultsError::NotFinite { .. } => Some("try --dtype f32".to_owned()),
        ResultsError::NotWritable { .. } => {
            Some("choose an --out that you can write to".to_owned())
        }
        ResultsError::NotADirectory { .. }
        | ResultsError::Locked { .. }
        | ResultsError::Foreign { .. }
        | ResultsError::Setting { .. }
        | ResultsError::NotJson { .. }
        | ResultsError::NotAsked { .. }
        | ResultsError::UnknownRow { .. } => Some(OTHER_OUT.to_owned()),
        _ => None,
    }
}

fn prepare(error: &PrepareError) -> Option<String> {
    match error {
        PrepareError::WouldReplaceInput { .. }
        | PrepareError::Locked { .. }
        | PrepareError::Foreign { .. } => Some(OTHER_OUT.to_owned()),
        _ => None,
    }
}

fn data(error: &DataError) -> Option<String> {
    match error {
        DataError::NoSuchColumn { .. } => Some("--columns names columns".to_owned()),
        DataError::MissingColumn { .. } => Some(
            "--columns says which columns these are, if they have other names (j1 train has no such flag: \
             j1 data prepare --columns .. writes what it reads)"
                .to_owned(),
        ),
        DataError::Row { problem, .. } => {
            let column = problem.strip_suffix(" unread")?.rsplit(' ').next()?;
            Some(format!("--columns {column}= leaves {column} unread"))
        }
        _ => None,
    }
}

fn session(error: &SessionError) -> Option<String> {
    match error {
        SessionError::OtherAdapter { adapter, modules, same_modules, .. } => {
            let modules = match same_modules {
                true => String::new(),
                false => format!(" --set 'lora.target_modules={modules:?}'"),
            };
            Some(format!(
                "add --set lora.r={} --set lora.alpha={} --set lora.rslora={}{modules}",
                adapter.rank, adapter.alpha, adapter.rank_stabilized
            ))
        }
        SessionError::Positions { .. } => Some(
            "--set data.max_prompt_tokens=N or --set rollout.max_completion_tokens=N".to_owned(),
        ),
        _ => None,
    }
}

fn checkpoint(error: &CheckpointError) -> Option<String> {
    let beyond = matches!(error, CheckpointError::Beyond { .. });
    beyond.then(|| "--set train.steps=N asks for more steps".to_owned())
}

fn judge(error: &JudgeError) -> Option<String> {
    let no_system = matches!(error, JudgeError::NoSystem { .. });
    no_system.then(|| {
        "--template FILE names the template; `j1 judge --print-template` writes the bundled one to start from".to_owned()
    })
}

fn chat(error: &ChatError) -> Option<String> {
    let no_date = matches!(error, ChatError::NoDate { .. });
    no_date.then(|| {
        "--template-date 2025-01-31; in training --set rollout.template_date=2025-01-31".to_owned()
    })
}

fn generation(error: &generate::GenerateError) -> Option<String> {
    match error {
        generate::GenerateError::TooLong { .. } => Some("lower --max-new-tokens".to_owned()),
        generate::GenerateError::CacheTooSmall { .. } => {
            Some("raise --cache-memory, or lower --max-new-tokens".to_owned())
        }
        _ => None,
    }
}

fn device(error: &DeviceError) -> Option<String> {
    match error {
        DeviceError::Disabled => {
            Some("build with --features cuda, or use --device cpu".to_owned())
        }
        DeviceError::NoDriver => Some("use --device cpu".to_owned()),
        DeviceError::OutOfMemory { .. } => Some(
            "--cache-memory and --batch; `j1 info --train --device-memory` says what training needs".to_owned(),
        ),
        _ => None,
    }
}

/// A path as it is typed in a shell.
pub(crate) fn typed(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    match text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use engine::{generate, language_model::OpenError};
    use trainer::train::{StepError, rollout::RolloutError, sample::SampleError};

    use super::*;

    #[test]
    fn a_source_is_found_below_other_errors() {
        let full =
            generate::GenerateError::CacheTooSmall { tokens: 9, needed_bytes: 2, cache_bytes: 1 };
        let error = RolloutError::Generate { prompt: 3, source: full };
        let source = Box::new(SampleError::from(error));
        let error = StepError::Sample { step: 1, source };
        assert!(advice(&error).unwrap().contains("raise --cache-memory"));
        assert!(
            advice(&OpenError::from(Unsuited { what: "odd".into() }))
                .unwrap()
                .contains("--device cpu")
        );
        let boxed = DirectoryError::from(ResultsError::NotADirectory { path: "x".into() });
        assert_eq!(advice(&boxed).unwrap(), OTHER_OUT);
        let host: Box<dyn Error> = DeviceError::NoDriver.into();
        assert_eq!(advice(&SessionError::Host(host)).unwrap(), "use --device cpu");
        assert_eq!(advice(&std::fmt::Error), None);
    }

    #[test]
    fn what_is_left_unread_is_named() {
        let row = |problem: &str| DataError::Row {
            path: "x".into(),
            place: "line 1".to_owned(),
            problem: problem.to_owned(),
        };
        let problem = "prompt is none of the turns; give one of them, or leave prompt unread";
        let flag = "--columns prompt= leaves prompt unread";
        assert_eq!(advice(&row(problem)).unwrap(), flag);
        assert_eq!(advice(&row("no reply")), None);
    }

    #[test]
    fn paths_can_be_typed_as_they_are_printed() {
        for (path, text) in [
            ("runs/x-1.0_b", "runs/x-1.0_b"),
            ("my runs/é", "'my runs/é'"),
            ("it's", "'it'\\''s'"),
            ("a;b$(c)", "'a;b$(c)'"),
        ] {
            assert_eq!(typed(Path::new(path)), text);
        }
    }
}
