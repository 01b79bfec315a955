//! Ctrl-C: the first asks the run to stop between two steps, the second ends it. Termination ends it at once.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::output::note;

static ASKED: AtomicBool = AtomicBool::new(false);

/// 128 + SIGINT, as shells expect.
const STATUS: u8 = 130;

/// The flag that Ctrl-C raises. Call once, before a long run.
pub(crate) fn flag() -> &'static AtomicBool {
    let handler = ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::Relaxed) {
            std::process::exit(STATUS.into());
        }
        note("\nstopping after this step; press Ctrl-C again to end at once");
    });
    if let Err(error) = handler {
        note(&format!("warning: Ctrl-C will end j1 at once: {error}"));
    }
    &ASKED
}

/// The same flag, for what comes before or after the run that [`flag`] was called for.
pub(crate) fn raised() -> &'static AtomicBool {
    &ASKED
}

/// The status of a run that was stopped.
pub(crate) fn status() -> ExitCode {
    ExitCode::from(STATUS)
}
