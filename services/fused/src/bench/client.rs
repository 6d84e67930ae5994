use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::StreamExt;
use serde_json::{Value, json};

/// Text to cut prompts from.
const TEXT: &str = "# git rebase\n\n> Reapply commits from one branch on top of another branch.\n> Commonly used to move \
    an entire branch to another base, creating copies of the commits in the new location.\n\n- Rebase the current \
    branch on top of another specified branch:\n\n`git rebase {{new_base_branch}}`\n\n- Start an interactive rebase, \
    which allows the commits to be reordered, omitted, combined or modified:\n\n`git rebase --interactive \
    {{target_base_branch_or_commit_hash}}`\n\n- Continue a rebase that was interrupted by a merge failure, after \
    editing conflicting files:\n\n`git rebase --continue`\n";

/// One server.
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    api_key: Option<String>,
    pub(crate) model: String,
}

/// One request as its client saw it.
pub(crate) struct Generation {
    pub(crate) num_tokens: usize,
    pub(crate) time_to_first_token: Duration,
    pub(crate) total: Duration,
}

impl Generation {
    pub(crate) fn tokens_per_s(&self) -> f64 {
        self.num_tokens as f64 / self.total.as_secs_f64()
    }

    pub(crate) fn inter_token(&self) -> Duration {
        let num_gaps = u32::try_from(self.num_tokens.saturating_sub(1)).unwrap_or(u32::MAX).max(1);
        self.total.saturating_sub(self.time_to_first_token) / num_gaps
    }
}

/// The engine's histogram of times to first token, from its start on.
pub(crate) struct FirstTokens {
    pub(crate) sum_s: f64,
    pub(crate) count: f64,
}

impl Client {
    pub(crate) async fn connect(url: String, api_key: Option<String>) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().tcp_nodelay(true).build()?;
        let mut client = Self { http, url, api_key, model: String::new() };
        let models: Value = client.send(client.http.get(client.route("/v1/models"))).await?.json().await?;
        let name = models["data"][0]["id"].as_str();
        client.model = name.context("/v1/models names no model")?.to_owned();
        Ok(client)
    }

    /// A prompt of `num_tokens` model tokens.
    pub(crate) async fn prompt(&self, num_tokens: usize) -> anyhow::Result<Vec<u32>> {
        let body = json!({"model": self.model, "prompt": TEXT.repeat(num_tokens.div_ceil(100) + 1)});
        let answer = self.send(self.http.post(self.route("/tokenize")).json(&body)).await?;
        let answer: Value = answer.json().await?;
        let mut ids: Vec<u32> = serde_json::from_value(answer["tokens"].clone())?;
        ids.truncate(num_tokens);
        Ok(ids)
    }

    /// Streams exactly `max_tokens` greedy tokens.
    pub(crate) async fn generate(&self, prompt: &[u32], max_tokens: usize) -> anyhow::Result<Generation> {
        let body = json!({"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
            "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true}});
        let started = Instant::now();
        let answer = self.send(self.http.post(self.route("/v1/completions")).json(&body)).await?;
        let mut stream = answer.bytes_stream();
        let mut first = None;
        let mut last = Vec::new();
        while let Some(bytes) = stream.next().await {
            let bytes = bytes?;
            first.get_or_insert_with(|| started.elapsed());
            last.extend_from_slice(&bytes);
            // The usage chunk is the last but one event: older ones need not be kept.
            if last.len() > 8192 {
                last.drain(..last.len() - 4096);
            }
        }
        let total = started.elapsed();
        let text = String::from_utf8_lossy(&last);
        if !text.trim_end().ends_with("data: [DONE]") {
            bail!("the stream broke off: …{text}");
        }
        let usage = text
            .lines()
            .rev()
            .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
            .find_map(|event| event["usage"]["completion_tokens"].as_u64());
        Ok(Generation {
            num_tokens: usize::try_from(usage.context("the stream has no usage")?)?,
            time_to_first_token: first.context("the stream is empty")?,
            total,
        })
    }

    /// From /metrics; none where it is not served or the engine is in another process.
    pub(crate) async fn engine_first_tokens(&self) -> Option<FirstTokens> {
        let text = self.send(self.http.get(self.route("/metrics"))).await.ok()?.text().await.ok()?;
        let value = |suffix: &str| -> Option<f64> {
            let name = format!("fused_engine_time_to_first_token_seconds_{suffix}");
            text.lines().find_map(|line| line.strip_prefix(&name)?.rsplit(' ').next()?.parse().ok())
        };
        Some(FirstTokens { sum_s: value("sum")?, count: value("count")? })
    }

    fn route(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<reqwest::Response> {
        let request = match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let answer = request.send().await.with_context(|| format!("no answer from {}", self.url))?;
        let status = answer.status();
        if !status.is_success() {
            bail!("{} answered {status}: {}", answer.url().clone(), answer.text().await.unwrap_or_default());
        }
        Ok(answer)
    }
}
