//! An engine on a GPU of which a neighbour takes nearly all memory while requests run. A program of its own: nobody else on the
//! GPU finds memory meanwhile. Says that it skips where there is no GPU.
#![allow(clippy::unwrap_used, reason = "the helpers of tests, which the lints take for production code")]
#![allow(clippy::print_stderr, reason = "a test that skips, or measures, says so")]

use fused_checkpoint::ModelFiles;
use fused_engine::{Config, Engine, WeightSource};
use fused_gpu::Gpu;
use fused_lifecycle::Lifecycle;
use fused_proto::common::v1::{SamplingParams, StoppingParams};
use fused_proto::engine::v1::engine_client::EngineClient;
use fused_proto::engine::v1::{
    GenerateOpening, GenerateRequest, GetLoadRequest, PromptChunk, generate_request, generate_response,
};
use fused_transport::Channel;
use fused_virtual_memory::{CudaMemory, VirtualMemory};
use tonic::service::Routes;

/// A model of random weights, a page of whose keys and values holds 32 tokens.
const MODEL: &str = r#"{"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":256,"intermediate_size":512,
    "num_hidden_layers":8,"num_attention_heads":16,"num_key_value_heads":16,"head_dim":128,"vocab_size":512,
    "max_position_embeddings":1024,"rms_norm_eps":1e-5,"rope_theta":10000.0,"hidden_act":"silu",
    "tie_word_embeddings":true,"torch_dtype":"bfloat16","eos_token_id":1}"#;
const POOL_BYTES: u64 = 2 << 30;
/// Two sequences of the greatest length, and what the driver wants for itself.
const LEFT_BYTES: usize = 256 << 20;
const MAX_TOKENS: u32 = 400;

/// How many tokens a request got, and how often it gave way.
async fn generate(mut client: EngineClient<Channel>, fingerprint: String, id: u32) -> (usize, u32) {
    let opening = GenerateOpening {
        request_id: Some(id.to_string()),
        vocabulary_fingerprint: Some(fingerprint),
        sampling: Some(SamplingParams { temperature: Some(0.0), ..SamplingParams::default() }),
        stopping: Some(StoppingParams {
            max_tokens: Some(MAX_TOKENS),
            ignore_eos: Some(true),
            ..StoppingParams::default()
        }),
        ..GenerateOpening::default()
    };
    let token_ids = (0..50 + id % 50).map(|idx| (id * 131 + idx * 17) % 512).collect();
    let prompt = PromptChunk { token_ids, last: Some(true) };
    let messages = [generate_request::Message::Opening(opening), generate_request::Message::Prompt(prompt)];
    let messages = messages.map(|message| GenerateRequest { message: Some(message) });
    let mut stream = client.generate(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let (mut num_tokens, mut num_preemptions) = (0, 0);
    while let Some(response) = stream.message().await.unwrap() {
        match response.message.unwrap() {
            generate_response::Message::Tokens(tokens) => num_tokens += tokens.token_ids.len(),
            generate_response::Message::Finish(finish) => {
                num_preemptions = finish.timings.unwrap().num_preemptions();
            }
            generate_response::Message::PromptInfo(_) => {}
        }
    }
    (num_tokens, num_preemptions)
}

/// Takes memory until so much is left.
fn take_all_but(memory: &CudaMemory, gpu: &Gpu, left_bytes: usize) -> Vec<fused_virtual_memory::HandleId> {
    let mut taken = Vec::new();
    for piece in [1_usize << 30, 64 << 20, 2 << 20] {
        while gpu.free_bytes().unwrap() >= left_bytes + piece {
            let Ok(handle) = memory.create(piece) else { break };
            taken.push(handle);
        }
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_gives_way_to_a_neighbour_and_no_stream_fails() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), MODEL).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    let files = ModelFiles::open(folder.path()).unwrap();
    let lifecycle = Lifecycle::new();
    let config = Config {
        weights: WeightSource::Random,
        kv_cache_bytes: Some(POOL_BYTES),
        target_time_to_first_token: None,
        ..Config::default()
    };
    let engine = match Engine::start_cuda(0, config, &files, None, None, &lifecycle) {
        Ok(engine) => engine,
        Err(error) => {
            assert!(std::env::var_os("FUSED_REQUIRE_GPU").is_none(), "{error:?}");
            eprintln!("skipped: {error:?}");
            return;
        }
    };
    let channel = fused_transport::in_process(Routes::new(engine.service()), &lifecycle);
    let mut client = EngineClient::new(channel);
    let fingerprint = engine.model_info().vocabulary_fingerprint.clone();
    let all = |ids: std::ops::Range<u32>| {
        futures_util::future::join_all(ids.map(|id| generate(client.clone(), fingerprint.clone(), id)))
    };

    let (gpu, memory) = (Gpu::open(0).unwrap(), CudaMemory::new(0, 2 << 20, usize::MAX >> 1).unwrap());
    // They run when the memory goes, and need more of it than is left.
    let taking = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        tokio::task::block_in_place(|| take_all_but(&memory, &gpu, LEFT_BYTES))
    };
    let (outputs, taken) = futures_util::future::join(all(0..150), taking).await;
    let num_preemptions: u32 = outputs.iter().map(|(_, num)| num).sum();
    let total = client.get_load(GetLoadRequest {}).await.unwrap().into_inner().kv_bytes_total();
    eprintln!("150 requests, {num_preemptions} times one gave way, {} MiB of 2048 were had", total >> 20);
    assert!(outputs.iter().all(|(num_tokens, _)| *num_tokens == MAX_TOKENS as usize));
    assert!(total < POOL_BYTES, "memory was to be short");

    taken.into_iter().for_each(|handle| memory.release(handle).unwrap());
    let all = |ids: std::ops::Range<u32>| {
        futures_util::future::join_all(ids.map(|id| generate(client.clone(), fingerprint.clone(), id)))
    };
    let outputs = all(150..250).await;
    assert!(outputs.iter().all(|(num_tokens, _)| *num_tokens == MAX_TOKENS as usize));
    let total = client.get_load(GetLoadRequest {}).await.unwrap().into_inner().kv_bytes_total();
    assert_eq!(total, POOL_BYTES, "it has come back");
    let moment = std::time::Duration::from_secs(10);
    lifecycle.shut_down(moment, moment).await.unwrap();
}
