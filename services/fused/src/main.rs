//! The binary: subcommands only. `serve` runs the three services in one process, `gateway`, `tokenizer` and `engine`
//! one each; the rest are tools beside them.

mod adapt;
mod bench;
mod cli;
mod corpus;
mod eval;
mod foreign_flags;
mod interrupt;
mod model;
mod page;
mod probe;
mod process;
mod reference_files;
mod roles;
mod vocab;
mod whole_files;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use cli::{Cli, Command};

/// jemalloc's background thread gives freed memory back to the system. glibc's allocator keeps hundreds of megabytes
/// after texts of megabytes from many clients; mimalloc keeps what idle threads freed.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| refuse(&error));
    let is_tool =
        matches!(cli.command, Command::Vocab(_) | Command::Adapt(_) | Command::Eval(_) | Command::Bench(_));
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            process::print_error(&error);
            if is_tool { process::tool_exit_code(&error) } else { ExitCode::FAILURE }
        }
    }
}

/// Ends the process with what is wrong with its arguments, or with the help or version that was asked for.
fn refuse(error: &clap::Error) -> ! {
    let arguments: Vec<_> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let advice = foreign_flags::advice(arguments.iter().map(String::as_str));
    if let (ErrorKind::UnknownArgument, Some(advice)) = (error.kind(), advice) {
        process::print_error(&anyhow::anyhow!(advice));
        std::process::exit(error.exit_code());
    }
    error.exit()
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(service) => process::run(&service, "fused", roles::serve),
        Command::Gateway(service) => process::run(&service, "fused-gateway", roles::gateway),
        Command::Tokenizer(service) => process::run(&service, "fused-tokenizer", roles::tokenizer),
        Command::Engine(service) => process::run(&service, "fused-engine", roles::engine),
        Command::Vocab(command) => vocab::run(&command),
        Command::Adapt(command) => adapt::run(&command),
        Command::Eval(command) => eval::run(&command),
        Command::Bench(bench) => bench::run(&bench),
        Command::Probe(probe) => probe::run(&probe),
        Command::RenderChatTemplate => Ok(fused_tokenizer::render_chat_template()?),
    }
}
