//! Ctrl-C: the first asks the run to stop between two steps, the second ends it. Termination ends it at once.
//! What is profiled ends with a whole profile.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{output::note, profile};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Whether a run looks at [`ASKED`].
static WATCHED: AtomicBool = AtomicBool::new(false);

/// 128 + SIGINT, as shells expect.
const STATUS: u8 = 130;

/// The flag that Ctrl-C raises. Call before a long run.
pub(crate) fn flag() -> &'static AtomicBool {
    WATCHED.store(true, Ordering::Relaxed);
    listen();
    &ASKED
}

/// Has Ctrl-C end a profile before it ends j1, where no run looks at the flag.
pub(crate) fn listen() {
    static LISTENING: AtomicBool = AtomicBool::new(false);
    if LISTENING.swap(true, Ordering::Relaxed) {
        return;
    }
    let handler = ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::Relaxed) || !WATCHED.load(Ordering::Relaxed) {
            profile::finish(status());
            std::process::exit(STATUS.into());
        }
        note("\nstopping after this step; press Ctrl-C again to end at once");
    });
    if let Err(error) = handler {
        note(&format!("warning: Ctrl-C will end j1 at once: {error}"));
    }
}

/// The same flag, for what comes before or after the run that [`flag`] was called for.
pub(crate) fn raised() -> &'static AtomicBool {
    &ASKED
}

/// The status of a run that was stopped.
pub(crate) fn status() -> ExitCode {
    ExitCode::from(STATUS)
}
