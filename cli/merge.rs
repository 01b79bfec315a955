//! `j1 merge`: an adapter merged into its base.

use std::{io::IsTerminal, process::ExitCode};

use engine::{
    hub::Hub,
    merge::{MergeError, merge},
};
use indicatif::ProgressBar;

use crate::{
    Failure,
    args::Merge,
    interrupt,
    output::{bar_style, bytes, note, print},
    session::Downloads,
};

pub(crate) fn run(args: &Merge) -> Result<ExitCode, Failure> {
    let hub = Hub::from_env();
    let mut downloads = Downloads::default();
    let model = hub.resolve_model(&args.model, &mut |event| downloads.show(event))?;
    let adapter = hub.resolve_adapter(&args.adapter, &mut |event| downloads.show(event))?;

    let bar = ProgressBar::new(0);
    let style = "[{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {left}";
    bar.set_style(bar_style(style));
    let lines = !std::io::stderr().is_terminal();
    let mut tenths = 0;
    let merged = merge(
        &model,
        &adapter,
        &args.out,
        &mut |progress| {
            bar.set_length(progress.total_bytes);
            bar.set_position(progress.done_bytes);
            let done = progress.done_bytes * 10 / progress.total_bytes.max(1);
            if lines && done > tenths {
                tenths = done;
                note(&format!("{} % of {} written", done * 10, bytes(progress.total_bytes)));
            }
        },
        interrupt::flag(),
    );
    bar.finish_and_clear();
    let merged = match merged {
        Err(MergeError::Stopped) => {
            note("stopped; nothing was written");
            return Ok(interrupt::status());
        }
        merged => merged?,
    };
    let files = if merged.weight_files == 1 { "file" } else { "files" };
    print(&format!(
        "{}: {} matrices changed, {} of weights in {} {files}\n",
        args.out.display(),
        merged.matrices,
        bytes(merged.weight_bytes),
        merged.weight_files,
    ))?;
    Ok(ExitCode::SUCCESS)
}
