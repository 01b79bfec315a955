//! `--resume`: a run that goes on, with the settings it has.

use engine::optimizer::schedule::Shape;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use trainer::train::{
    checkpoint::CheckpointError,
    directory::{Begun, FoundCheckpoint, RunDirectory},
    settings::{Choice, Settings},
};

use super::with_absolute_paths;
use crate::{Failure, args::Train, output::note};

/// A run that is to go on, its directory claimed.
pub(super) struct Resumed {
    pub(super) directory: RunDirectory,
    /// The checkpoint to go on from; `None` if no checkpoint was written yet.
    pub(super) from: Option<FoundCheckpoint>,
    /// The settings from here on.
    pub(super) settings: Settings,
    begun: Begun,
}

impl Resumed {
    pub(super) fn open(args: &Train, out: &Path) -> Result<Resumed, Failure> {
        let (directory, begun) = RunDirectory::open(out)?;
        if begun.restored {
            note("config.toml is missing: it is written again as the run was started");
        }
        let mut settings = begun.settings.clone();
        for assignment in &args.settings.set {
            settings = settings.with(assignment)?;
        }
        for (place, flag) in [
            (&mut settings.model.path, &args.model),
            (&mut settings.model.adapter, &args.adapter),
            (&mut settings.data.train, &args.data),
            (&mut settings.data.held_out, &args.held_out),
        ] {
            if let Some(value) = flag {
                place.clone_from(value);
            }
        }
        begun.check(out, &settings)?;
        settings.validate()?;
        let settings = with_absolute_paths(settings);
        check_places(&settings)?;
        // What it was before, too: it may change.
        let save_every = begun.save_every().max(settings.train.save_every);
        let from = directory.checkpoint(args.from, save_every)?;
        Ok(Resumed { directory, from, settings, begun })
    }

    /// The checkpoint whose adapter is opened.
    pub(super) fn checkpoint(&self) -> Option<&PathBuf> {
        self.from.as_ref().map(|found| &found.path)
    }

    /// Steps that were taken.
    pub(super) fn step(&self) -> u64 {
        self.from.as_ref().map_or(0, |found| found.state.step)
    }

    /// The error of a damaged checkpoint, which says how to go on without it.
    pub(super) fn damaged(&self, error: CheckpointError) -> Failure {
        self.directory.damaged(self.step(), error).into()
    }

    /// Takes the run up with `settings`, and says what is new.
    pub(super) fn go_on(
        &self,
        args: &Train,
        settings: &Settings,
        fingerprints: &Map<String, Value>,
        about: Map<String, Value>,
    ) -> Result<(), Failure> {
        let changed = self.directory.go_on(
            &self.begun,
            settings,
            fingerprints,
            args.allow_other_instructions,
            self.from.as_ref(),
            about,
        )?;
        for change in &changed {
            note(change);
        }
        let step = self.step();
        let is_length = |change: &String| {
            change.starts_with("train.steps ") || change.starts_with("train.epochs ")
        };
        let schedule = settings.optimizer.schedule;
        if step > 0 && schedule != Shape::Constant && changed.iter().any(is_length) {
            note(&format!(
                "optimizer.schedule = \"{}\" falls to 0 at the run's last step: from step {} on the rate is that of the \
                 new length, so the run is not bit for bit the one that had this length from its start",
                schedule.name(),
                step + 1
            ));
        }
        match &self.from {
            Some(found) => {
                if let Some(gap) = &found.gap {
                    note(&format!(
                        "warning: metrics.jsonl has no lines of the steps {} to {}: they were taken out of it, and \
                         curves lack them",
                        gap.start(),
                        gap.end()
                    ));
                }
                note(&format!("continuing from {}", found.path.display()));
            }
            None => note("no checkpoint was written yet: starting from the first step"),
        }
        Ok(())
    }
}

/// Settings of a run name files as they were found at its start; what was moved since is named with its flag.
fn check_places(settings: &Settings) -> Result<(), Failure> {
    for (key, place, flag) in [
        ("model.path", &settings.model.path, "--model DIR"),
        ("model.adapter", &settings.model.adapter, "--adapter DIR"),
        ("data.train", &settings.data.train, "--data FILE"),
        ("data.held_out", &settings.data.held_out, "--held-out FILE"),
        ("data.template", &settings.data.template, "--set data.template=FILE"),
    ] {
        let path = Path::new(place);
        // A pattern is no path; what it finds is seen when it is read.
        if path.is_absolute() && !path.exists() && !place.contains(['*', '?', '[']) {
            return Err(format!(
                "{key} = {place:?} is not there any more; if it was moved, add {flag} to --resume: its content must be the \
                 same, and the run keeps the new place"
            )
            .into());
        }
    }
    Ok(())
}
