//! `j1 completions` and `j1 man`: what shells and manuals want to know of the command line.

use std::process::ExitCode;

use clap::CommandFactory;

use crate::{
    Failure,
    args::{Cli, Completions, Man},
    output::print,
};

pub(crate) fn completions(args: &Completions) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "j1", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn man(args: &Man) -> Result<ExitCode, Failure> {
    let mut all = Cli::command();
    all.build();
    let command = match &args.command {
        None => all,
        Some(name) => match all.find_subcommand(name) {
            Some(found) => found.clone(),
            None => {
                let names = all.get_subcommands().map(|one| one.get_name().to_owned());
                let names = names.collect::<Vec<_>>().join(", ");
                return Err(format!("there is no command {name:?}; there are {names}").into());
            }
        },
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    print(&String::from_utf8_lossy(&page))?;
    Ok(ExitCode::SUCCESS)
}
