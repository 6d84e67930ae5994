//! The demo model on real KV memory: greedy output does not depend on who else runs, nor on memory running short.
#![allow(clippy::unwrap_used, reason = "the helpers of tests, which the lints take for production code")]

use std::time::Duration;

use fused_checkpoint::ModelFiles;
use fused_engine::{Config, Engine};
use fused_lifecycle::Lifecycle;
use fused_proto::common::v1::{SamplingParams, StoppingParams};
use fused_proto::engine::v1::engine_client::EngineClient;
use fused_proto::engine::v1::{
    GenerateOpening, GenerateRequest, GetLoadRequest, PromptChunk, generate_request, generate_response,
};
use fused_transport::Channel;
use tonic::service::Routes;

const MAX_TOKENS: u32 = 48;

struct Served {
    client: EngineClient<Channel>,
    fingerprint: String,
    lifecycle: Lifecycle,
}

impl Served {
    fn new(config: Config) -> Self {
        let files = ModelFiles::open(&fused_testkit::model_dir("demo-llama")).unwrap();
        let lifecycle = Lifecycle::new();
        let engine = Engine::start_cpu(config, &files, None, None, &lifecycle).unwrap();
        let channel = fused_transport::in_process(Routes::new(engine.service()), &lifecycle);
        let fingerprint = engine.model_info().vocabulary_fingerprint.clone();
        Self { client: EngineClient::new(channel), fingerprint, lifecycle }
    }

    /// Greedy tokens, and how often the sequence had to give way.
    async fn generate(&self, id: usize) -> (Vec<u32>, u32) {
        let opening = GenerateOpening {
            request_id: Some(id.to_string()),
            vocabulary_fingerprint: Some(self.fingerprint.clone()),
            sampling: Some(SamplingParams { temperature: Some(0.0), ..SamplingParams::default() }),
            stopping: Some(StoppingParams {
                max_tokens: Some(MAX_TOKENS),
                ignore_eos: Some(true),
                ..StoppingParams::default()
            }),
            ..GenerateOpening::default()
        };
        let token_ids =
            (0..20 + 3 * id).map(|idx| u32::try_from((idx * 37 + id * 11) % 400).unwrap()).collect();
        let prompt = PromptChunk { token_ids, last: Some(true) };
        let messages =
            [generate_request::Message::Opening(opening), generate_request::Message::Prompt(prompt)];
        let messages = messages.map(|message| GenerateRequest { message: Some(message) });
        let mut stream =
            self.client.clone().generate(tokio_stream::iter(messages)).await.unwrap().into_inner();
        let (mut tokens, mut num_preemptions) = (Vec::new(), 0);
        while let Some(response) = stream.message().await.unwrap() {
            match response.message.unwrap() {
                generate_response::Message::PromptInfo(_) => {}
                generate_response::Message::Tokens(new) => tokens.extend(new.token_ids),
                generate_response::Message::Finish(finish) => {
                    num_preemptions = finish.timings.unwrap().num_preemptions();
                }
            }
        }
        (tokens, num_preemptions)
    }

    async fn end(mut self) {
        // The load is that of the last step, which is over a moment after its last answers are sent.
        let idle = async {
            loop {
                let load = self.client.get_load(GetLoadRequest {}).await.unwrap().into_inner();
                if (load.running_sequences(), load.waiting_sequences(), load.kv_bytes_mapped()) == (0, 0, 0) {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), idle).await.unwrap();
        drop(self.client);
        self.lifecycle.shut_down(Duration::from_secs(10), Duration::from_secs(10)).await.unwrap();
    }
}

async fn all(served: &Served) -> Vec<(Vec<u32>, u32)> {
    futures_util::future::join_all((0..16).map(|id| served.generate(id))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn greedy_output_is_the_same_alone_together_and_short_of_memory() {
    let served = Served::new(Config::default());
    let mut alone = Vec::new();
    for id in 0..16 {
        alone.push(served.generate(id).await.0);
    }
    assert!(alone.iter().all(|tokens| tokens.len() == MAX_TOKENS as usize));
    let together: Vec<_> = all(&served).await.into_iter().map(|(tokens, _)| tokens).collect();
    assert!(together == alone, "a batch changed the output");
    served.end().await;

    // A third of what the sixteen need, in the smallest pages.
    let config = Config {
        max_model_len: Some(256),
        kv_cache_bytes: Some(2 << 20),
        page_bytes: Some(4096),
        token_budget: 64,
        ..Config::default()
    };
    let served = Served::new(config);
    let (short, preemptions): (Vec<_>, Vec<_>) = all(&served).await.into_iter().unzip();
    assert!(short == alone, "giving way changed the output");
    assert!(preemptions.iter().sum::<u32>() > 0, "memory was not short");
    served.end().await;
}
