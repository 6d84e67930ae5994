use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use fused_engine::simulation::Prompt;
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::arguments::ServerArgs;
use crate::roles;

/// Text to cut prompts from.
const TEXT: &str = "# git rebase\n\n> Reapply commits from one branch on top of another branch.\n> Commonly used to move \
    an entire branch to another base, creating copies of the commits in the new location.\n\n- Rebase the current \
    branch on top of another specified branch:\n\n`git rebase {{new_base_branch}}`\n\n- Start an interactive rebase, \
    which allows the commits to be reordered, omitted, combined or modified:\n\n`git rebase --interactive \
    {{target_base_branch_or_commit_hash}}`\n\n- Continue a rebase that was interrupted by a merge failure, after \
    editing conflicting files:\n\n`git rebase --continue`\n";

/// The longest event of a stream.
const MAX_EVENT_BYTES: usize = 16 << 20;

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

/// One request with the time of every token.
pub(crate) struct Stream {
    /// One a token.
    pub(crate) token_times: Vec<Instant>,
    /// Tokens of its prompt that the server had computed before.
    pub(crate) num_cached: usize,
}

impl Client {
    /// The server that is named, or else one in this process.
    pub(crate) async fn of(server: &ServerArgs) -> anyhow::Result<Self> {
        let url = match &server.url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => roles::serve_for_bench().await?,
        };
        Self::connect(url, server.api_key.clone()).await
    }

    async fn connect(url: String, api_key: Option<String>) -> anyhow::Result<Self> {
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

    /// Token ids that the model knows, to make prompts of.
    pub(crate) async fn alphabet(&self) -> anyhow::Result<Vec<u32>> {
        let mut ids = self.prompt(TEXT.len()).await?;
        ids.sort_unstable();
        ids.dedup();
        ensure!(!ids.is_empty(), "{} knows no token of an English text", self.url);
        Ok(ids)
    }

    /// Streams exactly `max_tokens` greedy tokens and notes when each comes. The prompt's tokens are taken from
    /// `alphabet`.
    pub(crate) async fn stream(
        &self,
        (prompt, alphabet): (&Prompt, &[u32]),
        (seed, request): (u64, u64),
        max_tokens: usize,
    ) -> anyhow::Result<Stream> {
        let indexes = prompt.tokens(seed, request, alphabet.len());
        let ids: Vec<u32> =
            indexes.into_iter().filter_map(|idx| alphabet.get(idx as usize).copied()).collect();
        let body = json!({"model": self.model, "prompt": ids, "max_tokens": max_tokens, "temperature": 0,
            "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true}, "return_token_ids": true});
        let answer = self.send(self.http.post(self.route("/v1/completions")).json(&body)).await?;
        let mut events = Events::default();
        let mut bytes = answer.bytes_stream();
        while let Some(bytes) = bytes.next().await {
            events.read(&bytes?, Instant::now())?;
        }
        events.end()
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

/// The events of a stream as they come in pieces.
#[derive(Default)]
struct Events {
    unfinished: Vec<u8>,
    token_times: Vec<Instant>,
    num_cached: usize,
    is_done: bool,
}

impl Events {
    fn read(&mut self, bytes: &[u8], now: Instant) -> anyhow::Result<()> {
        ensure!(self.unfinished.len() + bytes.len() <= MAX_EVENT_BYTES, "an event without end");
        self.unfinished.extend_from_slice(bytes);
        let unfinished = std::mem::take(&mut self.unfinished);
        let mut lines = unfinished.split(|byte| *byte == b'\n').peekable();
        while let Some(line) = lines.next() {
            if lines.peek().is_none() {
                self.unfinished = line.to_vec();
            } else if let Some(event) = line.strip_prefix(b"data: ") {
                self.event(event.trim_ascii_end(), now)?;
            }
        }
        Ok(())
    }

    fn event(&mut self, event: &[u8], now: Instant) -> anyhow::Result<()> {
        if event == b"[DONE]" {
            self.is_done = true;
            return Ok(());
        }
        let event: Value = serde_json::from_slice(event).context("an event that is no JSON")?;
        if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
            bail!("{}", error["message"].as_str().unwrap_or("an error without a message"));
        }
        let choice = &event["choices"][0];
        // A server that does not return ids is taken to send a token an event.
        let num_tokens = match choice["token_ids"].as_array() {
            Some(ids) => ids.len(),
            None => usize::from(choice["text"].as_str().is_some_and(|text| !text.is_empty())),
        };
        self.token_times.extend(std::iter::repeat_n(now, num_tokens));
        let cached = &event["usage"]["prompt_tokens_details"]["cached_tokens"];
        if let Some(num_cached) = cached.as_u64() {
            self.num_cached = usize::try_from(num_cached)?;
        }
        Ok(())
    }

    fn end(self) -> anyhow::Result<Stream> {
        ensure!(self.is_done, "the stream broke off");
        ensure!(!self.token_times.is_empty(), "the stream has no token");
        Ok(Stream { token_times: self.token_times, num_cached: self.num_cached })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted_wherever_the_network_cuts() {
        let text = "data: {\"choices\":[{\"text\":\"\",\"token_ids\":[1,2]}]}\n\n\
            data: {\"choices\":[{\"text\":\"b\",\"token_ids\":[3]}]}\r\n\r\n\
            data: {\"choices\":[],\"usage\":{\"prompt_tokens_details\":{\"cached_tokens\":5}}}\n\ndata: [DONE]\n\n";
        for cut in 0..text.len() {
            let mut events = Events::default();
            events.read(&text.as_bytes()[..cut], Instant::now()).unwrap();
            events.read(&text.as_bytes()[cut..], Instant::now()).unwrap();
            let stream = events.end().unwrap();
            assert_eq!((stream.token_times.len(), stream.num_cached), (3, 5));
        }
    }

    #[test]
    fn what_ends_early_or_with_an_error_is_told() {
        let read = |text: &str| {
            let mut events = Events::default();
            events.read(text.as_bytes(), Instant::now())?;
            events.end()
        };
        let error = |text| read(text).map(|_| ()).unwrap_err().to_string();
        assert_eq!(error("data: {\"choices\":[{\"text\":\"a\"}]}\n\n"), "the stream broke off");
        assert_eq!(error("data: {\"error\":{\"message\":\"no\"}}\n\n"), "no");
        assert_eq!(error("data: [DONE]\n\n"), "the stream has no token");
    }
}
