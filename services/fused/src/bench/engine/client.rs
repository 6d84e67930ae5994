use std::time::{Duration, Instant};

use anyhow::ensure;
use fused_engine::Engine;
use fused_engine::simulation::Prompt;
use fused_lifecycle::Lifecycle;
use fused_proto::common::v1::{SamplingParams, StoppingParams};
use fused_proto::engine::v1::engine_client::EngineClient;
use fused_proto::engine::v1::{
    FinishInfo, GenerateOpening, GenerateRequest, GetLoadRequest, PromptChunk, generate_request,
    generate_response,
};
use fused_transport::Channel;
use futures_util::future::try_join_all;
use tonic::service::Routes;

use super::case::Batch;
use crate::bench::arguments::EngineBench;
use crate::bench::run::{Request, Run};

/// Sends requests to an engine in this process.
pub(super) struct Client {
    engine: EngineClient<Channel>,
    lifecycle: Lifecycle,
    vocabulary_fingerprint: String,
    vocab_size: usize,
    temperature: f32,
    seed: u64,
    /// Over all runs: no two requests have the same id, or prompts that begin alike.
    num_sent: u64,
}

/// A request that is ready to be sent.
struct Ready {
    engine: EngineClient<Channel>,
    messages: [GenerateRequest; 2],
    num_prompt: usize,
    num_output: usize,
}

impl Client {
    pub(super) fn new(engine: &Engine, arguments: &EngineBench, lifecycle: &Lifecycle) -> Self {
        let channel = fused_transport::in_process(Routes::new(engine.service()), lifecycle);
        let model = engine.model_info();
        Self {
            engine: EngineClient::new(channel),
            lifecycle: lifecycle.clone(),
            vocabulary_fingerprint: model.vocabulary_fingerprint.clone(),
            vocab_size: model.vocab_size,
            temperature: arguments.temperature,
            seed: arguments.seed,
            num_sent: 0,
        }
    }

    /// Physical memory for keys and values.
    pub(super) async fn kv_bytes(&mut self) -> anyhow::Result<u64> {
        Ok(self.engine.get_load(GetLoadRequest {}).await?.into_inner().kv_bytes_total())
    }

    /// Sends all requests of a batch at once and waits for their last tokens.
    ///
    /// # Errors
    /// One of them was refused or cut off.
    pub(super) async fn run(&mut self, batch: &Batch) -> anyhow::Result<Run> {
        // Made before the clock runs: prompts come from outside.
        let ready: Vec<Ready> = batch.lengths.iter().map(|lengths| self.request(*lengths)).collect();
        let start = Instant::now();
        let requests = ready.into_iter().map(|ready| self.lifecycle.spawn("request", ready.send(start)));
        let requests = try_join_all(requests).await?;
        let requests = requests.into_iter().collect::<anyhow::Result<_>>()?;
        Ok(Run { name: batch.name.clone(), requests, steps: Vec::new() })
    }

    fn request(&mut self, (num_prompt, num_output): (usize, usize)) -> Ready {
        let number = self.num_sent;
        self.num_sent += 1;
        let opening = GenerateOpening {
            request_id: Some(number.to_string()),
            vocabulary_fingerprint: Some(self.vocabulary_fingerprint.clone()),
            sampling: Some(SamplingParams {
                temperature: Some(self.temperature),
                seed: Some(self.seed.wrapping_add(number).cast_signed()),
                ..SamplingParams::default()
            }),
            stopping: Some(StoppingParams {
                // Lengths have been checked against the context's, which a request counts in 32 bits.
                max_tokens: Some(u32::try_from(num_output).unwrap_or(u32::MAX)),
                ignore_eos: Some(true),
                ..StoppingParams::default()
            }),
            ..GenerateOpening::default()
        };
        let token_ids = Prompt::unique(num_prompt).tokens(self.seed, number, self.vocab_size);
        let prompt = PromptChunk { token_ids, last: Some(true) };
        let messages =
            [generate_request::Message::Opening(opening), generate_request::Message::Prompt(prompt)];
        Ready {
            engine: self.engine.clone(),
            messages: messages.map(|message| GenerateRequest { message: Some(message) }),
            num_prompt,
            num_output,
        }
    }
}

impl Ready {
    /// Reads the stream to its end. A token's time is that of the message it comes in.
    async fn send(mut self, start: Instant) -> anyhow::Result<Request> {
        let mut stream = self.engine.generate(tokio_stream::iter(self.messages)).await?.into_inner();
        let mut request = Request {
            num_prompt: self.num_prompt,
            inter_token_us: Vec::with_capacity(self.num_output),
            ..Request::default()
        };
        let mut last = start;
        while let Some(response) = stream.message().await? {
            match response.message {
                Some(generate_response::Message::Tokens(tokens)) => {
                    let now = Instant::now();
                    note_tokens(&mut request, tokens.token_ids.len(), now - start, now - last);
                    last = now;
                }
                Some(generate_response::Message::PromptInfo(info)) => {
                    request.num_cached = info.cached_prompt_tokens() as usize;
                }
                Some(generate_response::Message::Finish(finish)) => note_finish(&mut request, &finish),
                None => {}
            }
        }
        ensure!(
            request.num_output == self.num_output,
            "a request ended after {} of {} tokens",
            request.num_output,
            self.num_output
        );
        Ok(request)
    }
}

/// Tokens that come together have no time between them.
fn note_tokens(request: &mut Request, num: usize, since_start: Duration, since_last: Duration) {
    if num == 0 {
        return;
    }
    let since_start_s = since_start.as_secs_f64();
    if request.first_token_s.is_none() {
        request.first_token_s = Some(since_start_s);
    } else {
        request.inter_token_us.push(u32::try_from(since_last.as_micros()).unwrap_or(u32::MAX));
    }
    request.inter_token_us.extend(std::iter::repeat_n(0, num - 1));
    request.num_output += num;
    request.ended_s = Some(since_start_s);
}

fn note_finish(request: &mut Request, finish: &FinishInfo) {
    if let Some(timings) = &finish.timings {
        request.first_scheduled_s = Some(timings.queue_us() as f64 * 1e-6);
        request.num_preemptions = timings.num_preemptions();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokens_time_is_its_messages() {
        let mut request = Request::default();
        let ms = Duration::from_millis;
        note_tokens(&mut request, 2, ms(30), ms(30));
        note_tokens(&mut request, 0, ms(35), ms(5));
        note_tokens(&mut request, 3, ms(50), ms(20));
        assert_eq!((request.first_token_s, request.ended_s, request.num_output), (Some(0.03), Some(0.05), 5));
        assert_eq!(request.inter_token_us, [0, 20_000, 0, 0]);
    }
}
