//! `fused bench` alone: a few figures of a server over HTTP as its clients see it.

mod table;

use std::time::Duration;

use anyhow::Context;
use futures_util::future::try_join_all;

use super::arguments::Figures as Arguments;
use super::client::{Client, Generation};
use crate::process;
use table::{median, print_table};

/// Requests before the first measurement: connections, caches and slots are warm afterwards.
const NUM_WARM_UP: usize = 3;
/// The prompt of the time-to-first-token part.
const PROMPT_TOKENS: usize = 100;
/// How often time to first token is measured.
const NUM_FIRST_TOKENS: usize = 50;

/// What was measured.
pub(super) struct Figures {
    /// Output tokens a second of one request alone, over the whole request.
    pub(super) single_tokens_per_s: f64,
    /// Between its tokens.
    pub(super) single_inter_token: Duration,
    /// Output tokens a second of all concurrent requests together.
    pub(super) concurrent_tokens_per_s: f64,
    /// Client's view of the time to first token of an idle server.
    pub(super) time_to_first_token: Duration,
    /// The engine's own part of it, from its metrics; none where they are not served.
    pub(super) engine_time_to_first_token: Option<Duration>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::of(&arguments.server).await?;
        let figures = measure(&client, arguments).await?;
        process::print(&print_table(&client, arguments, &figures))
    })
}

async fn measure(client: &Client, arguments: &Arguments) -> anyhow::Result<Figures> {
    let prompt = client.prompt(PROMPT_TOKENS).await?;
    for _ in 0..NUM_WARM_UP {
        client.generate(&prompt, arguments.max_tokens).await?;
    }

    let mut single = Vec::new();
    let mut inter_token = Vec::new();
    for _ in 0..arguments.runs {
        let generation = client.generate(&prompt[..8.min(prompt.len())], arguments.max_tokens).await?;
        single.push(generation.tokens_per_s());
        inter_token.push(generation.inter_token().as_secs_f64());
    }

    let mut concurrent = Vec::new();
    for _ in 0..arguments.runs {
        let started = std::time::Instant::now();
        let requests = (0..arguments.concurrency).map(|idx| {
            // Different prompts, so that nothing is the same work twice.
            let prompt = &prompt[idx % prompt.len().saturating_sub(8).max(1)..];
            client.generate(&prompt[..8.min(prompt.len())], arguments.max_tokens)
        });
        let generations: Vec<Generation> = try_join_all(requests).await?;
        let num_tokens: usize = generations.iter().map(|generation| generation.num_tokens).sum();
        concurrent.push(num_tokens as f64 / started.elapsed().as_secs_f64());
    }

    let before = client.engine_first_tokens().await;
    let mut first = Vec::new();
    for _ in 0..NUM_FIRST_TOKENS {
        first.push(client.generate(&prompt, 1).await?.time_to_first_token.as_secs_f64());
    }
    let engine = match (before, client.engine_first_tokens().await) {
        (Some(before), Some(after)) if after.count > before.count => {
            let mean_s = (after.sum_s - before.sum_s) / (after.count - before.count);
            Some(Duration::try_from_secs_f64(mean_s).context("the engine's metrics run backwards")?)
        }
        _ => None,
    };
    Ok(Figures {
        single_tokens_per_s: median(&mut single),
        single_inter_token: Duration::from_secs_f64(median(&mut inter_token)),
        concurrent_tokens_per_s: median(&mut concurrent),
        time_to_first_token: Duration::from_secs_f64(median(&mut first)),
        engine_time_to_first_token: engine,
    })
}
