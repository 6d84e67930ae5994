//! The whole engine on a GPU beside the one on the CPU: output of the demo models, greedy and sampled, many requests at once;
//! and on its own, where memory is short. Says that it skips where there is no GPU.
#![allow(clippy::unwrap_used, reason = "the helpers of tests, which the lints take for production code")]
#![allow(clippy::print_stderr, reason = "a test that skips, or measures, says so")]

use fused_checkpoint::ModelFiles;
use fused_engine::{Config, Engine, WeightSource};
use fused_lifecycle::Lifecycle;
use fused_proto::common::v1::{LogprobParams, SamplingParams, StoppingParams};
use fused_proto::engine::v1::engine_client::EngineClient;
use fused_proto::engine::v1::{
    GenerateOpening, GenerateRequest, GenerateResponse, GetLoadRequest, PromptChunk, generate_request,
    generate_response,
};
use fused_transport::Channel;
use tonic::Streaming;
use tonic::service::Routes;

const NUM_PROMPTS: usize = 100;
const MAX_TOKENS: u32 = 64;
const NUM_TOP: u32 = 10;
/// Log-probabilities this near to each other may change places: what 16-bit activations make of six layers.
const NEARLY_TIED: f32 = 0.15;

/// What a request got.
#[derive(Default)]
struct Output {
    tokens: Vec<u32>,
    /// The log-probability of each token, and the likeliest ones of its position.
    logprobs: Vec<f32>,
    top: Vec<Vec<(u32, f32)>>,
    num_preemptions: u32,
}

#[derive(Clone)]
struct Served {
    client: EngineClient<Channel>,
    fingerprint: String,
    lifecycle: Lifecycle,
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: Some(0.0), ..SamplingParams::default() }
}

/// Everything that a request can ask of sampling.
fn everything() -> SamplingParams {
    SamplingParams {
        temperature: Some(0.8),
        top_p: Some(0.9),
        top_k: Some(40),
        min_p: Some(0.02),
        repetition_penalty: Some(1.1),
        presence_penalty: Some(0.3),
        frequency_penalty: Some(0.2),
        logit_bias: [(7, 2.0), (11, -100.0)].into(),
        ..SamplingParams::default()
    }
}

impl Served {
    fn new(engine: &Engine, lifecycle: Lifecycle) -> Self {
        let channel = fused_transport::in_process(Routes::new(engine.service()), &lifecycle);
        let fingerprint = engine.model_info().vocabulary_fingerprint.clone();
        Self { client: EngineClient::new(channel), fingerprint, lifecycle }
    }

    async fn generate(&self, id: usize, token_ids: Vec<u32>, sampling: SamplingParams) -> Output {
        self.generate_apart(id, token_ids, sampling, None).await
    }

    /// With a salt nobody else's keys and values are used.
    async fn generate_apart(
        &self,
        id: usize,
        token_ids: Vec<u32>,
        sampling: SamplingParams,
        salt: Option<&str>,
    ) -> Output {
        let opening = GenerateOpening {
            cache_salt: salt.map(str::to_owned),
            request_id: Some(id.to_string()),
            vocabulary_fingerprint: Some(self.fingerprint.clone()),
            sampling: Some(SamplingParams { seed: Some(id as i64), ..sampling }),
            stopping: Some(StoppingParams {
                max_tokens: Some(MAX_TOKENS),
                ignore_eos: Some(true),
                ..StoppingParams::default()
            }),
            logprobs: Some(LogprobParams { num_output: Some(NUM_TOP), ..LogprobParams::default() }),
            ..GenerateOpening::default()
        };
        let mut stream = self.send(opening, token_ids).await;
        let mut output = Output::default();
        while let Some(response) = stream.message().await.unwrap() {
            match response.message.unwrap() {
                generate_response::Message::Tokens(increment) => {
                    output.tokens.extend(increment.token_ids);
                    for position in increment.logprobs {
                        output.logprobs.push(position.logprob());
                        output
                            .top
                            .push(position.top.iter().map(|top| (top.token_id(), top.logprob())).collect());
                    }
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
    async fn generate_all(&self, prompts: &[Vec<u32>], sampling: &SamplingParams) -> Vec<Output> {
        let requests = prompts
            .iter()
            .enumerate()
            .map(|(id, prompt)| self.generate(id, prompt.clone(), sampling.clone()));
        futures_util::future::join_all(requests).await
    }

    async fn shut_down(self) {
        let moment = std::time::Duration::from_secs(10);
        self.lifecycle.shut_down(moment, moment).await.unwrap();
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

    /// How many of the tokens behind a prompt are the likeliest ones there.
    async fn num_chosen(&self, id: usize, prompt: &[u32], tokens: &[u32]) -> usize {
        let likeliest = self.likeliest(id, [prompt, tokens].concat()).await;
        likeliest[prompt.len() - 1..]
            .iter()
            .zip(tokens)
            .filter(|(likeliest, token)| likeliest == token)
            .count()
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

/// The engine on a GPU and the one on the CPU; `None`, and a word, where there is no GPU.
fn both(model: &str) -> Option<(Served, Served)> {
    let files = ModelFiles::open(&fused_testkit::model_dir(model)).unwrap();
    let config = || Config { max_num_sequences: 32, ..Config::default() };
    let lifecycle = Lifecycle::new();
    let engine = match Engine::start_cuda(0, config(), &files, None, None, &lifecycle) {
        Ok(engine) => engine,
        Err(error) => {
            eprintln!("skipped: {error:?}");
            return None;
        }
    };
    eprintln!("{}", engine.model_info().device);
    let gpu = Served::new(&engine, lifecycle);
    let lifecycle = Lifecycle::new();
    let engine = Engine::start_cpu(config(), &files, None, None, &lifecycle).unwrap();
    Some((gpu, Served::new(&engine, lifecycle)))
}

#[tokio::test(flavor = "multi_thread")]
async fn greedy_output_is_that_of_the_cpu() {
    for model in ["demo-llama", "demo-gpt2"] {
        let Some((gpu, cpu)) = both(model) else { return };
        let prompts = prompts(model);
        let expected = cpu.generate_all(&prompts, &greedy()).await;
        let began = std::time::Instant::now();
        let outputs = gpu.generate_all(&prompts, &greedy()).await;
        eprintln!("{model}: {:?} for {NUM_PROMPTS} x {MAX_TOKENS} tokens", began.elapsed());
        let (mut num_whole, mut num_before, mut widest, mut largest) = (0, 0, 0.0_f32, 0.0_f32);
        for (output, expected) in outputs.iter().zip(&expected) {
            assert_eq!(output.tokens.len(), MAX_TOKENS as usize);
            let same = output.tokens.iter().zip(&expected.tokens).take_while(|(a, b)| a == b).count();
            num_before += same;
            let differences =
                output.logprobs.iter().zip(&expected.logprobs).take(same).map(|(a, b)| (a - b).abs());
            largest = differences.fold(largest, f32::max);
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
             which the CPU's log-probabilities differ by {widest:.3} at most; a token's own is {largest:.3} off at most"
        );
        assert!(widest < NEARLY_TIED && largest < 2.0 * NEARLY_TIED, "{widest} {largest}");
        // Given what the CPU has written, which token comes next?
        let mut num_agreed = 0;
        for (id, (prompt, expected)) in prompts.iter().zip(&expected).enumerate() {
            num_agreed += gpu.num_chosen(id, prompt, &expected.tokens).await;
        }
        let agreed = 100.0 * num_agreed as f64 / (NUM_PROMPTS * MAX_TOKENS as usize) as f64;
        eprintln!(
            "{model}: {agreed:.2} % of the CPU's tokens are the GPU's choice too, each behind the same text"
        );
        assert!(agreed >= 99.0, "{agreed}");
        let load = gpu.client.clone().get_load(GetLoadRequest {}).await.unwrap().into_inner();
        assert_eq!((load.running_sequences(), load.kv_bytes_mapped()), (0, 0));
        gpu.shut_down().await;
        cpu.shut_down().await;
    }
}

/// The same seed draws the same tokens on the CPU and on the GPU, as long as 16-bit activations do not move a draw across the
/// border between two tokens.
#[tokio::test(flavor = "multi_thread")]
async fn sampled_output_is_that_of_the_cpu() {
    for model in ["demo-llama", "demo-gpt2"] {
        let Some((gpu, cpu)) = both(model) else { return };
        let prompts = prompts(model);
        for sampling in [SamplingParams { temperature: Some(1.0), ..greedy() }, everything()] {
            let expected = cpu.generate_all(&prompts, &sampling).await;
            let outputs = gpu.generate_all(&prompts, &sampling).await;
            let (mut num_first, mut num_same, mut num_drawn, mut largest) = (0, 0, 0, 0.0_f32);
            for (output, expected) in outputs.iter().zip(&expected) {
                assert_eq!(output.tokens.len(), MAX_TOKENS as usize);
                assert!(!output.tokens.contains(&11) || sampling.logit_bias.is_empty());
                let same = output.tokens.iter().zip(&expected.tokens).take_while(|(a, b)| a == b).count();
                num_first += usize::from(same > 0);
                num_same += same;
                num_drawn += (same + 1).min(MAX_TOKENS as usize);
                let differences =
                    output.logprobs.iter().zip(&expected.logprobs).take(same).map(|(a, b)| (a - b).abs());
                largest = differences.fold(largest, f32::max);
            }
            let share = 100.0 * num_same as f64 / num_drawn as f64;
            eprintln!(
                "{model}: behind the same text {share:.1} % of draws are the CPU's, of the first ones {num_first} of \
                 {NUM_PROMPTS}; log-probabilities {largest:.3} off at most"
            );
            // A draw is a place in the sum of 8,192 weights, and so where the border between two tokens lies is uncertain by
            // what all weights before it are.
            assert!(share > 75.0 && num_first > 75, "{share} {num_first}");
            assert!(largest < 4.0 * NEARLY_TIED, "an unlikely token's is less exact, but not by {largest}");
        }
        // Alone, and again, from the first token on: bit for bit.
        for (id, prompt) in prompts.iter().enumerate().take(4) {
            let first = gpu.generate_apart(id, prompt.clone(), everything(), Some("first")).await;
            let again = gpu.generate_apart(id, prompt.clone(), everything(), Some("again")).await;
            assert_eq!((first.tokens, first.logprobs), (again.tokens, again.logprobs));
        }
        gpu.shut_down().await;
        cpu.shut_down().await;
    }
}

/// A model of random weights, a page of whose keys and values holds 32 tokens.
const WIDE_CACHE: &str = r#"{"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":256,"intermediate_size":512,
    "num_hidden_layers":8,"num_attention_heads":16,"num_key_value_heads":16,"head_dim":128,"vocab_size":512,
    "max_position_embeddings":1024,"rms_norm_eps":1e-5,"rope_theta":10000.0,"hidden_act":"silu",
    "tie_word_embeddings":true,"torch_dtype":"bfloat16","eos_token_id":1}"#;

/// 2,000 requests in memory for a fraction of them, so that the younger ones give way again and again; a third are dropped
/// somewhere on the way.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_whoever_leaves_or_gives_way() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), WIDE_CACHE).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    let files = ModelFiles::open(folder.path()).unwrap();
    let lifecycle = Lifecycle::new();
    let config = Config {
        weights: WeightSource::Random,
        max_num_sequences: 64,
        // 64 pages: each request begins with one to four and comes to three to six.
        kv_cache_bytes: Some(128 << 20),
        max_waiting_requests: 4096,
        target_time_to_first_token: None,
        ..Config::default()
    };
    let Ok(engine) = Engine::start_cuda(0, config, &files, None, None, &lifecycle) else {
        eprintln!("skipped: no GPU that can be used");
        return;
    };
    let served = Served::new(&engine, lifecycle);
    // A third of them begin alike.
    let prompt = |id: usize| -> Vec<u32> {
        let own = (0..20 + id % 80).map(|idx| (id * 131 + idx * 17) % 512);
        let common = if id.is_multiple_of(3) { 0..33 } else { 0..0 };
        common.chain(own).map(|token| u32::try_from(token).unwrap()).collect()
    };
    let requests = (0..2000_usize).map(|id| {
        let served = &served;
        async move {
            let generation = served.generate(id, prompt(id), greedy());
            if id % 3 == 1 {
                // As the request goes, its stream goes.
                let moment = std::time::Duration::from_micros(u64::try_from(id * 7919 % 2_000_000).unwrap());
                tokio::time::timeout(moment, generation).await.ok()
            } else {
                Some(generation.await)
            }
        }
    });
    let outputs = futures_util::future::join_all(requests).await;
    assert!(outputs.iter().enumerate().all(|(id, output)| id % 3 == 1 || output.is_some()));
    let whole = outputs.iter().flatten();
    assert!(whole.clone().all(|output| output.tokens.len() == MAX_TOKENS as usize));
    eprintln!("{} of 2000 answered, the others left", whole.clone().count());
    let num_preemptions: u32 = whole.map(|output| output.num_preemptions).sum();
    eprintln!("{num_preemptions} times one gave way");
    assert!(num_preemptions > 100, "memory was to be short");
    // Whoever gave way has gone on with the right text behind it, or hardly a token would be the likeliest one.
    let gave_way = outputs.iter().enumerate().filter_map(|(id, output)| Some((id, output.as_ref()?)));
    let gave_way: Vec<_> = gave_way.filter(|(_, output)| output.num_preemptions > 0).take(50).collect();
    let mut num_chosen = 0;
    for (id, output) in &gave_way {
        num_chosen += served.num_chosen(*id, &prompt(*id), &output.tokens).await;
    }
    let share = 100.0 * num_chosen as f64 / (gave_way.len() * MAX_TOKENS as usize) as f64;
    eprintln!("{share:.2} % of the tokens of {} that gave way are the likeliest", gave_way.len());
    assert!(share > 90.0, "{share}");
    let mut load = served.client.clone().get_load(GetLoadRequest {}).await.unwrap().into_inner();
    for _ in 0..1000 {
        if (load.running_sequences(), load.waiting_sequences(), load.kv_bytes_mapped()) == (0, 0, 0) {
            break;
        }
        load = served.client.clone().get_load(GetLoadRequest {}).await.unwrap().into_inner();
    }
    assert_eq!((load.running_sequences(), load.waiting_sequences(), load.kv_bytes_mapped()), (0, 0, 0));
    assert!(load.kv_bytes_parked() <= load.kv_bytes_total());
    served.shut_down().await;
}
