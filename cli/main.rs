//! `j1`: judge, evaluate and train tiny reasoning reward models.
#![warn(clippy::print_stdout, clippy::print_stderr)] // they panic where output.rs does not
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)] // docs of flags are the text of --help

mod advice;
mod args;
mod commands;
mod interrupt;
mod machine;
mod output;
mod profile;
mod sampling;
mod serve;
mod session;

use std::{io, process::ExitCode};

use clap::Parser;
use engine::{error::printable, tensor::device::Isa};
use kernels::cpu::heap::Heap;

use args::{Cli, Command};
use commands::{
    bench, check, compare, data, demo, eval, info, judge, merge, pages, rollout, train,
};

/// The heap of the program; a tokenizer is in large pages.
#[global_allocator]
static HEAP: Heap = Heap;

/// Why a command could not be done. Printed once, by `main`.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    kernels::signals::explain();
    escape_panics();
    let Cli { command, profile } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    if let Err(error) = Isa::from_environment() {
        return failed(&error);
    }
    if let Some(path) = profile {
        if let Err(error) = profile::start(&path, command.name()) {
            return failed(&error);
        }
        // A signal ends the profile, too.
        interrupt::listen();
    }
    profile::finish_after(|| run(&command))
}

fn run(command: &Command) -> ExitCode {
    let result = match command {
        Command::Demo(args) => demo::run(args),
        Command::Judge(args) => judge::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Serve(args) => commands::serve::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Train(args) => train::run(args),
        Command::Rollout(args) => rollout::run(args),
        Command::Data(args) => data::run(&args.command),
        Command::Merge(args) => merge::run(args),
        Command::Check(args) => check::run(args),
        Command::Info(args) => info::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Completions(args) => pages::completions(args),
        Command::Man(args) => pages::man(args),
    };
    match result {
        Ok(status) => status,
        // The reader has what it wanted (`j1 .. | head`).
        Err(error) if is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => failed(error.as_ref()),
    }
}

/// A panic's message may quote a stranger. One that becomes an error is not told twice.
fn escape_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.to_string();
        match printable(&text) == text {
            _ if engine::text::tokenizer::catches_panics() => {}
            true => usual(panic),
            false => output::note(&text),
        }
    }));
}

/// Help, or what is wrong with the arguments, which may be names of files that somebody else made.
fn misused(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    match error.use_stderr() && printable(&text) != text {
        true => {
            output::note(&text);
            ExitCode::from(2)
        }
        false => error.exit(),
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    output::note(&format!("j1: {error}"));
    if let Some(advice) = advice::advice(error) {
        output::note(&format!("help: {advice}"));
    }
    ExitCode::FAILURE
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
        || error.source().is_some_and(is_broken_pipe)
}
