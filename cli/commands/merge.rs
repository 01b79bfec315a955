//! `j1 merge`: an adapter merged into its base.

use std::{io::IsTerminal, process::ExitCode};

use engine::{
    checkpoint::merge::{MergeError, merge},
    hub::Hub,
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
    merged.notes.iter().for_each(|text| note(&format!("note: {text}")));
    let matrices = match merged.changed == merged.matrices {
        true => format!("{} matrices changed", merged.matrices),
        false => format!("{} of {} matrices changed", merged.changed, merged.matrices),
    };
    if merged.changed == 0 && merged.notes.is_empty() {
        note(
            "note: every change is lost in the rounding of the weights' type: the result is the base model",
        );
    }
    let files = if merged.weight_files == 1 { "file" } else { "files" };
    print(&format!(
        "{}: {matrices}, {} of weights in {} {files}\n",
        args.out.display(),
        bytes(merged.weight_bytes),
        merged.weight_files,
    ))?;
    Ok(ExitCode::SUCCESS)
}
