//! The binary: subcommands only. `serve` runs the three services in one process, `gateway`, `tokenizer` and `engine`
//! one each; the rest are tools beside them.

mod adapt;
mod bench;
mod cli;
mod eval;
mod http_server;
mod model;
mod probe;
mod process;
mod roles;
mod vocab;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // As clap does for a wrong flag: a tool's input was bad.
    let failure = match &cli.command {
        Command::Adapt(_) | Command::Eval(_) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            process::print_error(&error);
            failure
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(service) => process::run(&service, "fused", roles::serve),
        Command::Gateway(service) => process::run(&service, "fused-gateway", roles::gateway),
        Command::Tokenizer(service) => process::run(&service, "fused-tokenizer", roles::tokenizer),
        Command::Engine(service) => process::run(&service, "fused-engine", roles::engine),
        Command::Vocab(command) => vocab::run(&command),
        Command::Adapt(command) => adapt::run(command),
        Command::Eval(command) => eval::run(&command),
        Command::Bench(bench) => bench::run(&bench),
        Command::Probe(probe) => probe::run(&probe),
    }
}
