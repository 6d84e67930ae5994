use std::time::{Duration, Instant};

use anyhow::bail;
use fused_engine::simulation::{Arrival, Workload};
use futures_util::future::join_all;

use super::arguments::Replay;
use super::client::Client;
use super::report::{self, About};
use super::run::{Request, Run};
use super::workload::Plan;

pub(super) fn run(arguments: &Replay) -> anyhow::Result<()> {
    report::check(&arguments.output, arguments.workload.trace.iter().cloned())?;
    let plan = Plan::new(&arguments.workload)?;
    let workload = plan.workload()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::of(&arguments.server).await?;
        let run = Target::new(client).await?.replay(&workload, arguments.workload.seed).await?;
        let about = About {
            command: "replay",
            what: arguments.server.url.clone().unwrap_or_else(|| "the demo model in this process".to_owned()),
            workload: plan.describe(),
            details: serde_json::Value::Null,
        };
        report::write(&about, &[run], &arguments.output)
    })
}

/// A server, and what its prompts are made of.
pub(super) struct Target {
    client: Client,
    alphabet: Vec<u32>,
}

impl Target {
    pub(super) async fn new(client: Client) -> anyhow::Result<Self> {
        let alphabet = client.alphabet().await?;
        Ok(Self { client, alphabet })
    }

    /// Sends every request at its time, whether those before it are answered or not. Requests that fail are part of the
    /// result.
    ///
    /// # Errors
    /// All of them failed.
    pub(super) async fn replay(&self, workload: &Workload, seed: u64) -> anyhow::Result<Run> {
        let start = Instant::now();
        let requests = workload
            .arrivals()
            .iter()
            .enumerate()
            .map(|(idx, arrival)| self.request(start, arrival, (seed, idx as u64)));
        let requests = join_all(requests).await;
        let first_error = requests.first().and_then(|request| request.error.as_ref());
        if let Some(error) = first_error.filter(|_| requests.iter().all(|request| request.error.is_some())) {
            bail!("every request failed, the first so: {error}");
        }
        Ok(Run { name: "server".to_owned(), requests, steps: Vec::new() })
    }

    async fn request(&self, start: Instant, arrival: &Arrival, key: (u64, u64)) -> Request {
        // A moment beyond what the clock can say never comes; no workload is that long.
        if let Some(at) = start.checked_add(arrival.at) {
            tokio::time::sleep_until(at.into()).await;
        }
        let mut request = Request {
            arrived_s: arrival.at.as_secs_f64(),
            num_prompt: arrival.prompt.num_tokens,
            ..Request::default()
        };
        let since = |time: &Instant| time.saturating_duration_since(start).as_secs_f64();
        match self.client.stream((&arrival.prompt, &self.alphabet), key, arrival.num_output).await {
            Ok(stream) => {
                request.num_output = stream.token_times.len();
                request.num_cached = stream.num_cached;
                request.first_token_s = stream.token_times.first().map(since);
                request.ended_s = stream.token_times.last().map(since);
                request.inter_token_us = gaps_us(&stream.token_times);
            }
            Err(error) => request.error = Some(format!("{error:#}")),
        }
        request
    }
}

fn gaps_us(times: &[Instant]) -> Vec<u32> {
    let us = |gap: Duration| u32::try_from(gap.as_micros()).unwrap_or(u32::MAX);
    times.windows(2).map(|pair| us(pair[1].saturating_duration_since(pair[0]))).collect()
}
