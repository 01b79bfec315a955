//! Ctrl-C and SIGTERM: the first asks the run to stop between two steps, the second ends it. What is profiled ends with a
//! whole profile.

use std::{
    io,
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
};

use crate::{output::note, profile};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Whether a run looks at [`ASKED`].
static WATCHED: AtomicBool = AtomicBool::new(false);

/// Signal numbers as on Linux; Ctrl-C has one on systems without signals, too.
const INTERRUPT: u8 = 2;

/// The last signal.
static SIGNAL: AtomicU8 = AtomicU8::new(INTERRUPT);

/// The flag that Ctrl-C and SIGTERM raise. Call before a long run.
pub(crate) fn flag() -> &'static AtomicBool {
    WATCHED.store(true, Ordering::Relaxed);
    listen();
    &ASKED
}

/// Has a signal end a profile before it ends j1, where no run looks at the flag.
pub(crate) fn listen() {
    static LISTENING: AtomicBool = AtomicBool::new(false);
    if LISTENING.swap(true, Ordering::Relaxed) {
        return;
    }
    if let Err(error) = on_signal(stop) {
        note(&format!("warning: Ctrl-C will end j1 at once: {error}"));
    }
}

/// Reaction to a signal.
fn stop(signal: u8) {
    SIGNAL.store(signal, Ordering::Relaxed);
    if ASKED.swap(true, Ordering::Relaxed) || !WATCHED.load(Ordering::Relaxed) {
        profile::finish(status());
        std::process::exit(128 + i32::from(signal));
    }
    note(match signal {
        INTERRUPT => "\nstopping after this step; press Ctrl-C again to end at once",
        _ => "\nterminated: stopping after this step; a second signal ends j1 at once",
    });
}

/// Calls `handler` on a thread of its own, with the number of each signal that comes.
#[cfg(unix)]
fn on_signal(handler: fn(u8)) -> io::Result<()> {
    use signal_hook::{consts, iterator::Signals};

    // The thread first: a signal without one to take it would be lost.
    let (send, receive) = std::sync::mpsc::channel::<Signals>();
    std::thread::Builder::new().name("signals".to_string()).spawn(move || {
        let Ok(mut signals) = receive.recv() else { return };
        signals.forever().for_each(|signal| handler(signal as u8));
    })?;
    let signals = Signals::new([consts::SIGINT, consts::SIGTERM])?;
    send.send(signals).map_err(io::Error::other)
}

#[cfg(not(unix))]
fn on_signal(handler: fn(u8)) -> io::Result<()> {
    ctrlc::set_handler(move || handler(INTERRUPT)).map_err(io::Error::other)
}

/// The same flag, for what comes before or after the run that [`flag`] was called for.
pub(crate) fn raised() -> &'static AtomicBool {
    &ASKED
}

/// The status of a run that was stopped: 128 and the signal, as shells expect.
pub(crate) fn status() -> ExitCode {
    ExitCode::from(128 + SIGNAL.load(Ordering::Relaxed))
}
