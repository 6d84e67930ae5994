use std::fmt::Write;
use std::time::Duration;

use super::{Arguments, Client, Figures, NUM_FIRST_TOKENS, PROMPT_TOKENS};

/// The middle value; 0 of none.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The figures as a table.
pub(super) fn print_table(client: &Client, arguments: &Arguments, figures: &Figures) -> String {
    let mut table = String::new();
    let mut row = |name: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(table, "{name:<58} {value:>14}");
    };
    row("model", client.model.clone());
    row("cores", std::thread::available_parallelism().map_or_else(|_| "?".to_owned(), |n| n.to_string()));
    row(
        &format!("1 request, {} tokens: output tokens/s", arguments.max_tokens),
        format!("{:.0}", figures.single_tokens_per_s),
    );
    row("1 request: inter-token latency", milliseconds(figures.single_inter_token));
    row(
        &format!("{} requests at once: output tokens/s in total", arguments.concurrency),
        format!("{:.0}", figures.concurrent_tokens_per_s),
    );
    row(
        &format!("{} requests at once / 1 request", arguments.concurrency),
        format!("{:.2}", figures.concurrent_tokens_per_s / figures.single_tokens_per_s),
    );
    row(
        &format!("time to first token, {PROMPT_TOKENS} prompt tokens, idle ({NUM_FIRST_TOKENS} times)"),
        milliseconds(figures.time_to_first_token),
    );
    if let Some(engine) = figures.engine_time_to_first_token {
        row("  of it in the engine (mean)", milliseconds(engine));
        row(
            "  of it in HTTP, gateway and tokenizer",
            milliseconds(figures.time_to_first_token.saturating_sub(engine)),
        );
    }
    table
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.3} ms", duration.as_secs_f64() * 1e3)
}
