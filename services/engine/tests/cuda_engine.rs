//! The whole engine on a GPU beside the one on the CPU: greedy output of the demo models, many requests at once. Says that it
//! skips where there is no GPU.
#![allow(clippy::unwrap_used, reason = "the helpers of tests, which the lints take for production code")]
#![allow(clippy::print_stderr, reason = "a test that skips, or measures, says so")]

use fused_checkpoint::ModelFiles;
use fused_engine::{Config, Engine};
use fused_lifecycle::Lifecycle;
use fused_proto::common::v1::{LogprobParams, SamplingParams, StoppingParams, TokenLogprobs};
use fused_proto::engine::v1::engine_client::EngineClient;
use fused_proto::engine::v1::{
    GenerateOpening, GenerateRequest, GenerateResponse, GetLoadRequest, PromptChunk, generate_request,
    generate_response,
};
use tonic::Streaming;
use tonic::transport::{Channel, Server};

const NUM_PROMPTS: usize = 100;
const MAX_TOKENS: u32 = 64;
const NUM_TOP: u32 = 10;
/// Log-probabilities this near to each other may change places: what 16-bit activations make of six layers.
const NEARLY_TIED: f32 = 0.15;

/// What a request got.
#[derive(Default)]
struct Output {
    tokens: Vec<u32>,
    /// The likeliest tokens of each position, where asked for.
    top: Vec<Vec<(u32, f32)>>,
    num_preemptions: u32,
}

#[derive(Clone)]
struct Served {
    client: EngineClient<Channel>,
    fingerprint: String,
    lifecycle: Lifecycle,
    tells_logprobs: bool,
}

impl Served {
    fn new(engine: &Engine, lifecycle: Lifecycle, tells_logprobs: bool) -> Self {
        let (channel, listener) = fused_transport::in_memory();
        let server = Server::builder().add_service(engine.service());
        let serving = server.serve_with_incoming_shutdown(listener, lifecycle.stopped());
        lifecycle.spawn("server", async move { serving.await.unwrap() });
        let fingerprint = engine.model_info().vocabulary_fingerprint.clone();
        Self { client: EngineClient::new(channel), fingerprint, lifecycle, tells_logprobs }
    }

    async fn generate(&self, id: usize, token_ids: Vec<u32>, temperature: f32) -> Output {
        let opening = GenerateOpening {
            request_id: Some(id.to_string()),
            vocabulary_fingerprint: Some(self.fingerprint.clone()),
            sampling: Some(SamplingParams {
                temperature: Some(temperature),
                seed: Some(id as i64),
                ..SamplingParams::default()
            }),
            stopping: Some(StoppingParams {
                max_tokens: Some(MAX_TOKENS),
                ignore_eos: Some(true),
                ..StoppingParams::default()
            }),
            logprobs: Some(LogprobParams { num_output: Some(NUM_TOP), ..LogprobParams::default() })
                .filter(|_| self.tells_logprobs),
            ..GenerateOpening::default()
        };
        let mut stream = self.send(opening, token_ids).await;
        let mut output = Output::default();
        while let Some(response) = stream.message().await.unwrap() {
            match response.message.unwrap() {
                generate_response::Message::Tokens(increment) => {
                    output.tokens.extend(increment.token_ids);
                    let top = |position: TokenLogprobs| {
                        position.top.iter().map(|top| (top.token_id(), top.logprob())).collect()
                    };
                    output.top.extend(increment.logprobs.into_iter().map(top));
                }
                generate_response::Message::Finish(finish) => {
                    output.num_preemptions = finish.timings.unwrap().num_preemptions();
                }
                generate_response::Message::PromptInfo(_) => {}
            }
        }
        output
    }

    /// All prompts, as many at once as the engine runs.
    async fn generate_all(&self, prompts: &[Vec<u32>], temperature: f32) -> Vec<Output> {
        let requests =
            prompts.iter().enumerate().map(|(id, prompt)| self.generate(id, prompt.clone(), temperature));
        futures_util::future::join_all(requests).await
    }

    /// The likeliest token behind each position of a text but the last.
    async fn likeliest(&self, id: usize, token_ids: Vec<u32>) -> Vec<u32> {
        let opening = GenerateOpening {
            request_id: Some(format!("scored {id}")),
            vocabulary_fingerprint: Some(self.fingerprint.clone()),
            stopping: Some(StoppingParams { max_tokens: Some(0), ..StoppingParams::default() }),
            logprobs: Some(LogprobParams { num_prompt: Some(1), ..LogprobParams::default() }),
            ..GenerateOpening::default()
        };
        let mut stream = self.send(opening, token_ids).await;
        let mut likeliest = Vec::new();
        while let Some(response) = stream.message().await.unwrap() {
            if let generate_response::Message::PromptInfo(info) = response.message.unwrap() {
                likeliest.extend(info.logprobs.iter().skip(1).map(|position| position.top[0].token_id()));
            }
        }
        likeliest
    }

    async fn send(&self, opening: GenerateOpening, token_ids: Vec<u32>) -> Streaming<GenerateResponse> {
        let prompt = PromptChunk { token_ids, last: Some(true) };
        let messages =
            [generate_request::Message::Opening(opening), generate_request::Message::Prompt(prompt)];
        let messages = messages.map(|message| GenerateRequest { message: Some(message) });
        self.client.clone().generate(tokio_stream::iter(messages)).await.unwrap().into_inner()
    }
}

/// Prompts of 5 to 300 tokens: pieces of those of the golden file, one behind the other.
fn prompts(model: &str) -> Vec<Vec<u32>> {
    let golden = fused_testkit::golden(&format!("{model}.json")).unwrap();
    let texts: Vec<Vec<u32>> = golden["prompts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|prompt| serde_json::from_value(prompt["ids"].clone()).unwrap())
        .collect();
    (0..NUM_PROMPTS)
        .map(|nth| {
            let joined: Vec<u32> = (0..1 + nth % 7)
                .flat_map(|more| texts[(nth + 3 * more) % texts.len()].iter().copied())
                .collect();
            // Five of each beginning, none the same.
            let start = (nth / 20).min(joined.len() - 1);
            joined[start..].iter().copied().take(300).collect()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn greedy_output_is_that_of_the_cpu() {
    for model in ["demo-llama", "demo-gpt2"] {
        let files = ModelFiles::open(&fused_testkit::model_dir(model)).unwrap();
        let lifecycle = Lifecycle::new();
        let config = || Config { max_num_sequences: 32, ..Config::default() };
        let engine = match Engine::start_cuda(0, config(), &files, None, None, &lifecycle) {
            Ok(engine) => engine,
            Err(error) => {
                eprintln!("skipped: {error:?}");
                return;
            }
        };
        eprintln!("{}", engine.model_info().device);
        let gpu = Served::new(&engine, lifecycle, false);
        let lifecycle = Lifecycle::new();
        let engine = Engine::start_cpu(config(), &files, None, None, &lifecycle).unwrap();
        let cpu = Served::new(&engine, lifecycle, true);
        let prompts = prompts(model);
        let expected = cpu.generate_all(&prompts, 0.0).await;
        let began = std::time::Instant::now();
        let outputs = gpu.generate_all(&prompts, 0.0).await;
        eprintln!("{model}: {:?} for {NUM_PROMPTS} x {MAX_TOKENS} tokens", began.elapsed());
        let (mut num_whole, mut num_before, mut widest) = (0, 0, 0.0_f32);
        for (output, expected) in outputs.iter().zip(&expected) {
            assert_eq!(output.tokens.len(), MAX_TOKENS as usize);
            let same = output.tokens.iter().zip(&expected.tokens).take_while(|(a, b)| a == b).count();
            num_before += same;
            if same == MAX_TOKENS as usize {
                num_whole += 1;
                continue;
            }
            // Where the two part, the CPU itself must have found their tokens nearly alike.
            let logprob =
                |token| expected.top[same].iter().find(|(id, _)| *id == token).map(|(_, logprob)| *logprob);
            let margin =
                logprob(expected.tokens[same]).unwrap() - logprob(output.tokens[same]).unwrap_or(f32::MIN);
            widest = widest.max(margin);
        }
        let share = 100.0 * num_before as f64 / (NUM_PROMPTS * MAX_TOKENS as usize) as f64;
        eprintln!(
            "{model}: {num_whole} of {NUM_PROMPTS} the same to the end, {share:.1} % of tokens before the first other one, of \
             which the CPU's log-probabilities differ by {widest:.3} at most"
        );
        assert!(widest < NEARLY_TIED, "{widest}");
        // Given what the CPU has written, which token comes next?
        let mut num_agreed = 0;
        for (id, (prompt, expected)) in prompts.iter().zip(&expected).enumerate() {
            let text = [&prompt[..], &expected.tokens].concat();
            let likeliest = gpu.likeliest(id, text).await;
            let next = &likeliest[prompt.len() - 1..];
            num_agreed += next.iter().zip(&expected.tokens).filter(|(next, token)| next == token).count();
        }
        let agreed = 100.0 * num_agreed as f64 / (NUM_PROMPTS * MAX_TOKENS as usize) as f64;
        eprintln!(
            "{model}: {agreed:.2} % of the CPU's tokens are the GPU's choice too, each behind the same text"
        );
        assert!(agreed >= 99.0, "{agreed}");
        let load = gpu.client.clone().get_load(GetLoadRequest {}).await.unwrap().into_inner();
        assert_eq!((load.running_sequences(), load.kv_bytes_mapped()), (0, 0));
        for served in [gpu, cpu] {
            served
                .lifecycle
                .shut_down(std::time::Duration::from_secs(10), std::time::Duration::from_secs(10))
                .await
                .unwrap();
        }
    }
}

/// 2,000 requests in memory for a fraction of them, a third of which are dropped somewhere on the way.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_whoever_leaves() {
    let files = ModelFiles::open(&fused_testkit::model_dir("demo-llama")).unwrap();
    let lifecycle = Lifecycle::new();
    let config = Config {
        max_num_sequences: 64,
        kv_cache_bytes: Some(32 << 20),
        max_waiting_requests: 4096,
        target_time_to_first_token: None,
        ..Config::default()
    };
    let Ok(engine) = Engine::start_cuda(0, config, &files, None, None, &lifecycle) else {
        eprintln!("skipped: no GPU that can be used");
        return;
    };
    let served = Served::new(&engine, lifecycle, false);
    // A page holds 682 tokens: these grow into their second one. Nobody gives way, because admission leaves a page for each
    // that runs, and no sequence of this model grows by more.
    let prompts: Vec<Vec<u32>> = prompts("demo-llama")
        .into_iter()
        .enumerate()
        .map(|(nth, prompt)| prompt.into_iter().cycle().take(630 + nth % 45).collect())
        .collect();
    let alone = served.generate_all(&prompts[..1], 0.0).await.remove(0);
    let requests = (0..2000_usize).map(|id| {
        let (served, prompt) = (&served, prompts[id % prompts.len()].clone());
        async move {
            let generation = served.generate(1000 + id, prompt, 0.0);
            if id % 3 == 0 {
                // As the request goes, its stream goes.
                let moment = std::time::Duration::from_micros(u64::try_from(id * 7919 % 400_000).unwrap());
                tokio::time::timeout(moment, generation).await.ok()
            } else {
                Some(generation.await)
            }
        }
    });
    let outputs = futures_util::future::join_all(requests).await;
    assert!(outputs.iter().enumerate().all(|(id, output)| id % 3 == 0 || output.is_some()));
    let whole = outputs.iter().flatten();
    assert!(whole.clone().all(|output| output.tokens.len() == MAX_TOKENS as usize));
    eprintln!("{} of 2000 answered, the others left", whole.clone().count());
    let num_preemptions: u32 = whole.map(|output| output.num_preemptions).sum();
    eprintln!("{num_preemptions} times one gave way");
    let same = outputs[100].as_ref().map(|output| output.tokens == alone.tokens);
    eprintln!("the first prompt again: {same:?}");
    let mut load = served.client.clone().get_load(GetLoadRequest {}).await.unwrap().into_inner();
    for _ in 0..1000 {
        if (load.running_sequences(), load.waiting_sequences(), load.kv_bytes_mapped()) == (0, 0, 0) {
            break;
        }
        load = served.client.clone().get_load(GetLoadRequest {}).await.unwrap().into_inner();
    }
    assert_eq!((load.running_sequences(), load.waiting_sequences(), load.kv_bytes_mapped()), (0, 0, 0));
    assert!(load.kv_bytes_parked() <= load.kv_bytes_total());
}
