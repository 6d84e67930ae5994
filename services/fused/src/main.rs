//! The binary: subcommands only.

fn main() {}
